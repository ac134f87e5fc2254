"""How far predicted landmarks are from annotated ones: measuring, and reporting what was found."""

from hihlandmark.evaluation.corruptions import (
    DISTURBANCES,
    Disturbance,
    Robustness,
    disturbed,
    measure_robustness,
    robustness_curve,
)
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
    CurvePoint,
    Jitter,
    evaluate,
    fit_official_map,
    jitter_curve,
)
from hihlandmark.evaluation.result import Evaluation

__all__ = [
    "BOX_SOURCES",
    "DISTURBANCES",
    "NORMALISATIONS",
    "BoxSource",
    "CurvePoint",
    "Disturbance",
    "Evaluation",
    "Jitter",
    "Robustness",
    "area_under_curve",
    "calibration_error",
    "confidence_interval",
    "cumulative_errors",
    "disturbed",
    "evaluate",
    "exact_area_under_curve",
    "failure_rate",
    "fit_official_map",
    "jitter_curve",
    "mean_error",
    "measure_robustness",
    "normalised_errors",
    "robustness_curve",
]
