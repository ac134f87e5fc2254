"""Fits a `Calibration` to a detector's errors on annotated faces that it was not trained on.

How good a fit is, is in `calibration_report`; how it gets into a model card, in `calibration_card`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import BoolArray, FloatArray
from hihlandmark.calibration.model import MOST_KNOTS, NEAR, Calibration, calibration_features
from hihlandmark.crop import crop_matrix, cut_crop, transform_points
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.evaluation.metrics import normalized_errors
from hihlandmark.layouts import Conversion, get_conversion, get_layout
from hihlandmark.training import missing_extra

Method = Literal["logistic", "isotonic"]
METHODS: tuple[Method, ...] = ("logistic", "isotonic")

MEDIAN_CHI2 = 2 * np.log(2)
"""Median of the squared Mahalanobis distance of a 2-D Gaussian."""
RIDGE = 1e-3
"""Keeps the fit finite when every point of a small split is near."""
SMALLEST_VARIANCE = 1e-6
"""In squared crop pixels: lets the covariance of a heatmap with one hot cell be inverted."""
FOLDS = 5
CROPS_AT_ONCE = 8
"""On a CPU larger batches are slower: their buffers are asked of the operating system each time."""


@dataclass(frozen=True, eq=False)
class PointStatistics:
    """What a detector said of the P points of N faces, and how far it was off.

    ``features`` (N, P, 3) of `calibration_features`; ``errors`` (N, P) in inter-ocular distances;
    ``distances`` (N, P): squared Mahalanobis distances of the true points under the raw covariance;
    both are NaN where the data set does not have the point. ``hidden`` (N, P): 1 where the
    annotators marked a point as hidden, 0 where as visible, NaN where they do not say.
    ``skipped``: a message for each face that could not be used.
    """

    features: FloatArray
    errors: FloatArray
    distances: FloatArray
    hidden: FloatArray
    skipped: tuple[str, ...] = ()

    @property
    def known(self) -> BoolArray:
        """(N, P): whether the point's error is known."""
        return np.isfinite(self.errors)

    @property
    def near(self) -> BoolArray:
        """(N, P): whether the point is within `NEAR`."""
        return self.errors <= NEAR

    def of(self, faces: NDArray[np.intp]) -> PointStatistics:
        """The statistics of some of the faces, by their indices (M,)."""
        return PointStatistics(
            self.features[faces], self.errors[faces], self.distances[faces], self.hidden[faces]
        )


class CalibratedPoints(NamedTuple):
    """What a calibration makes of `PointStatistics`: ``scores`` (N, P), ``distances`` (N, P)."""

    scores: FloatArray
    distances: FloatArray


def fit_calibration(
    detector: Detector, faces: AnnotatedFaces, method: Method = "logistic"
) -> Calibration:
    """The calibration of the detector's layout on annotated faces, cropped around their points.

    The annotations may be in another layout that shares points with the detector's (98 for a
    detector of 68): the fit then sees the shared points only. Raises `ConfigurationError` when
    there is no conversion between the layouts, `DataError` when no face can be used.
    """
    return fit(measure_points(detector, faces), method)


def fit(statistics: PointStatistics, method: Method = "logistic") -> Calibration:
    """The calibration that fits known points best.

    "logistic" maximizes the likelihood of "within `NEAR`" (Platt scaling of two features);
    "isotonic" puts a rising table on top (Zadrozny and Elkan 2002). The covariance is scaled so
    that half of the true points lie in the 50 % ellipse. Raises `ConfigurationError` for another
    method.
    """
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    known = statistics.known
    features, near = statistics.features[known], statistics.near[known]
    scale = float(np.median(statistics.distances[known]) / MEDIAN_CHI2)
    bias, spread, mass = (round(float(weight), 5) for weight in _fit_logistic(features, near))
    calibration = Calibration(bias, spread, mass, round(scale, 5))
    if method == "isotonic":
        return replace(calibration, knots=_fit_knots(calibration.scores_of(features), near))
    return calibration


def calibrated(calibration: Calibration, statistics: PointStatistics) -> CalibratedPoints:
    """Scores and distances of all points under one calibration."""
    scores = calibration.scores_of(statistics.features)
    return CalibratedPoints(scores, statistics.distances / calibration.covariance_scale)


def cross_validated(
    statistics: PointStatistics, method: Method = "logistic", folds: int = FOLDS, seed: int = 0
) -> CalibratedPoints:
    """Scores and distances of each face under a calibration that was fitted on other faces.

    Raises `DataError` for fewer than two faces.
    """
    count = len(statistics.errors)
    if count < 2:
        raise DataError(f"{count} face is too few for cross-validation: give a larger split")
    scores, distances = np.full((2, *statistics.errors.shape), np.nan)
    order = np.random.default_rng(seed).permutation(count)
    for held_out in np.array_split(order, min(folds, count)):
        others = np.setdiff1d(order, held_out)
        fitted = fit(statistics.of(others), method)
        scores[held_out], distances[held_out] = calibrated(fitted, statistics.of(held_out))
    return CalibratedPoints(scores, distances)


# Measuring


def measure_points(
    detector: Detector,
    faces: AnnotatedFaces,
    track: Callable[[AnnotatedFaces], Iterable[AnnotatedFace]] = iter,
) -> PointStatistics:
    """Runs a detector over crops around the true points, several crops at a time.

    Faces whose image cannot be read or whose eye corners, which give the unit of errors, are not
    annotated are left out and named in ``skipped``. ``track`` may wrap the faces in a progress bar.
    Raises as `fit_calibration`.
    """
    annotated = get_layout(faces.layout)
    conversion = get_conversion(annotated, detector.layout)
    box_map = detector.box_map(f"landmarks:{annotated.name}")
    skipped: list[str] = []

    def cut() -> Iterator[_FaceCrop]:
        for face in track(faces):
            try:
                _require_unit(face, conversion)
                box = np.concatenate([np.nanmin(face.points, 0), np.nanmax(face.points, 0)])
                (square,) = box_map.squares(box)
                crop = cut_crop(face.load_image(), square, detector.crop_size)
            except (DataError, ImageError) as error:
                skipped.append(f"{face.name}: {error}")
            else:
                matrix = crop_matrix(square, detector.crop_size)
                points = conversion(transform_points(matrix, face.points))
                yield _FaceCrop(crop, points, _hidden(face, conversion))

    batches = [
        _measure_batch(detector, batch, conversion.exact)
        for batch in _batches(cut(), CROPS_AT_ONCE)
    ]
    if not batches:
        raise DataError(
            f"{faces.name} has no face that can be used for calibration, take another split: "
            f"{'; '.join(skipped[:3]) or 'it is empty'}"
        )
    features, errors, distances, hidden = map(np.concatenate, zip(*batches, strict=True))
    return PointStatistics(features, errors, distances, hidden, tuple(skipped))


class _FaceCrop(NamedTuple):
    """``crop`` (S, S, 3) and ``points`` (P, 2), ``hidden`` (P,) in the detector's layout."""

    crop: NDArray[np.uint8]
    points: FloatArray
    hidden: FloatArray


def _require_unit(face: AnnotatedFace, conversion: Conversion) -> None:
    left, right = conversion(face.points)[list(conversion.target.ocular_pair)]
    if not np.linalg.norm(left - right) > 0:
        where = f" ({face.source})" if face.source else ""
        raise DataError(
            f"its outer eye corners are not annotated or coincide: annotate both{where}"
        )


def _hidden(face: AnnotatedFace, conversion: Conversion) -> FloatArray:
    """(P,) in the target layout as `PointStatistics.hidden`, of points that both layouts share."""
    if face.visible is None:
        return np.full(conversion.target.size, np.nan)
    hidden = conversion.matrix @ ~face.visible
    return np.where(conversion.exact, hidden, np.nan)


def _batches(crops: Iterable[_FaceCrop], size: int) -> Iterator[list[_FaceCrop]]:
    batch: list[_FaceCrop] = []
    for crop in crops:
        batch.append(crop)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _measure_batch(
    detector: Detector, batch: list[_FaceCrop], exact: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """The arrays of `PointStatistics` for a batch, in their order."""
    found = detector.predict_crops(np.stack([face.crop for face in batch]))
    truth = np.stack([face.points for face in batch])
    left, right = detector.layout.ocular_pair
    interocular = np.linalg.norm(found.points[:, left] - found.points[:, right], axis=-1)
    features = calibration_features(found.covariance, found.mass, interocular)
    errors = normalized_errors(found.points, truth, detector.layout.ocular_pair)
    offset = found.points - truth
    covariance = found.covariance + SMALLEST_VARIANCE * np.eye(2)
    away = np.linalg.solve(covariance, offset[..., None])[..., 0]
    distances = (offset * away).sum(axis=-1)
    errors, distances = np.where(exact, (errors, distances), np.nan)
    return features, errors, distances, np.stack([face.hidden for face in batch])


# Fitting


def _fit_logistic(features: FloatArray, near: BoolArray) -> FloatArray:
    """Weights (3,) that maximize the likelihood of ``near`` (N,) given features (N, 3)."""
    with missing_extra():
        from scipy.optimize import minimize

    sign = np.where(near, 1.0, -1.0)

    def negative_log_likelihood(weights: FloatArray) -> float:
        losses = np.logaddexp(0, -sign * (features @ weights))
        return float(losses.mean() + RIDGE * np.square(weights).sum())

    return minimize(negative_log_likelihood, np.zeros(features.shape[1])).x


def _fit_knots(scores: FloatArray, near: BoolArray) -> tuple[tuple[float, float], ...]:
    """Up to `MOST_KNOTS` pairs (score, share near), both rising, from scores (N,).

    Each knot stands for as many points as any other. A point that is near and one that is not are
    added to each (half of either), so that no score promises certainty.
    """
    with missing_extra():
        from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    groups = np.array_split(order, min(MOST_KNOTS, len(order)))
    count = np.array([len(group) for group in groups])
    share = (np.array([near[group].sum() for group in groups]) + 0.5) / (count + 1)
    middle = np.round([scores[group].mean() for group in groups], 5)
    rising = np.round(isotonic_regression(share, weights=count).x, 5)
    # Where many scores are the same to the fifth digit, the last knot of them stands for all.
    last = np.append(np.diff(middle) > 0, True)
    return tuple((float(p), float(q)) for p, q in zip(middle[last], rising[last], strict=True))
