"""Points corrected by a linear regression from the points that a network finds to annotated ones.

A network that learns from several data sets, partly from mapped points, predicts closed eyes as too
open and open ones as too closed, and the position of one point predicts errors of others. A ridge
regression (Hoerl and Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634) on the points of
training faces, after a similarity transform, corrects both. The integer heatmap alone has points
elsewhere, which says more: the offsets to them are further inputs. It treats a face and its mirror
image alike, except for one constant: annotations may lie to one side of where mirrored ones lie
(those of 300-W by 0.7 % of the inter-ocular distance), which a network that also sees mirrored
images cannot learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.crop import invert, similarities, transform_points
from hihlandmark.shape_prior import ShapePrior, procrustes_mean

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties of the weights to choose from, for shapes with a root mean square distance of 1 from
their center."""
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


def fit_shape_regression(
    found: FloatArray,
    annotated: FloatArray,
    mirror: IndexArray,
    integer_offset: FloatArray | None = None,
    views: int = 1,
) -> ShapeRegression:
    """Fit the regression to N faces, without NaN, and to their mirror images.

    The penalty is that of `RIDGES` with the smallest error on faces left out, in `FOLDS` folds.

    Args:
        found: (N, P, 2), predicted.
        annotated: (N, P, 2), in the same pixels.
        mirror: (P,), see `Layout.mirror`.
        integer_offset: (N, P, 2) of `CropLandmarks`; None: the regression does without.
        views: how many rows in turn are of the same face, such as crop and mirrored crop.
    """

    def both(shapes: FloatArray) -> FloatArray:
        return np.concatenate([shapes, shapes[:, mirror] * (-1, 1)])

    def rows(shapes: FloatArray) -> FloatArray:
        return both(shapes).reshape(2 * len(found), -1)

    shapes = both(annotated - annotated.mean(axis=1, keepdims=True))
    # The first one gives the frame: upright and symmetric.
    mean = procrustes_mean(np.concatenate([shapes.mean(axis=0, keepdims=True), shapes]))
    transform = similarities(found, mean)
    aligned = transform_points(transform, found)
    correction = transform_points(transform, annotated) - aligned
    aside = np.array([correction[..., 0].mean(), 0.0])
    inputs, targets = rows(aligned - mean), rows(correction - aside)
    if integer_offset is not None:
        offset = transform_points(transform, found + integer_offset) - aligned
        inputs = np.concatenate([inputs, rows(offset)], axis=1)
    fold = np.tile(np.arange(len(found)) // views % FOLDS, 2)

    def error(ridge: float) -> float:
        """The mean error of the points of faces left out."""
        total = 0.0
        for number in np.unique(fold):
            out = fold == number
            weights, constant = _ridge_regression(inputs[~out], targets[~out], ridge)
            missed = targets[out] - constant - inputs[out] @ weights
            total += np.linalg.norm(missed.reshape(-1, 2), axis=1).sum()
        return total

    ridge = RIDGES[-1] if len(np.unique(fold)) < FOLDS else min(RIDGES, key=error)
    weights, constant = _ridge_regression(inputs, targets, ridge)
    return ShapeRegression(mean, weights, constant.reshape(mean.shape) + aside)


def _ridge_regression(
    inputs: FloatArray, targets: FloatArray, ridge: float
) -> tuple[FloatArray, FloatArray]:
    """The weights (A, B) and the constant (B,), not penalized, from inputs (N, A) to (N, B)."""
    center, constant = inputs.mean(axis=0), targets.mean(axis=0)
    centered = inputs - center
    penalized = centered.T @ centered + ridge * np.eye(inputs.shape[1])
    weights = np.linalg.solve(penalized, centered.T @ (targets - constant))
    return weights, constant - center @ weights
