"""Smoothing of points over time, weighted by their covariances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hihlandmark.arrays import FloatArray

_MIN_WEIGHT, _MAX_WEIGHT = 0.25, 4.0


class OneEuroFilter:
    """The One-Euro filter of a face's points (Casiez et al., CHI 2012), weighted by covariance.

    A low-pass filter whose cutoff frequency rises with the speed of a point: little jitter at rest,
    little lag in motion. The cutoff of each point is multiplied by a weight: the square root of the
    median variance of the face's points divided by its own. Lengths are measured in inter-ocular
    distances, so the size of the face in the image does not matter.

    Args:
        min_cutoff: cutoff frequency of a point at rest, in Hz; lower is smoother.
        beta: Hz per inter-ocular distance and second; higher lags less.
        derivative_cutoff: cutoff frequency of the speed, in Hz.
        by_covariance: False: the plain filter of the paper.
    """

    def __init__(
        self,
        min_cutoff: float = 1.0,
        beta: float = 8.0,
        derivative_cutoff: float = 2.0,
        *,
        by_covariance: bool = True,
    ) -> None:
        self.min_cutoff, self.beta = min_cutoff, beta
        self.derivative_cutoff, self.by_covariance = derivative_cutoff, by_covariance
        self._time: float | None = None
        self._points: FloatArray = np.zeros((0, 2))
        self._velocity: FloatArray = np.zeros((0, 2))

    def __call__(
        self, time: float, points: FloatArray, covariance: FloatArray, interocular: float
    ) -> FloatArray:
        """Filter the points of the next frame.

        Args:
            time: in seconds. If it does not increase, the last filtered points are returned.
            points: (P, 2) in pixels.
            covariance: (P, 2, 2) in squared pixels.
            interocular: distance of the outer eye corners in pixels.

        Returns:
            Filtered points (P, 2), float64.
        """
        points = points.astype(np.float64)
        if self._time is None:
            self._points, self._velocity = points, np.zeros_like(points)
        elif time <= self._time:
            return self._points
        else:
            elapsed = time - self._time
            velocity = (points - self._points) / elapsed
            weight = _smoothing_factor(self.derivative_cutoff, elapsed)
            self._velocity += weight * (velocity - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True) / max(interocular, 1e-6)
            cutoff = self.min_cutoff + self.beta * speed
            if self.by_covariance:
                cutoff = cutoff * _weights(covariance)[:, None]
            weight = _smoothing_factor(cutoff, elapsed)
            self._points = self._points + weight * (points - self._points)
        self._time = time
        return self._points


def _smoothing_factor(cutoff: float | FloatArray, elapsed: float) -> FloatArray:
    """Smoothing factor of an exponential filter: eq. (3) of the paper."""
    turns = 2 * math.pi * np.asarray(cutoff) * elapsed
    return np.asarray(turns / (turns + 1))


def _weights(covariance: FloatArray) -> FloatArray:
    """Weights (P,): above 1 for points with a lower variance than the median, otherwise below."""
    variance = np.trace(covariance, axis1=-2, axis2=-1).clip(min=1e-9)
    weight = np.sqrt(np.median(variance) / variance)
    return np.asarray(weight.clip(_MIN_WEIGHT, _MAX_WEIGHT))


def smooth_track(
    times: Sequence[float],
    points: FloatArray,
    covariance: FloatArray,
    interocular: FloatArray,
    *,
    acceleration: float = 0.3,
    jitter: float = 0.3,
) -> FloatArray:
    """Smooth a whole track with earlier and later frames: no lag.

    A Kalman filter and the Rauch-Tung-Striebel smoother (AIAA Journal 3, 1965) for points with
    constant velocity and white-noise acceleration.

    Args:
        times: T increasing times in seconds.
        points: (T, P, 2) in pixels.
        covariance: (T, P, 2, 2), of the error of a point.
        interocular: (T,) distances of the outer eye corners in pixels.
        acceleration: in inter-ocular distances / s^1.5; lower is smoother, higher lags less.
        jitter: share of a point's standard deviation that is independent from frame to frame.

    Returns:
        Smoothed points (T, P, 2).
    """
    count, number = points.shape[:2]
    observed = np.eye(2, 4)  # of the state (x, y, velocity of x, velocity of y)
    scale = float(np.median(interocular))
    noise = covariance.astype(np.float64) * jitter**2 + np.eye(2) * (1e-3 * scale) ** 2
    state = np.concatenate([points[0].astype(np.float64), np.zeros((number, 2))], axis=1)
    spread = np.zeros((number, 4, 4))
    spread[:, :2, :2], spread[:, 2:, 2:] = noise[0], np.eye(2) * scale**2
    # For each frame: the transition to it, and the state before and after its measurement.
    moves: list[FloatArray] = [np.eye(4)]
    before, after = [(state, spread)], [(state, spread)]
    for t in range(1, count):
        elapsed = max(times[t] - times[t - 1], 1e-6)
        move, drive = _motion(elapsed, acceleration * scale)
        state, spread = state @ move.T, move @ spread @ move.T + drive
        moves.append(move)
        before.append((state, spread))
        seen = spread[:, :2]
        gain = np.swapaxes(np.linalg.solve(seen[:, :, :2] + noise[t], seen), -1, -2)
        state = state + np.einsum("pij,pj->pi", gain, points[t] - state[:, :2])
        spread = spread - gain @ seen
        after.append((state, spread))
    result = np.empty((count, number, 2))
    state = after[-1][0]
    result[-1] = state @ observed.T
    for t in range(count - 2, -1, -1):
        back = np.swapaxes(np.linalg.solve(before[t + 1][1], moves[t + 1] @ after[t][1]), -1, -2)
        state = after[t][0] + np.einsum("pij,pj->pi", back, state - before[t + 1][0])
        result[t] = state @ observed.T
    return result


def _motion(elapsed: float, acceleration: float) -> tuple[FloatArray, FloatArray]:
    """Transition (4, 4) of positions and velocities over some seconds, and its noise covariance."""
    one, zero = np.eye(2), np.zeros((2, 2))
    move = np.block([[one, one * elapsed], [zero, one]])
    drive = np.block(
        [[one * elapsed**3 / 3, one * elapsed**2 / 2], [one * elapsed**2 / 2, one * elapsed]]
    )
    return move, drive * acceleration**2
