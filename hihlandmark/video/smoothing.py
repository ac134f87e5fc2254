"""Points that tremble from frame to frame -> steady ones, each trusted as far as it is certain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hihlandmark.arrays import FloatArray

_LEAST_WEIGHT, _GREATEST_WEIGHT = 0.25, 4.0


class OneEuroFilter:
    """The One-Euro filter of a face's points (Casiez et al., CHI 2012), weighted by covariance.

    A low-pass filter whose cut-off frequency rises with a point's speed: little trembling at rest,
    little lag in motion. The cut-off of each point is multiplied by its certainty: the root of the
    median variance of the face's points over its own. Lengths count in inter-ocular distances, so
    that the size of a face in the image does not matter.

    Args:
        least_cutoff: cut-off frequency of a point at rest, in Hz: lower is steadier.
        speed_factor: Hz for every inter-ocular distance a second: higher lags less.
        speed_cutoff: cut-off frequency of the speed itself, in Hz.
        by_covariance: False is the plain filter of the paper.
    """

    def __init__(
        self,
        least_cutoff: float = 1.0,
        speed_factor: float = 8.0,
        speed_cutoff: float = 2.0,
        *,
        by_covariance: bool = True,
    ) -> None:
        self.least_cutoff, self.speed_factor = least_cutoff, speed_factor
        self.speed_cutoff, self.by_covariance = speed_cutoff, by_covariance
        self._time: float | None = None
        self._points: FloatArray = np.zeros((0, 2))
        self._velocity: FloatArray = np.zeros((0, 2))

    def __call__(
        self, time: float, points: FloatArray, covariance: FloatArray, interocular: float
    ) -> FloatArray:
        """Points (P, 2) in pixels at a time in seconds, with covariances (P, 2, 2) -> steady ones.

        ``interocular``: pixels between the outer eye corners. A time that does not rise gives the
        points of the time before.
        """
        points = points.astype(np.float64)
        if self._time is None:
            self._points, self._velocity = points, np.zeros_like(points)
        elif time > self._time:
            passed = time - self._time
            velocity = (points - self._points) / passed
            self._velocity += _share(self.speed_cutoff, passed) * (velocity - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True) / max(interocular, 1e-6)
            cutoff = self.least_cutoff + self.speed_factor * speed
            if self.by_covariance:
                cutoff = cutoff * _certainty(covariance)[:, None]
            self._points = self._points + _share(cutoff, passed) * (points - self._points)
        else:
            return self._points
        self._time = time
        return self._points


def _share(cutoff: float | FloatArray, passed: float) -> FloatArray:
    """How far an exponential filter goes towards a new value: eq. (3) of the paper."""
    turns = 2 * math.pi * np.asarray(cutoff) * passed
    return np.asarray(turns / (turns + 1))


def _certainty(covariance: FloatArray) -> FloatArray:
    """(P,): above 1 for points surer than the face's median, below for less sure ones."""
    variance = np.trace(covariance, axis1=-2, axis2=-1).clip(min=1e-9)
    weight = np.sqrt(np.median(variance) / variance)
    return np.asarray(weight.clip(_LEAST_WEIGHT, _GREATEST_WEIGHT))


def smooth_track(
    times: Sequence[float],
    points: FloatArray,
    covariance: FloatArray,
    interocular: FloatArray,
    *,
    acceleration: float = 0.3,
    trembling: float = 0.3,
) -> FloatArray:
    """A whole track at once, with what came after as well as before: no lag.

    A Kalman filter forwards and the Rauch-Tung-Striebel smoother backwards (AIAA Journal 3, 1965),
    of points that keep their velocity but for white acceleration.

    Args:
        times: T rising seconds.
        points: (T, P, 2) in pixels.
        covariance: (T, P, 2, 2), of the error of a point.
        interocular: (T,) pixels between the outer eye corners.
        acceleration: inter-ocular distances / s^1.5: higher follows faster, lower is steadier.
        trembling: the part of a point's standard deviation that is another in every frame; the rest
            stays with the face.

    Returns:
        Steady points (T, P, 2).
    """
    count, number = points.shape[:2]
    observed = np.eye(2, 4)  # of the state (x, y, velocity of x, velocity of y)
    scale = float(np.median(interocular))
    noise = covariance.astype(np.float64) * trembling**2 + np.eye(2) * (1e-3 * scale) ** 2
    state = np.concatenate([points[0].astype(np.float64), np.zeros((number, 2))], axis=1)
    spread = np.zeros((number, 4, 4))
    spread[:, :2, :2], spread[:, 2:, 2:] = noise[0], np.eye(2) * scale**2
    # Of each frame: the move to it, and the state before and after its points were seen.
    moves: list[FloatArray] = [np.eye(4)]
    before, after = [(state, spread)], [(state, spread)]
    for t in range(1, count):
        passed = max(times[t] - times[t - 1], 1e-6)
        move, drive = _motion(passed, acceleration * scale)
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


def _motion(passed: float, acceleration: float) -> tuple[FloatArray, FloatArray]:
    """The transition (4, 4) of positions and velocities over some seconds, and its covariance."""
    one, zero = np.eye(2), np.zeros((2, 2))
    move = np.block([[one, one * passed], [zero, one]])
    drive = np.block(
        [[one * passed**3 / 3, one * passed**2 / 2], [one * passed**2 / 2, one * passed]]
    )
    return move, drive * acceleration**2
