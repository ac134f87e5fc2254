"""Measures from the points of a face: head pose, openness of the eyes (blink) and of the mouth."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import ConfigurationError
from hihlandmark.face import Face
from hihlandmark.layouts import Layout

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
reprojects the photographs of 300-W best."""


class HeadPose(NamedTuple):
    """Angles in degrees. All are 0 for a face that looks straight into the camera.

    Attributes:
        yaw: positive when turned towards the right side of the image.
        pitch: positive when looking up.
        roll: positive when tilted clockwise in the image.
    """

    yaw: float
    pitch: float
    roll: float


def head_pose(
    face: Face, image_size: tuple[int, int] | None = None, focal_length: float | None = None
) -> HeadPose:
    """Estimate the head pose from 9 to 16 points and a generic head (PnP, least squares).

    Angles are relative to the line from the camera to the face, not to the axis of the lens.
    Errors are about 5 degrees in yaw and roll, 15 in pitch, and more beyond 60 degrees.

    Args:
        face: in a layout with the names of our layouts for points on eyes, nose, mouth and chin.
        image_size: (width, height) of the image in pixels. Needed with ``focal_length`` only: the
            center of the image lies on the axis of the lens; None: the face does.
        focal_length: in pixels; None: that of a camera about 1.2 m away from the face, whatever
            the size of the image, which may have been cropped.

    Raises:
        ConfigurationError: the layout has fewer than six of the points.
    """
    known = [name in face.layout.point_names for name in HEAD_POINTS]
    if sum(known) < 6:
        raise ConfigurationError(
            f"{face.layout.name} has {sum(known)} of the points that head_pose needs at least 6 "
            f"of: {', '.join(HEAD_POINTS)}"
        )
    points = head_points(face)
    center = points.mean(axis=0)
    if focal_length is None:
        focal_length = float(FOCAL_LENGTH * np.ptp(points, axis=0).max())
    elif image_size is not None:
        center = (np.array(image_size) - 1) / 2
    rotation, position = fit_head(HEAD[known], points, focal_length, center)
    matrix = _to_front(position) @ rotation
    # The face looks along -z of the head; roll is the rotation of the head's x axis in the image.
    look = -matrix[:, 2]
    yaw = np.arctan2(look[0], -look[2])
    pitch = np.arctan2(-look[1], np.hypot(look[0], look[2]))
    roll = np.arctan2(matrix[1, 0], np.hypot(matrix[0, 0], matrix[2, 0]))
    return HeadPose(*np.rad2deg((yaw, pitch, roll)).tolist())


def head_points(face: Face) -> FloatArray:
    """The points (K, 2) of a face that are in `HEAD`, in its order."""
    names = [name for name in HEAD_POINTS if name in face.layout.point_names]
    return np.array([face[name] for name in names], np.float64)


def fit_head(
    head: FloatArray, points: FloatArray, focal_length: float, center: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The rotation (3, 3) and position (3,) in which a head (K, 3) is seen at points (K, 2).

    The axis of the lens goes through the pixel ``center`` (2,).
    """
    camera = np.array([[focal_length, 0, center[0]], [0, focal_length, center[1]], [0, 0, 1]])
    _, rotation, position = cv2.solvePnP(head, points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    matrix = np.asarray(cv2.Rodrigues(rotation)[0], np.float64)
    return matrix, np.asarray(position[:, 0], np.float64)


def _to_front(position: FloatArray) -> FloatArray:
    """The rotation (3, 3), without roll, that moves a position (3,) onto the axis of the lens."""
    x, y, z = position / np.linalg.norm(position)
    level = np.hypot(x, z)
    about_y = np.array([[z / level, 0, -x / level], [0, 1, 0], [x / level, 0, z / level]])
    about_x = np.array([[1, 0, 0], [0, level, -y], [0, y, level]])
    return np.asarray(about_x @ about_y)


def eye_openness(face: Face) -> tuple[float, float]:
    """Openness of the left and the right eye: about 0.3 open, below 0.1 closed (a blink).

    It is the mean distance between points of the upper and the lower lid over the distance between
    the corners of the eye.
    """
    left, right = lid_openness(face.points.astype(np.float64), face.layout).tolist()
    return left, right


def lid_openness(points: FloatArray, layout: Layout) -> FloatArray:
    """`eye_openness` (..., 2) of points (..., P, 2); NaN where a point is unknown.

    Also NaN in layouts without eyelids.
    """
    lids = np.full((*points.shape[:-2], 2), np.nan)
    for number, eye in enumerate(_eyes(layout)):
        # Around the eye: from one corner over the upper lid to the other one and back.
        half = len(eye) // 2
        pairs = [(eye[k], eye[-k]) for k in range(1, half)]
        upper, lower = np.array(pairs).T
        gaps = np.linalg.norm(points[..., upper, :] - points[..., lower, :], axis=-1)
        lids[..., number] = gaps.mean(axis=-1)
    return lids / np.maximum(eye_widths(points, layout), 1e-6)


def eye_widths(points: FloatArray, layout: Layout) -> FloatArray:
    """Distances (..., 2) between the corners of both eyes of points (..., P, 2)."""
    widths = np.full((*points.shape[:-2], 2), np.nan)
    for number, eye in enumerate(_eyes(layout)):
        first, second = eye[0], eye[len(eye) // 2]
        widths[..., number] = np.linalg.norm(
            points[..., second, :] - points[..., first, :], axis=-1
        )
    return widths


def pupil_offsets(points: FloatArray, layout: Layout) -> FloatArray | None:
    """Offsets (..., 2) of the pupils from the middle of their eyes, in corner distances.

    Positive towards the right side of an upright face in the image. None in layouts without pupils.
    """
    eyes = _eyes(layout)
    if not eyes or any(len(pupil) != 1 for pupil in layout.pupils):
        return None
    offsets = []
    for eye, (pupil,) in zip(eyes, layout.pupils, strict=True):
        first, second = points[..., eye[0], :], points[..., eye[len(eye) // 2], :]
        axis = second - first
        offset = points[..., pupil, :] - (first + second) / 2
        square = np.maximum((axis**2).sum(axis=-1), 1e-12)
        offsets.append((offset * axis).sum(axis=-1) / square)
    return np.stack(offsets, axis=-1)


def _eyes(layout: Layout) -> list[tuple[int, ...]]:
    """The points of the left and the right eye, around each; [] in layouts without eyelids."""
    eyes = [layout.parts.get(f"{side}_eye", ()) for side in ("left", "right")]
    return eyes if all(len(eye) >= 4 for eye in eyes) else []


def mouth_openness(face: Face) -> float:
    """The gap between the lips over the width of the mouth: 0 closed, 0.5 or more wide open."""
    upper, lower = face["inner_upper_lip_middle"], face["inner_lower_lip_middle"]
    width = float(np.linalg.norm(face["right_mouth_corner"] - face["left_mouth_corner"]))
    return float(np.linalg.norm(upper - lower)) / max(width, 1e-6)
