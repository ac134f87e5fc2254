import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hihlandmark.crop import (
    BoxMap,
    crop_angles,
    crop_matrix,
    cut_crop,
    invert,
    nearly_same,
    roll_angles,
    rotate_points,
    similarities,
    tight_boxes,
    transform_points,
)
from hihlandmark.layouts import COFW29, FIVE, W300_68, WFLW98, Layout

squares = st.tuples(
    st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 2000), st.floats(-3, 3)
).map(np.array)


@settings(deadline=None)
@given(square=squares, size=st.sampled_from([128, 256]))
def test_crop_and_back_is_the_identity(square: np.ndarray, size: int) -> None:
    points = np.array([[0.0, 0.0], [10.5, -3.25], [700.0, 80.0]])
    matrix = crop_matrix(square, size)
    back = transform_points(invert(matrix), transform_points(matrix, points))
    assert np.allclose(back, points, atol=1e-6)


def test_centers_and_edges_follow_the_pixel_convention() -> None:
    # A square over the pixels 10..17 (edges 9.5 and 17.5), enlarged twice.
    matrix = crop_matrix(np.array([13.5, 13.5, 8.0, 0.0]), 16)
    points = np.array([[9.5, 9.5], [10.0, 10.0], [17.5, 17.5]])
    # x -> (x + 0.5) k - 0.5, from the square's left edge.
    expected = np.array([[-0.5, -0.5], [0.5, 0.5], [15.5, 15.5]])
    assert np.allclose(transform_points(matrix, points), expected)


def test_outside_of_the_image_is_black() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    crop = cut_crop(image, np.array([-0.5, 9.5, 16.0, 0.0]), 16)
    assert crop[:, :7].max() == 0
    assert (crop[:, 8:] == 200).all()
    assert cut_crop(image, np.array([5000.0, -4000.0, 900.0, 0.0]), 64).max() == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "square",
    [
        (1e9, 1e9, 20, 0),
        (1e30, 0, 30, 0),
        (10, 10, 1e12, 0),
        (-1e30, 0, 1e30, 1),
        (5, 5, 0, 0),
        (math.nan, 1, 20, 0),
        (1, 2, 20, math.nan),
    ],
)
def test_squares_that_hold_nothing_give_black_crops(square: tuple[float, ...]) -> None:
    crop = cut_crop(np.full((50, 60, 3), 200, np.uint8), np.array(square, float), 32)
    assert crop.shape == (32, 32, 3)
    assert not crop.any()


@settings(deadline=None)
@given(square=squares, size=st.sampled_from([64, 128]))
def test_crop_of_a_part_is_that_of_the_whole_image(square: np.ndarray, size: int) -> None:
    square[2] = square[2] % (2 * size) + 1  # not halved first
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    expected = cv2.warpAffine(image, crop_matrix(square, size), (size, size))
    difference = np.abs(cut_crop(image, square, size).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_crops_of_long_images_are_those_of_their_part() -> None:
    """OpenCV 4 warps no image with a side of 32,767 pixels or more."""
    part = np.random.default_rng(0).integers(0, 256, (200, 90, 3)).astype(np.uint8)
    long = np.zeros((40_000, 90, 3), np.uint8)
    long[39_000:39_200] = part
    square = np.array([40.0, 110.0, 80.0, 0.2])
    crop = cut_crop(long, square + np.array([0, 39_000, 0, 0]), 64)
    np.testing.assert_allclose(crop.astype(int), cut_crop(part, square, 64), atol=1)


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_large_face_is_downscaled_by_area_averaging(factor: int) -> None:
    """Noise finer than the crop's pixels comes out as its mean, not as noise."""
    side = 64 * factor
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    middle = image.shape[0] / 2 - 0.5
    crop = cut_crop(image, np.array([middle, middle, 64.0 * factor, 0.0]), 64)
    assert abs(crop[8:-8, 8:-8].mean() - 127.5) < 4
    assert crop[8:-8, 8:-8].std() < 1.2 * image.std() / 2 ** math.floor(math.log2(factor))


@pytest.mark.parametrize("middle", [(600.0, 600.0), (150.0, 1090.0), (1050.0, 130.0)])
@pytest.mark.parametrize("side", [96.0, 200.0, 431.0, 1000.0, 2100.0])
def test_image_and_points_map_to_the_same_crop_pixel(
    side: float, middle: tuple[float, float]
) -> None:
    """Also of crops that reach beyond the image, whose sides are no multiples of the reduction."""
    image = np.zeros((1203, 1201, 3), np.uint8)
    yy, xx = np.mgrid[:1203, :1201]
    spot = np.add(middle, (12.25, -12.25))
    blob = np.exp(-((xx - spot[0]) ** 2 + (yy - spot[1]) ** 2) / (2 * min(side / 20, 40) ** 2))
    image[:] = (255 * blob).astype(np.uint8)[..., None]
    square = np.array([*middle, side, 0.3])
    crop = cut_crop(image, square, 256)[..., 0].astype(float)
    rows, columns = np.mgrid[:256, :256]
    centroid = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
    expected = transform_points(crop_matrix(square, 256), spot[None])[0]
    assert np.allclose(centroid, expected, atol=0.15)


def test_similarity_to_a_target_far_from_the_origin_or_without_size() -> None:
    points = np.random.default_rng(0).normal(size=(1, 68, 2)) * 1e-3 + 1000
    turned = rotate_points(points - points.mean(axis=1), np.array([0.5]))[0]
    far = similarities(points, turned + 1e6)
    np.testing.assert_allclose(transform_points(far, points)[0], turned + 1e6, atol=1e-8)
    moved = similarities(points, np.full((68, 2), 7.0))
    np.testing.assert_allclose(moved[0, :, :2], np.eye(2))


def test_box_map_shifts_and_scales_by_the_longer_side() -> None:
    box_map = BoxMap(shift=(0.1, -0.2), scale=1.5)
    boxes = np.array([[10, 20, 30, 60], [0, 0, 10, 5]])
    expected = [[20 + 4, 40 - 8, 60, 0], [5 + 1, 2.5 - 2, 15, 0]]
    assert np.allclose(box_map.squares(boxes), expected)


angles = st.floats(-np.pi, np.pi)


@settings(deadline=None)
@given(layout=st.sampled_from([WFLW98, W300_68, COFW29, FIVE]), angle=angles)
def test_roll_angle_of_a_rotated_face(layout: Layout, angle: float) -> None:
    narrow = layout.mean_shape * (0.4, 1)  # as a face seen from the side
    for shape in (layout.mean_shape, narrow):
        turned = rotate_points(90 * shape[None], np.array([angle])) + np.array([300, -20])
        difference = roll_angles(turned, layout.mean_shape) - angle
        assert np.allclose(np.cos(difference), 1)  # pi and -pi are the same


@pytest.mark.parametrize("layout", [WFLW98, W300_68, COFW29])
def test_roll_angle_is_robust_to_outliers(layout: Layout) -> None:
    points = rotate_points(layout.mean_shape[None], np.array([1.0]))
    points[:, layout.ocular_pair[0]] += (0.3, -0.3)
    points[:, layout.parts["jaw"][0]] += (-0.2, 0.3)
    assert np.abs(roll_angles(points, layout.mean_shape) - 1.0) < np.deg2rad(8)


def test_crop_is_rotated_only_beyond_the_limit() -> None:
    turned = np.array([0, 3, -20.4, 20.4, 20.6, -40.2, 179.7])
    points = rotate_points(np.tile(WFLW98.mean_shape, (len(turned), 1, 1)), np.deg2rad(turned))
    degrees = np.rad2deg(crop_angles(points, WFLW98.mean_shape))
    assert np.allclose(degrees, [0, 0, 0, 0, 21, -40, 180])
    assert crop_angles(np.full((1, 98, 2), 7.0), WFLW98.mean_shape) == 0  # coinciding points


@settings(deadline=None)
@given(angle=angles)
def test_crop_of_a_rotated_face_equals_the_upright_one(angle: float) -> None:
    box_map = BoxMap((0.1, -0.2), 1.4)
    face = np.random.default_rng(0).normal(size=(1, 12, 2)) * 30 + 200
    turned = rotate_points(face, np.array([angle]))
    upright = box_map.squares(tight_boxes(face))
    square = box_map.squares_around(turned, np.array([angle]))
    seen = transform_points(crop_matrix(square, 256), turned)
    assert np.allclose(seen, transform_points(crop_matrix(upright, 256), face), atol=1e-6)
    assert np.array_equal(box_map.squares_around(face, np.zeros(1)), upright)


@pytest.mark.parametrize("quarters", range(4))
def test_rotated_crop_equals_the_crop_of_the_rotated_image(quarters: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    turned = np.ascontiguousarray(np.rot90(image, quarters))
    width, height = turned.shape[1] - 1, turned.shape[0] - 1
    box_map = BoxMap((0.0, 0.125), 2.0)
    # A box of 8 x 8 in the middle, so that it is the same in all turns, about another middle.
    box, in_turned = (
        np.array([[x / 2 - 4, y / 2 - 4, x / 2 + 4, y / 2 + 4]])
        for x, y in ((79, 59), (width, height))
    )
    crop = cut_crop(image, box_map.squares(box, np.array([quarters * np.pi / 2]))[0], 16)
    assert np.array_equal(crop, cut_crop(turned, box_map.squares(in_turned)[0], 16))


def test_nearly_same_is_within_a_twentieth_of_the_side_at_the_same_angle() -> None:
    square = np.array([300.0, 200, 100, 0])
    small = np.array([[4, -4, 4, 0]])
    large = np.array([[6, 0, 0, 0], [0, -6, 0, 0], [0, 0, 6, 0], [0, 0, -6, 0], [0, 0, 0, 0.5]])
    assert nearly_same(square[None], square + small).all()
    assert not nearly_same(square[None], square + large).any()


def test_angles_in_single_precision_are_the_same() -> None:
    square = np.array([[50.0, 60, 100, np.deg2rad(30)]])
    assert nearly_same(square.astype(np.float32).astype(np.float64), square).all()
