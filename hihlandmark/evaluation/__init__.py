"""How far predicted landmarks are from annotated ones: measuring, and reporting what was found."""

from hihlandmark.evaluation.metrics import (
    NORMALISATIONS,
    area_under_curve,
    calibration_error,
    confidence_interval,
    cumulative_errors,
    exact_area_under_curve,
    failure_rate,
    mean_error,
    normalised_errors,
)
from hihlandmark.evaluation.protocol import (
    BOX_SOURCES,
    BoxSource,
    Jitter,
    evaluate,
    fit_official_map,
    jitter_curve,
)
from hihlandmark.evaluation.result import Evaluation

__all__ = [
    "BOX_SOURCES",
    "NORMALISATIONS",
    "BoxSource",
    "Evaluation",
    "Jitter",
    "area_under_curve",
    "calibration_error",
    "confidence_interval",
    "cumulative_errors",
    "evaluate",
    "exact_area_under_curve",
    "failure_rate",
    "fit_official_map",
    "jitter_curve",
    "mean_error",
    "normalised_errors",
]
