"""Frames -> faces that keep their number: found now and then, followed by their points between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
from hihlandmark.crop import crop_angles, tight_boxes
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.face import Face
from hihlandmark.face_detection import Detections
from hihlandmark.face_detection.overlap import best_boxes
from hihlandmark.video.frames import CAMERA, Frame, read_frames
from hihlandmark.video.smoothing import OneEuroFilter, smooth_track

LEAST_SCORE = 0.2
"""Mean score of a face below which it is lost, as in a crop without a face."""
_SURE_SCORE = 0.5
"""Mean score from which a followed face is kept although it was found anew: it trembles less."""
_MOVED = 0.03
"""Part of a crop's side by which a face moves or grows before its crop follows. In the same crop a
face at rest trembles less."""
_SAME_FACE = 0.4  # intersection over union of the boxes of what is one face, found twice
_CUT = 40.0  # mean difference of small images, of 255, that is another scene
_SMALL = (48, 27)
_FORGET_AFTER = 60  # frames without a face, after which its filter starts anew


def track(
    source: str | Path | Iterable[Frame],
    detector: Detector,
    *,
    detect_every: int = 10,
    smooth: bool = True,
) -> Iterator[tuple[Frame, list[Face]]]:
    """Each frame of a video with its faces, each with the ``track_id`` it keeps.

    ``source``: as of `read_frames`, or frames of your own. For ``detect_every`` and ``smooth`` see
    `FaceTracker`. Memory does not grow with the length.
    """
    frames = read_frames(source) if isinstance(source, str | Path) else source
    tracker = FaceTracker(detector, detect_every=detect_every, smooth=smooth)
    for frame in frames:
        yield frame, tracker.update(frame)


def track_offline(
    source: str | Path, detector: Detector, *, detect_every: int = 10, frames: int | None = None
) -> Iterator[tuple[Frame, list[Face]]]:
    """As `track`, with points steadied by what came after, too (`smooth_track`).

    The video is read twice, of ``frames`` the first so many, and the points of all faces are held
    in memory in between: some 2.5 kB a face and frame. Raises `ConfigurationError` for a camera.
    """
    if str(source).startswith(CAMERA):
        raise ConfigurationError(
            f"{source}: what comes after is not known of a camera: take track(), or leave out "
            "--offline"
        )
    found = [
        (frame.time, faces)
        for frame, faces in islice(
            track(source, detector, detect_every=detect_every, smooth=False), frames
        )
    ]
    tracks: dict[int | None, list[tuple[int, int]]] = {}
    for index, (_, faces) in enumerate(found):
        for number, face in enumerate(faces):
            tracks.setdefault(face.track_id, []).append((index, number))
    for places in tracks.values():
        one = [found[index][1][number] for index, number in places]
        steady = smooth_track(
            [found[index][0] for index, _ in places],
            np.stack([face.points for face in one]),
            np.stack([face.covariance for face in one]),
            np.array([face.interocular for face in one]),
        )
        for (index, number), face, points in zip(places, one, steady, strict=True):
            found[index][1][number] = _tightly_boxed(replace(face, points=points))
    # A stream may go on where the first reading ended.
    for frame, (_, faces) in zip(read_frames(source), found, strict=False):
        yield frame, faces


class FaceTracker:
    """Follows faces from frame to frame.

    Faces are looked for in every ``detect_every``-th frame, when one is lost, and when the scene
    changes; in all other frames each crop lies around the face's last points, which saves the
    search and the first of the two crops. Who is who is said by ByteTrack (Zhang et al., ECCV 2022)
    from the boxes of all faces, with those that were gone for up to 30 frames. ``box`` of a face is
    the tight box of its points.

    Args:
        detector: finds faces and their points.
        detect_every: frames from one search to the next, 1 or more.
        smooth: steady the points with a `OneEuroFilter`.

    Raises:
        ConfigurationError: ``detect_every`` is below 1, or the extra ``video`` is missing.
    """

    def __init__(self, detector: Detector, *, detect_every: int = 10, smooth: bool = True) -> None:
        if detect_every < 1:
            raise ConfigurationError(f"detect_every must be 1 or more, not {detect_every}")
        self.detector, self.detect_every, self.smooth = detector, detect_every, smooth
        self.searches = 0
        """How often faces were looked for."""
        self._follower = copy(detector)
        self._follower.refine, self._follower.any_rotation = 0, False
        self._tracker = _byte_track()
        self._faces: list[Face] = []
        self._squares: dict[int | None, FloatArray] = {}
        self._filters: dict[int, tuple[OneEuroFilter, int]] = {}
        self._small: NDArray[np.float32] | None = None
        self._until_search = self._count = 0
        self._highest_id = self._ended_ids = 0

    def update(self, frame: Frame) -> list[Face]:
        """The faces of the next frame."""
        if self._is_cut(frame.image):
            self._start_scene()
        followed = self._followed(frame.image)
        faces = [face for face in followed if face.scores.mean() >= LEAST_SCORE]
        if self._until_search == 0 or len(faces) < len(followed):
            self.searches += 1
            self._until_search = self.detect_every
            found = [_tightly_boxed(face) for face in self.detector.predict(frame.image)]
            sure = [face for face in faces if face.scores.mean() >= _SURE_SCORE]
            unsure = [face for face in faces if face.scores.mean() < _SURE_SCORE]
            faces = [*sure, *found, *unsure]
        self._until_search -= 1
        self._faces = self._numbered(_distinct(faces))
        self._count += 1
        return self._steadied(frame.time) if self.smooth else list(self._faces)

    def _is_cut(self, image: NDArray[np.uint8]) -> bool:
        small = cv2.resize(image, _SMALL, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._small = self._small, small
        return before is not None and float(np.abs(small - before).mean()) > _CUT

    def _start_scene(self) -> None:
        """Nobody of the last scene is in this one, wherever they stand."""
        self._ended_ids = self._highest_id
        self._tracker.reset()
        self._faces, self._until_search = [], 0
        self._filters.clear()

    def _followed(self, image: NDArray[np.uint8]) -> list[Face]:
        """The last frame's faces in this one: one crop each, around where their points were."""
        if not self._faces:
            return []
        points = np.stack([face.points for face in self._faces]).astype(np.float64)
        angles = crop_angles(points, self.detector.layout.mean_shape)
        box_map = self.detector.box_map("landmarks")
        squares = box_map.squares_around(points, angles)
        for i, face in enumerate(self._faces):
            squares[i] = _steady_square(self._squares.get(face.track_id), squares[i])
        self._squares = {face.track_id: squares[i] for i, face in enumerate(self._faces)}
        # Of these boxes the map makes these squares again, for it moves nothing.
        half = squares[:, 2:3] / box_map.scale / 2
        boxes = np.concatenate([squares[:, :2] - half, squares[:, :2] + half], axis=1)
        scores = np.array([face.box_score for face in self._faces])
        detections = Detections(boxes, scores, angles=angles)
        (faces,) = self._follower.find_landmarks([(image, detections)], box_map)
        assert not isinstance(faces, ImageError)  # only images that could not be read give one
        return [_tightly_boxed(face) for face in faces]

    def _numbered(self, faces: Sequence[Face]) -> list[Face]:
        """The faces with the numbers that ByteTrack gives them."""
        import supervision

        boxes = np.array([face.box for face in faces], np.float32).reshape(-1, 4)
        given = supervision.Detections(boxes, data={"face": np.arange(len(faces))})
        numbered = self._tracker.update(given)
        if len(faces) and (numbered.tracker_id < 0).any():
            # ByteTrack numbers a box that it sees for the second time: here at once.
            numbered = self._tracker.update(given)
        ids = dict(zip(numbered.data.get("face", ()), numbered.tracker_id, strict=True))
        known = [
            replace(face, track_id=int(ids[index]) + 1 + self._ended_ids)
            for index, face in enumerate(faces)
            if ids.get(index, -1) >= 0
        ]
        self._highest_id = max([self._highest_id, *(face.track_id or 0 for face in known)])
        return known

    def _steadied(self, time: float) -> list[Face]:
        """The faces with filtered points. What is followed next are the points as found."""
        steady = []
        for face in self._faces:
            assert face.track_id is not None  # numbered
            own, _ = self._filters.get(face.track_id, (OneEuroFilter(), 0))
            self._filters[face.track_id] = own, self._count
            points = own(time, face.points, face.covariance, face.interocular)
            steady.append(_tightly_boxed(replace(face, points=points)))
        for track_id, (_, last) in list(self._filters.items()):
            if self._count - last > _FORGET_AFTER:
                del self._filters[track_id]
        return steady


def _tightly_boxed(face: Face) -> Face:
    return replace(face, box=tight_boxes(face.points))


def _steady_square(before: FloatArray | None, now: FloatArray) -> FloatArray:
    """The last crop square (4,) of a face while it still fits, else the one around it now."""
    if before is None or before[3] != now[3]:
        return now
    moved = np.abs(now[:3] - before[:3]).max() / before[2]
    return before if moved < _MOVED else now


def _distinct(faces: Sequence[Face]) -> list[Face]:
    """Without those that are another one, found twice: the first is kept."""
    boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
    return [faces[index] for index in best_boxes(boxes, np.ones(len(faces)), _SAME_FACE)]


def _byte_track() -> Any:
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed: pip install 'hihlandmark[video]', and then "
            "pip install --no-deps trackers"
        ) from error
    return ByteTrackTracker(minimum_consecutive_frames=1)
