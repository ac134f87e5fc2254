"""Aligned crops of a real face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.alignment import TEMPLATES, align, five_points
from hihlandmark.crop import crop_matrix
from hihlandmark.face import transform_face
from hihlandmark.layouts import Layout

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


def test_five_points_are_aligned_as_they_are(
    astronaut: NDArray[np.uint8], faces: dict[int, Face]
) -> None:
    found, five = faces[98], faces[98].to_layout("five")
    np.testing.assert_array_equal(five_points(five), five.points)
    apart = align(astronaut, five).points(found) - align(astronaut, found).points(found)
    assert np.abs(apart).max() < 2  # pupils instead of the means of the eyelids


def test_a_layout_without_the_points_of_the_template_is_named(own_layouts: None) -> None:
    shape = np.array([(-0.5, 0.0), (0.5, 0.0)])
    ends = Layout(
        "ENDS", (), ("left_end", "right_end"), {"ends": (0, 1)}, (), (0, 1), ((0,), (1,)), shape
    )
    face = Face(shape * 9 + 20, np.ones(2), np.zeros((2, 2, 2)), np.arange(4), 1.0, ends)
    with pytest.raises(ConfigurationError, match="left_eye"):
        align(np.zeros((40, 40, 3), np.uint8), face)


def test_arrays_are_aligned_in_every_order_of_channels(
    astronaut: NDArray[np.uint8], faces: dict[int, Face]
) -> None:
    expected = align(astronaut, faces[98]).image
    first = np.moveaxis(astronaut[..., ::-1], -1, 0) / 255.0
    found = align(first, faces[98], color="bgr", channels="first", white=1.0).image
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [112.0, "112", True])
def test_the_size_of_a_crop_is_an_integer(faces: dict[int, Face], size: Any) -> None:
    with pytest.raises(ConfigurationError, match="size"):
        align(np.zeros((9, 9, 3), np.uint8), faces[98], size)
