"""How errors grow as images get worse: blurred, compressed, small, rotated, without color.

A corrupted split is a split like any other, which `evaluate` measures unchanged. Corruptions of
boxes are `protocol.Jitter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image, Progress
from hihlandmark.crop import BoxMap, crop_matrix, cut_crop, transform_points
from hihlandmark.datasets.augmentation import compressed, without_color
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.evaluation.protocol import BoxSource, CurvePoint, evaluate, part_of, tight_box

WINDOW_SIDE = 3.0
"""Side of the crop window, in longer sides of the box tight around the points of the face. The crop
of a face rotated by 45 degrees may take 2.1."""
LARGEST_FACE = 2.0
"""Largest face in longer sides of its image: wrong labels could ask for a window of any size."""
JPEG_FACE = 128
"""Longer side of the face's tight box in pixels when its image is compressed."""
FAILING = 0.5
"""A detector fails where more than this share of the faces has an error above 10 % (FR10)."""


class CropWindow(NamedTuple):
    """The part of an image that is kept, and the size to which it is scaled.

    It depends on labels alone, so that points can be transformed before the image is read.
    """

    square: FloatArray
    """(4,) as (cx, cy, side, angle), see `crop.py`, with a side of whole pixels."""
    size: int
    """Side of the scaled window in pixels."""

    @property
    def matrix(self) -> FloatArray:
        """(2, 3), from pixels of the image to pixels of the window."""
        return crop_matrix(self.square, self.size)

    def cut(self, image: Image) -> Image:
        """The window (size, size, 3) of an image (H, W, 3), black outside of it.

        Raises `ImageError` when the face is much larger than the image.
        """
        side = int(self.square[2])
        if side > WINDOW_SIDE * LARGEST_FACE * max(image.shape[:2]):
            limit = f"{LARGEST_FACE:g} times as large as the image"
            raise ImageError(f"the labeled face is over {limit}: check its points")
        # First at the scale of the image: an upright window of this size is an exact copy.
        crop = cut_crop(image, self.square, side)
        if self.size == side:
            return crop
        method = cv2.INTER_AREA if self.size < side else cv2.INTER_LINEAR
        return cv2.resize(crop, (self.size, self.size), interpolation=method)


def _full_size(box: FloatArray, severity: float = 0, angle: float = 0) -> CropWindow:
    """The window around a tight box (4,), on the pixel grid and at the scale of the image."""
    side = max(round(WINDOW_SIDE * _longer(box)), 1)
    half = (side - 1) / 2  # from the center of the first pixel to that of the square
    center = np.round((box[:2] + box[2:]) / 2 - half) + half
    return CropWindow(np.array([*center, side, angle]), side)


def _shrunk(box: FloatArray, pixels: float) -> CropWindow:
    """A face that is smaller already is not changed."""
    window = _full_size(box)
    return window._replace(size=min(_scaled(box, pixels).size, window.size))


def _scaled(box: FloatArray, pixels: float) -> CropWindow:
    window = _full_size(box)
    return window._replace(size=max(round(window.size * pixels / max(_longer(box), 1)), 1))


def _longer(box: FloatArray) -> float:
    """The longer side of a box (4,) xyxy."""
    return float((box[2:] - box[:2]).max())


def _unchanged(image: Image, severity: float, face_side: float) -> Image:
    return image


def _blurred(image: Image, per_cent: float, face_side: float) -> Image:
    sigma = per_cent / 100 * face_side
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image


def _compressed(image: Image, quality: float, face_side: float) -> Image:
    return compressed(image, round(quality))


def _gray(image: Image, share: float, face_side: float) -> Image:
    return cv2.addWeighted(without_color(image), share, image, 1 - share, 0)


@dataclass(frozen=True)
class Corruption:
    """One way in which images get worse.

    ``window`` maps the tight box (4,) of a face and a severity to a `CropWindow`; ``change`` maps
    a crop (S, S, 3), a severity, and the longer side of the box in pixels of the crop to a crop.
    """

    title: str
    unit: str
    severities: tuple[float, ...]
    """Those that are measured, the mildest first."""
    limits: tuple[float, float]
    """The smallest and the largest valid severity."""
    window: Callable[[FloatArray, float], CropWindow] = _full_size
    change: Callable[[Image, float, float], Image] = _unchanged
    alternates: bool = False
    """Every other face gets minus the severity."""


UNCORRUPTED = Corruption("Unchanged images", "none", (0,), (0, 0))

CORRUPTIONS: Mapping[str, Corruption] = {
    "blur": Corruption(
        "Gaussian blur", "sigma (% of the face)", (0.5, 1, 2, 3, 5), (0, 100), change=_blurred
    ),
    "jpeg": Corruption(
        f"JPEG compression of faces of {JPEG_FACE} pixels",
        "quality",
        (95, 60, 40, 20, 10, 5),
        (1, 100),
        window=lambda box, quality: _scaled(box, JPEG_FACE),
        change=_compressed,
    ),
    "size": Corruption(
        "Faces shrunk", "longer side (pixels)", (96, 64, 48, 32, 24), (4, np.inf), window=_shrunk
    ),
    "rotation": Corruption(
        "Images rotated about the face",
        "degrees",
        (15, 30, 45, 60, 75, 90, 120, 150, 180),
        (0, 180),
        window=lambda box, degrees: _full_size(box, angle=np.deg2rad(degrees)),
        alternates=True,
    ),
    "gray": Corruption("Without color", "share", (1,), (0, 1), change=_gray),
}
"""The corruptions that `measure_robustness` measures, by name."""


@dataclass(frozen=True)
class CorruptedImage:
    """Reads an image, cuts a window and corrupts it. Picklable if ``load_image`` is."""

    load_image: Callable[[], Image]
    window: CropWindow
    change: Callable[[Image, float, float], Image]
    severity: float
    face_side: float

    def __call__(self) -> Image:
        """(S, S, 3) uint8 RGB. Raises `ImageError`."""
        return self.change(self.window.cut(self.load_image()), self.severity, self.face_side)


def corrupted(faces: AnnotatedFaces, corruption: Corruption, severity: float) -> AnnotatedFaces:
    """The same faces in corrupted images, each a square of `WINDOW_SIDE` around its face.

    Points move with the image. An official rectangle keeps its shape about its moved center, and is
    scaled. A face without known points is not changed.

    Raises:
        ConfigurationError: the severity is outside of the corruption's limits.
    """
    low, high = corruption.limits
    if not low <= severity <= high:
        what = f"{corruption.title}: {corruption.unit}"
        raise ConfigurationError(f"{what} must be in {low:g} to {high:g}, not {severity:g}")
    signs = (1, -1 if corruption.alternates else 1)
    changed = [_corrupted_face(f, corruption, signs[i % 2] * severity) for i, f in enumerate(faces)]
    return replace(faces, faces=changed)


def _corrupted_face(face: AnnotatedFace, corruption: Corruption, severity: float) -> AnnotatedFace:
    box = tight_box(face)
    if not np.isfinite(box).all():
        return face
    window = corruption.window(box, severity)
    scale = window.size / window.square[2]
    rectangle = face.rectangle
    if rectangle is not None:  # upright, as those of face detectors are
        low, high = rectangle[:2], rectangle[2:]
        (center,) = transform_points(window.matrix, (low + high)[None] / 2)
        half = (high - low) / 2 * scale
        rectangle = np.concatenate([center - half, center + half], dtype=np.float64)
    side = _longer(box) * scale
    image = CorruptedImage(face.load_image, window, corruption.change, severity, side)
    points = transform_points(window.matrix, face.points).astype(np.float64)
    return replace(face, load_image=image, points=points, rectangle=rectangle)


@dataclass(frozen=True)
class RobustnessCurve:
    """How errors grow with the severity of one corruption."""

    corruption: Corruption
    points: tuple[CurvePoint, ...]
    remarks: tuple[str, ...] = ()

    @property
    def fails_from(self) -> float | None:
        """The first measured severity at which more than half of the faces fail; None: nowhere.

        A face fails when its error is above 10 %, or when it was not found.
        """
        failing = (point.severity for point in self.points if point.failure_rate > FAILING)
        return next(failing, None)


@dataclass(frozen=True)
class Robustness:
    """The errors under each corruption by its name, and those of unchanged images."""

    uncorrupted: CurvePoint
    curves: Mapping[str, RobustnessCurve]


def robustness_curve(
    detector: Detector,
    faces: AnnotatedFaces,
    corruption: Corruption,
    severities: Sequence[float] | None = None,
    *,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    approximate: bool = False,
    normalization: str = "interocular",
    progress: Progress | None = None,
) -> RobustnessCurve:
    """The errors of a detector under a corruption, at its severities or those given.

    Costs one evaluation per severity. ``boxes`` are those of the corrupted images,
    ``normalization`` is a key of `NORMALIZATIONS`; other arguments are those of `evaluate`.

    Raises:
        ConfigurationError: a severity is outside of the corruption's limits, or there is none.
    """
    severities = corruption.severities if severities is None else severities
    if not len(severities):
        raise ConfigurationError(f"{corruption.title}: pass one severity or more")
    points = []
    for i, severity in enumerate(severities):
        worse = corrupted(faces, corruption, severity)
        part = part_of(progress, i, len(severities))
        evaluation = evaluate(
            detector,
            worse,
            boxes=boxes,
            official_map=official_map,
            approximate=approximate,
            progress=part,
        )
        points.append(CurvePoint.of(severity, evaluation.normalized(normalization)))
    return RobustnessCurve(corruption, tuple(points), _remarks(faces, corruption, severities))


def _remarks(
    faces: AnnotatedFaces, corruption: Corruption, severities: Sequence[float]
) -> tuple[str, ...]:
    """How many faces a severity leaves unchanged, because they are as small already."""
    if corruption.window is not _shrunk:
        return ()
    sides = np.array([_longer(tight_box(face)) for face in faces])
    small = {severity: int((sides <= severity).sum()) for severity in severities}
    message = "{} to {:g} pixels: {} of {} are not larger and unchanged"
    return tuple(
        message.format(corruption.title, severity, count, len(faces))
        for severity, count in small.items()
        if count
    )


def measure_robustness(
    detector: Detector,
    faces: AnnotatedFaces,
    corruptions: Mapping[str, Corruption] = CORRUPTIONS,
    *,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    approximate: bool = False,
    normalization: str = "interocular",
    progress: Progress | None = None,
) -> Robustness:
    """The errors of a detector under several corruptions, and without.

    Costs one evaluation per severity, 26 in all, and one of unchanged images. Arguments as in
    `robustness_curve`.
    """
    every = {"": UNCORRUPTED, **corruptions}
    total = sum(len(corruption.severities) for corruption in every.values())
    curves, done = {}, 0
    for name, corruption in every.items():
        curves[name] = robustness_curve(
            detector,
            faces,
            corruption,
            boxes=boxes,
            official_map=official_map,
            approximate=approximate,
            normalization=normalization,
            progress=part_of(progress, done, total, len(corruption.severities)),
        )
        done += len(corruption.severities)
    return Robustness(curves.pop("").points[0], curves)
