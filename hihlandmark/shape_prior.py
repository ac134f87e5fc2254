"""A Gaussian prior over the shapes of faces, and points corrected by it.

Where the heatmap of a point is uncertain (a hidden cheek, the far eye of a profile), the other
points of the face determine its position. The prior is a probabilistic PCA of annotated faces
(Tipping and Bishop 1999, https://doi.org/10.1111/1467-9868.00196): after a similarity transform,
the shape is ``mean + z @ modes + e`` with independent normal z, of variance 1, and e, of variance
``noise**2``. Combined with the heatmaps' covariances it gives the most probable points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray
from hihlandmark.crop import invert, similarities, transform_points

LEAST_DEVIATION = 1 / 256
"""Smallest standard deviation of a heatmap, in sides of the crop: annotators vary more."""
DEGREES_OF_FREEDOM = 4.0
"""The Student t distribution of a heatmap's errors: the lower, the less weight outliers have. Four
is the usual choice of robust fits (Lange et al. 1989, https://doi.org/10.2307/2290063)."""
ROUNDS = 3
"""Rounds of aligning, solving and reweighting; a fourth moves points by 1/50 of a pixel of 256."""


@dataclass(frozen=True, eq=False)
class ShapePrior:
    """The shapes of the faces of one layout with P points.

    Attributes:
        mean: (P, 2), centered, with a root mean square distance of 1 from its center.
        modes: (K, P, 2), each with its standard deviation as norm.
        noise: standard deviation of a coordinate around the modes.
        covariance_scale: factor from the covariances of the network's heatmaps to those of its
            errors, as `Calibration.covariance_scale` of points without prior.
    """

    mean: FloatArray
    modes: FloatArray
    noise: float
    covariance_scale: float = 1.0

    def correct(
        self,
        points: FloatArray,
        covariance: FloatArray,
        crop_size: int,
        integer_offset: FloatArray | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """The most probable points of N faces.

        Args:
            points: (N, P, 2) from the heatmaps, in crop pixels; NaN stays NaN.
            covariance: (N, P, 2, 2) of the heatmaps.
            crop_size: side of the crop in pixels.
            integer_offset: not used.

        Returns:
            Points (N, P, 2) and their remaining covariance (N, P, 2, 2).
        """
        known: BoolArray = np.asarray(np.isfinite(points).all(axis=-1))
        points = np.where(known[..., None], points, 0)
        floor = (LEAST_DEVIATION * crop_size) ** 2 * np.eye(2)
        covariance = np.where(known[..., None, None], covariance, 0)
        own: FloatArray = covariance * self.covariance_scale + floor
        weights: FloatArray = known.astype(np.float64)
        found = points
        for _ in range(ROUNDS):
            transform = similarities(found, self.mean, known)
            linear = transform[:, None, :, :2]
            observed = transform_points(transform, points)
            spread = linear @ own @ np.swapaxes(linear, -1, -2)
            corrected, left = self._posterior(observed, spread, weights)
            error = observed - corrected
            distance = np.einsum("npi,npij,npj->np", error, np.linalg.inv(spread), error)
            student = (DEGREES_OF_FREEDOM + 2) / (DEGREES_OF_FREEDOM + distance)
            weights = np.where(known, student, 0)
            back = invert(transform)
            found = transform_points(back, corrected)
        linear = back[:, None, :, :2]
        left = linear @ left @ np.swapaxes(linear, -1, -2)
        found[~known], left[~known] = np.nan, np.nan
        return found, left / self.covariance_scale

    def _posterior(
        self, observed: FloatArray, spread: FloatArray, weights: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Mean (N, P, 2) and covariance (N, P, 2, 2) of the shape, in the frame of ``mean``.

        ``spread``: covariance of each observed point; ``weights`` (N, P) multiply its inverse. The
        matrix inversion lemma reduces the systems to K x K.
        """
        modes = np.moveaxis(self.modes, 0, -1)  # (P, 2, K)
        noise = self.noise**2 * np.eye(2)
        weights = weights[..., None, None]
        precision = weights * np.linalg.inv(spread + weights * noise)
        weighted = precision @ modes  # (N, P, 2, K)
        information = np.eye(modes.shape[-1]) + np.einsum("pik,npil->nkl", modes, weighted)
        residual = observed - self.mean
        pull = np.einsum("npik,npi->nk", weighted, residual)
        unknown = np.linalg.inv(information)
        z = (unknown @ pull[..., None])[..., 0]
        by_modes = self.mean + np.einsum("pik,nk->npi", modes, z)
        gain = self.noise**2 * precision
        mean = by_modes + (gain @ (observed - by_modes)[..., None])[..., 0]
        kept = (np.eye(2) - gain) @ modes
        by_shape = kept @ unknown[:, None] @ np.swapaxes(kept, -1, -2)
        return mean, noise - gain * self.noise**2 + by_shape


def fit_shape_prior(shapes: FloatArray, noise: float = 0.02) -> ShapePrior:
    """Fit the prior to shapes (N, P, 2), N >= 2, without NaN: faces and their mirror images.

    ``noise`` is in root mean square distances of a shape's points from its center. Modes that vary
    less are left out.
    """
    mean = procrustes_mean(shapes)
    aligned = transform_points(similarities(shapes, mean), shapes)
    deviations = (aligned - mean).reshape(len(aligned), -1)
    deviations -= deviations.mean(axis=0)
    _, sizes, directions = np.linalg.svd(deviations, full_matrices=False)
    deviation = sizes / np.sqrt(len(aligned) - 1)
    kept = deviation > noise
    modes = (deviation[kept, None] * directions[kept]).reshape(-1, *mean.shape)
    return ShapePrior(mean, modes, noise)


def procrustes_mean(shapes: FloatArray) -> FloatArray:
    """The mean (P, 2) of shapes (N, P, 2) by generalized Procrustes analysis (Gower 1975)."""
    mean = _normalized(np.asarray(shapes[0], np.float64))
    for _ in range(5):
        aligned = transform_points(similarities(shapes, mean), shapes)
        mean = _normalized(aligned.mean(axis=0))
    return mean


def _normalized(shape: FloatArray) -> FloatArray:
    centered = shape - shape.mean(axis=0)
    return centered / np.sqrt((centered**2).sum(axis=1).mean())
