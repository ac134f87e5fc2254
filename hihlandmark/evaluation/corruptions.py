"""How errors grow as photos get worse: blurred, compressed, small, turned, without colour.

A disturbed split is a split like any other, which `evaluate` measures unchanged. Boxes that get
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
from hihlandmark.datasets.augmentation import compressed, without_colour
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
"""Side of the square that is kept of a photo, in longer sides of the box tight around the face's
points. The crop of a face turned by 45 degrees may take 2.1."""
LARGEST_FACE = 2.0
"""Longer sides of a photo that a face may take: labels that are far off would ask for a view of any
size."""
JPEG_FACE = 128
"""Longer side of the face's tight box in pixels when its photo is compressed."""
FAILING = 0.5
"""The share of faces above 10 % (FR10) from which on a detector is said to fail."""


# ---------------------------------------------------------------------------------- disturbances


class View(NamedTuple):
    """The part of a photo that is kept, and the size it is shown at.

    ``square``: (4,) as (cx, cy, side, angle), see `crop.py`, with a side of whole pixels; ``size``:
    side of the picture that it becomes, in pixels. It depends on labels alone, so that points can
    be moved before the photo is read.
    """

    square: FloatArray
    size: int

    @property
    def matrix(self) -> FloatArray:
        """(2, 3), from pixels of the photo to those of the view."""
        return crop_matrix(self.square, self.size)

    def cut(self, image: Image) -> Image:
        """The view (size, size, 3) of a photo (H, W, 3); black outside of it.

        Raises `ImageError` when the face is absurdly large for the photo.
        """
        side = int(self.square[2])
        if side > VIEW_SIDE * LARGEST_FACE * max(image.shape[:2]):
            raise ImageError(
                f"the labelled face is over {LARGEST_FACE:g} times as large as the photo: check "
                "its points"
            )
        # Cut at the photo's own scale first: an upright view of this size is an exact copy.
        picture = cut_crop(image, self.square, side)
        if self.size == side:
            return picture
        method = cv2.INTER_AREA if self.size < side else cv2.INTER_LINEAR
        return cv2.resize(picture, (self.size, self.size), interpolation=method)


def _as_it_is(box: FloatArray, strength: float = 0, angle: float = 0) -> View:
    """The square around a tight box (4,), on the photo's pixel grid and at its scale."""
    side = max(round(VIEW_SIDE * _longer(box)), 1)
    half = (side - 1) / 2  # from the centre of the first pixel to that of the square
    centre = np.round((box[:2] + box[2:]) / 2 - half) + half
    return View(np.array([*centre, side, angle]), side)


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


def _unchanged(picture: Image, strength: float, face_side: float) -> Image:
    return picture


def _blurred(picture: Image, per_cent: float, face_side: float) -> Image:
    sigma = per_cent / 100 * face_side
    return cv2.GaussianBlur(picture, (0, 0), sigma) if sigma > 0 else picture


def _compressed(picture: Image, quality: float, face_side: float) -> Image:
    return compressed(picture, round(quality))


def _grey(picture: Image, share: float, face_side: float) -> Image:
    return cv2.addWeighted(without_colour(picture), share, picture, 1 - share, 0)


@dataclass(frozen=True)
class Disturbance:
    """One way in which photos get worse, and how far.

    Attributes:
        title: says what is done to a photo.
        unit: what a strength is.
        strengths: those that are measured, the mildest first.
        limits: the smallest and the largest strength that make sense.
        view: tight box (4,) of the face and strength -> `View`.
        look: view (S, S, 3) uint8, strength, and the longer side of the face's tight box in pixels
            of the view -> a picture of the same shape.
        alternates: every other face gets minus the strength.
    """

    title: str
    unit: str
    strengths: tuple[float, ...]
    limits: tuple[float, float]
    view: Callable[[FloatArray, float], View] = _as_it_is
    look: Callable[[Image, float, float], Image] = _unchanged
    alternates: bool = False


UNDISTURBED = Disturbance("Photos as they are", "none", (0,), (0, 0))

DISTURBANCES: Mapping[str, Disturbance] = {
    "blur": Disturbance(
        "Gaussian blur", "sigma (% of the face)", (0.5, 1, 2, 3, 5), (0, 100), look=_blurred
    ),
    "jpeg": Disturbance(
        f"JPEG compression of faces of {JPEG_FACE} pixels",
        "quality",
        (95, 60, 40, 20, 10, 5),
        (1, 100),
        view=_of_jpeg_face,
        look=_compressed,
    ),
    "size": Disturbance(
        "Faces shrunk", "longer side (pixels)", (96, 64, 48, 32, 24), (4, np.inf), view=_shrunk
    ),
    "rotation": Disturbance(
        "Photos turned about the face",
        "degrees",
        (15, 30, 45, 60, 75, 90, 120, 150, 180),
        (0, 180),
        view=_turned,
        alternates=True,
    ),
    "grey": Disturbance("Without colour", "share", (1,), (0, 1), look=_grey),
}
"""What photos are disturbed by, by its name."""


# ----------------------------------------------------------------------------- disturbed splits


@dataclass(frozen=True)
class DisturbedPhoto:
    """Reads a photo, cuts a view and changes its look. Picklable where ``load_image`` is.

    The last three are those of `Disturbance.look`.
    """

    load_image: Callable[[], Image]
    view: View
    look: Callable[[Image, float, float], Image]
    strength: float
    face_side: float

    def __call__(self) -> Image:
        """(S, S, 3) uint8 RGB. Raises `ImageError`."""
        return self.look(self.view.cut(self.load_image()), self.strength, self.face_side)


def disturbed(faces: AnnotatedFaces, disturbance: Disturbance, strength: float) -> AnnotatedFaces:
    """The same faces in disturbed photos, each a square of `VIEW_SIDE` around its face.

    Points move with the photo. An official rectangle keeps its shape about its moved centre, and is
    scaled. A face without known points stays as it is. Raises `ConfigurationError` for a strength
    outside of the disturbance's limits.
    """
    low, high = disturbance.limits
    if not low <= strength <= high:
        raise ConfigurationError(
            f"{disturbance.title}: {disturbance.unit} must be in {low:g} to {high:g}, not "
            f"{strength:g}"
        )
    signs = (1, -1 if disturbance.alternates else 1)
    return replace(
        faces,
        faces=[
            _disturbed_face(face, disturbance, signs[index % 2] * strength)
            for index, face in enumerate(faces)
        ],
    )


def _disturbed_face(
    face: AnnotatedFace, disturbance: Disturbance, strength: float
) -> AnnotatedFace:
    box = tight_box(face)
    if not np.isfinite(box).all():
        return face
    view = disturbance.view(box, strength)
    scale = view.size / view.square[2]
    face_side = _longer(box) * scale
    return replace(
        face,
        load_image=DisturbedPhoto(face.load_image, view, disturbance.look, strength, face_side),
        points=transform_points(view.matrix, face.points).astype(np.float64),
        rectangle=None if face.rectangle is None else _moved(face.rectangle, view.matrix, scale),
    )


def _moved(rectangle: FloatArray, matrix: FloatArray, scale: float) -> NDArray[np.float64]:
    """A rectangle (4,) about its moved centre, upright as those of face detectors are."""
    low, high = rectangle[:2], rectangle[2:]
    (centre,) = transform_points(matrix, (low + high)[None] / 2)
    half = (high - low) / 2 * scale
    return np.concatenate([centre - half, centre + half], dtype=np.float64)


# ------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class RobustnessCurve:
    """How errors grow with the strength of one disturbance."""

    disturbance: Disturbance
    points: tuple[CurvePoint, ...]
    remarks: tuple[str, ...] = ()

    @property
    def fails_from(self) -> float | None:
        """The first strength measured at which more than half of the faces fail; None: nowhere.

        A face fails when its error is above 10 %, or when it was not found.
        """
        failing = (point.strength for point in self.points if point.failure_rate > FAILING)
        return next(failing, None)


@dataclass(frozen=True)
class Robustness:
    """The errors under each disturbance by its name, and those of photos as they are."""

    undisturbed: CurvePoint
    curves: Mapping[str, RobustnessCurve]


def robustness_curve(
    detector: Detector,
    faces: AnnotatedFaces,
    disturbance: Disturbance,
    strengths: Sequence[float] | None = None,
    *,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    normalisation: str = "interocular",
    progress: Progress | None = None,
) -> RobustnessCurve:
    """The errors of a detector under a disturbance of growing strength, None: the disturbance's.

    Boxes from labels are tight around the points as they lie in the disturbed photo: those of a
    face detector that is always right. With ``boxes="detected"`` faces are looked for in the
    disturbed photo. Costs one evaluation a strength; the rest as `evaluate`.

    Raises `ConfigurationError` for strengths that make no sense, or none.
    """
    strengths = disturbance.strengths if strengths is None else strengths
    if not strengths:
        raise ConfigurationError(f"{disturbance.title}: give one strength or more")
    points = []
    for place, strength in enumerate(strengths):
        evaluation = evaluate(
            detector,
            disturbed(faces, disturbance, strength),
            boxes=boxes,
            official_map=official_map,
            progress=part_of(progress, place, len(strengths)),
        )
        points.append(curve_point(strength, evaluation.normalised(normalisation)))
    return RobustnessCurve(disturbance, tuple(points), _remarks(faces, disturbance, strengths))


def _remarks(
    faces: AnnotatedFaces, disturbance: Disturbance, strengths: Sequence[float]
) -> tuple[str, ...]:
    """How many faces a strength does not reach, because they are as small already."""
    if disturbance.view is not _shrunk:
        return ()
    sides = np.array([_longer(tight_box(face)) for face in faces])
    small = {strength: int((sides <= strength).sum()) for strength in strengths}
    return tuple(
        f"{disturbance.title} to {strength:g} pixels: {count} of {len(faces)} are not larger and "
        "left as they are"
        for strength, count in small.items()
        if count
    )


def measure_robustness(
    detector: Detector,
    faces: AnnotatedFaces,
    disturbances: Mapping[str, Disturbance] = DISTURBANCES,
    *,
    boxes: BoxSource = "labels",
    official_map: BoxMap | None = None,
    normalisation: str = "interocular",
    progress: Progress | None = None,
) -> Robustness:
    """The errors of a detector under each of the disturbances; see `robustness_curve`.

    Costs one evaluation a strength, 27 in all, and one without a disturbance.
    """
    every = {"": UNDISTURBED, **disturbances}
    total = sum(len(disturbance.strengths) for disturbance in every.values())
    curves, done = {}, 0
    for name, disturbance in every.items():
        curves[name] = robustness_curve(
            detector,
            faces,
            disturbance,
            boxes=boxes,
            official_map=official_map,
            normalisation=normalisation,
            progress=part_of(progress, done, total, len(disturbance.strengths)),
        )
        done += len(disturbance.strengths)
    return Robustness(curves.pop("").points[0], curves)
