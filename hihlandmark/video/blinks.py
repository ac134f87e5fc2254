"""Blinks of one person through a video, from the openness of the eyes over time."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.errors import ConfigurationError, missing_extra
from hihlandmark.measures import Measurement, eye_contours, eye_openness, eye_widths
from hihlandmark.video.smoothing import JITTER
from hihlandmark.video.tracking import Track

LONGEST = 0.4
"""Seconds that a blink lasts at most, at half its depth: one of 0.1 to 0.4 s is usual. Winks and
eyes that stay closed last longer."""
DEPTH, ONE_EYE = 0.26, 0.4
"""Least depth of a blink as a share of the baseline: mean of both eyes, and of one eye alone."""
SHALLOWEST = 0.1
"""Least depth of a dip in one eye; its depth is the mean of closing and opening."""
NOISE = 4.0
"""Least depth in standard deviations of the noise from frame to frame."""
CLOSED = 0.6
"""Share of the baseline below which an eye counts as closed. Landmarks of shut eyes keep 0.3 to 0.5
of it with our weights, because training data has few shut eyes."""
BASELINE, WINDOW = 80, 10.0
"""The baseline is this percentile of the openness in a window of so many seconds."""
MIN_SCORE = 0.3
"""Mean score of an eye's points below which it counts as not visible."""
MIN_WIDTH = 0.5
"""Width of an eye, in widths of the other one, below which it counts as turned away."""

Side = Literal["left", "right", "both"]


class Blink(NamedTuple):
    """One blink. Frames are those of the track, times are in seconds.

    Attributes:
        eye: the eye in the image, or "both".
        start: frame in which the eye is last open.
        lowest: frame in which it is most closed.
        end: frame in which it is open again.
        start_time: of ``start``.
        lowest_time: of ``lowest``.
        end_time: of ``end``.
        depth: how far it closes, as a share of the person's baseline: about 0.5 when it shuts, and
            0.3 for a partial blink, for the reason that `CLOSED` gives. The mean of both eyes.
    """

    eye: Side
    start: int
    lowest: int
    end: int
    start_time: float
    lowest_time: float
    end_time: float
    depth: float


@dataclass(frozen=True, eq=False)
class EyeTraces:
    """The eyes of a track of T faces; columns are the left and the right eye in the image.

    Attributes:
        times: (T,) in seconds.
        openness: (T, 2) with standard deviations, as `measures.eye_openness`; NaN where the eye is
            turned away or not visible.
        baseline: (T, 2), the person's own openness with open eyes around that time.
        closed: (T, 2), the probability that the openness is below `CLOSED` of the baseline.
        blinks: in order of time.
    """

    times: FloatArray
    openness: Measurement
    baseline: FloatArray
    closed: FloatArray
    blinks: list[Blink]

    @property
    def blinks_per_minute(self) -> float:
        """Blinks in a minute of the time in which at least one eye is visible."""
        seen = np.isfinite(self.openness.value).any(axis=1)
        steps = np.diff(self.times)[seen[1:] & seen[:-1]]
        # Frames far apart are a gap of the track.
        watched = float(steps[steps <= LONGEST].sum())
        return 60 * len(self.blinks) / watched if watched else float("nan")


def blinks(track: Track) -> EyeTraces:
    """Find the blinks of a person, and measure the eyes in each frame.

    A blink is a dip of the openness that closes and opens within `LONGEST` seconds, deeper than the
    noise and than `DEPTH` of the person's baseline, or `ONE_EYE` if the other eye stays open. Give
    faces that are not smoothed (``track(..., smooth=False)``): a filter flattens blinks, which last
    only a few frames.

    Args:
        track: faces of one person, of a layout with eyelids (98, 68 or 29 points).

    Raises:
        ConfigurationError: this is no `Track`, it is empty, of several layouts or of one without
            eyelids, or the extra "video" is missing.
    """
    if not isinstance(track, Track):
        raise ConfigurationError(
            f"blinks are found in a Track, of collect_tracks, not in a {type(track).__name__}"
        )
    left, right = eye_openness(track)
    if not eye_contours(track[0].layout):
        raise ConfigurationError(
            f"{track[0].layout.name} has no eyelids: track 98, 68 or 29 points"
        )
    value, std = (np.stack(pair, axis=1) for pair in zip(left, right, strict=True))
    hidden = ~_visible(track)
    openness = Measurement(np.where(hidden, np.nan, value), np.where(hidden, np.nan, std))
    return find_blinks(np.array(track.times), openness, np.array(track.frames))


def find_blinks(
    times: FloatArray, openness: Measurement, numbers: IndexArray | None = None
) -> EyeTraces:
    """`blinks` of traces: times (T,), openness (T, 2), NaN where unknown, frame numbers (T,)."""
    if (np.diff(times) < 0).any():
        raise ConfigurationError("the times of a track must not decrease: split it where they do")
    frames = np.arange(len(times)) if numbers is None else numbers
    value, std = openness
    baseline = np.stack([_baseline(times, value[:, eye]) for eye in (0, 1)], axis=1)
    # Errors that all frames share also change the baseline; so only a part of them counts.
    spread = std * np.sqrt(JITTER**2 + (1 - JITTER**2) * (1 - CLOSED) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (CLOSED * baseline - value) / spread
    closed = np.vectorize(NormalDist().cdf, otypes=[float])(distance)
    sides: tuple[Side, Side] = ("left", "right")
    found = [_dips(times, value[:, eye], baseline[:, eye], side) for eye, side in enumerate(sides)]
    one_eye_seen = np.isfinite(value).sum(axis=1) == 1
    merged = [
        blink._replace(
            start=int(frames[blink.start]),
            lowest=int(frames[blink.lowest]),
            end=int(frames[blink.end]),
        )
        for blink in _merge(*found)
        if blink.depth >= (DEPTH if blink.eye == "both" or one_eye_seen[blink.lowest] else ONE_EYE)
    ]
    return EyeTraces(times, openness, baseline, closed, merged)


def _visible(track: Track) -> BoolArray:
    """(T, 2): whether an eye is neither turned away nor hidden."""
    layout = track[0].layout
    eyes = [layout.parts.get(f"{side}_eye", ()) for side in ("left", "right")]
    scores = np.stack([face.scores for face in track])
    seen = np.stack([scores[:, list(eye)].mean(axis=1) >= MIN_SCORE for eye in eyes], axis=1)
    widths = eye_widths(np.stack([face.points for face in track]), layout)
    turned = widths < MIN_WIDTH * widths[:, ::-1]
    filled = np.array([face.filled for face in track])[:, None]
    return np.asarray(seen & ~turned & ~filled)


def _baseline(times: FloatArray, value: FloatArray) -> FloatArray:
    """The running baseline (T,) of one eye; NaN without a known frame in the window."""
    result = np.full(len(times), np.nan)
    starts = np.searchsorted(times, times - WINDOW / 2)
    ends = np.searchsorted(times, times + WINDOW / 2, side="right")
    for t, (start, end) in enumerate(zip(starts, ends, strict=True)):
        known = value[start:end][np.isfinite(value[start:end])]
        if len(known):
            result[t] = np.percentile(known, BASELINE)
    return result


def _dips(times: FloatArray, value: FloatArray, baseline: FloatArray, eye: Side) -> list[Blink]:
    """The blinks of one eye, with indices in place of frames."""
    with missing_extra("video"):
        from scipy.signal import find_peaks

    known = np.flatnonzero(np.isfinite(value))
    if len(known) < 3:
        return []
    # Runs without a gap: a dip must be seen from its start to its end.
    runs = np.split(known, np.flatnonzero(np.diff(times[known]) > LONGEST / 2) + 1)
    result = []
    for run in runs:
        if len(run) < 3:
            continue
        trace, clock = value[run] / np.maximum(baseline[run], 1e-6), times[run]
        # Of a second difference: the variance is six times that of a frame, the median of absolute
        # values 0.6745 standard deviations.
        noise = float(np.median(np.abs(np.diff(trace, 2)))) / 0.6745 / np.sqrt(6)
        lows, found = find_peaks(-trace, prominence=SHALLOWEST, width=0)
        for k, low in enumerate(lows):
            low = int(low)
            left, right = found["left_ips"][k], found["right_ips"][k]
            index = np.arange(len(run))
            start_half, end_half = np.interp((left, right), index, clock)
            before = int(np.searchsorted(clock, clock[low] - LONGEST))
            after = int(np.searchsorted(clock, clock[low] + LONGEST, side="right"))
            start = before + int(_last_argmax(trace[before : low + 1]))
            end = low + int(trace[low:after].argmax())
            closing, opening = trace[start] - trace[low], trace[end] - trace[low]
            depth = float((closing + opening) / 2)
            is_blink = (
                end_half - start_half <= LONGEST
                and min(closing, opening) >= SHALLOWEST
                and depth >= NOISE * noise
            )
            if is_blink:
                start, end = _edges(trace, start, low, end)
                places = [int(run[t]) for t in (start, low, end)]
                first, second, third = (float(times[t]) for t in places)
                result.append(
                    Blink(eye, places[0], places[1], places[2], first, second, third, depth)
                )
    # Of dips within one blink the deeper one is kept.
    result.sort(key=lambda blink: -blink.depth)
    kept: list[Blink] = []
    for blink in result:
        if all(blink.start >= other.end or blink.end <= other.start for other in kept):
            kept.append(blink)
    return sorted(kept, key=lambda blink: blink.lowest)


def _last_argmax(values: FloatArray | BoolArray) -> int:
    """The last index of the largest value, or of what is true."""
    return len(values) - 1 - int(values[::-1].argmax())


def _edges(trace: FloatArray, start: int, low: int, end: int) -> tuple[int, int]:
    """Where the eye has closed or opened by a tenth: openness creeps before and after a blink."""
    closing = trace[start] - 0.1 * (trace[start] - trace[low])
    opening = trace[end] - 0.1 * (trace[end] - trace[low])
    first = start + _last_argmax(trace[start : low + 1] >= closing)
    last = low + int(np.argmax(trace[low : end + 1] >= opening))
    return first, last


def _merge(left: list[Blink], right: list[Blink]) -> list[Blink]:
    """Blinks of both eyes whose lowest frames lie within each other are one."""
    alone, result = list(right), []
    for one in left:
        other = next((blink for blink in alone if _same(one, blink)), None)
        if other is None:
            result.append(one)
            continue
        alone.remove(other)
        deeper = max(one, other, key=lambda blink: blink.depth)
        first = min(one, other, key=lambda blink: blink.start)
        last = max(one, other, key=lambda blink: blink.end)
        result.append(
            deeper._replace(
                eye="both",
                depth=(one.depth + other.depth) / 2,
                start=first.start,
                start_time=first.start_time,
                end=last.end,
                end_time=last.end_time,
            )
        )
    return sorted([*result, *alone], key=lambda blink: blink.lowest)


def _same(one: Blink, other: Blink) -> bool:
    return one.start <= other.lowest <= one.end or other.start <= one.lowest <= other.end
