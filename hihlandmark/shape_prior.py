"""What faces look like, as a Gaussian over their landmarks, and points corrected by it.

A heatmap knows one point; where it hesitates (a hidden cheek, a profile's far eye), the other
points of the face say where it must be. The prior is a probabilistic PCA of annotated faces
(Tipping and Bishop 1999, https://doi.org/10.1111/1467-9868.00196): after a similarity transform,
the shape is ``mean + z @ modes + e`` with independent normal z, of variance 1, and e, of variance
``noise**2``. Weighed against the heatmaps' covariances it gives the most probable points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
from hihlandmark.crop import invert, similarities, transform_points

LEAST_DEVIATION = 1 / 256
"""Standard deviation that even a sharp heatmap has, in sides of the crop: annotators vary more."""
DEGREES_OF_FREEDOM = 4.0
"""Of the Student t distribution of a heatmap's errors: the fewer, the less an outlier counts. Four
is the usual choice of robust fits (Lange et al. 1989, https://doi.org/10.2307/2290063)."""
ROUNDS = 3
"""Of aligning, solving and weighing anew; a fourth moves points by some 1/50 of a pixel of 256."""


class Corrected(NamedTuple):
    """``points`` (N, P, 2) and the ``covariance`` (N, P, 2, 2) of what is left unknown."""

    points: FloatArray
    covariance: FloatArray


@dataclass(frozen=True, eq=False)
class ShapePrior:
    """The shapes of the faces of one layout with P points.

    Attributes:
        mean: (P, 2), centerd, with a root mean square distance of 1 from its center.
        modes: (K, P, 2), each as long as its standard deviation.
        noise: standard deviation of a coordinate that the modes leave.
        covariance_scale: factor that makes the covariances of the network's heatmaps those of its
            errors, as `Calibration.covariance_scale` of points without prior.
    """

    mean: FloatArray
    modes: FloatArray
    noise: float
    covariance_scale: float = 1.0

    def correct(self, points: FloatArray, covariance: FloatArray, crop_size: int) -> Corrected:
        """The most probable points of N faces, from what the heatmaps say of each point alone.

        ``points`` (N, P, 2), NaN where a heatmap says nothing, and ``covariance`` (N, P, 2, 2) in
        pixels of a crop with sides of ``crop_size``. What is NaN stays NaN.
        """
        known: NDArray[np.bool_] = np.asarray(np.isfinite(points).all(axis=-1))
        points = np.where(known[..., None], points, 0)
        floor = (LEAST_DEVIATION * crop_size) ** 2 * np.eye(2)
        scaled = np.where(known[..., None, None], covariance, 0) * self.covariance_scale
        own: FloatArray = scaled + floor
        weights: FloatArray = known.astype(np.float64)
        found = points
        for _ in range(ROUNDS):
            transform = similarities(found, self.mean, known)
            linear = transform[:, None, :, :2]
            observed = transform_points(transform, points)
            spread = linear @ own @ np.swapaxes(linear, -1, -2)
            corrected, left = self._posterior(observed, spread, weights)
            weights = np.where(known, _student_weights(observed - corrected, spread), 0)
            back = invert(transform)
            found = transform_points(back, corrected)
        linear = back[:, None, :, :2]
        left = linear @ left @ np.swapaxes(linear, -1, -2)
        unknown = ~known
        found[unknown], left[unknown] = np.nan, np.nan
        return Corrected(found, left / self.covariance_scale)

    def _posterior(
        self, observed: FloatArray, spread: FloatArray, weights: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Mean (N, P, 2) and covariance (N, P, 2, 2) of the shape, in the frame of ``mean``.

        ``spread``: covariance of each observed point; ``weights`` (N, P) multiply its inverse. By
        the matrix inversion lemma only K x K systems are to be solved.
        """
        modes = np.moveaxis(self.modes, 0, -1)  # (P, 2, K)
        noise = self.noise**2 * np.eye(2)
        precision = weights[..., None, None] * np.linalg.inv(
            spread + weights[..., None, None] * noise
        )
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
    """The prior of annotated faces (N, P, 2), N >= 2, all their points known.

    ``noise``: in root mean square distances of a shape's points from its center. Modes that vary
    less are left out. Give faces and their mirror images.
    """
    aligned: FloatArray = np.asarray(shapes, np.float64)
    mean = _normalized(aligned[0])
    for _ in range(5):  # generalized Procrustes analysis (Gower 1975)
        aligned = transform_points(similarities(aligned, mean), aligned)
        mean = _normalized(aligned.mean(axis=0))
    deviations = (aligned - mean).reshape(len(aligned), -1)
    deviations -= deviations.mean(axis=0)
    _, sizes, directions = np.linalg.svd(deviations, full_matrices=False)
    deviation = sizes / np.sqrt(len(aligned) - 1)
    kept = deviation > noise
    modes = (deviation[kept, None] * directions[kept]).reshape(-1, *mean.shape)
    return ShapePrior(mean, modes, noise)


def _normalized(shape: FloatArray) -> FloatArray:
    centerd = shape - shape.mean(axis=0)
    return centerd / np.sqrt((centerd**2).sum(axis=1).mean())


def _student_weights(residual: FloatArray, spread: FloatArray) -> FloatArray:
    """How much points (N, P) with residuals (N, P, 2) count, under a Student t distribution."""
    distance = np.einsum("npi,npij,npj->np", residual, np.linalg.inv(spread), residual)
    return (DEGREES_OF_FREEDOM + 2) / (DEGREES_OF_FREEDOM + distance)
