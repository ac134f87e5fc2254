from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hihlandmark import Detector, Face, draw_faces
from hihlandmark.draw import HIGH, LOW, draw_points
from hihlandmark.layouts import WFLW98


def test_a_point_is_drawn_where_it_is_to_a_fraction_of_a_pixel() -> None:
    canvas = np.zeros((40, 40, 3), np.uint8)
    point = np.array([[20.5, 12.25]], np.float32)
    draw_points(canvas, point, np.array([1.0], np.float32), radius=3)
    weight = canvas.sum(axis=2).astype(float)
    rows, columns = np.mgrid[:40, :40]
    center = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    assert np.allclose(center, point[0], atol=0.15)


def test_color_says_the_score() -> None:
    canvas = np.zeros((20, 40, 3), np.uint8)
    points = np.array([[10, 10], [30, 10]], np.float32)
    draw_points(canvas, points, np.array([0.0, 1.0], np.float32), radius=4)
    assert np.allclose(canvas[10, 10], LOW, atol=1)
    assert np.allclose(canvas[10, 30], HIGH, atol=1)


def test_the_image_given_is_left_alone(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]
) -> None:
    before = astronaut.copy()
    faces = detector_of(98).predict(astronaut)
    drawn = draw_faces(astronaut, faces, boxes=True, numbers=True)
    assert np.array_equal(astronaut, before)
    changed = np.any(drawn != astronaut, axis=2)
    x0, y0, x1, y1 = faces[0].box.astype(int)
    assert changed[y0 - 30 : y1 + 30, x0 - 30 : x1 + 30].sum() == changed.sum() > 500


def test_a_box_says_the_number_of_a_face_in_a_video(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]
) -> None:
    (face,) = detector_of(98).predict(astronaut)
    plain = draw_faces(astronaut, [face], boxes=True)
    one, other = (
        draw_faces(astronaut, [replace(face, track_id=number)], boxes=True) for number in (1, 8)
    )
    x, y = face.box[:2].astype(int)
    differs = np.any(one != plain, axis=2)
    assert 0 < differs[y - 25 : y, x : x + 40].sum() == differs.sum()
    assert not np.array_equal(one, other)


def test_points_far_outside_do_not_disturb() -> None:
    points = np.full((98, 2), 1e9, np.float32)
    face = Face(points, np.ones(98), np.zeros((98, 2, 2)), np.zeros(4), 1.0, WFLW98)
    canvas = np.zeros((50, 50, 3), np.uint8)
    assert draw_faces(canvas, [face]).max() == 0
    assert np.array_equal(draw_faces(canvas, []), canvas)
