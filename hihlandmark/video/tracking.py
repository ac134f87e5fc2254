"""Frames -> faces with track ids: detected now and then, followed by their points in between."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate, chain, groupby, islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, SupportsIndex, overload

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_angles, halved, resize_matrix, tight_boxes
from hihlandmark.detector import LOW_RELIABILITY, Detector
from hihlandmark.errors import ConfigurationError, check_integer, is_number, missing_extra
from hihlandmark.face import Face, transform_face
from hihlandmark.face_detection import Detections
from hihlandmark.face_detection.boxes import best_boxes, overlaps
from hihlandmark.layouts import FIVE
from hihlandmark.pipeline import Found, is_reliable
from hihlandmark.video.frames import Frame, is_live, read_frames
from hihlandmark.video.smoothing import OneEuroFilter, smooth_track

DETECT_EVERY = 30  # frames between searches for faces that enter while others are tracked
MIN_SCORE = 0.2  # mean score below which a face is lost, as in crops without a face
# So it is up to this mean score where it is hardly reliable, and it is not even shown when found:
# points of what covers a face, or of a false detection.
_DOUBTFUL_SCORE = 0.7
# From this mean score on, a tracked face is preferred to the same face detected again: its crop,
# and so its points, move less.
_SURE_SCORE = 0.5
_MOVED = 0.03  # part of its side by which a crop must move or grow to be replaced
_SAME_FACE = 0.4  # intersection over union of the boxes of one face that was found twice
_CUT = 40.0  # mean difference in gray levels of two scaled-down frames of different scenes
# Width and height of what is compared, before it is halved twice. No usual width of a video is a
# multiple: the pixels that are taken of a regular pattern would all be alike, and change together.
_SAMPLED = (212, 108)
_SEARCH_OFTEN = 10  # frames between searches while there is no face, or one was lost ...
_LOST_FOR = 30  # ... within so many frames, for which ByteTrack keeps its id
_USUAL_STEP = 1 / 25  # seconds between frames whose times do not increase
_FORGET_AFTER = 60  # frames without a face after which its filter is dropped


def track(
    source: str | Path | Iterable[Frame],
    detector: Detector,
    *,
    detect_every: int = DETECT_EVERY,
    smooth: bool = True,
    min_reliability: float = 0.0,
) -> Generator[tuple[Frame, list[Face]], None, None]:
    """Track the faces of a video. Memory does not grow with its length.

    The source is one of `read_frames`, which is read within the limits of the detector, or frames;
    the options are those of `FaceTracker`. Faces below ``min_reliability`` (0..1) are left out.

    Yields:
        Each frame with its faces, which have a ``track_id``. Errors as `read_frames`, and as
        `Detector.predict` for ``min_reliability``.
    """
    if not isinstance(source, str | Path | Iterable):
        raise ConfigurationError(
            f"the source is a path, a URL or frames, not {source!r:.100}; a webcam is 'camera:0'"
        )
    frames = read_frames(source, **detector.limits) if isinstance(source, str | Path) else source
    tracker = FaceTracker(detector, detect_every=detect_every, smooth=smooth)
    detector.pipeline.check_min_reliability(min_reliability)
    for frame in frames:
        yield frame, [face for face in tracker.update(frame) if is_reliable(face, min_reliability)]


def track_offline(
    source: str | Path,
    detector: Detector,
    *,
    detect_every: int = DETECT_EVERY,
    frames: int | None = None,
    fill: float = 0.0,
    min_reliability: float = 0.0,
) -> Iterator[tuple[Frame, list[Face]]]:
    """Track the faces of a video file, smoothed with later frames as well (`smooth_track`).

    With ``fill`` a face that is missing for up to so many seconds is placed in the frames between
    as well, marked by `Face.filled`. Faces below ``min_reliability`` are left out after smoothing.

    The video is read twice, its first ``frames`` frames or all; it cannot be a camera or a live
    stream. All faces are held in memory, about 5 kB for each with 98 points, and while a track is
    smoothed 60 kB for each of its frames: 3 GB for half an hour.

    Yields:
        Each frame with its faces, as `track`.
    """
    if not isinstance(source, str | Path):
        given = type(source).__name__
        raise ConfigurationError(f"the source is a path, as the video is read twice, not {given}")
    if frames is not None:
        check_integer(frames=frames, at_least=0)
    if not (is_number(fill) and fill >= 0):
        raise ConfigurationError(f"fill must be a number of seconds, 0 or more, not {fill!r:.100}")
    if min_reliability:
        detector.pipeline.check_min_reliability(min_reliability)
    if is_live(str(source)):
        raise ConfigurationError(
            f"{source}: a camera or live stream has no later frames: omit --offline, or record it"
        )
    with closing(track(source, detector, detect_every=detect_every, smooth=False)) as tracked:
        found = [(frame.time, frame.image.shape, faces) for frame, faces in islice(tracked, frames)]
    # Where frames change their size, points are in other pixels: smoothing begins anew.
    smooth = chain.from_iterable(
        _smoothed_offline([(time, faces) for time, _, faces in part], fill)
        for _, part in groupby(found, key=itemgetter(1))
    )
    # The first reading may have ended before the video.
    for frame, (_, faces) in zip(read_frames(source, **detector.limits), smooth, strict=False):
        yield frame, [face for face in faces if is_reliable(face, min_reliability)]


class Track(list[Face]):
    """The faces of one person through a video, in order of time.

    Attributes:
        times: of the frames in seconds.
        frames: numbers of the frames, `Frame.index`; of those given here, counted from 0.
    """

    def __init__(
        self, faces: Iterable[Face], times: Sequence[float], frames: Sequence[int] | None = None
    ) -> None:
        super().__init__(faces)
        self.times = [float(time) for time in times]
        self.frames: list[int] = list(range(len(self)) if frames is None else frames)
        if not len(self) == len(self.times) == len(self.frames):
            raise ConfigurationError(
                f"a track needs as many times as faces, not {len(self.times)} for {len(self)}"
            )

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Face: ...
    @overload
    def __getitem__(self, index: slice, /) -> Track: ...
    def __getitem__(self, index: Any, /) -> Any:
        """One face, or a part of the track."""
        found = super().__getitem__(index)
        if not isinstance(index, slice):
            return found
        return Track(found, self.times[index], self.frames[index])


def collect_tracks(tracked: Iterable[tuple[Frame, Sequence[Face]]]) -> dict[int | None, Track]:
    """The tracks of what `track` or `track_offline` yields, by ``track_id``. Drops the images."""
    return _collect((frame.index, frame.time, faces) for frame, faces in tracked)


def _collect(found: Iterable[tuple[int, float, Sequence[Face]]]) -> dict[int | None, Track]:
    tracks: dict[int | None, Track] = {}
    for number, time, faces in found:
        for face in faces:
            own = tracks.setdefault(face.track_id, Track([], []))
            own.append(face)
            own.times.append(time)
            own.frames.append(number)
    return tracks


def _smoothed_offline(
    found: list[tuple[float, list[Face]]], fill: float
) -> list[tuple[float, list[Face]]]:
    """The faces of all frames with smoothed points and covariances, and those of filled gaps."""
    result: list[tuple[float, list[Face]]] = [(time, []) for time, _ in found]
    steps = (_step(after - before) for (before, _), (after, _) in pairwise(found))
    times = list(accumulate(steps, initial=0.0))
    for own in _collect((number, *each) for number, each in enumerate(found)).values():
        first, last = own.frames[0], own.frames[-1]
        count, size = last - first + 1, own[0].layout.size
        points, covariance = np.full((count, size, 2), np.nan), np.zeros((count, size, 2, 2))
        interocular = np.zeros(count)
        faces: list[Face | None] = [None] * count
        for number, face in zip(own.frames, own, strict=True):
            t = number - first
            faces[t], points[t], covariance[t] = face, face.points, face.covariance
            interocular[t] = face.interocular
        smooth = smooth_track(times[first : last + 1], points, covariance, interocular, fill=fill)
        latest = own[0]
        for t, seen in enumerate(faces):
            latest = seen or latest
            if seen or smooth.filled[t]:
                placed = _with_points(latest, smooth.points[t], smooth.covariance[t])
                result[first + t][1].append(replace(placed, filled=seen is None))
    return result


class FaceTracker:
    """Tracks faces from frame to frame.

    The face detector runs in every ``detect_every``-th frame, when a face is lost, and when the
    scene changes; in every tenth at least while there is no face, or after one was lost. In all
    other frames each crop lies around the last points of the face, which saves face detection, and
    the second crop of ``refine=1``. The mirrored crop is run only where the detector was made with
    ``flip_test=True``: it doubles the cost of the network and lowers the jitter by a tenth to a
    fifth. ByteTrack (Zhang et al., ECCV 2022) assigns track ids by the boxes; a face keeps its id
    if it is missing for up to 30 frames. The ``box`` of a face is the tight box of its points.

    Args:
        detector: finds faces and their points.
        detect_every: frames from one face detection to the next, 1 or more.
        smooth: smooth the points with a `OneEuroFilter`.

    Attributes:
        searches: how often the face detector ran.

    Raises:
        ConfigurationError: ``detect_every`` is below 1, or the extra ``video`` is missing.
    """

    def __init__(
        self, detector: Detector, *, detect_every: int = DETECT_EVERY, smooth: bool = True
    ) -> None:
        check_integer(detect_every=detect_every)
        self.detector, self.detect_every, self.smooth = detector, detect_every, smooth
        self.searches = 0
        self._one_crop = detector.with_options(
            refine=0, any_rotation=False, flip_test=bool(detector.arguments["flip_test"])
        ).pipeline
        self._box_map = detector.box_map(detector.face_detector.name)
        self._tracker = _byte_track()
        self._faces: list[Face] = []
        self._squares: dict[int | None, FloatArray] = {}
        self._filters: dict[int, tuple[OneEuroFilter, int]] = {}
        self._time, self._clock = -math.inf, 0.0
        self._sizes: list[tuple[int, int]] = []
        self._small: Image | None = None
        self._until_search = self._search_often_until = self._count = 0
        self._highest_id = self._ended_ids = 0

    def update(self, frame: Frame) -> list[Face]:
        """The faces of the next frame, with a ``track_id``.

        Raises `ConfigurationError` for what is no `Frame`.
        """
        if not isinstance(frame, Frame):
            given = type(frame).__name__
            raise ConfigurationError(f"frames are Frame(image, index, time), not {given}")
        # OpenVINO and OpenCV would copy a view such as frame[..., ::-1] again and again.
        image = np.ascontiguousarray(_with_square_pixels(frame))
        self._resize((image.shape[1], image.shape[0]))
        if self._is_cut(image):
            # A face in the same place of another scene is another face.
            self._ended_ids = self._highest_id
            self._tracker.reset()
            self._faces, self._until_search = [], 0
            self._filters.clear()
        tracked = self._track_points(image)
        faces = [face for face in tracked if not _is_lost(face)]
        if self._until_search == 0 or len(faces) < len(tracked):
            self.searches += 1
            if len(faces) < len(tracked):
                self._search_often_until = self._count + _LOST_FOR
            faces = self._with_new_faces(image, faces)
            is_settled = faces and self._count >= self._search_often_until
            self._until_search = (
                self.detect_every if is_settled else min(self.detect_every, _SEARCH_OFTEN)
            )
        self._until_search -= 1
        points = np.array([face.points for face in faces]).reshape(-1, self.detector.layout.size, 2)
        boxes = tight_boxes(points)
        distinct = best_boxes(boxes.astype(np.float64), np.ones(len(faces)), _SAME_FACE)
        self._faces = self._assign_ids([faces[index] for index in distinct], boxes[distinct])
        self._count += 1
        faces = self._smoothed(frame.time) if self.smooth else list(self._faces)
        if image.shape == frame.image.shape:
            return faces
        return [_resized(face, image, frame) for face in faces]

    def _resize(self, size: tuple[int, int]) -> None:
        """Follow a stream to frames of another (width, height)."""
        if not self._sizes:
            self._sizes = [size, size]
        if size != self._sizes[1]:
            matrix = resize_matrix(self._sizes[1], size)
            self._faces = [transform_face(face, matrix) for face in self._faces]
            self._squares.clear()
            self._filters.clear()
            self._sizes[1] = size

    def _is_cut(self, image: Image) -> bool:
        # Few of the pixels: averaging all of them takes 1 ms.
        small = halved(halved(cv2.resize(image, _SAMPLED, interpolation=cv2.INTER_NEAREST)))
        before, self._small = self._small, small
        return before is not None and float(cv2.absdiff(small, before).mean()) > _CUT

    def _with_new_faces(self, image: Image, faces: list[Face]) -> list[Face]:
        """The tracked faces and those that the face detector finds; best first where they overlap.

        A box around a face that is tracked well needs no crop: its points are known. Profiles that
        are found with low scores are kept, false detections are not.
        """
        sure = [face for face in faces if face.scores.mean() >= _SURE_SCORE]
        unsure = [face for face in faces if face.scores.mean() < _SURE_SCORE]
        detections = self.detector.find_faces(image)
        squares = self._box_map.squares(detections.boxes)
        known = self._squares_around(sure)
        is_new = [
            not (overlaps(_corners(known), box) > _SAME_FACE).any() for box in _corners(squares)
        ]
        new = detections[np.array(is_new, bool)]
        ((_, found),) = self.detector.pipeline.run([Found(None, image, new)], self._box_map)
        return [*sure, *(face for face in found if not _is_doubtful(face)), *unsure]

    def _squares_around(self, faces: Sequence[Face]) -> FloatArray:
        """The crop squares (F, 4) of faces by their points."""
        if not faces:
            return np.zeros((0, 4))
        points = np.stack([face.points for face in faces]).astype(np.float64)
        if self.detector.layout is FIVE:
            return self.detector.box_map("five_points").squares_of_five(points, FIVE.mean_shape)
        angles = crop_angles(points, self.detector.layout.mean_shape)
        return self.detector.box_map("landmarks").squares_around(points, angles)

    def _track_points(self, image: Image) -> list[Face]:
        """The faces of the last frame in this one, from one crop each around their last points."""
        if not self._faces:
            return []
        squares = self._squares_around(self._faces)
        for i, face in enumerate(self._faces):
            squares[i] = _steady_square(self._squares.get(face.track_id), squares[i])
        self._squares = {face.track_id: squares[i] for i, face in enumerate(self._faces)}
        boxes = np.stack([face.box for face in self._faces])
        scores = np.array([face.box_score for face in self._faces])
        found = Found(None, image, Detections(boxes, scores), squares=squares)
        ((_, faces),) = self._one_crop.run([found], self._box_map)
        return faces

    def _assign_ids(self, faces: Sequence[Face], boxes: FloatArray) -> list[Face]:
        """The faces with their boxes (F, 4) and the track ids that ByteTrack assigns."""
        import supervision

        first, now = self._sizes
        seen = boxes
        if first != now:  # ByteTrack sees the pixels of the first frame
            seen = boxes * np.tile(np.divide(first, now), 2).astype(np.float32)
        detections = supervision.Detections(seen, data={"face": np.arange(len(faces))})
        tracked = self._tracker.update(detections)
        if len(faces) and (tracked.tracker_id < 0).any():
            # ByteTrack assigns an id when it sees a box for the second time: show it twice.
            tracked = self._tracker.update(detections)
        ids = dict(zip(tracked.data.get("face", ()), tracked.tracker_id, strict=True))
        known = [
            replace(face, box=boxes[index], track_id=int(ids[index]) + 1 + self._ended_ids)
            for index, face in enumerate(faces)
            if ids.get(index, -1) >= 0
        ]
        self._highest_id = max([self._highest_id, *(face.track_id or 0 for face in known)])
        return known

    def _smoothed(self, time: float) -> list[Face]:
        """The faces with filtered points. Tracking goes on with the unfiltered points."""
        elapsed = time - self._time
        if elapsed < 0:  # such as where streams were joined
            self._filters.clear()
        self._time = time
        # The filters see their own time, which also goes on where that of the frames does not.
        self._clock += _step(elapsed)
        smoothed = []
        for face in self._faces:
            assert face.track_id is not None  # assigned
            own, _ = self._filters.get(face.track_id, (OneEuroFilter(), 0))
            self._filters[face.track_id] = own, self._count
            points = own(self._clock, face.points, face.covariance, face.interocular)
            smoothed.append(_with_points(face, points, own.covariance))
        for track_id, (_, last) in list(self._filters.items()):
            if self._count - last > _FORGET_AFTER:
                del self._filters[track_id]
        return smoothed


def _step(elapsed: float) -> float:
    """Seconds to the next frame: as usual where times do not increase."""
    return elapsed if 0 < elapsed < math.inf else _USUAL_STEP


def _is_lost(face: Face) -> bool:
    return bool(face.scores.mean() < MIN_SCORE) or _is_doubtful(face)


def _is_doubtful(face: Face) -> bool:
    if not face.reliability < LOW_RELIABILITY:  # unknown (NaN) is not
        return False
    return bool(MIN_SCORE <= face.scores.mean() < _DOUBTFUL_SCORE)


def _with_square_pixels(frame: Frame) -> Image:
    """The image of a frame as it is displayed, enlarged along one side if pixels are oblong."""
    aspect = frame.pixel_aspect
    if aspect == 1:  # in most videos; arithmetic with fractions is slow
        return frame.image
    height, width = frame.image.shape[:2]
    size = round(width * max(aspect, 1)), round(height / min(aspect, 1))
    return frame.image if size == (width, height) else cv2.resize(frame.image, size)


def _resized(face: Face, image: Image, frame: Frame) -> Face:
    """A face of the resized image in pixels of the frame."""
    return transform_face(face, resize_matrix(image.shape[1::-1], frame.image.shape[1::-1]))


def _with_points(face: Face, points: FloatArray, covariance: FloatArray) -> Face:
    box = tight_boxes(points.astype(np.float32))
    return replace(face, points=points, covariance=covariance, box=box)


def _corners(squares: FloatArray) -> FloatArray:
    """The boxes (F, 4) xyxy of upright squares (F, 4)."""
    half = squares[:, 2:3] / 2
    return np.concatenate([squares[:, :2] - half, squares[:, :2] + half], axis=1)


def _steady_square(before: FloatArray | None, now: FloatArray) -> FloatArray:
    """The last crop square (4,) of a face if it still fits, otherwise the current one."""
    if before is None or before[3] != now[3]:
        return now
    moved = np.abs(now[:3] - before[:3]).max() / before[2]
    return before if moved < _MOVED else now


def _byte_track() -> Any:
    try:
        with missing_extra("video"):
            from trackers import ByteTrackTracker
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}, then pip install --no-deps trackers") from error
    return ByteTrackTracker(minimum_consecutive_frames=1)
