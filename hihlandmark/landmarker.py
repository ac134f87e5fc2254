"""Crops of faces to points: runtime, flip test and correction by the shape. Sees NumPy arrays only.

Prediction, validation and calibration all call `Landmarker`. Where a crop lies in the image is the
business of `crop` and `pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.layouts import Layout
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.shape_regression import ShapeCorrection


@dataclass(frozen=True, eq=False)
class Landmarker:
    """Finds the points of one layout in crops.

    Attributes:
        runtime: crops (N, S, S, 3) uint8 RGB -> `CropLandmarks`, such as a `runtimes.Runtime`.
        layout: the layout of the points.
        crop_size: side S of the crops in pixels.
        flip_test: also run the mirrored crops and combine both results.
        shape_prior: corrects points by the other points of the face; None: no correction.
    """

    runtime: Callable[[Image], CropLandmarks]
    layout: Layout
    crop_size: int
    flip_test: bool = False
    shape_prior: ShapeCorrection | None = None

    def predict(self, crops: Image) -> CropLandmarks:
        """The points of crops.

        Args:
            crops: (N, S, S, 3) uint8 RGB, run at once, and with the flip test the mirrored ones as
                well: one batch of 2N takes less time than two of N.

        Returns:
            Points (N, P, 2) in crop pixels and the other arrays, in float64, not calibrated.
        """
        if not self.flip_test:
            return self.correct(self.decode(crops))
        return self.correct(moment_matched_mean(*self.decode_views(crops)))

    def decode(self, crops: Image) -> CropLandmarks:
        """One run of the network: no flip test, no correction. In float64."""
        found = self.runtime(crops)
        return CropLandmarks._make(
            None if each is None else np.asarray(each, np.float64) for each in found
        )

    def decode_views(self, crops: Image) -> tuple[CropLandmarks, CropLandmarks]:
        """What `decode` finds in the crops, and in their mirror images, as points of the crops."""
        both = self.decode(np.concatenate([crops, crops[:, :, ::-1]]))
        count = len(crops)
        return both.select(slice(count)), self._unflip(both.select(slice(count, None)))

    def finish(self, crops: Image, found: CropLandmarks) -> CropLandmarks:
        """Apply flip test and correction to what `decode` found in the crops."""
        if not self.flip_test:
            return self.correct(found)
        mirrored = self.decode(np.ascontiguousarray(crops[:, :, ::-1]))
        return self.correct(moment_matched_mean(found, self._unflip(mirrored)))

    def correct(self, found: CropLandmarks) -> CropLandmarks:
        """Correct points by the other points of the face."""
        if self.shape_prior is None:
            return found
        points, covariance = self.shape_prior.correct(
            found.points, found.covariance, self.crop_size, found.integer_offset
        )
        return found._replace(points=points, covariance=covariance, integer_offset=None)

    def _unflip(self, found: CropLandmarks) -> CropLandmarks:
        """The points of a mirrored crop as points of the crop."""
        other = found.select((slice(None), self.layout.mirror))
        offset = other.integer_offset
        return other._replace(
            points=other.points * (-1, 1) + (self.crop_size - 1, 0),
            covariance=other.covariance * np.array([[1, -1], [-1, 1]]),
            integer_offset=None if offset is None else offset * (-1, 1),
        )


def in_turn(one: CropLandmarks, other: CropLandmarks) -> CropLandmarks:
    """Two views of N crops in 2N rows: both of the first crop, then both of the second, ..."""
    return CropLandmarks._make(
        None
        if first is None or second is None
        else np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])
        for first, second in zip(one, other, strict=True)
    )


def moment_matched_mean(one: CropLandmarks, other: CropLandmarks) -> CropLandmarks:
    """The Gaussian with mean and covariance of an even mixture of two Gaussians a point.

    Where one of two heatmaps was empty (mass 0), the other one counts alone. Masses, logits of
    visibility and offsets are averaged.
    """
    weight = np.stack([one.mass > 0, other.mass > 0]).astype(np.float64)
    weight[:, ~weight.any(axis=0)] = 1
    weight /= weight.sum(axis=0)
    points: FloatArray = np.einsum("kns,knsi->nsi", weight, np.stack([one.points, other.points]))
    covariances = []
    for found in (one, other):
        offset = found.points - points
        covariances.append(found.covariance + offset[..., :, None] * offset[..., None, :])
    covariance = np.einsum("kns,knsij->nsij", weight, np.stack(covariances))
    averages = (
        None if first is None or second is None else (first + second) / 2
        for first, second in zip(one[2:], other[2:], strict=True)
    )
    return CropLandmarks._make((points, covariance, *averages))
