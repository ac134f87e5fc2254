"""Metrics as functions of arrays (NME, FR, AUC, CED, intervals), and `Evaluation`, their input.

Errors are shares of a unit, not per cent. NaN stands for an unknown error, where there is no
annotation, and is left out of every metric; infinity stands for a face that was not found, which is
a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray
from hihlandmark.calibration.metrics import (
    BINS,
    bin_numbers,
    expected_calibration_error,
    hidden_point_figures,
)
from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import Layout
from hihlandmark.weights.card import NEAR

STEP = 1e-4
"""Distance of the errors at which the CED curve is sampled, as in the code of the HIH authors."""


def point_distances(predicted: FloatArray, truth: FloatArray) -> FloatArray:
    """Distances (..., P) between points (..., P, 2), in their unit.

    NaN where the truth is NaN; infinity where the truth is known and the prediction is not finite.
    """
    distance = np.linalg.norm(predicted - truth, axis=-1)
    distance = np.where(np.isfinite(predicted).all(axis=-1), distance, np.inf)
    return np.where(np.isnan(truth).any(axis=-1), np.nan, distance)


def normalized_errors(
    predicted: FloatArray, truth: FloatArray, pair: tuple[int, int]
) -> FloatArray:
    """Distances (..., P) of points (..., P, 2), in distances of a pair of true points.

    NaN where the pair coincides.
    """
    distance = np.linalg.norm(predicted - truth, axis=-1)
    unit = np.linalg.norm(truth[..., pair[0], :] - truth[..., pair[1], :], axis=-1)
    return _in_units(distance, unit)


def _in_units(distances: FloatArray, unit: FloatArray) -> FloatArray:
    """Distances (..., P) over units (...); NaN where a unit is unknown or 0.

    A missed face (infinity) is a failure in any unit, even where its labels do not define it.
    """
    unit = np.where(unit > 0, unit, np.nan)[..., None]
    return np.where(np.isinf(distances), np.inf, distances / unit)


def interpupil_distances(truth: FloatArray, layout: Layout) -> FloatArray:
    """Distances (N,) between the pupils of points (N, P, 2).

    In layouts without pupils, such as that of 300-W, a pupil is the mean of the points of its eye.
    """
    left, right = (truth[:, list(points)].mean(axis=1) for points in layout.pupils)
    return np.linalg.norm(left - right, axis=-1)


def _extents(truth: FloatArray) -> FloatArray:
    """Widths and heights (N, 2) of the boxes around known points; NaN where there is none."""
    unknown = np.isnan(truth)
    high = np.where(unknown, -np.inf, truth).max(axis=1)
    low = np.where(unknown, np.inf, truth).min(axis=1)
    return np.where(high >= low, high - low, np.nan)


NORMALIZATIONS: Mapping[str, Callable[[FloatArray, Layout], FloatArray]] = {
    "interocular": lambda truth, layout: layout.interocular(truth),
    "interpupil": interpupil_distances,
    "box": lambda truth, layout: np.sqrt(_extents(truth).prod(axis=-1)),
    "diagonal": lambda truth, layout: np.linalg.norm(_extents(truth), axis=-1),
}
"""The units of errors: name -> function from true points (N, P, 2) to lengths (N,) in pixels.

"box" is the square root of the area, "diagonal" that of the box tight around the known points.
"""


def face_errors(errors: FloatArray) -> FloatArray:
    """The mean error (N,) of each face over its known points (N, P); NaN where there is none."""
    return _mean_of_known(errors, axis=1)


def mean_of_found(errors: FloatArray, axis: int | None = None) -> FloatArray:
    """The mean of errors (N, P) along an axis, over the faces that were found; NaN if none was."""
    return _mean_of_known(np.where(np.isinf(errors), np.nan, errors), axis)


def _mean_of_known(values: FloatArray, axis: int | None = None) -> FloatArray:
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mean_error(errors: FloatArray) -> float:
    """The NME: the mean of the errors (N,) of the faces that were found; NaN when none was."""
    return float(mean_of_found(errors))


def failures(errors: FloatArray, threshold: float) -> FloatArray:
    """1 for each of the faces (N,) whose error is above the threshold, else 0; NaN stays NaN."""
    return np.where(np.isnan(errors), np.nan, errors > threshold)


def failure_rate(errors: FloatArray, threshold: float = 0.10) -> float:
    """The share (0..1) of faces (N,) whose error is above the threshold."""
    return float(_mean_of_known(failures(errors, threshold)))


def cumulative_errors(errors: FloatArray, threshold: float = 0.10) -> FloatArray:
    """The CED curve: (K, 2) of error, in steps of `STEP`, and share of faces with at most that."""
    grid, known = _grid(threshold), errors[~np.isnan(errors)]
    below = np.searchsorted(np.sort(known), grid, side="right") / max(len(known), 1)
    return np.stack([grid, below], axis=-1)


def areas(errors: FloatArray, threshold: float) -> FloatArray:
    """The contribution (0..1) of each face (N,) to `area_under_curve`, which is their mean.

    The curve is the mean of unit steps, one per face at its error, and Simpson's rule is linear: a
    face contributes the weights of all grid points from its error on.
    """
    grid = _grid(threshold)
    if len(grid) % 2 == 0:
        raise ValueError(f"Simpson's rule needs a threshold of an even number of {STEP}")
    weights = np.full(len(grid), 2.0)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    from_here_on = np.append(np.cumsum(weights[::-1])[::-1], 0) / weights.sum()
    contributions = from_here_on[np.searchsorted(grid, errors, side="left")]
    return np.where(np.isnan(errors), np.nan, contributions)


def area_under_curve(errors: FloatArray, threshold: float = 0.10) -> float:
    """Area (0..1) under the CED curve of faces (N,) up to the threshold, as in the papers.

    Simpson's rule over the curve at 0, 0.0001, ..., threshold, divided by the threshold: the
    definition in the released code of the HIH authors and of AWing.
    """
    return float(_mean_of_known(areas(errors, threshold)))


def exact_area_under_curve(errors: FloatArray, threshold: float = 0.10) -> float:
    """The same area without a grid: the mean over faces of 1 - min(error, threshold) / threshold.

    This is the integral of the CED curve, which is a step function.
    """
    return float(_mean_of_known(1 - np.minimum(errors, threshold) / threshold))


def _grid(threshold: float) -> FloatArray:
    return np.arange(round(threshold / STEP) + 1) * STEP


def confidence_interval(
    values: FloatArray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over faces (N,), such as NME, FR and AUC.

    ``resamples`` times, faces are drawn with replacement (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapter 13). NaN is left out; ``level`` of the means lie in the interval.
    """
    if not len(values) or np.isnan(values).all():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    known = ~np.isnan(values)
    filled, means = np.where(known, values, 0), np.full(resamples, np.nan)
    for i in range(resamples):
        drawn = rng.integers(0, len(values), len(values))
        if count := known[drawn].sum():
            means[i] = filled[drawn].sum() / count
    return _percentile_interval(means, level)


def calibration_error(scores: FloatArray, errors: FloatArray) -> float:
    """Expected calibration error (0..1) of scores: probabilities of errors of at most `NEAR`.

    Errors are inter-ocular; those that are not finite are left out. NaN when none is left.
    """
    known = np.isfinite(errors) & np.isfinite(scores)
    return expected_calibration_error(scores[known], errors[known] <= NEAR)


def calibration_error_interval(
    scores: FloatArray,
    errors: FloatArray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the `calibration_error` of (N, P), over faces as above.

    Chance adds to an error of absolute values: of few faces, the interval may lie above it.
    """
    known = np.isfinite(errors) & np.isfinite(scores)
    if not known.any():
        return float("nan"), float("nan")
    place = bin_numbers(np.where(known, scores, 0))
    in_bin = known[..., None] & (place[..., None] == np.arange(BINS))
    gaps = np.where(known, (errors <= NEAR) - scores, 0)
    gaps_of_faces = (in_bin * gaps[..., None]).sum(axis=1)  # (N, bins)
    faces = len(scores)
    drawn = np.random.default_rng(seed).multinomial(faces, np.full(faces, 1 / faces), resamples)
    points = drawn @ known.sum(axis=1)
    found = np.abs(drawn @ gaps_of_faces).sum(axis=1) / np.where(points, points, np.nan)
    return _percentile_interval(found, level)


def _percentile_interval(resampled: FloatArray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The predicted and the true points of the N faces of a split.

    Attributes:
        names: of the faces.
        layout: of the P points that are compared.
        truth: (N, P, 2) in pixels of each image; NaN where a point is not annotated, or differs
            between the layouts of detector and data set.
        predicted: (N, P, 2) likewise; NaN for faces that were not found.
        scores: (N, P) in 0..1; NaN likewise.
        units: name of a normalization -> lengths (N,) in pixels.
        normalization: the one in use.
        subsets: names of the subsets that each face belongs to.
        skipped: a message for every sample that could not be used.
        remarks: notes on how this was measured.
        visibility: (N, P) of `Face.visibility`; None: unknown.
        hidden: (N, P), 1 for points annotated as hidden, 0 for visible ones, NaN where not stated;
            None: of no point.
    """

    names: tuple[str, ...]
    layout: Layout
    truth: FloatArray
    predicted: FloatArray
    scores: FloatArray
    units: Mapping[str, FloatArray]
    normalization: str = "interocular"
    subsets: tuple[frozenset[str], ...] = ()
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    visibility: FloatArray | None = None
    hidden: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def normalized(self, normalization: str) -> Evaluation:
        """The same faces with errors in another unit. Raises `ConfigurationError` if unknown."""
        if normalization not in self.units:
            known = ", ".join(NORMALIZATIONS)
            raise ConfigurationError(f"unknown normalization {normalization!r}; there is {known}")
        return replace(self, normalization=normalization)

    def subset(self, name: str) -> BoolArray:
        """Mask (N,) of the faces that belong to a subset."""
        return np.array([name in names for names in self.subsets], bool)

    @property
    def subset_names(self) -> list[str]:
        """Names of all subsets, sorted."""
        return sorted(frozenset[str]().union(*self.subsets))

    @property
    def missed(self) -> BoolArray:
        """Mask (N,) of the faces that were not found: failures, but not part of the NME."""
        return ~np.isfinite(self.predicted.sum(axis=(1, 2)))

    @property
    def distances(self) -> FloatArray:
        """(N, P) in pixels: NaN where there is no annotation, infinite for missed faces."""
        return point_distances(self.predicted, self.truth)

    @property
    def errors(self) -> FloatArray:
        """(N, P) in the unit in use; NaN and infinity as in ``distances``."""
        return self.errors_by(self.normalization)

    def errors_by(self, normalization: str) -> FloatArray:
        """(N, P) in another unit; NaN where its points are not annotated, or coincide."""
        return _in_units(self.distances, self.units[normalization])

    @property
    def face_errors(self) -> FloatArray:
        """(N,): mean over the known points; infinite for missed faces, NaN without annotation."""
        return face_errors(self.errors)

    @property
    def hidden_points(self) -> dict[str, Any] | None:
        """How well low visibility detects hidden points: `hidden_point_figures`."""
        if self.visibility is None or self.hidden is None:
            return None
        return hidden_point_figures(self.visibility, self.hidden)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (0..1) of the scores, by inter-ocular errors."""
        return calibration_error(self.scores, self.errors_by("interocular"))

    @property
    def calibration_error_interval(self) -> tuple[float, float]:
        """Its 95 % interval over faces."""
        return calibration_error_interval(self.scores, self.errors_by("interocular"))
