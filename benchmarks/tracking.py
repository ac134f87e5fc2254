"""Tracking of faces in clips: cost, jitter and lag of the points.

    python benchmarks/tracking.py --clips DIR --json OUT [--frames 250] [--cost-frames 100]

- Cost: CPU milliseconds of one thread per frame, for the first frames of each clip: reading them
  from the file; tracking them from memory by default, and with a search in every frame; and one
  crop through the network with its decoding. Interleaved, except for reading; median of three
  rounds.
- Jitter: mean length of the second difference of points at rest, in per mille of the inter-ocular
  distance. A point is at rest if its path, smoothed over nine frames, moves by less than 0.4
  percent of that distance per frame.
- Lag: delay of the points of a method in frames: the time that, multiplied by the velocity of
  moving points (above 1 percent per frame), explains their distance from the smoothed path of the
  raw points in least squares. The smoothed path itself has no lag.

The raw points are those of `FaceTracker` without smoothing; all methods get the same points.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from hihlandmark import Detector
from hihlandmark.arrays import FloatArray
from hihlandmark.benchmark import machine, time_interleaved
from hihlandmark.runtimes.export import drawn_faces
from hihlandmark.tables import Table
from hihlandmark.video import FaceTracker, OneEuroFilter, read_frames, smooth_track, track

_WINDOW = 9
_AT_REST, _MOVING = 0.004, 0.01
_MIN_FRAMES = 30


class Track(NamedTuple):
    """One face through T frames in a row."""

    times: FloatArray
    """(T,) seconds."""
    points: FloatArray
    """(T, P, 2) in inter-ocular distances of the track's median."""
    covariance: FloatArray
    """(T, P, 2, 2) likewise."""


def tracks_of(clip: Path, detector: Detector, frames: int) -> list[Track]:
    """The raw tracks of a clip that last for one second or more."""
    rows: dict[int | None, list[tuple[int, float, Any]]] = {}
    for frame, faces in islice(track(clip, detector, smooth=False), frames):
        for face in faces:
            rows.setdefault(face.track_id, []).append((frame.index, frame.time, face))
    found = []
    for in_track in rows.values():
        breaks = np.flatnonzero(np.diff([index for index, _, _ in in_track]) > 1) + 1
        for part in np.split(np.arange(len(in_track)), breaks):
            run = [in_track[i] for i in part]
            if len(run) < _MIN_FRAMES:
                continue
            size = float(np.median([face.interocular for _, _, face in run]))
            points = np.stack([face.points for _, _, face in run]).astype(float) / size
            covariance = np.stack([face.covariance for _, _, face in run]).astype(float) / size**2
            found.append(Track(np.array([time for _, time, _ in run]), points, covariance))
    return found


def one_euro(by_covariance: bool) -> Callable[[Track], FloatArray]:
    """The filter of a whole track."""

    def run(one: Track) -> FloatArray:
        own = OneEuroFilter(by_covariance=by_covariance)
        rows = zip(one.times, one.points, one.covariance, strict=True)
        return np.stack([own(time, points, spread, 1.0) for time, points, spread in rows])

    return run


def offline(one: Track) -> FloatArray:
    """The smoother of a whole track."""
    interocular = np.ones(len(one.times))
    return smooth_track(one.times.tolist(), one.points, one.covariance, interocular).points


METHODS: dict[str, Callable[[Track], FloatArray]] = {
    "raw": lambda one: one.points,
    "One-Euro": one_euro(by_covariance=False),
    "One-Euro, by covariance": one_euro(by_covariance=True),
    "Kalman and RTS, offline": offline,
}


def measures(of: list[Track], method: Callable[[Track], FloatArray]) -> dict[str, float]:
    """Jitter in per mille of the inter-ocular distance, lag in frames, of all tracks together."""
    differences: list[FloatArray] = []
    behind = moved = 0.0
    margin = _WINDOW // 2
    for one in of:
        found = method(one)
        windows = np.lib.stride_tricks.sliding_window_view(one.points, _WINDOW, axis=0)
        path = windows.mean(axis=-1)  # (T - 8, P, 2)
        velocity = np.gradient(path, axis=0)
        speed = np.linalg.norm(velocity, axis=-1)
        inner = found[margin:-margin]
        second = np.linalg.norm(np.diff(found, 2, axis=0), axis=-1)[margin - 1 : -margin + 1]
        differences.append(second[speed < _AT_REST])
        moves = speed > _MOVING
        behind += float(((path - inner) * velocity).sum(axis=-1)[moves].sum())
        moved += float((velocity**2).sum(axis=-1)[moves].sum())
    jitter = float(np.concatenate(differences).mean()) * 1000
    return {"jitter": jitter, "lag": behind / moved if moved else float("nan")}


def cost(clip: Path, detector: Detector, frames: int) -> dict[str, float]:
    """CPU milliseconds a frame: reading, tracking, and the network on one crop."""
    start = time.process_time()
    clip_frames = list(islice(read_frames(clip), frames))
    reading = (time.process_time() - start) * 1000 / len(clip_frames)
    crop = drawn_faces(detector.layout.name, detector.landmarker.crop_size, 1)

    def follow(**options: Any) -> Callable[[], Any]:
        def run() -> None:
            tracker = FaceTracker(detector, **options)
            for frame in clip_frames:
                tracker.update(frame)

        return run

    def network() -> None:
        for _ in clip_frames:
            detector.landmarker.decode(crop)

    runs = {"tracking": follow(), "every frame": follow(detect_every=1), "network": network}
    timings = time_interleaved(runs, 3, each=len(clip_frames), clock=time.process_time)
    return {"reading": reading} | {name: timing.median for name, timing in timings.items()}


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--frames", type=int, default=250, help="of each clip at most")
    parser.add_argument("--layout", default="98")
    parser.add_argument("--cost-frames", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    detector = Detector(arguments.layout)
    clips = sorted(path for path in arguments.clips.iterdir() if path.is_file())
    costs = {clip.name: cost(clip, detector, arguments.cost_frames) for clip in clips}
    tracks = {clip.name: tracks_of(clip, detector, arguments.frames) for clip in clips}
    everything = [one for in_clip in tracks.values() for one in in_clip]
    groups = {"all": everything} | {name: found for name, found in tracks.items() if found}
    figures = {
        group: {name: measures(found, method) for name, method in METHODS.items()}
        for group, found in groups.items()
    }
    record = {
        "machine": machine(),
        "weights": detector.card.sha256,
        "runtime": f"{detector.runtime.name} {detector.runtime.precision}",
        "cost": costs,
        "tracks": {name: [len(one.times) for one in found] for name, found in tracks.items()},
        "smoothness": figures,
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [
        [name, *(f"{milliseconds:.1f}" for milliseconds in c.values())] for name, c in costs.items()
    ]
    headers = ["clip", "reading", "tracking", "with a search in every frame", "network alone"]
    print(Table("", headers, rows).markdown())
    rows = [
        [name, str(len(found)), ", ".join(str(len(one.times)) for one in found)]
        for name, found in tracks.items()
    ]
    print()
    print(Table("", ["clip", "tracks of a second or more", "their frames"], rows).markdown())
    rows = [
        [group, name, f"{each['jitter']:.2f}", f"{each['lag']:.2f}"]
        for group, methods in figures.items()
        for name, each in methods.items()
    ]
    print()
    print(Table("", ["clip", "points", "jitter, per mille", "lag, frames"], rows).markdown())


if __name__ == "__main__":
    main()
