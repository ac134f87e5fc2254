"""How well eyes are read: openness and gaze of predicted against true points."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.evaluation.metrics import Evaluation
from hihlandmark.measures import eye_widths, lid_openness, pupil_offsets

SHUT = 0.12
"""True openness below which an eye counts as shut."""
MIN_WIDTH = 20.0
"""Pixels between the corners of the eyes whose pupils are compared: smaller ones are unclear."""
MAX_OFFSET = 0.6
"""A true pupil farther from the middle of its eye, in corner distances, is a wrong label."""
RESAMPLES = 500


class Estimate(NamedTuple):
    """A figure with its 95 % bootstrap interval over faces, and the number of eyes behind it."""

    value: float
    interval: tuple[float, float]
    eyes: int


def eye_figures(evaluation: Evaluation) -> dict[str, Estimate]:
    """Figures of the eyes of the faces that were found, where eyes are annotated.

    ``openness slope``: of predicted on true openness; 1 is perfect, 0 a constant. ``shut eyes``:
    mean predicted openness of eyes whose true one is below `SHUT`. ``pupil slope`` and ``pupil
    correlation``: of the pupil's offset from the middle of its eye, in layouts with pupils.
    """
    layout = evaluation.layout
    found = np.isfinite(evaluation.predicted).all(axis=(1, 2))
    truth, predicted = evaluation.truth[found], evaluation.predicted[found]
    true_openness, openness = (lid_openness(points, layout) for points in (truth, predicted))
    figures = {
        "openness slope": _estimate(_slope, true_openness, openness),
        "shut eyes": _estimate(_mean_of_shut, true_openness, openness),
    }
    true_offsets, offsets = (pupil_offsets(points, layout) for points in (truth, predicted))
    if true_offsets is not None and offsets is not None:
        unclear = (eye_widths(truth, layout) < MIN_WIDTH) | (np.abs(true_offsets) > MAX_OFFSET)
        true_offsets = np.where(unclear, np.nan, true_offsets)
        figures["pupil slope"] = _estimate(_slope, true_offsets, offsets)
        figures["pupil correlation"] = _estimate(_correlation, true_offsets, offsets)
    return {name: each for name, each in figures.items() if each.eyes}


Statistic = Callable[[FloatArray, FloatArray], tuple[float, int]]
"""True and predicted values (K,) -> a figure, NaN where undefined, and the number of eyes."""


def _slope(truth: FloatArray, predicted: FloatArray) -> tuple[float, int]:
    if len(truth) < 2 or np.ptp(truth) == 0:
        return float("nan"), 0
    offset = truth - truth.mean()
    return float((offset * predicted).sum() / (offset**2).sum()), len(truth)


def _correlation(truth: FloatArray, predicted: FloatArray) -> tuple[float, int]:
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return float("nan"), 0
    return float(np.corrcoef(truth, predicted)[0, 1]), len(truth)


def _mean_of_shut(truth: FloatArray, predicted: FloatArray) -> tuple[float, int]:
    shut: BoolArray = truth < SHUT
    return (float(predicted[shut].mean()) if shut.any() else float("nan")), int(shut.sum())


def _estimate(statistic: Statistic, truth: FloatArray, predicted: FloatArray) -> Estimate:
    """A statistic of the known eyes (N, 2) of N faces, and its interval over faces."""

    def value(rows: IndexArray | slice) -> tuple[float, int]:
        true_values, values = truth[rows].ravel(), predicted[rows].ravel()
        known = np.isfinite(true_values) & np.isfinite(values)
        return statistic(true_values[known], values[known])

    rng = np.random.default_rng(0)
    count = len(truth)
    drawn = [value(rng.integers(0, count, count))[0] for _ in range(RESAMPLES if count else 0)]
    result, eyes = value(slice(None))
    defined = np.array([each for each in drawn if np.isfinite(each)])
    if not defined.size or not eyes:
        return Estimate(result, (float("nan"), float("nan")), eyes)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(result, (float(low), float(high)), eyes)
