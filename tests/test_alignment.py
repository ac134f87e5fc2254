"""Aligned crops, head pose and openness on a real face and on drawn ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.alignment import TEMPLATES, align, five_points
from hihlandmark.crop import crop_matrix, rotate_points
from hihlandmark.face import transform_face
from hihlandmark.layouts import get_layout
from hihlandmark.measures import HEAD, HEAD_POINTS, eye_openness, head_pose, mouth_openness

LAYOUTS = (98, 68, 29)


@pytest.fixture(scope="module")
def faces(astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]) -> dict[int, Face]:
    return {layout: detector_of(layout).predict(astronaut)[0] for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arcface_crops_have_the_five_points_of_the_template(
    layout: int, faces: dict[int, Face], astronaut: NDArray[np.uint8]
) -> None:
    aligned = align(astronaut, faces[layout])
    assert aligned.image.shape == (112, 112, 3)
    placed = five_points(faces[layout]) @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    expected = np.array([(38.3, 51.7), (73.5, 51.5), (56, 71.7), (41.5, 92.4), (70.7, 92.2)])
    assert np.abs(placed - expected).max() < 7
    # The crop and its matrix agree.
    inside = cv2.warpAffine(astronaut, aligned.matrix, (112, 112))
    assert np.abs(aligned.image.astype(int) - inside).mean() < 8


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("degrees", [-140, -30, 45, 180])
def test_rotated_face_is_aligned_to_the_same_crop(
    template: str, degrees: float, faces: dict[int, Face], astronaut: NDArray[np.uint8]
) -> None:
    upright = align(astronaut, faces[98], 200, template)
    matrix = cv2.getRotationMatrix2D((220, 120), degrees, 1.3)
    turned = cv2.warpAffine(astronaut, matrix, (512, 512))
    face = transform_face(faces[98], matrix)
    aligned = align(turned, face, 200, template)
    np.testing.assert_allclose(aligned.points(face), upright.points(faces[98]), atol=0.02)


def test_ffhq_square_equals_that_of_the_data_set(faces: dict[int, Face]) -> None:
    """Computes the corners as the script of the data set does."""
    points = five_points(faces[68])
    eye_left, eye_right, mouth = points[0], points[1], points[3:].mean(axis=0)
    eyes, across = (eye_left + eye_right) / 2, eye_right - eye_left
    down = mouth - eyes
    x = across - np.flipud(down) * [-1, 1]
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / np.hypot(*x)
    y = np.flipud(x) * [-1, 1]
    center = eyes + down * 0.1
    corners = np.stack([center - x - y, center + x + y])
    matrix = crop_matrix(TEMPLATES["ffhq"](points), 256)
    placed = corners @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(placed, [(-0.5, -0.5), (255.5, 255.5)], atol=1e-6)


def test_unknown_template_and_empty_crop_are_errors(faces: dict[int, Face]) -> None:
    with pytest.raises(ConfigurationError, match="arcface"):
        align(np.zeros((9, 9, 3), np.uint8), faces[98], template="dlib")
    with pytest.raises(ConfigurationError, match="size"):
        align(np.zeros((9, 9, 3), np.uint8), faces[98], 0)


def posed(yaw: float = 0, pitch: float = 0, roll: float = 0) -> Face:
    """A face of 68 points; only those of the generic head are meaningful."""
    layout = get_layout(68)
    y, p, r = np.deg2rad((yaw, pitch, roll))
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    head = HEAD @ about_x.T @ about_y.T
    head[:, :2] = rotate_points(head[None, :, :2], np.array([r]))[0]
    head += (0, 0, 600.0)
    seen = head[:, :2] / head[:, 2:] * 640 + (319.5, 239.5)
    points = np.zeros((68, 2))
    points[[layout.point_names.index(name) for name in HEAD_POINTS]] = seen
    return Face(points, np.ones(68), np.zeros((68, 2, 2)), np.zeros(4), 1.0, layout)


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (30, 0, 0), (-50, 0, 0), (0, 20, 0), (0, -25, 0), (0, 0, 40)]
)
def test_head_pose_recovers_the_angles_of_the_generic_head(angles: tuple[float, ...]) -> None:
    np.testing.assert_allclose(head_pose(posed(*angles), (640, 480), 640), angles, atol=0.01)


def test_head_pose_needs_no_image_size(faces: dict[int, Face]) -> None:
    for face in (*faces.values(), posed(20, 10, 5)):
        np.testing.assert_allclose(head_pose(face), head_pose(face, (512, 512)), atol=3)
    np.testing.assert_allclose(head_pose(posed(20, 10, 5)), (20, 10, 5), atol=4)


def test_head_pose_is_that_of_a_cropped_and_resized_image(faces: dict[int, Face]) -> None:
    cropped = transform_face(faces[98], np.array([[0.5, 0, -40], [0, 0.5, 7]]))
    np.testing.assert_allclose(head_pose(cropped), head_pose(faces[98]), atol=0.01)


def test_astronaut_looks_about_straight_ahead(faces: dict[int, Face]) -> None:
    for face in faces.values():
        np.testing.assert_allclose(head_pose(face), 0, atol=15)


def test_mirrored_image_changes_the_sign_of_yaw(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector], faces: dict[int, Face]
) -> None:
    (mirrored,) = detector_of(98).predict(np.ascontiguousarray(astronaut[:, ::-1]))
    assert head_pose(mirrored).yaw == pytest.approx(-head_pose(faces[98]).yaw, abs=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_head_pose_of_a_mirrored_face_is_mirrored(layout: int, faces: dict[int, Face]) -> None:
    face = faces[layout]
    points = (face.points * (-1, 1) + (511, 0))[face.layout.mirror]
    pose = head_pose(face, (512, 512))
    mirrored = head_pose(replace(face, points=points), (512, 512))
    np.testing.assert_allclose(mirrored, (-pose.yaw, pose.pitch, -pose.roll), atol=0.01)
    assert abs(pose.yaw) < 30
    assert abs(pose.roll) < 15


@pytest.mark.parametrize("layout", LAYOUTS)
def test_openness_of_the_astronauts_eyes_and_mouth(layout: int, faces: dict[int, Face]) -> None:
    assert all(0.15 < openness < 0.5 for openness in eye_openness(faces[layout]))
    assert 0.05 < mouth_openness(faces[layout]) < 0.4


def test_closed_eye_changes_its_own_openness_only(faces: dict[int, Face]) -> None:
    face = faces[98]
    points = face.points.copy()
    # The eye is 60 to 67, its inner corner 64.
    along = np.array([0, 1, 2, 3, 4, 3, 2, 1])[:, None] / 4
    points[60:68] = points[60] + along * (points[64] - points[60])
    closed: Any = eye_openness(replace(face, points=points))
    assert closed[0] < 0.01
    assert closed[1] == eye_openness(face)[1]
