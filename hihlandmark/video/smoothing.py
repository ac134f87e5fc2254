"""Smoothing of points over time, weighted by their covariances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.errors import ConfigurationError

_MIN_WEIGHT, _MAX_WEIGHT = 0.25, 4.0
JITTER = 0.3
"""Share of a point's standard deviation that is independent from frame to frame."""


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
        jitter: share of a point's standard deviation that is independent from frame to frame: only
            that part is reduced by filtering.

    Attributes:
        covariance: (P, 2, 2) of the last filtered points in squared pixels. It includes the lag of
            points in motion.
    """

    def __init__(
        self,
        min_cutoff: float = 0.5,
        beta: float = 8.5,
        derivative_cutoff: float = 3.0,
        *,
        by_covariance: bool = True,
        jitter: float = JITTER,
    ) -> None:
        self.min_cutoff, self.beta = min_cutoff, beta
        self.derivative_cutoff, self.by_covariance = derivative_cutoff, by_covariance
        self.jitter = jitter
        self.covariance: FloatArray = np.zeros((0, 2, 2))
        self._independent: FloatArray = np.zeros((0, 2, 2))
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
            self.covariance = covariance.astype(np.float64)
            self._independent = self.jitter**2 * self.covariance
        elif time <= self._time:
            return self._points.copy()
        else:
            elapsed = time - self._time
            if not (known := np.isfinite(self._points)).all():  # the others start anew
                self._points = np.where(known, self._points, points)
                self._velocity = np.where(known, self._velocity, 0)
            velocity = (points - self._points) / elapsed
            weight = _smoothing_factor(self.derivative_cutoff, elapsed)
            self._velocity += weight * (velocity - self._velocity)
            x, y = self._velocity[:, :1], self._velocity[:, 1:]
            speed = np.hypot(x, y) / max(interocular, 1e-6)
            cutoff = self.min_cutoff + self.beta * speed
            if self.by_covariance:
                cutoff = cutoff * _weights(covariance)[:, None]
            weight = _smoothing_factor(cutoff, elapsed)
            self._points = self._points + weight * (points - self._points)
            self._update_covariance(covariance.astype(np.float64), weight, elapsed)
        self._time = time
        return self._points.copy()

    def _update_covariance(
        self, covariance: FloatArray, weight: FloatArray, elapsed: float
    ) -> None:
        """Average the independent part of the errors, keep the rest, and add the lag."""
        weight = weight[..., None]
        own = self.jitter**2 * covariance
        self._independent = (1 - weight) ** 2 * self._independent + weight**2 * own
        # At a constant speed an exponential filter lags by this many frames: (1 - weight) / weight.
        frames = ((1 - weight) / weight)[..., 0]
        lag = frames * self._velocity * elapsed
        squared = lag[:, :, None] * lag[:, None, :]
        # Without what the noise of the velocity, an exponential average, contributes at rest.
        average = _smoothing_factor(self.derivative_cutoff, elapsed)
        noise = (frames**2)[..., None] * own * average / (2 - average)
        length = np.maximum((lag**2).sum(axis=-1), 1e-12)
        share = 1 - np.trace(noise, axis1=-2, axis2=-1) / length
        squared *= share.clip(0, 1)[:, None, None]
        self.covariance = covariance - own + self._independent + squared


def _smoothing_factor(cutoff: float | FloatArray, elapsed: float) -> FloatArray:
    """Smoothing factor of an exponential filter: eq. (3) of the paper."""
    turns = 2 * math.pi * np.asarray(cutoff) * elapsed
    return np.asarray(turns / (turns + 1))


def _weights(covariance: FloatArray) -> FloatArray:
    """Weights (P,): above 1 for points with a lower variance than the median, otherwise below."""
    variance = np.trace(covariance, axis1=-2, axis2=-1).clip(min=1e-9)
    weight = np.sqrt(np.median(variance) / variance)
    return np.asarray(weight.clip(_MIN_WEIGHT, _MAX_WEIGHT))


class SmoothedTrack(NamedTuple):
    """A smoothed track of T frames.

    Attributes:
        points: (T, P, 2); NaN in frames without points that were not filled.
        covariance: (T, P, 2, 2) in squared pixels, of the smoothed points; NaN likewise.
        filled: (T,) whether the frame had no points and lies in a short gap.
    """

    points: FloatArray
    covariance: FloatArray
    filled: BoolArray


def smooth_track(
    times: Sequence[float],
    points: FloatArray,
    covariance: FloatArray,
    interocular: FloatArray,
    *,
    acceleration: float = 0.3,
    jitter: float = JITTER,
    fill: float = 0.0,
) -> SmoothedTrack:
    """Smooth a whole track with earlier and later frames: no lag.

    A Kalman filter and the Rauch-Tung-Striebel smoother (AIAA Journal 3, 1965) for points with
    constant velocity and white-noise acceleration. The covariance of the result is the smoother's,
    plus the part of the errors that all frames share, which smoothing cannot reduce.

    Args:
        times: T increasing times in seconds.
        points: (T, P, 2) in pixels; NaN in frames without the face. A frame in which one point
            is NaN counts as one without the face.
        covariance: (T, P, 2, 2), of the error of a point; ignored in frames without the face.
        interocular: (T,) distances of the outer eye corners in pixels; ignored likewise.
        acceleration: in inter-ocular distances / s^1.5; lower is smoother, higher lags less.
        jitter: share of a point's standard deviation that is independent from frame to frame.
        fill: fill gaps between two frames with the face that are at most this many seconds apart.

    Raises:
        ConfigurationError: the arrays are not of as many frames.
    """
    points, covariance, interocular = map(np.asarray, (points, covariance, interocular))
    counts = [len(each) for each in (times, points, covariance, interocular)]
    if len(set(counts)) > 1:
        raise ConfigurationError(
            "times, points, covariance and interocular must be of as many frames, not "
            f"{', '.join(map(str, counts))}"
        )
    seen = np.asarray(np.isfinite(points).all(axis=(1, 2)))
    if not seen.any():
        nothing = np.full(covariance.shape, np.nan)
        return SmoothedTrack(np.full(points.shape, np.nan), nothing, np.zeros(len(seen), bool))
    scale = float(np.median(interocular[seen]))
    first, last = np.flatnonzero(seen)[[0, -1]]
    inside = slice(first, last + 1)
    noise = covariance.astype(np.float64) * jitter**2 + np.eye(2) * (1e-3 * scale) ** 2
    states, spreads = _smooth(
        np.asarray(times, np.float64)[inside],
        points[inside].astype(np.float64),
        noise[inside],
        seen[inside],
        scale,
        acceleration,
    )
    smooth = np.full(points.shape, np.nan)
    errors = np.full(covariance.shape, np.nan)
    smooth[inside], errors[inside] = states[..., :2], spreads[..., :2, :2]
    before, after = _neighbors(seen)
    near = np.asarray(times)[after] - np.asarray(times)[before] <= fill
    filled = ~seen & near & (np.arange(len(seen)) > first) & (np.arange(len(seen)) < last)
    # The shared part of a filled frame: the mean of that of both ends of the gap.
    shared = (covariance[before] + covariance[after]) / 2 * (1 - jitter**2)
    kept = (seen | filled)[:, None, None]
    return SmoothedTrack(
        np.where(kept, smooth, np.nan), np.where(kept[..., None], errors + shared, np.nan), filled
    )


def _neighbors(seen: BoolArray) -> tuple[IndexArray, IndexArray]:
    """For each frame the last seen frame up to it and the first from it on, as indices (T,)."""
    index = np.arange(len(seen))
    before = np.maximum.accumulate(np.where(seen, index, 0))
    after = np.minimum.accumulate(np.where(seen, index, len(seen) - 1)[::-1])[::-1]
    return before, after


def _smooth(
    times: FloatArray,
    points: FloatArray,
    noise: FloatArray,
    seen: BoolArray,
    scale: float,
    acceleration: float,
) -> tuple[FloatArray, FloatArray]:
    """States (T, P, 4) and their covariances (T, P, 4, 4), from positions with noise covariances.

    The state is (x, y, velocity of x, velocity of y). The first frame is seen.
    """
    count, number = points.shape[:2]
    state = np.concatenate([points[0], np.zeros((number, 2))], axis=1)
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
        if seen[t]:
            rows = spread[:, :2]
            gain = np.swapaxes(np.linalg.solve(rows[:, :, :2] + noise[t], rows), -1, -2)
            state = state + np.einsum("pij,pj->pi", gain, points[t] - state[:, :2])
            spread = spread - gain @ rows
        after.append((state, spread))
    states, spreads = np.empty((count, number, 4)), np.empty((count, number, 4, 4))
    states[-1], spreads[-1] = state, spread = after[-1]
    for t in range(count - 2, -1, -1):
        ahead, ahead_spread = before[t + 1]
        back = np.swapaxes(np.linalg.solve(ahead_spread, moves[t + 1] @ after[t][1]), -1, -2)
        state = after[t][0] + np.einsum("pij,pj->pi", back, state - ahead)
        spread = after[t][1] + back @ (spread - ahead_spread) @ np.swapaxes(back, -1, -2)
        states[t], spreads[t] = state, spread
    return states, spreads


def _motion(elapsed: float, acceleration: float) -> tuple[FloatArray, FloatArray]:
    """Transition (4, 4) of positions and velocities over some seconds, and its noise covariance."""
    one, zero = np.eye(2), np.zeros((2, 2))
    move = np.block([[one, one * elapsed], [zero, one]])
    drive = np.block(
        [[one * elapsed**3 / 3, one * elapsed**2 / 2], [one * elapsed**2 / 2, one * elapsed]]
    )
    return move, drive * acceleration**2
