"""Points corrected by what faces look like."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hihlandmark.crop import crop_matrix, transform_points
from hihlandmark.shape_prior import DEGREES_OF_FREEDOM, LEAST_DEVIATION, ShapePrior, fit_shape_prior

SIZE = 256
POINTS = 12


def shapes(count: int, noise: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    """Rings of points, that get wider and bend, each somewhere in a crop at a size of its own."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    wide = np.stack([np.cos(angle), np.zeros(POINTS)], axis=-1)
    bent = np.stack([np.zeros(POINTS), np.cos(2 * angle)], axis=-1)
    z = rng.normal(0, 0.15, (2, count, 1, 1))
    plain = ring + z[0] * wide + z[1] * bent + rng.normal(0, noise, (count, POINTS, 2))
    turn = rng.uniform(-0.5, 0.5, count)
    squares = np.stack([*rng.uniform(-1, 1, (2, count)), rng.uniform(3, 5, count), turn], axis=-1)
    return transform_points(crop_matrix(squares, SIZE), plain)


def isotropic(deviation: float, count: int) -> NDArray[np.float64]:
    """Covariances (count, POINTS, 2, 2)."""
    return np.tile(deviation**2 * np.eye(2), (count, POINTS, 1, 1))


@pytest.fixture(scope="module")
def prior() -> ShapePrior:
    return fit_shape_prior(shapes(300, noise=0.01))


def test_the_modes_of_the_shapes_are_found(prior: ShapePrior) -> None:
    lengths = np.sqrt((prior.modes**2).sum(axis=(1, 2)))
    assert lengths[:2] == pytest.approx([0.35, 0.26], abs=0.03)
    assert (lengths[2:] < 0.1).all(), "what a similarity makes of the two, and noise"
    assert prior.mean.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert (prior.mean**2).sum(axis=1).mean() == pytest.approx(1)


def test_points_of_a_possible_face_stay_where_they_are(prior: ShapePrior) -> None:
    true = shapes(5, seed=1)
    points, _ = prior.correct(true, isotropic(1, 5), SIZE)
    assert points == pytest.approx(true, abs=0.6)


def test_noise_is_averaged_out_over_the_face(prior: ShapePrior) -> None:
    true = shapes(40, seed=2)
    noisy = true + np.random.default_rng(3).normal(0, 4, true.shape)
    before = np.linalg.norm(noisy - true, axis=-1).mean()
    points, _ = prior.correct(noisy, isotropic(4, 40), SIZE)
    after = np.linalg.norm(points - true, axis=-1).mean()
    assert after < 0.75 * before


def test_an_outlier_is_brought_back_by_the_others(prior: ShapePrior) -> None:
    true = shapes(3, seed=4)
    seen = true.copy()
    seen[:, 5] += (60, -30)
    corrected = prior.correct(seen, isotropic(2, 3), SIZE)[0]
    assert np.linalg.norm(corrected[:, 5] - true[:, 5], axis=-1).max() < 10
    others = np.delete(corrected - true, 5, axis=1)
    assert np.linalg.norm(others, axis=-1).max() < 7


def test_the_answer_is_the_posterior_mean_under_the_final_weights(prior: ShapePrior) -> None:
    """By dense matrices, mean + S (S + B)^-1 (y - mean): S of the prior, B of the heatmaps."""
    prior = replace(prior, covariance_scale=0.5)
    seen = shapes(1, seed=5) + np.random.default_rng(6).normal(0, 1, (1, POINTS, 2))
    covariance = isotropic(5, 1)
    corrected, _ = prior.correct(seen, covariance, SIZE)
    (found,) = corrected
    # The similarity from the answer to the mean, as complex numbers.
    z, m = (shape @ np.array([1, 1j]) for shape in (found - found.mean(axis=0), prior.mean))
    factor = (z.conj() @ m) / (z.conj() @ z)
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    observed = (seen[0] - found.mean(axis=0)) @ linear.T
    in_frame = (found - found.mean(axis=0)) @ linear.T
    variance = (25 * 0.5 + (LEAST_DEVIATION * SIZE) ** 2) * abs(factor) ** 2
    squares = ((observed - in_frame) ** 2).sum(axis=1) / variance
    weights = (DEGREES_OF_FREEDOM + 2) / (DEGREES_OF_FREEDOM + squares)
    modes = prior.modes.reshape(len(prior.modes), -1)
    shape_covariance = modes.T @ modes + prior.noise**2 * np.eye(2 * POINTS)
    b = np.diag(np.repeat(variance / weights, 2))
    residual = (observed - prior.mean).ravel()
    expected = prior.mean + (
        shape_covariance @ np.linalg.solve(shape_covariance + b, residual)
    ).reshape(-1, 2)
    pixels = (in_frame - expected) / abs(factor)
    assert np.abs(pixels).max() < 0.1


def test_what_is_left_unknown_gets_smaller_and_most_where_a_heatmap_says_least(
    prior: ShapePrior,
) -> None:
    covariance = isotropic(4, 1)
    covariance[0, 3] *= 100
    left = prior.correct(shapes(1, seed=7), covariance, SIZE)[1][0]
    before, after = (np.trace(c, axis1=-2, axis2=-1) for c in (covariance[0], left))
    assert (after < before).all()
    assert after[3] < before[3] / 20
    assert np.linalg.eigvalsh(left).min() > 0


def test_covariance_is_given_back_in_the_scale_of_the_heatmaps(prior: ShapePrior) -> None:
    """So that one more scale, fitted as without prior, makes it that of the errors."""
    seen = shapes(1, seed=8)
    plain = prior.correct(seen, isotropic(20, 1), SIZE)[1]
    scaled = replace(prior, covariance_scale=0.25)
    assert scaled.correct(seen, isotropic(40, 1), SIZE)[1] == pytest.approx(4 * plain)


def test_unknown_points_stay_unknown_and_do_not_disturb(prior: ShapePrior) -> None:
    seen = shapes(2, seed=9)
    seen[1, 4] = np.nan
    points, covariance = prior.correct(seen, isotropic(1, 2), SIZE)
    assert np.isnan(points[1, 4]).all()
    assert np.isnan(covariance[1, 4]).all()
    assert np.isfinite(points[0]).all()
    assert np.delete(points[1], 4, axis=0) == pytest.approx(np.delete(seen[1], 4, axis=0), abs=1)


def test_a_turned_and_moved_face_gives_the_turned_and_moved_answer_in_any_batch(
    prior: ShapePrior,
) -> None:
    seen = shapes(2, seed=12) + np.random.default_rng(13).normal(0, 3, (2, POINTS, 2))
    matrix = crop_matrix(np.array([100.0, 140.0, SIZE, 2.0]), SIZE)
    answer = prior.correct(seen, isotropic(3, 2), SIZE)[0][:1]
    turned = prior.correct(transform_points(matrix, seen[:1]), isotropic(3, 1), SIZE)[0]
    assert turned == pytest.approx(transform_points(matrix, answer), abs=1e-6)


@pytest.mark.parametrize("place", [0.0, np.nan])
def test_points_that_fell_together_do_no_harm(prior: ShapePrior, place: float) -> None:
    points, _ = prior.correct(np.full((1, POINTS, 2), place), isotropic(1, 1), SIZE)
    assert np.isnan(points).all() == np.isnan(place)
