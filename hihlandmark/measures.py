"""Measures from the points of a face: head pose, openness of the eyes (blink) and of the mouth."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.face import Face

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
    """Height over width of the left and the right eye: about 0.3 open, 0.1 closed (a blink)."""
    left, right = (_height_to_width(face, f"{side}_eye") for side in ("left", "right"))
    return left, right


def mouth_openness(face: Face) -> float:
    """The gap between the lips over the width of the mouth: 0 closed, 0.5 or more wide open."""
    upper, lower = face["inner_upper_lip_middle"], face["inner_lower_lip_middle"]
    width = float(np.linalg.norm(face["right_mouth_corner"] - face["left_mouth_corner"]))
    return float(np.linalg.norm(upper - lower)) / max(width, 1e-6)


def _height_to_width(face: Face, part: str) -> float:
    """Height over width of a part, relative to the line between its two corners."""
    outer, inner = face[f"{part}_outer_corner"], face[f"{part}_inner_corner"]
    width = max(float(np.linalg.norm(inner - outer)), 1e-6)
    along = (inner - outer) / width
    across = (face[part] - outer) @ np.array([-along[1], along[0]])
    return float(np.ptp(across) / width)
