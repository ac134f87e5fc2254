from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hihlandmark import Detector, Face, draw_faces
from hihlandmark.draw import HIGH, LOW, draw_points
from hihlandmark.layouts import WFLW98


def test_points_are_drawn_with_sub_pixel_accuracy() -> None:
    canvas = np.zeros((40, 40, 3), np.uint8)
    point = np.array([[20.5, 12.25]], np.float32)
    draw_points(canvas, point, np.array([1.0], np.float32), radius=3)
    weight = canvas.sum(axis=2).astype(float)
    rows, columns = np.mgrid[:40, :40]
    center = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
    assert np.allclose(center, point[0], atol=0.15)


def test_color_depends_on_the_score() -> None:
    canvas = np.zeros((20, 40, 3), np.uint8)
    draw_points(canvas, np.array([[10.0, 10], [30, 10]]), np.array([0.0, 1.0]), radius=4)
    assert np.allclose(canvas[10, 10], LOW, atol=1)
    assert np.allclose(canvas[10, 30], HIGH, atol=1)


def test_faces_are_drawn_onto_a_copy_with_boxes_and_track_numbers(
    astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]
) -> None:
    before = astronaut.copy()
    (face,) = detector_of(98).predict(astronaut)
    x0, y0, x1, y1 = face.box.astype(int)
    drawn = draw_faces(astronaut, [face], boxes=True, numbers=True)
    assert np.array_equal(astronaut, before)
    changed = np.any(drawn != astronaut, axis=2)
    assert changed[y0 - 30 : y1 + 30, x0 - 30 : x1 + 30].sum() == changed.sum() > 500
    plain, one, other = (
        draw_faces(astronaut, [replace(face, track_id=number)], boxes=True)
        for number in (None, 1, 8)
    )
    changed = np.any(one != plain, axis=2)
    assert 0 < changed[y0 - 25 : y0, x0 : x0 + 40].sum() == changed.sum()
    assert not np.array_equal(one, other)


def test_points_far_outside_draw_nothing() -> None:
    points = np.full((98, 2), 1e9, np.float32)
    face = Face(points, np.ones(98), np.zeros((98, 2, 2)), np.zeros(4), 1.0, WFLW98)
    canvas = np.zeros((50, 50, 3), np.uint8)
    assert draw_faces(canvas, [face]).max() == 0
    assert np.array_equal(draw_faces(canvas, []), canvas)
