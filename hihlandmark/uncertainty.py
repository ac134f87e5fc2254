"""How the errors of a face's points vary together, and what that means for values made of them.

The covariances of a face describe each point alone. Neighboring points err together: when a lid is
drawn too low, its other points are as well. `ErrorCorrelation` describes that for all faces of a
layout, in units of their covariances; `axes` combines both for one face, and `propagate` carries
the result through any function of the points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hihlandmark.arrays import FloatArray, IndexArray
from hihlandmark.crop import roll_angles

if TYPE_CHECKING:
    from hihlandmark.layouts import Layout

SMALLEST_VARIANCE = 1e-9
"""In squared pixels: the square root of a covariance stays invertible."""
_STEP = np.sqrt(3)
"""Standard deviations from the center: exact to fourth moments of a Gaussian."""


@dataclass(frozen=True, eq=False)
class ErrorCorrelation:
    """The covariance of whitened errors of a layout's points: low rank plus diagonal.

    An error is whitened by the symmetric square root of the point's covariance and turned into the
    axes of an upright face, so the model holds for faces of any size and rotation.

    Attributes:
        std: (P, 2) standard deviations of whitened errors, across and down the face; 1 where the
            covariances of points are exact.
        loadings: (P, 2, K), the correlated part in units of ``std``. Rows have a norm below 1.
    """

    std: FloatArray
    loadings: FloatArray

    @classmethod
    def independent(cls, points: int) -> ErrorCorrelation:
        """The model for points whose correlations are unknown."""
        return cls(np.ones((points, 2)), np.zeros((points, 2, 0)))

    def converted(self, weights: FloatArray) -> ErrorCorrelation:
        """The model of points that are interpolated with weights (Q, P)."""
        std = np.abs(weights) @ self.std
        together = np.einsum("qp,pik->qik", weights, self.loadings * self.std[..., None])
        return ErrorCorrelation(std, _shorter_than_1(together / std[..., None]))


def _shorter_than_1(loadings: FloatArray) -> FloatArray:
    norm = np.linalg.norm(loadings, axis=-1, keepdims=True)
    return np.asarray(loadings / np.maximum(norm, 1))


def whitening_axes(points: FloatArray, covariance: FloatArray, layout: Layout) -> FloatArray:
    """Matrices (N, P, 2, 2) that turn whitened errors of upright faces into errors in the image.

    ``points``: (N, P, 2); ``covariance``: (N, P, 2, 2).
    """
    variances, directions = np.linalg.eigh(covariance.astype(np.float64))
    lengths = np.sqrt(np.maximum(variances, SMALLEST_VARIANCE))
    root = (directions * lengths[..., None, :]) @ np.swapaxes(directions, -1, -2)
    angle = roll_angles(points.astype(np.float64), layout.mean_shape)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), -1, 0)
    return np.asarray(root @ turn[:, None])


def axes(
    points: FloatArray,
    covariance: FloatArray,
    layout: Layout,
    model: ErrorCorrelation | None,
    used: IndexArray | None = None,
) -> FloatArray:
    """Independent directions of error (N, A, k, 2) of N faces, one standard deviation long.

    Their outer products sum to the full covariance of the points.

    Args:
        points: (N, P, 2) in pixels.
        covariance: (N, P, 2, 2) in squared pixels.
        layout: of the points.
        model: None: the errors of points are independent.
        used: the k points of interest; None: all.
    """
    model = model or ErrorCorrelation.independent(layout.size)
    used = np.arange(layout.size) if used is None else used
    to_image = whitening_axes(points, covariance, layout)[:, used] * model.std[used][:, None, :]
    loadings = model.loadings[used]
    together = np.einsum("npij,pjk->nkpi", to_image, loadings)
    alone = to_image * np.sqrt(np.maximum(1 - (loadings**2).sum(axis=-1), 0))[:, None, :]
    count, number = alone.shape[:2]
    spread = np.zeros((count, number, 2, number, 2))
    index = np.arange(number)
    # Advanced indices on both sides of a slice put the points first.
    spread[:, index, :, index] = alone.transpose(1, 0, 3, 2)
    return np.concatenate([together, spread.reshape(count, 2 * number, number, 2)], axis=1)


def propagate(
    function: Callable[[FloatArray], FloatArray], points: FloatArray, directions: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Values and their covariances, for a function of points with Gaussian errors.

    Stirling's interpolation (Norgaard et al., Automatica 36, 2000, second order): like
    linearization with finite differences, but over the width of the errors, so that it also holds
    where the function bends, such as for the gap of a shut eye.

    Args:
        function: points (..., k, 2) -> values (..., M).
        points: (N, k, 2).
        directions: (N, A, k, 2), as `axes` returns them.

    Returns:
        Values (N, M), and covariances (N, M, M).
    """
    center = points.astype(np.float64)
    value = function(center)
    ahead = function(center[:, None] + _STEP * directions) - value[:, None]
    behind = function(center[:, None] - _STEP * directions) - value[:, None]
    slope = (ahead - behind) / (2 * _STEP)
    bend = (ahead + behind) * np.sqrt(_STEP**2 - 1) / (2 * _STEP**2)
    parts = np.concatenate([slope, bend], axis=1)
    return value, np.einsum("kai,kaj->kij", parts, parts)
