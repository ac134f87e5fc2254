"""How errors grow as images get worse: blurred, compressed, small, turned, without color.

A corrupted split is a split like any other, which `evaluate` measures unchanged. Boxes that get
worse are `protocol.Jitter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import BoxMap, crop_matrix, cut_crop, transform_points
from hihlandmark.datasets.augmentation import compressed, without_color
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.evaluation.protocol import (
    BoxSource,
    CurvePoint,
    Progress,
    curve_point,
    evaluate,
    part_of,
    tight_box,
)

if TYPE_CHECKING:
    from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
    from hihlandmark.detector import Detector


VIEW_SIDE = 3.0
"""Side of the square that is kept of an image, in longer sides of the box tight around the face's
points. The crop of a face turned by 45 degrees may take 2.1."""
LARGEST_FACE = 2.0
"""Longer sides of an image that a face may take: labels that are far off would ask for a view of any
size."""
JPEG_FACE = 128
"""Longer side of the face's tight box in pixels when its image is compressed."""
FAILING = 0.5
"""The share of faces above 10 % (FR10) from which on a detector is said to fail."""


# ---------------------------------------------------------------------------------- corruptions


class View(NamedTuple):
    """The part of an image that is kept, and the size it is shown at.

    ``square``: (4,) as (cx, cy, side, angle), see `crop.py`, with a side of whole pixels; ``size``:
    side of the image that it becomes, in pixels. It depends on labels alone, so that points can
    be moved before the image is read.
    """

    square: FloatArray
    size: int

    @property
    def matrix(self) -> FloatArray:
        """(2, 3), from pixels of the image to those of the view."""
        return crop_matrix(self.square, self.size)

    def cut(self, image: Image) -> Image:
        """The view (size, size, 3) of an image (H, W, 3); black outside of it.

        Raises `ImageError` when the face is absurdly large for the image.
        """
        side = int(self.square[2])
        if side > VIEW_SIDE * LARGEST_FACE * max(image.shape[:2]):
            raise ImageError(
                f"the labeled face is over {LARGEST_FACE:g} times as large as the photo: check "
                "its points"
            )
        # Cut at the image's own scale first: an upright view of this size is an exact copy.
        picture = cut_crop(image, self.square, side)
        if self.size == side:
            return picture
        method = cv2.INTER_AREA if self.size < side else cv2.INTER_LINEAR
        return cv2.resize(picture, (self.size, self.size), interpolation=method)


def _as_it_is(box: FloatArray, severity: float = 0, angle: float = 0) -> View:
    """The square around a tight box (4,), on the image's pixel grid and at its scale."""
    side = max(round(VIEW_SIDE * _longer(box)), 1)
    half = (side - 1) / 2  # from the center of the first pixel to that of the square
    center = np.round((box[:2] + box[2:]) / 2 - half) + half
    return View(np.array([*center, side, angle]), side)


def _turned(box: FloatArray, degrees: float) -> View:
    return _as_it_is(box, angle=np.deg2rad(degrees))


def _shrunk(box: FloatArray, pixels: float) -> View:
    """A face that is smaller already stays as it is."""
    view = _as_it_is(box)
    return view._replace(size=min(_scaled(box, pixels).size, view.size))


def _of_jpeg_face(box: FloatArray, quality: float) -> View:
    return _scaled(box, JPEG_FACE)


def _scaled(box: FloatArray, pixels: float) -> View:
    view = _as_it_is(box)
    return view._replace(size=max(round(view.size * pixels / max(_longer(box), 1)), 1))


def _longer(box: FloatArray) -> float:
    """The longer side of a box (4,) xyxy."""
    return float((box[2:] - box[:2]).max())


def _unchanged(picture: Image, severity: float, face_side: float) -> Image:
    return picture


def _blurred(picture: Image, per_cent: float, face_side: float) -> Image:
    sigma = per_cent / 100 * face_side
    return cv2.GaussianBlur(picture, (0, 0), sigma) if sigma > 0 else picture


def _compressed(picture: Image, quality: float, face_side: float) -> Image:
    return compressed(picture, round(quality))


def _gray(picture: Image, share: float, face_side: float) -> Image:
    return cv2.addWeighted(without_color(picture), share, picture, 1 - share, 0)


@dataclass(frozen=True)
class Corruption:
    """One way in which images get worse, and how far.

    Attributes:
        title: says what is done to an image.
        unit: what a severity is.
        severities: those that are measured, the mildest first.
        limits: the smallest and the largest severity that make sense.
        view: tight box (4,) of the face and severity -> `View`.
        look: view (S, S, 3) uint8, severity, and the longer side of the face's tight box in pixels
            of the view -> an image of the same shape.
        alternates: every other face gets minus the severity.
    """

    title: str
    unit: str
    severities: tuple[float, ...]
    limits: tuple[float, float]
    view: Callable[[FloatArray, float], View] = _as_it_is
    look: Callable[[Image, float, float], Image] = _unchanged
    alternates: bool = False


UNCORRUPTED = Corruption("Photos as they are", "none", (0,), (0, 0))

CORRUPTIONS: Mapping[str, Corruption] = {
    "blur": Corruption(
        "Gaussian blur", "sigma (% of the face)", (0.5, 1, 2, 3, 5), (0, 100), look=_blurred
    ),
    "jpeg": Corruption(
        f"JPEG compression of faces of {JPEG_FACE} pixels",
        "quality",
        (95, 60, 40, 20, 10, 5),
        (1, 100),
        view=_of_jpeg_face,
        look=_compressed,
    ),
    "size": Corruption(
        "Faces shrunk", "longer side (pixels)", (96, 64, 48, 32, 24), (4, np.inf), view=_shrunk
    ),
    "rotation": Corruption(
        "Photos turned about the face",
        "degrees",
        (15, 30, 45, 60, 75, 90, 120, 150, 180),
        (0, 180),
        view=_turned,
        alternates=True,
    ),
    "gray": Corruption("Without color", "share", (1,), (0, 1), look=_gray),
}
"""What images are corrupted by, by its name."""


# ----------------------------------------------------------------------------- corrupted splits


@dataclass(frozen=True)
class CorruptedPhoto:
    """Reads an image, cuts a view and changes its look. Picklable where ``load_image`` is.

    The last three are those of `Corruption.look`.
    """

    load_image: Callable[[], Image]
    view: View
    look: Callable[[Image, float, float], Image]
    severity: float
    face_side: float

    def __call__(self) -> Image:
        """(S, S, 3) uint8 RGB. Raises `ImageError`."""
        return self.look(self.view.cut(self.load_image()), self.severity, self.face_side)


def corrupted(faces: AnnotatedFaces, corruption: Corruption, severity: float) -> AnnotatedFaces:
    """The same faces in corrupted images, each a square of `VIEW_SIDE` around its face.

    Points move with the image. An official rectangle keeps its shape about its moved center, and is
    scaled. A face without known points stays as it is. Raises `ConfigurationError` for a severity
    outside of the corruption's limits.
    """
    low, high = corruption.limits
    if not low <= severity <= high:
        raise ConfigurationError(
            f"{corruption.title}: {corruption.unit} must be in {low:g} to {high:g}, not "
            f"{severity:g}"
        )
    signs = (1, -1 if corruption.alternates else 1)
    return replace(
        faces,
        faces=[
            _corrupted_face(face, corruption, signs[index % 2] * severity)
            for index, face in enumerate(faces)
        ],
    )


def _corrupted_face(face: AnnotatedFace, corruption: Corruption, severity: float) -> AnnotatedFace:
    box = tight_box(face)
    if not np.isfinite(box).all():
        return face
    view = corruption.view(box, severity)
    scale = view.size / view.square[2]
    face_side = _longer(box) * scale
    return replace(
        face,
        load_image=CorruptedPhoto(face.load_image, view, corruption.look, severity, face_side),
        points=transform_points(view.matrix, face.points).astype(np.float64),
        rectangle=None if face.rectangle is None else _moved(face.rectangle, view.matrix, scale),
    )


def _moved(rectangle: FloatArray, matrix: FloatArray, scale: float) -> NDArray[np.float64]:
    """A rectangle (4,) about its moved center, upright as those of face detectors are."""
    low, high = rectangle[:2], rectangle[2:]
    (center,) = transform_points(matrix, (low + high)[None] / 2)
    half = (high - low) / 2 * scale
    return np.concatenate([center - half, center + half], dtype=np.float64)


# ------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class RobustnessCurve:
    """How errors grow with the severity of one corruption."""

    corruption: Corruption
    points: tuple[CurvePoint, ...]
    remarks: tuple[str, ...] = ()

    @property
    def fails_from(self) -> float | None:
        """The first severity measured at which more than half of the faces fail; None: nowhere.

        A face fails when its error is above 10 %, or when it was not found.
        """
        failing = (point.severity for point in self.points if point.failure_rate > FAILING)
        return next(failing, None)


@dataclass(frozen=True)
class Robustness:
    """The errors under each corruption by its name, and those of images as they are."""

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
    normalization: str = "interocular",
    progress: Progress | None = None,
) -> RobustnessCurve:
    """The errors of a detector under a corruption of growing severity, None: the corruption's.

    Boxes from labels are tight around the points as they lie in the corrupted image: those of a
    face detector that is always right. With ``boxes="detected"`` faces are looked for in the
    corrupted image. Costs one evaluation a severity; the rest as `evaluate`.

    Raises `ConfigurationError` for severities that make no sense, or none.
    """
    severities = corruption.severities if severities is None else severities
    if not severities:
        raise ConfigurationError(f"{corruption.title}: give one severity or more")
    points = []
    for place, severity in enumerate(severities):
        evaluation = evaluate(
            detector,
            corrupted(faces, corruption, severity),
            boxes=boxes,
            official_map=official_map,
            progress=part_of(progress, place, len(severities)),
        )
        points.append(curve_point(severity, evaluation.normalized(normalization)))
    return RobustnessCurve(corruption, tuple(points), _remarks(faces, corruption, severities))


def _remarks(
    faces: AnnotatedFaces, corruption: Corruption, severities: Sequence[float]
) -> tuple[str, ...]:
    """How many faces a severity does not reach, because they are as small already."""
    if corruption.view is not _shrunk:
        return ()
    sides = np.array([_longer(tight_box(face)) for face in faces])
    small = {severity: int((sides <= severity).sum()) for severity in severities}
    return tuple(
        f"{corruption.title} to {severity:g} pixels: {count} of {len(faces)} are not larger and "
        "left as they are"
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
    normalization: str = "interocular",
    progress: Progress | None = None,
) -> Robustness:
    """The errors of a detector under each of the corruptions; see `robustness_curve`.

    Costs one evaluation a severity, 27 in all, and one without a corruption.
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
            normalization=normalization,
            progress=part_of(progress, done, total, len(corruption.severities)),
        )
        done += len(corruption.severities)
    return Robustness(curves.pop("").points[0], curves)
