"""Measures from the points of a face, each with its standard deviation.

Head pose, openness of the eyes (blink) and of the mouth, distances, angles, asymmetry, pupils.
They take one face, or several of one layout, such as the faces of a `video.Track`: then all arrays
have one more axis in front. The errors are those of the points, as calibrated in the model card,
with the correlations between points (`Face.correlation`), carried through by `propagate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import ConfigurationError, check_positive, is_number
from hihlandmark.face import Face
from hihlandmark.layouts import Layout
from hihlandmark.uncertainty import axes, propagate

AnyFaces = Face | Iterable[Face]
"""One face, or several of the same layout."""
IRIS_DIAMETER, IRIS_STD = 11.7, 0.5
"""Millimeters: horizontal diameter of the visible iris of adults, and how much people differ."""

# A generic face in millimeters from the tip of the nose: x right in the image, y down, z away from
# the camera. Fitted to the 300-W training faces by benchmarks/fit_head.py: of all symmetric heads
# the one that reprojects best, turned so that the median pitch of frontal faces is 0. Real faces
# differ from it, which limits the accuracy of pitch.
_HEAD = {
    "nose_tip": (0.0, 0.0, 0.0),
    "nose_base_middle": (0.0, 12.7, 13.2),
    "left_eye_outer_corner": (-45.0, -36.5, 35.5),
    "left_eye_inner_corner": (-19.3, -34.7, 31.3),
    "right_eye_inner_corner": (19.3, -34.7, 31.3),
    "right_eye_outer_corner": (45.0, -36.5, 35.5),
    "left_mouth_corner": (-28.3, 31.3, 38.7),
    "right_mouth_corner": (28.3, 31.3, 38.7),
    "nose_bridge_top": (0.0, -37.5, 16.7),
    "nose_bridge_upper": (0.0, -24.9, 11.5),
    "nose_bridge_lower": (0.0, -12.6, 5.7),
    "left_nose_base_outer": (-14.5, 8.0, 17.4),
    "left_nose_base_inner": (-7.5, 10.5, 14.8),
    "right_nose_base_inner": (7.5, 10.5, 14.8),
    "right_nose_base_outer": (14.5, 8.0, 17.4),
    "chin": (0.0, 79.5, 41.1),
}
HEAD_POINTS = tuple(_HEAD)
HEAD = np.array(list(_HEAD.values()))
FOCAL_LENGTH = 10.0
"""The focal length that `head_pose` assumes, in longer sides of the box of these points. It
reprojects the images of 300-W best."""


class Measurement(NamedTuple):
    """A value and its standard deviation, in the same unit.

    Floats for one face, arrays for several.
    """

    value: Any
    std: Any

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        """The bounds that hold the true value with a probability of ``level`` (Gaussian).

        Raises:
            ConfigurationError: ``level`` is not in 0..1, or is 1, whose bounds are infinite.
        """
        if not (is_number(level) and 0 <= level < 1):
            raise ConfigurationError(f"level must be a number from 0 to below 1, not {level!r}")
        width = NormalDist().inv_cdf((1 + level) / 2) * self.std
        return self.value - width, self.value + width

    def __str__(self) -> str:
        return f"{self.value} \u00b1 {self.std}"


class Eyes(NamedTuple):
    """A measurement of each eye; left and right as in the image."""

    left: Measurement
    right: Measurement


class HeadPose(NamedTuple):
    """Angles in degrees. All are 0 for a face that looks straight into the camera.

    Attributes:
        yaw: positive when turned towards the right side of the image.
        pitch: positive when looking up.
        roll: positive when tilted clockwise in the image.
        covariance: (3, 3) of the three angles in squared degrees, in this order.
    """

    yaw: Measurement
    pitch: Measurement
    roll: Measurement
    covariance: FloatArray


@dataclass(frozen=True)
class Scale:
    """Millimeters per pixel at the depth of the face, with its error.

    It holds for what lies in the plane of the points it was made from, facing the camera: a turned
    head shortens lengths.

    Attributes:
        mm_per_pixel: a float for one face, (N,) for several.
    """

    mm_per_pixel: Measurement

    @classmethod
    def from_points(cls, faces: AnyFaces, a: str, b: str, mm: float, mm_std: float = 0.0) -> Scale:
        """The scale at which two named points are ``mm`` apart, known to ``mm_std``.

        Raises:
            ConfigurationError: the points are the same, or ``mm`` or ``mm_std`` is invalid.
        """
        if a == b:
            raise ConfigurationError(f"a scale needs two different points, not {a} twice")
        return cls._of_length(distance(faces, a, b), mm, mm_std)

    @classmethod
    def from_iris(cls, faces: AnyFaces) -> Scale:
        """The scale at which irises are 11.7 mm wide, with 0.5 mm of difference between people.

        The diameter is the longer of the horizontal and the vertical one, the mean of both eyes.

        Raises:
            ConfigurationError: the layout has no irises, such as those of 98 points or fewer.
        """
        many, single = _listed(faces)
        ends = [
            (f"{side}_iris_{one}", f"{side}_iris_{other}")
            for side in ("left", "right")
            for one, other in (("outer", "inner"), ("top", "bottom"))
        ]
        names = [name for pair in ends for name in pair]

        def diameter(points: FloatArray) -> FloatArray:
            across = np.linalg.norm(points[..., 0::2, :] - points[..., 1::2, :], axis=-1)
            longest = across.reshape(*across.shape[:-1], 2, 2).max(axis=-1)
            return np.asarray(longest.mean(axis=-1, keepdims=True))

        length = _one(*_measure(many, names, diameter), single)
        return cls._of_length(length, IRIS_DIAMETER, IRIS_STD)

    @classmethod
    def _of_length(cls, pixels: Measurement, mm: float, mm_std: float) -> Scale:
        check_positive(mm=mm)
        if not (is_number(mm_std) and mm_std >= 0):
            raise ConfigurationError(f"mm_std must be a number of 0 or more, not {mm_std!r}")
        value = mm / np.maximum(pixels.value, 1e-6)
        relative = np.hypot(pixels.std / np.maximum(pixels.value, 1e-6), mm_std / mm)
        return cls(Measurement(value, value * relative))

    def apply(self, pixels: Measurement) -> Measurement:
        """A length in millimeters. The errors of length and scale count as independent."""
        factor, error = self.mm_per_pixel
        value = pixels.value * factor
        return Measurement(value, np.hypot(pixels.std * factor, pixels.value * error))


def eye_openness(faces: AnyFaces) -> Eyes:
    """Openness of the left and the right eye: about 0.3 open, below 0.1 closed (a blink).

    It is the mean distance between points of the upper and the lower lid over the distance between
    the corners of the eye. NaN in layouts without eyelids.
    """
    many, single = _listed(faces)
    layout = _layout_of(many)
    if not eye_contours(layout):
        nothing = np.full(len(many), np.nan)
        unknown = _one(nothing[:, None], nothing[:, None, None], single)
        return Eyes(unknown, unknown)
    left, right = (_one(*_measure(many, eye, _openness), single) for eye in eye_contours(layout))
    return Eyes(left, right)


def pupil_position(faces: AnyFaces) -> tuple[Eyes, Eyes] | None:
    """Positions of the pupils in the frames of their eyes, in corner distances.

    From the middle of the corners: along the line of the corners, positive towards the right side
    of an upright face in the image, and across it, positive downwards.

    Returns:
        (along, across) with both eyes each; None in layouts without pupils.
    """
    many, single = _listed(faces)
    layout = _layout_of(many)
    if not (eyes := _eyes_with_pupils(layout)):
        return None
    found = []
    for eye in eyes:
        values, covariance = _measure(many, eye, place_in_eye)
        found.append([_one(values, covariance, single, part) for part in (0, 1)])
    (left_along, left_across), (right_along, right_across) = found
    return Eyes(left_along, right_along), Eyes(left_across, right_across)


def mouth_openness(faces: AnyFaces) -> Measurement:
    """The gap between the lips over the width of the mouth: 0 closed, 0.5 or more wide open."""
    many, single = _listed(faces)
    names = (*_GAP, *_CORNERS)

    def ratio(points: FloatArray) -> FloatArray:
        gap, width = _lengths(points[..., 0::2, :], points[..., 1::2, :])
        return np.asarray(gap / np.maximum(width, 1e-6))[..., None]

    return _one(*_measure(many, names, ratio), single)


def mouth_opening(faces: AnyFaces, scale: Scale | None = None) -> Measurement:
    """The gap between the inner lips in pixels, or in millimeters with a scale."""
    return distance(faces, *_GAP, scale)


def mouth_width(faces: AnyFaces, scale: Scale | None = None) -> Measurement:
    """The distance of the mouth's corners in pixels, or in millimeters with a scale."""
    return distance(faces, *_CORNERS, scale)


def distance(faces: AnyFaces, a: str, b: str, scale: Scale | None = None) -> Measurement:
    """The distance of two named points in pixels, or in millimeters with a scale."""
    many, single = _listed(faces)

    def length(points: FloatArray) -> FloatArray:
        return np.linalg.norm(points[..., :1, :] - points[..., 1:, :], axis=-1)

    found = _one(*_measure(many, (a, b), length), single)
    return found if scale is None else scale.apply(found)


def angle(faces: AnyFaces, a: str, vertex: str, b: str) -> Measurement:
    """The angle at a named point between two others, in degrees from 0 to 180.

    Raises:
        ConfigurationError: the layout has no such point, or the vertex is one of the others.
    """
    if vertex in (a, b):
        raise ConfigurationError(f"an angle at {vertex} needs two other points, not {a} and {b}")
    many, single = _listed(faces)

    def between(points: FloatArray) -> FloatArray:
        one, other = (points[..., k, :] - points[..., 1, :] for k in (0, 2))
        cross = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
        return np.rad2deg(np.abs(np.arctan2(cross, (one * other).sum(axis=-1))))[..., None]

    return _one(*_measure(many, (a, vertex, b), between), single)


def asymmetry(faces: AnyFaces, point: str) -> tuple[Measurement, Measurement]:
    """How a pair of points differs about the mid-line of the face, in inter-ocular distances.

    The mid-line goes through the middle of all mirrored pairs, at a right angle to their mean
    direction, so it does not depend on the rotation of the image. Turning the head also makes a
    face asymmetric: compare frames with similar `head_pose`.

    Args:
        faces: one face or several.
        point: one of a pair, such as "left_mouth_corner"; the order of the pair does not matter.

    Returns:
        (outwards, downwards): how much farther from the mid-line, and how much lower, the right
        point is than the left one, as in the image.

    Raises:
        ConfigurationError: the layout has no such point, or the point has no mirrored one.
    """
    many, single = _listed(faces)
    layout = _layout_of(many)
    pairs = [
        pair if layout.mean_shape[pair[0], 0] < layout.mean_shape[pair[1], 0] else pair[::-1]
        for pair in layout.mirror_pairs
    ]
    (index,) = _indices(layout, (point,))
    chosen = next((k for k, pair in enumerate(pairs) if index in pair), None)
    if chosen is None:
        raise ConfigurationError(f"{point} lies on the mid-line of {layout.name}: name a pair")
    lefts, rights = np.array(pairs).T

    def difference(points: FloatArray) -> FloatArray:
        left, right = points[..., lefts, :], points[..., rights, :]
        across = (right - left).sum(axis=-2)
        across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-9)
        down = np.stack([-across[..., 1], across[..., 0]], axis=-1)
        middle = ((left + right) / 2).mean(axis=-2)
        one, other = left[..., chosen, :] - middle, right[..., chosen, :] - middle
        pair = ((one + other) * across).sum(axis=-1), ((other - one) * down).sum(axis=-1)
        return np.stack(pair, axis=-1) / layout.interocular(points)[..., None]

    values, covariance = _measure(many, tuple(range(layout.size)), difference)
    outwards, downwards = (_one(values, covariance, single, part) for part in (0, 1))
    return outwards, downwards


def head_pose(
    faces: AnyFaces, image_size: tuple[int, int] | None = None, focal_length: float | None = None
) -> HeadPose:
    """Estimate the head pose from 9 to 16 points and a generic head (PnP, least squares).

    Angles are relative to the line from the camera to the face, not to the axis of the lens.
    The covariance is that of the points alone. Heads differ from the generic one, which adds the
    same error to all images of a person: about 5 degrees in yaw and roll, 15 in pitch, and more
    beyond 60 degrees.

    Args:
        faces: in a layout with the names of our layouts for points on eyes, nose, mouth and chin.
        image_size: (width, height) of the image in pixels. Needed with ``focal_length`` only: the
            center of the image lies on the axis of the lens; None: the face does.
        focal_length: in pixels; None: that of a camera about 1.2 m away from the face, whatever
            the size of the image, which may have been cropped.

    Raises:
        ConfigurationError: the layout has fewer than six of the points, or ``image_size`` or
            ``focal_length`` is not positive.
    """
    if focal_length is not None:
        check_positive(focal_length=focal_length)
    if image_size is not None:
        _check_image_size(image_size)
    many, single = _listed(faces)
    layout = _layout_of(many)
    names = [name for name in HEAD_POINTS if name in layout.point_names]
    if len(names) < 6:
        raise ConfigurationError(
            f"{layout.name} has {len(names)} of the points that head_pose needs at least 6 "
            f"of: {', '.join(HEAD_POINTS)}"
        )
    head = HEAD[[name in names for name in HEAD_POINTS]]

    def angles(points: FloatArray) -> FloatArray:
        seen = points.reshape(-1, *points.shape[-2:])
        found = [_angles(head, each, image_size, focal_length) for each in seen]
        return np.reshape(found, (*points.shape[:-2], 3))

    values, covariance = _measure(many, names, angles, period=360.0)
    yaw, pitch, roll = (_one(values, covariance, single, part) for part in range(3))
    return HeadPose(yaw, pitch, roll, covariance[0] if single else covariance)


def _check_image_size(image_size: Any) -> None:
    try:
        width, height = image_size
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"image_size must be (width, height) in pixels, not {image_size!r}"
        ) from error
    check_positive(**{"width in image_size": width, "height in image_size": height})


def _angles(
    head: FloatArray,
    points: FloatArray,
    image_size: tuple[int, int] | None,
    focal_length: float | None,
) -> FloatArray:
    """Yaw, pitch and roll (3,) in degrees of a head (K, 3) that is seen at points (K, 2)."""
    center = points.mean(axis=0)
    if focal_length is None:
        focal_length = float(FOCAL_LENGTH * np.ptp(points, axis=0).max())
    elif image_size is not None:
        center = (np.array(image_size) - 1) / 2
    rotation, position = fit_head(head, points, focal_length, center)
    matrix = _to_front(position) @ rotation
    # The face looks along -z of the head; roll is the rotation of the head's x axis in the image.
    look = -matrix[:, 2]
    yaw = np.arctan2(look[0], -look[2])
    pitch = np.arctan2(-look[1], np.hypot(look[0], look[2]))
    roll = np.arctan2(matrix[1, 0], np.hypot(matrix[0, 0], matrix[2, 0]))
    return np.rad2deg((yaw, pitch, roll))


# Values of points


def head_points(face: Face) -> FloatArray:
    """The points (K, 2) of a face that are in `HEAD`, in its order."""
    names = [name for name in HEAD_POINTS if name in face.layout.point_names]
    return np.array([face[name] for name in names], np.float64)


def fit_head(
    head: FloatArray, points: FloatArray, focal_length: float, center: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The rotation (3, 3) and position (3,) in which a head (K, 3) is seen at points (K, 2).

    The axis of the lens goes through the pixel ``center`` (2,). NaN where all points coincide.
    """
    camera = np.array([[focal_length, 0, center[0]], [0, focal_length, center[1]], [0, 0, 1]])
    seen = np.ascontiguousarray(points)  # OpenCV refuses others
    try:
        _, rotation, position = cv2.solvePnP(head, seen, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:  # the points coincide
        return np.full((3, 3), np.nan), np.full(3, np.nan)
    matrix = np.asarray(cv2.Rodrigues(rotation)[0], np.float64)
    return matrix, np.asarray(position[:, 0], np.float64)


def _to_front(position: FloatArray) -> FloatArray:
    """The rotation (3, 3), without roll, that moves a position (3,) onto the axis of the lens."""
    x, y, z = position / np.linalg.norm(position)
    level = np.hypot(x, z)
    about_y = np.array([[z / level, 0, -x / level], [0, 1, 0], [x / level, 0, z / level]])
    about_x = np.array([[1, 0, 0], [0, level, -y], [0, y, level]])
    return np.asarray(about_x @ about_y)


def lid_openness(points: FloatArray, layout: Layout) -> FloatArray:
    """Openness (..., 2) of the left and right eye as `eye_openness`, of points (..., P, 2).

    NaN where a point is unknown, and in layouts without eyelids.
    """
    if not (eyes := eye_contours(layout)):
        return np.full((*points.shape[:-2], 2), np.nan)
    return np.concatenate([_openness(points[..., eye, :]) for eye in eyes], axis=-1)


def eye_widths(points: FloatArray, layout: Layout) -> FloatArray:
    """Distances (..., 2) between the corners of both eyes of points (..., P, 2)."""
    widths = np.full((*points.shape[:-2], 2), np.nan)
    for number, eye in enumerate(eye_contours(layout)):
        first, second = eye[0], eye[len(eye) // 2]
        widths[..., number] = np.linalg.norm(
            points[..., second, :] - points[..., first, :], axis=-1
        )
    return widths


def pupil_offsets(points: FloatArray, layout: Layout) -> FloatArray | None:
    """Offsets (..., 2) of the pupils from the middle of their eyes, in corner distances.

    Positive towards the right side of an upright face in the image. None in layouts without pupils.
    """
    eyes = _eyes_with_pupils(layout)
    return place_in_eye(points[..., eyes, :])[..., 0] if eyes else None


def place_in_eye(points: FloatArray) -> FloatArray:
    """The pupil (..., 2), along and across, of points (..., 3, 2): two corners and the pupil.

    From the middle of the corners, in their distance.
    """
    first, second, pupil = (points[..., k, :] for k in range(3))
    axis, offset = second - first, pupil - (first + second) / 2
    square = np.maximum((axis**2).sum(axis=-1), 1e-12)
    across = axis[..., 0] * offset[..., 1] - axis[..., 1] * offset[..., 0]
    return np.stack([(offset * axis).sum(axis=-1), across], axis=-1) / square[..., None]


def eye_contours(layout: Layout) -> list[tuple[int, ...]]:
    """The points of the left and the right eye, around each; [] in layouts without eyelids."""
    eyes = [layout.parts.get(f"{side}_eye", ()) for side in ("left", "right")]
    return eyes if all(len(eye) >= 4 for eye in eyes) else []


def _eyes_with_pupils(layout: Layout) -> list[tuple[int, int, int]]:
    """Both corners and the pupil of the left and the right eye; [] in layouts without pupils."""
    if any(len(pupil) != 1 for pupil in layout.pupils):
        return []
    eyes = []
    for eye, (pupil,) in zip(eye_contours(layout), layout.pupils, strict=False):
        corners = (eye[0], eye[len(eye) // 2])
        # Contours may begin at either corner; the axis leads to the right.
        left, right = sorted(corners, key=lambda point: layout.mean_shape[point, 0])
        eyes.append((left, right, pupil))
    return eyes


# Values of faces with their errors

_GAP = ("inner_upper_lip_middle", "inner_lower_lip_middle")
_CORNERS = ("left_mouth_corner", "right_mouth_corner")


def _openness(eye: FloatArray) -> FloatArray:
    """Openness (..., 1) of the points (..., K, 2) around one eye, from one of its corners."""
    half = eye.shape[-2] // 2
    upper, lower = eye[..., 1:half, :], eye[..., :half:-1, :]
    width = np.linalg.norm(eye[..., half, :] - eye[..., 0, :], axis=-1)
    gaps = np.linalg.norm(upper - lower, axis=-1).mean(axis=-1)
    return np.asarray(gaps / np.maximum(width, 1e-6))[..., None]


def _lengths(starts: FloatArray, ends: FloatArray) -> tuple[FloatArray, ...]:
    return tuple(np.moveaxis(np.linalg.norm(starts - ends, axis=-1), -1, 0))


def _listed(faces: AnyFaces) -> tuple[list[Face], bool]:
    """The faces as a list, and whether it was a single one."""
    return ([faces], True) if isinstance(faces, Face) else (list(faces), False)


def _layout_of(faces: Sequence[Face]) -> Layout:
    layouts = {face.layout for face in faces}
    if len(layouts) != 1:
        names = ", ".join(sorted(layout.name for layout in layouts)) or "no face"
        raise ConfigurationError(f"measures take faces of one layout, not {names}")
    return layouts.pop()


def _indices(layout: Layout, names: Iterable[object]) -> list[int]:
    """The indices of named points. Raises `ConfigurationError` for names the layout lacks."""
    missing = [name for name in names if name not in layout.point_names]
    if missing:
        raise ConfigurationError(f"{layout.name} has no point {', '.join(map(str, missing))}")
    return [layout.point_names.index(name) for name in names]


def _measure(
    faces: Sequence[Face],
    points: Sequence[str] | Sequence[int],
    function: Callable[[FloatArray], FloatArray],
    period: float | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Values (N, M) and covariances (N, M, M) of a function of some points, by name or index.

    ``period``: of the values, if they are angles.
    """
    layout = _layout_of(faces)
    named = any(isinstance(point, str) for point in points)
    indices = _indices(layout, points) if named else points
    # A point that occurs twice has one error, not two independent ones.
    used, places = np.unique(indices, return_inverse=True)

    def of_used(known: FloatArray) -> FloatArray:
        return function(known[..., places, :])

    def values_of(batch: Sequence[Face]) -> tuple[FloatArray, FloatArray]:
        shapes = np.stack([face.points for face in batch])
        directions = axes(
            shapes,
            np.stack([face.covariance for face in batch]),
            layout,
            batch[0].correlation,
            used,
        )
        if period is None:
            return propagate(of_used, shapes[:, used], directions)
        start = of_used(shapes[:, used].astype(np.float64))

        def change(moved: FloatArray) -> FloatArray:
            offset = of_used(moved) - start.reshape(-1, *[1] * (moved.ndim - 3), start.shape[-1])
            return np.asarray((offset + period / 2) % period - period / 2)

        return start, propagate(change, shapes[:, used], directions)[1]

    # Faces of one detector share their correlation; a few at a time, which bounds memory.
    at_once = max(_AT_ONCE // layout.size**2, 1)
    batches: list[list[Face]] = []
    for face in faces:
        if (
            batches
            and len(batches[-1]) < at_once
            and batches[-1][0].correlation is face.correlation
        ):
            batches[-1].append(face)
        else:
            batches.append([face])
    values, covariances = zip(*map(values_of, batches), strict=True)
    return np.concatenate(values), np.concatenate(covariances)


_AT_ONCE = 64 * 98**2
"""Faces whose measures are computed at once, times their squared number of points."""


def _one(values: FloatArray, covariance: FloatArray, single: bool, part: int = 0) -> Measurement:
    """One of M values as a measurement."""
    value, std = values[:, part], np.sqrt(covariance[:, part, part])
    return Measurement(float(value[0]), float(std[0])) if single else Measurement(value, std)
