"""Measures of calibration: pure functions of scores and outcomes.

Scores are claimed probabilities in 0..1, outcomes booleans. Arrays hold no NaN: callers leave out
unknown points. A statistic of no points is NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray

BINS = 10
RESAMPLES = 1000


class ReliabilityBins(NamedTuple):
    """Counts, mean scores and shares of true outcomes of points in bins (B,); NaN where empty."""

    counts: IndexArray
    scores: FloatArray
    shares: FloatArray


def reliability_bins(scores: FloatArray, outcomes: BoolArray, bins: int = BINS) -> ReliabilityBins:
    """Sort scores (N,) and outcomes (N,) into bins of equal width; a score of 1 is in the last."""
    which = bin_numbers(scores, bins)
    counts = np.bincount(which, minlength=bins)
    divisor = np.where(counts, counts, np.nan)
    sums = (np.bincount(which, weights, minlength=bins) for weights in (scores, outcomes))
    return ReliabilityBins(counts, *(each / divisor for each in sums))


def bin_numbers(scores: FloatArray, bins: int = BINS) -> IndexArray:
    """The bins of equal width that scores lie in, from 0 on; a score of 1 is in the last."""
    return np.minimum((scores * bins).astype(np.intp), bins - 1)


def expected_calibration_error(scores: FloatArray, outcomes: BoolArray, bins: int = BINS) -> float:
    """Mean over points (N,) of the gap between mean score and share of true outcomes in their bin.

    Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.
    """
    found = reliability_bins(scores, outcomes, bins)
    gaps = found.counts * np.abs(found.shares - found.scores)
    return float(np.nansum(gaps) / len(scores)) if len(scores) else np.nan


def brier_score(scores: FloatArray, outcomes: BoolArray) -> float:
    """Mean squared difference (0..1) of scores (N,) and outcomes (N,); Brier 1950, for two classes.

    Unlike the calibration error it also measures how well scores discriminate.
    """
    return float(np.mean((scores - outcomes) ** 2)) if len(scores) else np.nan


def ellipse_coverage(distances: FloatArray, level: float) -> float:
    """Share (0..1) of true points in the ellipse that should contain a share of ``level`` (0..1).

    ``distances``: (N,) squared Mahalanobis distances of the true points. In two dimensions a
    Gaussian has the share 1 - exp(-d / 2) within the squared distance d.
    """
    return float(np.mean(distances <= -2 * np.log1p(-level))) if len(distances) else np.nan


def area_under_roc(
    values: FloatArray, positive: BoolArray, strata: NDArray[Any] | None = None
) -> float:
    """Probability that a positive has the larger of two values (N,), ties counting half.

    The Mann-Whitney statistic divided by the number of pairs. With ``strata`` (N,), only pairs of
    the same stratum count. NaN without such a pair of a positive and a negative.
    """
    return _area(*_places(values, strata), positive, np.ones(len(values)))


def bootstrap_area_under_roc(
    values: FloatArray,
    positive: BoolArray,
    groups: NDArray[Any],
    strata: NDArray[Any] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval of `area_under_roc` at a confidence level in 0..1.

    Whole groups are resampled, by labels (N,) such as the index of the face: points of one face are
    hidden together, so resampling single points would make the interval too narrow. Resamples
    without a positive or a negative are left out; without any others both bounds are NaN.
    """
    places = _places(values, strata)
    names, group = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    areas = np.full(resamples, np.nan)
    for index in range(resamples if len(names) else 0):
        drawn = random.integers(len(names), size=len(names))
        areas[index] = _area(*places, positive, np.bincount(drawn, minlength=len(names))[group])
    if np.isnan(areas).all():
        return np.nan, np.nan
    low, high = np.nanquantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def hidden_point_figures(values: FloatArray, hidden: FloatArray) -> dict[str, Any] | None:
    """How well low values detect hidden points; None where no point, or every point, is hidden.

    "auroc" compares all points, "auroc_same_landmark" only points of the same landmark, because
    some landmarks are both hidden more often and less exact. Both are in 0..1, 0.5 by chance, with
    their 95 % intervals over faces.

    Args:
        values: (N, P) of N faces, NaN where unknown.
        hidden: (N, P), 1 for hidden points, 0 for visible ones, NaN where not stated.
    """
    stated = np.isfinite(hidden) & np.isfinite(values)
    positive = hidden[stated] == 1
    if positive.all() or not positive.any():
        return None
    face, landmark = np.nonzero(stated)
    found: dict[str, Any] = {"hidden": int(positive.sum()), "visible": int((~positive).sum())}
    for name, strata in (("auroc", None), ("auroc_same_landmark", landmark)):
        area = area_under_roc(-values[stated], positive, strata)
        interval = bootstrap_area_under_roc(-values[stated], positive, face, strata)
        found[name] = _rounded(area)
        found[f"{name}_interval"] = [_rounded(value) for value in interval]
    return found


def _rounded(value: float) -> float | None:
    """Rounded for JSON, which has no NaN."""
    return round(value, 4) if np.isfinite(value) else None


def _places(values: FloatArray, strata: NDArray[Any] | None) -> tuple[IndexArray, IndexArray]:
    """The place (N,) of each point in the order by stratum and value, and each place's stratum."""
    stratum = np.zeros(len(values)) if strata is None else np.unique(strata, return_inverse=True)[1]
    pairs, place = np.unique(np.stack([stratum, values]), axis=1, return_inverse=True)
    return place.reshape(-1), pairs[0].astype(np.intp)


def _area(
    place: IndexArray, stratum: IndexArray, positive: BoolArray, weights: NDArray[Any]
) -> float:
    """`area_under_roc` of points with weights (N,), from their `_places`."""
    positives = np.bincount(place, weights * positive, len(stratum))
    negatives = np.bincount(place, weights * ~positive, len(stratum))
    in_stratum = np.bincount(stratum, negatives)
    pairs = np.bincount(stratum, positives) @ in_stratum
    below = np.cumsum(negatives) - negatives / 2 - (np.cumsum(in_stratum) - in_stratum)[stratum]
    return float(positives @ below / pairs) if pairs else np.nan
