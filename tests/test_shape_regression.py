"""Points corrected by a regression on what was annotated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hihlandmark import ConfigurationError
from hihlandmark.crop import crop_matrix, transform_points
from hihlandmark.landmarker import in_turn
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.shape_regression import ShapeRegression, Strays, fit_shape_regression
from hihlandmark.training.export import _strays

POINTS = 8
MIRROR = np.array([1, 0, 3, 2, 4, 5, 6, 7])
"""Points 4 to 7 lie on the middle line."""
MEAN = np.array([[-1.2, -1], [1.2, -1], [-0.8, 1], [0.8, 1], [0, -0.5], [0, 0], [0, 0.6], [0, 1.2]])
LONGER = np.zeros((POINTS, 2))
LONGER[4:, 1] = [-0.4, 0, 0.2, 0.5]

Floats = NDArray[np.float64]


def faces(count: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Shapes (count, POINTS, 2) that are longer or shorter, and (count, 2, 3) where they lie."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(0, 0.2, (count, 1, 1))
    shapes = MEAN + wide * LONGER + rng.normal(0, 0.01, (count, POINTS, 2))
    squares = np.stack(
        [*rng.uniform(-1, 1, (2, count)), rng.uniform(3, 5, count), rng.uniform(-0.3, 0.3, count)],
        axis=-1,
    )
    return shapes, crop_matrix(squares, 192)


def shrunk(shapes: Floats) -> Floats:
    """What a network finds that makes half of the length, and places all points to the left."""
    return MEAN + (shapes - MEAN) * (1, 0.5) - (0.05, 0)


@pytest.fixture(scope="module")
def fitted() -> ShapeRegression:
    shapes, places = faces(300)
    return fit_shape_regression(
        transform_points(places, shrunk(shapes)), transform_points(places, shapes), MIRROR
    )


def test_what_the_network_makes_too_small_is_restored(fitted: ShapeRegression) -> None:
    shapes, places = faces(50, seed=1)
    true, found = transform_points(places, shapes), transform_points(places, shrunk(shapes))
    covariance = np.tile(np.eye(2), (50, POINTS, 1, 1))
    corrected, kept = fitted.correct(found, covariance, 192)
    before, after = (np.linalg.norm(each - true, axis=-1).mean() for each in (found, corrected))
    assert after < 0.2 * before
    assert kept is covariance


def test_a_face_and_its_mirror_image_differ_by_a_shift_alone(fitted: ShapeRegression) -> None:
    shapes, _ = faces(5, seed=2)
    found = 40 * shapes + 96

    def corrections(points: Floats) -> Floats:
        return fitted.correct(points, np.zeros((5, POINTS, 2, 2)), 192)[0] - points

    mirrored = corrections(found[:, MIRROR] * (-1, 1) + (191, 0))[:, MIRROR] * (-1, 1)
    apart = corrections(found) - mirrored
    assert np.ptp(apart, axis=1) == pytest.approx(0, abs=1e-6)
    assert apart.mean(axis=(0, 1)) == pytest.approx([2 * 0.05 * 40, 0], abs=0.3)


def test_the_frame_is_upright_and_symmetric(fitted: ShapeRegression) -> None:
    assert fitted.mean == pytest.approx(fitted.mean[MIRROR] * (-1, 1), abs=1e-9)
    assert (fitted.mean**2).sum(axis=1).mean() == pytest.approx(1)


def test_corrections_turn_and_grow_with_the_face(fitted: ShapeRegression) -> None:
    shapes, _ = faces(3, seed=3)
    covariance = np.zeros((3, POINTS, 2, 2))
    upright, _ = fitted.correct(shapes, covariance, 192)
    (place,) = crop_matrix(np.array([[0.3, 0.2, 5.0, 0.6]]), 192)
    moved, _ = fitted.correct(transform_points(place, shapes), covariance, 192)
    assert moved == pytest.approx(transform_points(place, upright), abs=1e-6)


def test_an_unknown_point_stays_unknown_and_others_are_corrected(fitted: ShapeRegression) -> None:
    points = 40 * faces(2, seed=4)[0] + 96
    points[0, 3] = np.nan
    corrected, _ = fitted.correct(points, np.zeros((2, POINTS, 2, 2)), 192)
    assert np.isnan(corrected[0, 3]).all()
    assert np.isfinite(np.delete(corrected.reshape(-1, 2), 3, axis=0)).all()


def test_without_a_relation_nothing_but_the_mean_error_is_corrected() -> None:
    shapes, _ = faces(200, seed=5)
    noise = np.random.default_rng(6).normal(0, 0.1, shapes.shape)
    fitted = fit_shape_regression(shapes, shapes + noise, MIRROR)
    corrected, _ = fitted.correct(shapes, np.zeros((200, POINTS, 2, 2)), 192)
    assert np.abs(corrected - shapes).mean() < 0.3 * np.abs(noise).mean()


def test_what_is_no_face_and_no_faces_stay_as_they_are(fitted: ShapeRegression) -> None:
    points = np.random.default_rng(7).uniform(0, 192, (50, POINTS, 2))
    corrected, _ = fitted.correct(points, np.zeros((50, POINTS, 2, 2)), 192)
    size = np.sqrt(points.var(axis=1).sum(axis=-1)).max()
    assert np.linalg.norm(corrected - points, axis=-1).max() < size
    assert corrected[0] == pytest.approx(points[0])
    assert fitted.correct(points[:0], np.zeros((0, POINTS, 2, 2)), 192)[0].shape == (0, POINTS, 2)


@pytest.mark.parametrize("count", [1, 3])
def test_few_faces_are_enough(count: int) -> None:
    shapes, places = faces(count)
    points = transform_points(places, shapes)
    fitted = fit_shape_regression(points, points, MIRROR)
    corrected, _ = fitted.correct(points, np.zeros((count, POINTS, 2, 2)), 192)
    assert corrected == pytest.approx(points, abs=0.01)


def test_views_of_a_face_are_left_out_together() -> None:
    rng = np.random.default_rng(12)
    found = np.repeat(faces(12, seed=13)[0] + rng.normal(0, 0.3, (12, POINTS, 2)), 2, axis=0)
    annotated = np.repeat(faces(12, seed=14)[0], 2, axis=0)  # of other faces: nothing to learn
    apart = fit_shape_regression(found, annotated, MIRROR, views=1)
    together = fit_shape_regression(found, annotated, MIRROR, views=2)
    # With the other view of each face at hand, the smallest penalty has the smallest error.
    assert np.linalg.norm(together.weights) < 0.9 * np.linalg.norm(apart.weights)


def test_offsets_that_tell_errors_correct_them() -> None:
    shapes, places = faces(200, seed=8)
    true = transform_points(places, shapes)
    errors = np.random.default_rng(9).normal(0, 1, true.shape)
    # The integer heatmap alone errs twice as far.
    fitted = fit_shape_regression(true + errors, true, MIRROR, integer_offset=errors)
    assert fitted.weights.shape == (4 * POINTS, 2 * POINTS)
    shapes, places = faces(20, seed=10)
    true = transform_points(places, shapes)
    errors = np.random.default_rng(11).normal(0, 1, true.shape)
    covariance = np.zeros((20, POINTS, 2, 2))
    corrected, _ = fitted.correct(true + errors, covariance, 192, errors)
    assert np.abs(corrected - true).mean() < 0.5 * np.abs(errors).mean()
    without, _ = fitted.correct(true + errors, covariance, 192)
    zero, _ = fitted.correct(true + errors, covariance, 192, np.zeros_like(errors))
    np.testing.assert_array_equal(without, zero)
    old = replace(fitted, weights=fitted.weights[: 2 * POINTS])
    np.testing.assert_array_equal(
        old.correct(true, covariance, 192, errors)[0], old.correct(true, covariance, 192)[0]
    )


def test_strays_of_single_points_are_smoothed_without_larger_errors() -> None:
    shapes, places = faces(300, seed=8)
    rng = np.random.default_rng(9)
    found, true = transform_points(places, shrunk(shapes)), transform_points(places, shapes)
    true += rng.normal(0, 2, true.shape)  # annotators err more than points stray
    moves = rng.normal(0, 0.4, (300, 2, POINTS, 2)) * (1, 0.2)  # in crops of faces at all angles
    strays = np.einsum("nij,nkpj->nkpi", places[:, :, :2] / 40, moves)
    fits = {
        "alone": fit_shape_regression(found, true, MIRROR),
        "steady": fit_shape_regression(found, true, MIRROR, strays=Strays(strays)),
    }
    others, there = faces(100, seed=10)
    found, true = transform_points(there, shrunk(others)), transform_points(there, others)
    true += rng.normal(0, 2, true.shape)
    stray = rng.normal(0, 0.4, found.shape)
    covariance = np.zeros((100, POINTS, 2, 2))
    errors, remaining = {}, {}
    for name, fitted in fits.items():
        corrected, _ = fitted.correct(found, covariance, 192)
        strayed, _ = fitted.correct(found + stray, covariance, 192)
        errors[name] = np.linalg.norm(corrected - true, axis=-1).mean()
        remaining[name] = np.linalg.norm(strayed - corrected, axis=-1).mean()
    assert remaining["steady"] < 0.8 * remaining["alone"]
    assert errors["steady"] < 1.03 * errors["alone"]
    free = fit_shape_regression(found, true, MIRROR, strays=Strays(strays[:100]), independent=[6])
    plain = fit_shape_regression(found, true, MIRROR)
    np.testing.assert_allclose(free.weights[:, 12:14], plain.weights[:, 12:14])
    assert np.abs(free.weights[:, 8:10] - plain.weights[:, 8:10]).max() > 0.01


def test_strays_are_what_does_not_move_with_the_crop() -> None:
    class Landmarker:
        def decode_views(self, crops: NDArray[np.uint8]) -> tuple[CropLandmarks, CropLandmarks]:
            """The center of the light; in the second view it follows but half of the way."""
            light = crops[..., 0].astype(float) - 20
            total = light.sum(axis=(1, 2))
            y, x = np.mgrid[:64, :64]
            points = np.stack([(light * each).sum(axis=(1, 2)) / total for each in (x, y)], axis=-1)
            found = [points[:, None], 31.5 + (points[:, None] - 31.5) / 2]
            return tuple(  # type: ignore[return-value]
                CropLandmarks(each, np.zeros((len(crops), 1, 2, 2)), np.ones((len(crops), 1)))
                for each in found
            )

    crops = np.full((3, 64, 64, 3), 20, np.uint8)
    crops[:, 24:40, 20:36] = 220
    landmarker: Any = Landmarker()
    views = in_turn(*landmarker.decode_views(crops))
    strays = _strays(landmarker, crops, views, np.random.default_rng(0))
    assert strays.points.shape == (6, 4, 1, 2)
    assert strays.integer_offset is None
    assert np.abs(strays.points[::2]).max() < 0.02
    assert 0.05 < np.abs(strays.points[1::2]).max() <= 0.27


def test_strays_with_offsets_are_undone_by_them() -> None:
    shapes, places = faces(300, seed=15)
    true = transform_points(places, shapes)
    rng = np.random.default_rng(16)
    noisy = true + rng.normal(0, 2, true.shape)
    moves = rng.normal(0, 0.5, (300, 4, POINTS, 2))
    # The integer heatmap alone does not stray.
    strays = Strays(moves, -moves)
    still = np.zeros_like(true)
    steady = fit_shape_regression(true, noisy, MIRROR, still, strays=strays)
    covariance = np.zeros((300, POINTS, 2, 2))
    before, _ = steady.correct(true, covariance, 192, still)
    after, _ = steady.correct(true + moves[:, 0], covariance, 192, -moves[:, 0])
    assert np.abs(after - before).mean() < 0.3 * np.abs(moves[:, 0]).mean()
    with pytest.raises(ConfigurationError, match="both, or neither"):
        fit_shape_regression(true, noisy, MIRROR, strays=strays)
