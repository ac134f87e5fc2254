"""Fit a `Calibration` to a detector's errors on annotated faces that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, get_args

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, Image, IndexArray, Progress
from hihlandmark.calibration.logistic import fit_logistic
from hihlandmark.crop import crop_matrix, cut_crop, transform_points
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces, image_of
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, DataError, ImageError, missing_extra
from hihlandmark.landmarker import in_turn
from hihlandmark.layouts import Conversion, Layout, get_conversion, get_layout
from hihlandmark.logits import sigmoid
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.uncertainty import whitening_axes
from hihlandmark.weights.card import MAX_KNOTS, NEAR, Calibration, Correlation, calibration_features

Method = Literal["logistic", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)

MEDIAN_CHI2 = 2 * np.log(2)
"""Median of the squared Mahalanobis distance of a 2-D Gaussian."""
RIDGE = 1e-4
"""On standardized features. Keeps the fit finite when nearly every point of a split is near."""
FEW_FAR = 10
"""With fewer points that are not near, these do not show how scores follow from spread and mass."""
FACES_FOR_PARTS = 50
"""With fewer faces, parts have no bias of their own: the points of a part err together. Fitted to
20 faces, biases made the scores of harder faces too high."""
SMALLEST_VARIANCE = 1e-6
"""In squared crop pixels: makes the covariance of a heatmap with a single cell invertible."""
RANK = 6
"""Loadings of a point's error in each direction. Keeps the card small: the likelihood of held-back
faces still rises slowly up to 12."""
LONGEST = 4.0
"""Whitened errors are clipped to this: single gross errors would decide the correlations."""
LEAST_ALONE = 0.05
"""Share of the variance of each error that is not shared with other points, at least."""
FEW_FACES = 10
"""Correlations of this many faces are trusted by half."""
FOLDS = 5
CROPS_AT_ONCE = 8
"""Larger batches are slower on a CPU, which allocates their buffers anew each time."""


@dataclass(frozen=True, eq=False)
class PointStatistics:
    """A detector's output on the P points in N crops, and its errors.

    Attributes:
        features: (N, P, 3) of `calibration_features`.
        errors: (N, P) in inter-ocular distances; NaN where the point is not annotated.
        distances: (N, P) squared Mahalanobis distances under the raw covariance; NaN likewise.
        hidden: (N, P), 1 where annotated as hidden, 0 as visible, NaN where not stated.
        skipped: a message for each face that could not be used.
        whitened: (N, P, 2) errors whitened by the raw covariance, in the axes of an upright face;
            NaN where the point is not annotated. None: correlations are not fitted.
        layout: of the points, for their symmetry.
        visibility: (N, P) logits of being visible; None: the network does not predict them.
        views: how many crops in turn are of one face.
        photos: of each face, the photograph that it is from. (): each is from another one.
    """

    features: FloatArray
    errors: FloatArray
    distances: FloatArray
    hidden: FloatArray
    skipped: tuple[str, ...] = ()
    whitened: FloatArray | None = None
    layout: Layout | None = None
    visibility: FloatArray | None = None
    views: int = 1
    photos: tuple[str, ...] = ()

    @property
    def faces(self) -> int:
        """The number of faces."""
        return len(self.errors) // self.views

    @property
    def known(self) -> BoolArray:
        """(N, P): whether the point's error is known."""
        return np.isfinite(self.errors)

    @property
    def near(self) -> BoolArray:
        """(N, P): whether the point is within `NEAR`."""
        return self.errors <= NEAR

    def crops_of(self, faces: IndexArray) -> IndexArray:
        """The indices of the crops of faces, by their indices (M,)."""
        return (faces[:, None] * self.views + np.arange(self.views)).ravel()

    def select(self, faces: IndexArray) -> PointStatistics:
        """The statistics of some of the faces, by their indices (M,)."""
        crops = self.crops_of(faces)
        return PointStatistics(
            self.features[crops],
            self.errors[crops],
            self.distances[crops],
            self.hidden[crops],
            whitened=None if self.whitened is None else self.whitened[crops],
            layout=self.layout,
            visibility=None if self.visibility is None else self.visibility[crops],
            views=self.views,
            photos=tuple(self.photos[face] for face in faces) if self.photos else (),
        )


class CalibratedPoints(NamedTuple):
    """`PointStatistics` under a calibration: ``scores`` (N, P) and ``distances`` (N, P)."""

    scores: FloatArray
    distances: FloatArray


def fit(statistics: PointStatistics, method: Method = "logistic") -> Calibration:
    """Fit a calibration to the known points.

    The covariance is scaled so that half of the true points lie in the 50 % ellipse. The method
    "logistic" maximizes the likelihood of "within `NEAR`" (Platt scaling of two features, with a
    bias for each part of the face, which a part shares with its mirror image, from
    `FACES_FOR_PARTS` faces on); "isotonic" adds a rising table (Zadrozny and Elkan 2002).

    Raises:
        ConfigurationError: the method is unknown, or SciPy is missing.
    """
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    known = statistics.known
    scale = float(np.median(statistics.distances[known]) / MEDIAN_CHI2)
    (bias, spread, mass), point_bias = _fit_scores(statistics)
    scale = max(round(scale, 5), 1e-5)
    fitted = Calibration(
        bias=bias,
        spread=spread,
        mass=mass,
        point_bias=point_bias,
        covariance_scale=scale,
        correlation=_fit_correlation(statistics, scale),
    )
    if method == "logistic":
        return fitted
    scores = fitted.scores_of(statistics.features)[known]
    return fitted.model_copy(update={"knots": _fit_knots(scores, statistics.near[known])})


def calibrated(calibration: Calibration, statistics: PointStatistics) -> CalibratedPoints:
    """Scores and distances of all points under one calibration."""
    scores = calibration.scores_of(statistics.features)
    return CalibratedPoints(scores, statistics.distances / calibration.covariance_scale)


def cross_validated(
    statistics: PointStatistics, method: Method = "logistic", folds: int = FOLDS, seed: int = 0
) -> CalibratedPoints:
    """`calibrated`, with each face under a calibration fitted on the other random ``folds``.

    Faces of one photograph are in one fold, unless all are of the same one. Raises `DataError` for
    fewer than two faces.
    """
    numbers = {photo: n for n, photo in enumerate(dict.fromkeys(statistics.photos))}
    everything = np.arange(statistics.faces)
    of_photos = np.array([numbers[each] for each in statistics.photos])
    photo = of_photos if len(numbers) > 1 else everything
    count = len(np.unique(photo))
    if count < 2:
        raise DataError(f"{count} face is too few for cross-validation: use a larger split")
    scores, distances = np.full((2, *statistics.errors.shape), np.nan)
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, min(folds, count)):
        held_out = np.flatnonzero(np.isin(photo, part))
        fitted = fit(statistics.select(np.setdiff1d(everything, held_out)), method)
        crops = statistics.crops_of(held_out)
        scores[crops], distances[crops] = calibrated(fitted, statistics.select(held_out))
    return CalibratedPoints(scores, distances)


# Measuring


def measure_points(
    detector: Detector,
    faces: AnnotatedFaces,
    progress: Progress | None = None,
    mirrored: bool = False,
) -> PointStatistics:
    """Run a detector on crops around the true points.

    Faces whose image cannot be read, or whose outer eye corners are not annotated, are left out and
    named in ``skipped``.

    Args:
        detector: its current calibration does not matter.
        faces: in the detector's layout, or one that shares points with it, such as 98 annotated
            points for a detector of 68: only shared points count then.
        progress: called with the number of faces done and of all faces.
        mirrored: measure each face twice, in its crop and in the mirrored crop, unless the detector
            has a flip test, which runs both: less depends on chance.

    Raises `DataError` if no face can be used.
    """
    landmarker = detector.landmarker
    conversion = get_conversion(get_layout(faces.layout), landmarker.layout)
    if not conversion.exact.any():
        raise ConfigurationError(
            f"no point of {conversion.target.name} is annotated in {faces.name}, whose layout is "
            f"{faces.layout}: all are interpolated"
        )
    views = 2 if mirrored and not landmarker.flip_test else 1
    skipped: list[str] = []
    batches = []
    photos: list[str] = []
    for crops, truth, hidden, of in labeled_crops(detector, faces, conversion, skipped, progress):
        photos += of
        if views == 1:
            found = detector.predict_crops(crops)
        else:
            found = landmarker.correct(in_turn(*landmarker.decode_views(crops)))
        truth, hidden = (np.repeat(each, views, axis=0) for each in (truth, hidden))
        batches.append((hidden, *_measure(landmarker.layout, found, truth, conversion.exact)))
    if not batches:
        reasons = "; ".join(skipped[:3]) or "it is empty"
        raise DataError(f"{faces.name} has no face to calibrate with, use another split: {reasons}")
    columns = map(np.concatenate, zip(*batches, strict=True))
    hidden, features, errors, distances, whitened, visibility = columns
    return PointStatistics(
        features,
        errors,
        distances,
        hidden,
        tuple(skipped),
        whitened,
        conversion.target,
        None if np.isnan(visibility).all() else visibility,
        views,
        tuple(photos),
    )


def labeled_crops(
    detector: Detector,
    faces: AnnotatedFaces,
    conversion: Conversion,
    skipped: list[str],
    progress: Progress | None = None,
) -> Iterator[tuple[Image, FloatArray, FloatArray, Sequence[str]]]:
    """Batches of crops around the true points, for a detector.

    Args:
        detector: decides on the crop.
        faces: those that cannot be used are left out.
        conversion: from the layout of the faces.
        skipped: gets a message for each face that was left out.
        progress: called with the number of faces done and of all faces.

    Yields:
        Crops (N, S, S, 3), points (N, P, 2) in crop pixels, `hidden_points` (N, P), and the
        photographs (N) that the faces are from.
    """
    box_map = detector.box_map(f"landmarks:{conversion.source.name}")
    size = detector.landmarker.crop_size

    def cut() -> Iterator[tuple[Image, FloatArray, FloatArray, str]]:
        for done, face in enumerate(faces, start=1):
            try:
                if not conversion.target.interocular(conversion(face.points)) > 0:
                    where = f" ({face.source})" if face.source else ""
                    raise DataError(f"annotate both outer eye corners{where}")
                box = np.concatenate([np.nanmin(face.points, 0), np.nanmax(face.points, 0)])
                (square,) = box_map.squares(box)
                crop = cut_crop(face.load_image(), square, size)
            except (DataError, ImageError) as error:
                skipped.append(f"{face.name}: {error}")
            else:
                points = conversion(transform_points(crop_matrix(square, size), face.points))
                photo = face.photo or image_of(face.name)
                yield crop, points, hidden_points(face, conversion), photo
            if progress:
                progress(done, len(faces))

    cuts = cut()
    while batch := list(islice(cuts, CROPS_AT_ONCE)):
        *columns, photos = zip(*batch, strict=True)
        crops, truth, hidden = map(np.stack, columns)
        yield crops, truth, hidden, photos


def hidden_points(face: AnnotatedFace, conversion: Conversion) -> FloatArray:
    """(P,) in the target layout as `PointStatistics.hidden`; NaN for points not shared."""
    hidden = 1 - face.visibility
    return np.where(conversion.exact, hidden[conversion.matrix.argmax(axis=1)], np.nan)


def _measure(
    layout: Layout, found: CropLandmarks, truth: FloatArray, exact: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """What `PointStatistics` holds of crops with true points: all but hidden points."""
    offset = found.points - truth
    interocular = layout.interocular(found.points)
    features = calibration_features(found.covariance, found.mass, interocular)
    errors = np.linalg.norm(offset, axis=-1) / layout.interocular(truth)[:, None]
    covariance = found.covariance + SMALLEST_VARIANCE * np.eye(2)
    solved = np.linalg.solve(covariance, offset[..., None])[..., 0]
    distances = (offset * solved).sum(axis=-1)
    to_image = whitening_axes(found.points, covariance, layout)
    whitened = np.linalg.solve(to_image, offset[..., None])[..., 0]
    errors, distances = np.where(exact, (errors, distances), np.nan)
    whitened = np.where(exact[:, None], whitened, np.nan)
    visibility = np.full(errors.shape, np.nan) if found.visibility is None else found.visibility
    return features, errors, distances, whitened, visibility


# Fitting


def _fit_scores(statistics: PointStatistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weights of the three features and biases of the P points, none without parts.

    They maximize the likelihood of "within `NEAR`".
    """
    known = statistics.known
    features, near = statistics.features[known], statistics.near[known]
    if np.count_nonzero(~near) < FEW_FAR:
        return _rounded(_with_usual_slopes(features, near)), ()
    # The ridge must not depend on the scale of the features, which are strongly correlated.
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    mean[0], std[0] = 0, 1  # the constant
    layout = statistics.layout if statistics.faces >= FACES_FOR_PARTS else None
    parts = _symmetric_parts(layout, known.shape[1])
    of_parts = np.broadcast_to(parts, (*known.shape, parts.shape[1]))[known]
    columns = np.concatenate([(features - mean) / std, of_parts], axis=1)
    ridge = np.full(columns.shape[1], RIDGE)
    found = fit_logistic(columns, near.astype(np.float64), ridge)
    weights, biases = found[: len(mean)] / std, parts @ found[len(mean) :]
    weights[0] -= mean @ weights
    return _rounded(weights), _rounded(biases) if parts.shape[1] else ()


def _with_usual_slopes(features: FloatArray, near: BoolArray) -> FloatArray:
    """Weights of which the constant alone is fitted: the mean score is the share of near points."""
    with missing_extra("train"):
        from scipy.optimize import brentq

    usual = Calibration()
    logits = features @ np.array([0, usual.spread, usual.mass])
    share = (np.count_nonzero(near) + 0.5) / (len(near) + 1)
    bias = brentq(lambda bias: sigmoid(bias + logits).mean() - share, -100, 100)
    return np.array([bias, usual.spread, usual.mass])


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(np.round(values, 5).tolist())


def _symmetric_parts(layout: Layout | None, count: int) -> FloatArray:
    """Which of P points belong to which of Q parts of the face, joined with their mirror images.

    Returns:
        (P, Q) of 0 and 1; Q is 0 without a layout, and if a single part holds all points.
    """
    if layout is None:
        return np.zeros((count, 0))
    joined = {frozenset([*part, *layout.mirror[list(part)]]) for part in layout.parts.values()}
    rows = [np.isin(np.arange(count), list(part)) for part in sorted(joined, key=min)]
    parts = np.array(rows, np.float64).reshape(-1, count).T
    return parts[:, ~parts.all(axis=0)]


def _fit_correlation(statistics: PointStatistics, covariance_scale: float) -> Correlation | None:
    """Principal factors of whitened errors and of those of the mirrored faces."""
    if statistics.whitened is None or statistics.layout is None:
        return None
    errors = statistics.whitened / np.sqrt(covariance_scale)
    mirrored = errors[:, statistics.layout.mirror] * (-1, 1)
    rows = np.concatenate([errors, mirrored]).clip(-LONGEST, LONGEST).reshape(2 * len(errors), -1)
    known = np.isfinite(rows).astype(np.float64)
    rows = np.nan_to_num(rows)
    # Where nothing is known: independent, with a standard deviation of 1.
    counts = known.T @ known
    moments = np.where(counts > 0, rows.T @ rows / np.maximum(counts, 1), np.eye(len(counts)))
    std = np.sqrt(np.diag(moments)).clip(min=1e-3)
    trust = statistics.faces / (statistics.faces + FEW_FACES)
    correlation = moments / np.outer(std, std) * trust
    alone = np.full(len(std), 0.5)
    for _ in range(100):
        variances, directions = np.linalg.eigh(
            correlation * (1 - np.eye(len(std))) + np.diag(1 - alone)
        )
        strongest = slice(-1, -1 - min(RANK, len(std)), -1)
        loadings = directions[:, strongest] * np.sqrt(variances[strongest].clip(min=0))
        alone = (1 - (loadings**2).sum(axis=1)).clip(LEAST_ALONE, 1)
    norm = np.sqrt((loadings**2).sum(axis=1) / (1 - LEAST_ALONE))
    loadings = loadings / np.maximum(norm, 1)[:, None]
    return Correlation(
        std=tuple(np.round(std, 3).tolist()),
        loadings=tuple(map(tuple, np.round(loadings, 3).tolist())),
    )


def _fit_knots(scores: FloatArray, near: BoolArray) -> tuple[tuple[float, float], ...]:
    """Up to `MAX_KNOTS` pairs (score, share near), both rising, from scores (N,).

    Knots stand for equal numbers of points. Half a near point and half a far point are added to
    each, so that no score is 0 or 1.
    """
    with missing_extra("train"):
        from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    groups = np.array_split(order, min(MAX_KNOTS, len(order)))
    count = np.array([len(group) for group in groups])
    share = (np.array([near[group].sum() for group in groups]) + 0.5) / (count + 1)
    middle = np.round([scores[group].mean() for group in groups], 5)
    rising = np.round(isotonic_regression(share, weights=count).x, 5)
    # Of knots that are equal to the fifth digit only the last is kept.
    last = np.append(np.diff(middle) > 0, True)
    return tuple((float(p), float(q)) for p, q in zip(middle[last], rising[last], strict=True))
