import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hihlandmark.crop import (
    BoxMap,
    crop_matrix,
    cut_crop,
    invert,
    tight_boxes,
    transform_points,
)

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


def test_centres_and_edges_follow_the_pixel_convention() -> None:
    # A square over the pixels 10..17 (edges 9.5 and 17.5), enlarged twice.
    matrix = crop_matrix(np.array([13.5, 13.5, 8.0, 0.0]), 16)
    points = np.array([[9.5, 9.5], [10.0, 10.0], [17.5, 17.5]])
    # x -> (x + 0.5) k - 0.5, from the square's left edge.
    expected = np.array([[-0.5, -0.5], [0.5, 0.5], [15.5, 15.5]])
    assert np.allclose(transform_points(matrix, points), expected)


def test_an_angle_turns_the_crop_with_the_face() -> None:
    """A square turned clockwise by 90 degrees has its x axis pointing down in the image."""
    matrix = crop_matrix(np.array([50.0, 50.0, 10.0, np.pi / 2]), 10)
    down = transform_points(matrix, np.array([[50.0, 53.0]]))[0]
    assert np.allclose(down, [4.5 + 3, 4.5])


def test_a_crop_of_whole_pixels_is_a_copy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    crop = cut_crop(image, np.array([19.5, 15.5, 16.0, 0.0]), 16)
    assert np.array_equal(crop, image[8:24, 12:28])


def test_outside_of_the_image_is_black() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    crop = cut_crop(image, np.array([-0.5, 9.5, 16.0, 0.0]), 16)
    assert crop[:, :7].max() == 0
    assert (crop[:, 8:] == 200).all()


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_a_large_face_is_averaged_and_not_sampled(factor: int) -> None:
    """Stripes finer than the crop's pixels come out as their mean, not as stripes."""
    image = np.zeros((64 * factor, 64 * factor, 3), np.uint8)
    image[:, ::2] = 255
    middle = image.shape[0] / 2 - 0.5
    crop = cut_crop(image, np.array([middle, middle, 64.0 * factor, 0.0]), 64)
    assert abs(crop[8:-8, 8:-8].mean() - 127.5) < 4
    assert crop[8:-8, 8:-8].std() < 50


@pytest.mark.parametrize("side", [96.0, 200.0, 431.0, 1000.0])
def test_what_is_drawn_at_a_point_is_found_where_the_point_maps_to(side: float) -> None:
    image = np.zeros((1200, 1200, 3), np.uint8)
    yy, xx = np.mgrid[:1200, :1200]
    spot = np.array([612.25, 587.75])
    blob = np.exp(-((xx - spot[0]) ** 2 + (yy - spot[1]) ** 2) / (2 * (side / 20) ** 2))
    image[:] = (255 * blob).astype(np.uint8)[..., None]
    square = np.array([600.0, 600.0, side, 0.3])
    crop = cut_crop(image, square, 256)[..., 0].astype(float)
    rows, columns = np.mgrid[:256, :256]
    centroid = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
    expected = transform_points(crop_matrix(square, 256), spot[None])[0]
    assert np.allclose(centroid, expected, atol=0.15)


def test_a_square_far_outside_gives_a_black_crop() -> None:
    image = np.full((30, 30, 3), 255, np.uint8)
    assert cut_crop(image, np.array([5000.0, -4000.0, 900.0, 0.0]), 64).max() == 0


def test_box_map_shifts_and_scales_by_the_longer_side() -> None:
    box_map = BoxMap(shift=(0.1, -0.2), scale=1.5)
    boxes = np.array([[10, 20, 30, 60], [0, 0, 10, 5]])
    expected = [[20 + 4, 40 - 8, 60, 0], [5 + 1, 2.5 - 2, 15, 0]]
    assert np.allclose(box_map.squares(boxes), expected)


def test_box_map_takes_no_boxes() -> None:
    assert BoxMap((0, 0), 1.4).squares(np.zeros((0, 4))).shape == (0, 4)


def test_tight_boxes_hold_the_points() -> None:
    points = np.array([[[3.0, 9.0], [-1.0, 4.0], [2.0, 5.0]]])
    assert tight_boxes(points).tolist() == [[-1.0, 4.0, 3.0, 9.0]]
