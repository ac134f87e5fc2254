"""How far predicted landmarks are from annotated ones: measuring, and reporting what was found."""

from hihlandmark.evaluation.corruptions import (
    CORRUPTIONS,
    Corruption,
    Robustness,
    corrupted,
    measure_robustness,
    robustness_curve,
)
from hihlandmark.evaluation.metrics import (
    NORMALIZATIONS,
    Evaluation,
    area_under_curve,
    calibration_error,
    calibration_error_interval,
    confidence_interval,
    cumulative_errors,
    exact_area_under_curve,
    failure_rate,
    mean_error,
    normalized_errors,
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

__all__ = [
    "BOX_SOURCES",
    "CORRUPTIONS",
    "NORMALIZATIONS",
    "BoxSource",
    "Corruption",
    "CurvePoint",
    "Evaluation",
    "Jitter",
    "Robustness",
    "area_under_curve",
    "calibration_error",
    "calibration_error_interval",
    "confidence_interval",
    "corrupted",
    "cumulative_errors",
    "evaluate",
    "exact_area_under_curve",
    "failure_rate",
    "fit_official_map",
    "jitter_curve",
    "mean_error",
    "measure_robustness",
    "normalized_errors",
    "robustness_curve",
]
