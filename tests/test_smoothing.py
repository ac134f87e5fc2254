"""What smoothing states about the errors of its points, and how it fills gaps."""

from __future__ import annotations

import numpy as np
import pytest

from hihlandmark.video import OneEuroFilter, smooth_track

COUNT, SIZE = 200, 4
TIMES = np.arange(COUNT) / 25
COVARIANCE = np.tile(np.eye(2), (COUNT, SIZE, 1, 1))
INTEROCULAR = np.full(COUNT, 100.0)


def measured(seed: int, jitter: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """True points (T, P, 2) at rest, and measured ones: a shared error and one of each frame."""
    rng = np.random.default_rng(seed)
    truth = np.full((COUNT, SIZE, 2), 50.0)
    shared = rng.normal(0, np.sqrt(1 - jitter**2), (1, SIZE, 2))
    return truth, truth + shared + rng.normal(0, jitter, truth.shape)


def test_posterior_covariance_of_the_smoother_holds() -> None:
    normalized = []
    for seed in range(100):
        truth, points = measured(seed)
        found = smooth_track(TIMES, points, COVARIANCE, INTEROCULAR)
        error = (found.points - truth)[100]
        solved = np.linalg.solve(found.covariance[100], error[..., None])[..., 0]
        normalized.append((error * solved).sum(axis=-1))
    assert np.mean(normalized) == pytest.approx(2, rel=0.15)
    assert (np.linalg.det(found.covariance) < 1).all()


def test_filter_keeps_the_shared_error_and_averages_the_rest() -> None:
    one_euro, variances = OneEuroFilter(), []
    for time, points in zip(TIMES, measured(0)[1], strict=True):
        one_euro(time, points, COVARIANCE[0], 100.0)
        variances.append(one_euro.covariance[:, 0, 0])
    variance = np.array(variances[COUNT // 2 :])
    # Of the variance of 1, 0.09 is independent from frame to frame.
    assert 0.91 < np.median(variance) < 0.94
    assert 0.91 < variance.mean() < 1.1


def test_lag_in_motion_is_part_of_the_filters_covariance() -> None:
    one_euro = OneEuroFilter(beta=0.0)
    for time in TIMES:
        one_euro(time, np.full((SIZE, 2), [500 * time, 0.0]), COVARIANCE[0], 100.0)
    assert (one_euro.covariance[:, 0, 0] > 100).all()
    assert (one_euro.covariance[:, 1, 1] < 1.1).all()


def test_short_gaps_are_filled_and_marked_and_long_ones_are_not() -> None:
    points = np.tile((100 * TIMES)[:, None, None], (1, SIZE, 2))
    truth = points.copy()
    points[50:60] = np.nan  # 0.44 s from frame to frame
    points[100:120] = np.nan  # 0.84 s
    found = smooth_track(TIMES, points, COVARIANCE, INTEROCULAR, fill=0.5)
    assert np.flatnonzero(found.filled).tolist() == list(range(50, 60))
    np.testing.assert_allclose(found.points[50:60], truth[50:60], atol=0.5)
    assert np.isnan(found.points[100:120]).all()
    assert (found.covariance[55, :, 0, 0] > found.covariance[40, :, 0, 0]).all()
    assert not smooth_track(TIMES, points, COVARIANCE, INTEROCULAR).filled.any()
