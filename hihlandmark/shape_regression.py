"""Points corrected by a linear regression from the points that a network finds to annotated ones.

A network that learns from several data sets, partly from mapped points, predicts closed eyes as too
open and open ones as too closed, and the position of one point predicts errors of others. A ridge
regression (Hoerl and Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634) on the points of
training faces, after a similarity transform, corrects both. The integer heatmap alone has points
elsewhere, which says more: the offsets to them are further inputs. It treats a face and its mirror
image alike, except for one constant: annotations may lie to one side of where mirrored ones lie
(those of 300-W by 0.7 % of the inter-ocular distance), which a network that also sees mirrored
images cannot learn.

Points also stray when the crop moves by less than a pixel, as they do from frame to frame of a
video, largely each on its own, so that the other points tell how far. The regression is penalized
for what it leaves of that (tangent propagation, Simard et al. 1991,
https://proceedings.neurips.cc/paper/1991/hash/65658fde58ab3c2b6e5132a39fae7cb9-Abstract.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.crop import invert, similarities, transform_points
from hihlandmark.errors import ConfigurationError
from hihlandmark.shape_prior import ShapePrior, procrustes_mean

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties of the weights to choose from, for shapes with a root mean square distance of 1 from
their center."""
STEADINESS = (0.0, 4.0, 8.0, 16.0, 32.0)
"""Weights of strayed points to choose from, where an annotated point has 1."""
ALLOWED = 0.01
"""Part by which the error may be larger than the smallest one, for steadier points."""
FOLDS = 5
FARTHEST = 0.6
"""Root mean square deviation from the mean shape, in its size, from which on points stay as they
are: a linear map would carry what is no face far away. Faces of WFLW have at most 0.51."""


@dataclass(frozen=True, eq=False)
class ShapeRegression:
    """A linear map from the P points found to the correction of each.

    Attributes:
        mean: (P, 2), centered, with a root mean square distance of 1 from its center: the frame.
        weights: (4P, 2P), from a face's deviation from ``mean`` and the offsets of its points to
            their corrections; (2P, 2P): from the deviation alone.
        constant: (P, 2), added to the corrections.
    """

    mean: FloatArray
    weights: FloatArray
    constant: FloatArray

    def correct(
        self,
        points: FloatArray,
        covariance: FloatArray,
        crop_size: int,
        integer_offset: FloatArray | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """The corrected points of N faces.

        Args:
            points: (N, P, 2) from the heatmaps, in crop pixels; NaN stays NaN.
            covariance: (N, P, 2, 2) of the heatmaps.
            crop_size: not used.
            integer_offset: (N, P, 2) of `CropLandmarks`; None: 0.

        Returns:
            Points (N, P, 2), unchanged where they do not look like a face (`FARTHEST`), and the
            covariance as it is.
        """
        known: BoolArray = np.asarray(np.isfinite(points).all(axis=-1))
        points = np.where(known[..., None], points, 0)
        transform = similarities(points, self.mean, known)
        aligned = transform_points(transform, points)
        deviation = np.where(known[..., None], aligned - self.mean, 0)
        count = np.maximum(known.sum(axis=1), 1)
        is_face = (deviation**2).sum(axis=(1, 2)) < FARTHEST**2 * count
        size = self.mean.size
        moved = deviation.reshape(-1, size) @ self.weights[:size]
        if integer_offset is not None and len(self.weights) > size:
            offset = transform_points(transform, points + integer_offset) - aligned
            offset = np.where(known[..., None], offset, 0)
            moved = moved + offset.reshape(-1, size) @ self.weights[size:]
        correction = (moved.reshape(points.shape) + self.constant) * is_face[:, None, None]
        corrected = transform_points(invert(transform), aligned + correction)
        corrected[~known] = np.nan
        return corrected, covariance


ShapeCorrection = ShapePrior | ShapeRegression
"""What weights may hold to correct the points of a layout by each other."""


class Strays(NamedTuple):
    """How N faces change when their crops are moved a little, K times each.

    Attributes:
        points: (N, K, P, 2), the points found in moved crops, less the move and those found before.
        integer_offset: (N, K, P, 2), the change of that of `CropLandmarks`; None: without.
    """

    points: FloatArray
    integer_offset: FloatArray | None = None


def fit_shape_regression(
    found: FloatArray,
    annotated: FloatArray,
    mirror: IndexArray,
    integer_offset: FloatArray | None = None,
    views: int = 1,
    strays: Strays | None = None,
    independent: Sequence[int] = (),
) -> ShapeRegression:
    """Fit the regression to N faces, without NaN, and to their mirror images.

    The penalty is that of `RIDGES` with the smallest error on faces left out, in `FOLDS` folds.
    With ``strays``, the penalty and the weight of `STEADINESS` are those that leave the least of
    them, of those with an error within `ALLOWED` of the smallest one; not for ``independent``
    points, which would be drawn where the others of the face expect them.

    Args:
        found: (N, P, 2), predicted.
        annotated: (N, P, 2), in the same pixels.
        mirror: (P,), see `Layout.mirror`.
        integer_offset: (N, P, 2) of `CropLandmarks`; None: the regression does without.
        views: how many rows in turn are of the same face, such as crop and mirrored crop.
        strays: of the same faces in the same pixels; None: steadiness does not count.
        independent: points that move on their own, such as lids and pupils.

    Raises:
        ConfigurationError: only one of points and strays has integer offsets.
    """
    if strays is not None and (integer_offset is None) != (strays.integer_offset is None):
        raise ConfigurationError("give the integer offsets of points and strays both, or neither")

    def both(shapes: FloatArray) -> FloatArray:
        return np.concatenate([shapes, shapes[:, mirror] * (-1, 1)])

    def rows(*parts: FloatArray | None) -> FloatArray:
        known = [both(part) for part in parts if part is not None]
        return np.concatenate([part.reshape(len(part), -1) for part in known], axis=1)

    shapes = both(annotated - annotated.mean(axis=1, keepdims=True))
    # The first one gives the frame: upright and symmetric.
    mean = procrustes_mean(np.concatenate([shapes.mean(axis=0, keepdims=True), shapes]))
    transform, aligned, offset = _align(found, integer_offset, mean)
    correction = transform_points(transform, annotated) - aligned
    aside = np.array([correction[..., 0].mean(), 0.0])
    inputs, targets = rows(aligned - mean, offset), rows(correction - aside)
    seen, strayed = np.zeros((0, inputs.shape[1])), np.zeros((0, targets.shape[1]))
    fold = np.tile(np.arange(len(found)) // views % FOLDS, 2)
    fold_of_stray = fold[:0]
    if strays is not None:
        count = strays.points.shape[1]

        def repeated(of_faces: FloatArray) -> FloatArray:
            return np.repeat(of_faces, count, axis=0)

        moved = repeated(found) + strays.points.reshape(-1, *mean.shape)
        moved_offset: FloatArray | None = None
        if integer_offset is not None and strays.integer_offset is not None:
            moved_offset = repeated(integer_offset) + strays.integer_offset.reshape(moved.shape)
        _, moved_aligned, moved_offset = _align(moved, moved_offset, mean)
        # What moves all points of a face alike is lost in the alignment, so it is corrected by the
        # rest of the strays as far as it goes along with that.
        seen = rows(
            moved_aligned - repeated(aligned),
            None if moved_offset is None or offset is None else moved_offset - repeated(offset),
        ) / np.sqrt(count)
        linear = np.swapaxes(transform[:, None, :, :2], -1, -2)
        strayed = rows((strays.points @ linear).reshape(moved.shape)) / np.sqrt(count)
        fold_of_stray = np.repeat(fold.reshape(2, -1), count, axis=1).ravel()
    alone = np.repeat(np.isin(np.arange(len(mean)), list(independent)), 2)  # (2P,)
    whole = _Problem(inputs, targets, seen, strayed)
    chosen = best = RIDGES[-1], 0.0
    if len(np.unique(fold)) == FOLDS:
        errors = dict.fromkeys(product(RIDGES, (0.0,) if strays is None else STEADINESS), 0.0)
        for k in range(FOLDS):
            out, stray_out = fold == k, fold_of_stray == k
            part = _Problem(inputs[~out], targets[~out], seen[~stray_out], strayed[~stray_out])
            for penalties in errors:
                errors[penalties] += part.error(penalties, inputs[out], targets[out])
        best = min((each for each in errors if not each[1]), key=errors.__getitem__)
        largest = (1 + ALLOWED) * min(errors.values())
        allowed = [each for each, error in errors.items() if error <= largest]
        chosen = best
        if strays is not None:
            chosen = min(allowed, key=lambda each: whole.remaining(each)[~alone].sum())
    weights, constant = whole.solve(chosen)
    for fitted, own in zip((weights, constant), whole.solve(best), strict=True):
        fitted[..., alone] = own[..., alone]
    return ShapeRegression(mean, weights, constant.reshape(mean.shape) + aside)


def _align(
    points: FloatArray, integer_offset: FloatArray | None, mean: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """The similarities of points (N, P, 2) to the frame, and points and offsets in it."""
    transform = similarities(points, mean)
    aligned = transform_points(transform, points)
    if integer_offset is None:
        return transform, aligned, None
    return transform, aligned, transform_points(transform, points + integer_offset) - aligned


class _Problem:
    """A linear map from inputs (N, A) to targets (N, B) that also undoes strays.

    ``seen`` (M, A) are strays as inputs show them, ``strayed`` (M, B) those of the outputs.
    """

    def __init__(
        self, inputs: FloatArray, targets: FloatArray, seen: FloatArray, strayed: FloatArray
    ) -> None:
        self.center, self.target = inputs.mean(axis=0), targets.mean(axis=0)
        centered = inputs - self.center
        self.gram, self.cross = centered.T @ centered, centered.T @ (targets - self.target)
        self.seen_gram, self.seen_cross = seen.T @ seen, seen.T @ strayed

    def solve(self, penalties: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
        """The weights (A, B) and the constant (B,), which is not penalized.

        ``penalties``: one of `RIDGES` and one of `STEADINESS`.
        """
        ridge, steadiness = penalties
        penalized = self.gram + steadiness * self.seen_gram + ridge * np.eye(len(self.gram))
        weights = np.linalg.solve(penalized, self.cross - steadiness * self.seen_cross)
        return weights, self.target - self.center @ weights

    def error(
        self, penalties: tuple[float, float], inputs: FloatArray, targets: FloatArray
    ) -> float:
        """The sum of the errors of the points of other faces."""
        weights, constant = self.solve(penalties)
        missed = targets - constant - inputs @ weights
        return float(np.linalg.norm(missed.reshape(-1, 2), axis=1).sum())

    def remaining(self, penalties: tuple[float, float]) -> FloatArray:
        """By how much (B,) the weights change the squares of the strays, in sum."""
        weights, _ = self.solve(penalties)
        return (weights * (2 * self.seen_cross + self.seen_gram @ weights)).sum(axis=0)
