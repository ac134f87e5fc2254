"""What follows from the points of a face: where the head looks, how open eyes and mouth are."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.face import Face

# A generic adult face in millimeters, x to the left of the person (right in the image), y down, z
# away from the camera, from the tip of the nose: proportions of anthropometric tables, rounded. No
# one's face is this one, which limits pitch above all.
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
    """Degrees. All are 0 for a face that looks straight into the camera.

    ``yaw`` above 0: turned towards the right side of the image; ``pitch`` above 0: looking up;
    ``roll`` above 0: tilted clockwise in the image.
    """

    yaw: float
    pitch: float
    roll: float


def head_pose(
    face: Face, image_size: tuple[int, int], focal_length: float | None = None
) -> HeadPose:
    """The pose of the head by the perspective of nine of its points (PnP, least squares).

    ``image_size``: width and height of the image. ``focal_length`` in pixels; None: the longer
    side, an angle of view of 53 degrees, as of a phone's main camera. Of a generic head: expect
    some five degrees of error in yaw and roll, fifteen in pitch, and more beyond 60 degrees.
    """
    width, height = image_size
    focal = focal_length or max(width, height)
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    chin = face["jaw"][len(face["jaw"]) // 2]
    points = np.array([chin if name == "chin" else face[name] for name in _HEAD], np.float64)
    _, turn, place = cv2.solvePnP(
        np.array(list(_HEAD.values())), points, camera, None, flags=cv2.SOLVEPNP_SQPNP
    )
    # As seen from where the camera is: along the line to the face, not along that of the lens.
    matrix = _to_front(np.asarray(place[:, 0], np.float64)) @ cv2.Rodrigues(turn)[0]
    # The way that the face looks is -z of the head; roll is that of the head's x in the image.
    look = -matrix[:, 2]
    yaw = np.arctan2(look[0], -look[2])
    pitch = np.arctan2(-look[1], np.hypot(look[0], look[2]))
    roll = np.arctan2(matrix[1, 0], np.hypot(matrix[0, 0], matrix[2, 0]))
    return HeadPose(*np.rad2deg((yaw, pitch, roll)).tolist())


def _to_front(place: NDArray[np.floating]) -> NDArray[np.floating]:
    """The rotation (3, 3), without roll, that takes a place (3,) onto the axis of the lens."""
    x, y, z = place / np.linalg.norm(place)
    level = np.hypot(x, z)
    about_y = np.array([[z / level, 0, -x / level], [0, 1, 0], [x / level, 0, z / level]])
    about_x = np.array([[1, 0, 0], [0, level, -y], [0, y, level]])
    return np.asarray(about_x @ about_y)


def eye_openness(face: Face) -> tuple[float, float]:
    """Height over width of the eyes, left in the image first: about 0.3 open, 0.1 closed."""
    left, right = (_height_to_width(face, f"{side}_eye") for side in ("left", "right"))
    return left, right


def mouth_openness(face: Face) -> float:
    """The gap between the lips over the width of the mouth: 0 closed, 0.5 and more wide open."""
    upper, lower = face["inner_upper_lip_middle"], face["inner_lower_lip_middle"]
    width = float(np.linalg.norm(face["right_mouth_corner"] - face["left_mouth_corner"]))
    return float(np.linalg.norm(upper - lower)) / max(width, 1e-6)


def _height_to_width(face: Face, part: str) -> float:
    """Of the part's points, across and along the line between its two corners."""
    outer, inner = face[f"{part}_outer_corner"], face[f"{part}_inner_corner"]
    along = (inner - outer) / max(float(np.linalg.norm(inner - outer)), 1e-6)
    across = (face[part] - outer) @ np.array([-along[1], along[0]])
    return float(np.ptp(across) / max(float(np.linalg.norm(inner - outer)), 1e-6))
