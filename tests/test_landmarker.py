"""Crops to points: flip test and shape prior around any runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.landmarker import Landmarker, moment_matched_mean
from hihlandmark.layouts import FIVE
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.shape_regression import ShapeRegression

SIZE = 64


def landmarks(points: object, variance: float = 4.0, mass: float = 0.5) -> CropLandmarks:
    """One crop whose points (P, 2) have the same covariance and mass."""
    array = np.array([points], np.float32)
    count = array.shape[1]
    covariance = np.tile(np.eye(2, dtype=np.float32) * variance, (1, count, 1, 1))
    return CropLandmarks(array, covariance, np.full((1, count), mass, np.float32))


def brightest_pixels(crops: Image) -> CropLandmarks:
    """A runtime: the five points are the pixels with the values 1 to 5 in the red channel."""
    points = np.array(
        [[np.argwhere(crop[..., 0] == value)[0][::-1] for value in range(1, 6)] for crop in crops]
    )
    count = len(crops)
    covariance = np.tile([[4.0, 1.0], [1.0, 9.0]], (count, 5, 1, 1))
    return CropLandmarks(points, covariance, np.ones((count, 5)))


def crop_with_points() -> tuple[Image, Image]:
    """A crop (1, S, S, 3) for `brightest_pixels`, symmetric but for its values, and its points."""
    points = np.array([(20, 20), (43, 20), (31, 35), (24, 48), (39, 48)])
    crop = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    for value, (x, y) in enumerate(points, 1):
        crop[0, y, x] = value
    return crop, points


def test_the_flip_test_is_the_moment_matched_mean_of_both_crops() -> None:
    crop, points = crop_with_points()
    found = Landmarker(brightest_pixels, FIVE, SIZE, flip_test=True).predict(crop)
    # The runtime finds the value of a point at the mirrored place of the point itself.
    mirrored = (points * (-1, 1) + (SIZE - 1, 0))[FIVE.mirror] * (-1, 1) + (SIZE - 1, 0)
    np.testing.assert_allclose(found.points[0], (points + mirrored) / 2)
    offset = (points - mirrored) / 2
    expected = np.array([[4.0, 0.0], [0.0, 9.0]]) + offset[:, :, None] * offset[:, None, :]
    np.testing.assert_allclose(found.covariance[0], expected)


def test_crops_and_their_mirror_images_in_one_batch_give_the_same_as_one_after_the_other() -> None:
    (crop,), _ = crop_with_points()
    crops = np.stack([crop, np.roll(crop, 5, axis=1), np.roll(crop, 9, axis=0)])
    landmarker = Landmarker(brightest_pixels, FIVE, SIZE, flip_test=True)
    together = landmarker.predict(crops)
    apart = landmarker.finish(crops, landmarker.decode(crops))
    np.testing.assert_array_equal(together.points, apart.points)
    np.testing.assert_array_equal(together.covariance, apart.covariance)


def test_without_options_the_points_of_the_runtime_are_returned_in_float64() -> None:
    crop, points = crop_with_points()
    found = Landmarker(brightest_pixels, FIVE, SIZE).predict(crop)
    np.testing.assert_array_equal(found.points[0], points)
    assert {array.dtype for array in found[:3]} == {np.dtype(np.float64)}


def test_the_flip_test_averages_the_logits_of_visibility() -> None:
    crop, _ = crop_with_points()

    def runtime(crops: Image) -> CropLandmarks:
        is_mirrored = crops[:, 20, 20, :1] != 1
        logits = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]) * (1 + is_mirrored)
        return brightest_pixels(crops)._replace(visibility=logits)

    found = Landmarker(runtime, FIVE, SIZE, flip_test=True).predict(crop)
    # Points 0 and 1, and 3 and 4, take each other's place in the mirror image.
    assert found.visibility is not None
    np.testing.assert_allclose(found.visibility, [[2.5, 2.0, 4.5, 7.0, 6.5]])


def test_offsets_are_mirrored_and_averaged_and_correct_the_points() -> None:
    crop, points = crop_with_points()
    offsets = np.arange(10.0).reshape(1, 5, 2)

    def runtime(crops: Image) -> CropLandmarks:
        found = brightest_pixels(crops)
        return found._replace(integer_offset=np.tile(offsets, (len(crops), 1, 1)))

    class Moved(ShapeRegression):
        def correct(
            self, points: Any, covariance: Any, crop_size: int, integer_offset: Any = None
        ) -> Any:
            return points + integer_offset, covariance

    moved = Moved(*(np.zeros(shape) for shape in ((5, 2), (10, 10), (5, 2))))
    one = Landmarker(runtime, FIVE, SIZE, shape_prior=moved).predict(crop)
    np.testing.assert_allclose(one.points, points + offsets)
    plain = Landmarker(runtime, FIVE, SIZE, flip_test=True).predict(crop)
    both = Landmarker(runtime, FIVE, SIZE, flip_test=True, shape_prior=moved).predict(crop)
    mirrored = offsets[:, FIVE.mirror] * (-1, 1)
    np.testing.assert_allclose(both.points - plain.points, (offsets + mirrored) / 2)
    assert plain.select([0]).visibility is None


def test_moment_matching_adds_the_spread_of_the_means() -> None:
    mean = moment_matched_mean(landmarks([(10, 0)]), landmarks([(14, 0)], variance=8))
    np.testing.assert_allclose(mean.points, [[(12, 0)]])
    np.testing.assert_allclose(mean.covariance, [[[(6 + 4, 0), (0, 6)]]])
    np.testing.assert_allclose(mean.mass, 0.5)


def test_an_empty_heatmap_leaves_the_other_result_alone() -> None:
    full, empty = landmarks([(10, 20)]), landmarks([(31.5, 31.5)], variance=300, mass=0)
    for mean in (moment_matched_mean(full, empty), moment_matched_mean(empty, full)):
        np.testing.assert_allclose(mean.points, full.points)
        np.testing.assert_allclose(mean.covariance, full.covariance)
    both = moment_matched_mean(empty, empty)
    np.testing.assert_allclose(both.points, empty.points)
