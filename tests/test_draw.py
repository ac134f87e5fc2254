import io
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ConfigurationError, Detector, Face, draw_faces
from hihlandmark.crop import resize_matrix
from hihlandmark.draw import ENLARGED_SIDE, HIGH, LOW, draw_points
from hihlandmark.face import transform_face
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


def face_with(points: NDArray[np.floating]) -> Face:
    return Face(points, np.ones(98), np.zeros((98, 2, 2)), np.full(4, np.nan), 1.0, WFLW98)


def test_points_far_outside_draw_nothing() -> None:
    points = np.full((98, 2), 1e9, np.float32)
    face = Face(points, np.ones(98), np.zeros((98, 2, 2)), np.zeros(4), 1.0, WFLW98)
    canvas = np.zeros((50, 50, 3), np.uint8)
    assert draw_faces(canvas, [face]).max() == 0
    assert np.array_equal(draw_faces(canvas, []), canvas)


@pytest.fixture(scope="module")
def face(astronaut: NDArray[np.uint8], detector_of: Callable[[int], Detector]) -> Face:
    return detector_of(98).predict(astronaut)[0]


def covered(image: NDArray[np.uint8], face: Face) -> float:
    """The mean change of pixels within the box of the points by drawing, 0..1."""
    low, high = face.points.min(axis=0).astype(int), face.points.max(axis=0).astype(int)
    change = np.abs(draw_faces(image, [face]).astype(int) - image).max(axis=2)
    return float(change[low[1] : high[1], low[0] : high[0]].mean() / 255)


def test_small_faces_are_covered_no_more_than_large_ones(
    astronaut: NDArray[np.uint8], face: Face
) -> None:
    for side in (256, 128):
        small = np.asarray(Image.fromarray(astronaut).resize((side, side)))
        moved = transform_face(face, resize_matrix((512, 512), (side, side)))
        assert 0.01 < covered(small, moved) < 0.1


def test_drawing_takes_what_predict_takes(astronaut: NDArray[np.uint8], face: Face) -> None:
    expected = draw_faces(astronaut, [face])
    file = io.BytesIO()
    Image.fromarray(astronaut).save(file, "PNG")
    for image in (file.getvalue(), Image.fromarray(astronaut), astronaut / 255):
        np.testing.assert_array_equal(draw_faces(image, [face]), expected)
    first = draw_faces(astronaut.transpose(2, 0, 1), [face], channels="first")
    np.testing.assert_array_equal(first, expected)
    bgr = draw_faces(np.ascontiguousarray(astronaut[..., ::-1]), [face], color="bgr")
    np.testing.assert_array_equal(bgr, expected[..., ::-1])


def test_color_thickness_and_point_size_can_be_chosen(face: Face) -> None:
    canvas = np.zeros((512, 512, 3), np.uint8)
    red = draw_faces(canvas, [face], contours=False, point_color=(255, 0, 0))
    assert red[..., 0].max() > 200
    assert not red[..., 1:].any()
    larger = draw_faces(canvas, [face], contours=False, point_color=(255, 0, 0), point_size=8)
    assert larger.sum() > 4 * red.sum()
    lines = {"line_color": (0, 0, 255), "point_color": (0, 0, 0)}
    thin, thick = (draw_faces(canvas, [face], thickness=t, **lines) for t in (1, 4))
    assert not thick[..., :2].any()
    assert thick.sum() > 2 * thin.sum()
    array = draw_faces(canvas, [face], line_color=np.array((0, 0, 255)), point_color=np.zeros(3))
    np.testing.assert_array_equal(array, draw_faces(canvas, [face], **lines))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *product(("thickness", "point_size"), (0, 40000, 1e12, "x")),
        *product(("line_color", "point_color"), ("red", 255, (1, 2), (1, 2, 256), (1, 2, (3,)))),
    ],
)
def test_colors_and_sizes_out_of_range_are_named(name: str, bad: Any, face: Face) -> None:
    with pytest.raises(ConfigurationError, match=name):
        draw_faces(np.zeros((9, 9, 3), np.uint8), [face], **{name: bad})


def test_the_largest_lines_and_points_can_be_drawn() -> None:
    small = face_with(WFLW98.mean_shape * 20 + 25)
    canvas = np.zeros((50, 50, 3), np.uint8)
    assert draw_faces(canvas, [small], thickness=500, point_size=500).all(axis=2).all()


@pytest.mark.parametrize("faces", [None, face_with(WFLW98.mean_shape)])
def test_faces_are_drawn_from_a_list(faces: Any) -> None:
    with pytest.raises(ConfigurationError, match="list"):
        draw_faces(np.zeros((9, 9, 3), np.uint8), faces)


@pytest.mark.parametrize("value", [np.nan, 1e9])
def test_unknown_points_are_left_out(value: float) -> None:
    canvas = np.zeros((200, 200, 3), np.uint8)
    points = WFLW98.mean_shape * 100 + 100
    partly = points.copy()
    partly[50] = value
    known, unknown = face_with(partly), face_with(np.full_like(points, value))
    drawn = {"enlarged": True, "numbers": True, "boxes": True}
    change = draw_faces(canvas, [face_with(points)]) != draw_faces(canvas, [known])
    rows, columns = np.nonzero(change.any(axis=2))
    assert 0 < len(rows) < 500
    assert np.abs(np.stack([columns, rows], axis=1) - points[50]).max() < 30
    assert draw_faces(canvas, [known, unknown], **drawn)[200:].any()
    assert not draw_faces(canvas, [unknown]).any()


def test_no_line_crosses_unknown_points() -> None:
    points = WFLW98.mean_shape * 100 + 100
    points[3:30] = np.nan  # of the jaw, 0 to 32
    left, right = points[2], points[30]
    drawn = draw_faces(np.zeros((200, 200, 3), np.uint8), [face_with(points)])
    between = left + np.linspace(0.1, 0.3, 9)[:, None] * (right - left)  # above the nose's lines
    columns, rows = np.round(between).astype(int).T
    assert not drawn[rows, columns].any()


def test_enlarged_faces_stand_below_the_image(astronaut: NDArray[np.uint8], face: Face) -> None:
    drawn = draw_faces(astronaut, [face, face], enlarged=True)
    assert drawn.shape == (512 + 2 * ENLARGED_SIDE, 512, 3)
    np.testing.assert_array_equal(drawn[:512, 300:], astronaut[:, 300:])
    assert drawn[512:].any()
    assert draw_faces(astronaut, [], enlarged=True).shape == astronaut.shape
