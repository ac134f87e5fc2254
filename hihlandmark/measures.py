"""Measures from the points of a face: head pose, openness of the eyes (blink) and of the mouth."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.face import Face
from hihlandmark.layouts import Layout

# A generic adult face in millimeters from the tip of the nose: x right in the image, y down, z away
# from the camera. Real faces differ from these rounded means, which limits the accuracy of pitch.
_HEAD = {
    "nose_tip": (0.0, 0.0, 0.0),
    "nose_base_middle": (0.0, 12.0, 15.0),
    "left_eye_outer_corner": (-45.0, -32.0, 30.0),
    "left_eye_inner_corner": (-17.0, -31.0, 23.0),
    "right_eye_inner_corner": (17.0, -31.0, 23.0),
    "right_eye_outer_corner": (45.0, -32.0, 30.0),
    "left_mouth_corner": (-26.0, 34.0, 24.0),
    "right_mouth_corner": (26.0, 34.0, 24.0),
    "chin": (0.0, 80.0, 18.0),
}


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
    face: Face, image_size: tuple[int, int], focal_length: float | None = None
) -> HeadPose:
    """Estimate the head pose from nine points and a generic head (PnP, least squares).

    Errors are about 5 degrees in yaw and roll, 15 in pitch, and more beyond 60 degrees.

    Args:
        face: in a layout that has the nine points, such as 98 or 68.
        image_size: (width, height) of the image in pixels.
        focal_length: in pixels; None: the longer side of the image, as of a phone's main camera.
    """
    width, height = image_size
    focal = focal_length or max(width, height)
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    chin = face["jaw"][len(face["jaw"]) // 2]
    points = np.array([chin if name == "chin" else face[name] for name in _HEAD], np.float64)
    _, rotation, translation = cv2.solvePnP(
        np.array(list(_HEAD.values())), points, camera, None, flags=cv2.SOLVEPNP_SQPNP
    )
    # Relative to the line from the camera to the face, not to the axis of the lens.
    matrix = _to_front(np.asarray(translation[:, 0], np.float64)) @ cv2.Rodrigues(rotation)[0]
    # The face looks along -z of the head; roll is the rotation of the head's x axis in the image.
    look = -matrix[:, 2]
    yaw = np.arctan2(look[0], -look[2])
    pitch = np.arctan2(-look[1], np.hypot(look[0], look[2]))
    roll = np.arctan2(matrix[1, 0], np.hypot(matrix[0, 0], matrix[2, 0]))
    return HeadPose(*np.rad2deg((yaw, pitch, roll)).tolist())


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
