"""Reliability of a face: the probability that its points are about right, all together.

Applied here; fitted by benchmarks/fit_reliability.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, model_validator

from hihlandmark.arrays import BoolArray, FloatArray
from hihlandmark.crop import similarities, transform_points
from hihlandmark.layouts import Layout
from hihlandmark.logits import sigmoid

RELIABLE_ERROR = 0.08
"""A face is reliable if the mean error of its points is below this many inter-ocular distances."""
MIN_RELIABILITY = 0.5
"""Faces below are named as unreliable by `hihlandmark predict`, and are best refused."""

REGIONS = ("jaw", "eyebrow", "eye", "nose", "lip")
"""Parts of a face are joined by what their names contain."""

_Number = Annotated[StrictFloat, Field(ge=-1e6, le=1e6)]


class Reliability(BaseModel):
    """A logistic model: ``sigmoid(bias + weights . (features - mean) / std)``.

    Attributes:
        mean: of the K `reliability_features`.
        std: of the features.
        weights: of the standardized features.
        bias: the constant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: tuple[_Number, ...]
    std: tuple[Annotated[StrictFloat, Field(gt=0, le=1e6)], ...]
    weights: tuple[_Number, ...]
    bias: _Number

    @model_validator(mode="after")
    def _check_length(self) -> Reliability:
        if not len(self.mean) == len(self.std) == len(self.weights):
            raise ValueError("mean, std and weights must have as many numbers")
        return self

    def probability(self, features: FloatArray) -> FloatArray:
        """The reliabilities (N,) in 0..1 of features (N, K)."""
        standardized = (features - self.mean) / np.array(self.std)
        logit = self.bias + standardized.clip(-LARGEST, LARGEST) @ np.array(self.weights)
        return sigmoid(logit)


LARGEST = 5.0
"""Standardized features are clipped to this: beyond, no face was seen in the fit."""


def reliability_features(
    points: FloatArray,
    covariance: FloatArray,
    scores: FloatArray,
    mass: FloatArray,
    layout: Layout,
) -> FloatArray:
    """What the reliability of N faces follows from: (N, K), where K depends on the layout.

    They are the uncertainty of all points and of those of each region, and the shape and place of
    each part in the frame of the mean shape: a drawing may look certain, but has other proportions.
    None depends on size, place and rotation of the face.

    Args:
        points: (N, P, 2) in pixels.
        covariance: (N, P, 2, 2), calibrated, in squared pixels.
        scores: (N, P) in 0..1.
        mass: (N, P) in 0..1.
        layout: of the points.
    """
    interocular = np.maximum(layout.interocular(points), 1e-6)
    deviation = np.sqrt(covariance[..., 0, 0] + covariance[..., 1, 1]) / interocular[:, None]
    mass = mass.clip(1e-4, 1 - 1e-4)
    odds = np.log(mass / (1 - mass))
    aligned = transform_points(similarities(points, layout.mean_shape), points)
    unit = layout.interocular(layout.mean_shape)
    distance = _root_mean_square(aligned - layout.mean_shape) / unit
    size = _root_mean_square(points - points.mean(axis=1, keepdims=True))
    of_points = np.stack([-deviation, scores, odds])
    mean, low = of_points.mean(axis=-1), first_decile(of_points)
    overall = [
        _log(-mean[0]),
        _log(-low[0]),
        mean[1],
        low[1],
        mean[2],
        low[2],
        _log(distance),
        _log(interocular / size.clip(1e-6)),
    ]
    regions, parts, has_shape = _averages(layout)
    by_region = np.stack([_log(deviation), odds], axis=-1)
    mean = parts @ (aligned / unit)
    variance = parts @ np.square(aligned / unit) - np.square(mean)
    by_part = np.concatenate([mean, _log(np.sqrt(variance.clip(0)), 1e-3)], axis=-1)
    columns = [np.stack(overall, axis=1), (regions @ by_region).reshape(len(points), -1)]
    return np.concatenate([*columns, by_part[:, has_shape]], axis=1)


@cache
def _averages(layout: Layout) -> tuple[FloatArray, FloatArray, BoolArray]:
    """The matrices that average points over regions (R, P) and over parts (Q, P).

    And which features of the parts count (Q, 4): the spread of parts of one or two points does not.
    """
    regions = (
        [i for name, part in layout.parts.items() if _is_of(name, region) for i in part]
        for region in REGIONS
    )
    groups = [*filter(None, regions), *map(list, layout.parts.values())]
    weights = np.stack([np.bincount(group, minlength=layout.size) / len(group) for group in groups])
    first = len(groups) - len(layout.parts)
    has_shape = np.ones((len(layout.parts), 4), bool)
    has_shape[:, 2:] = np.array([[len(part) > 2] for part in layout.parts.values()])
    return weights[:first], weights[first:], has_shape


def _is_of(part: str, region: str) -> bool:
    return region in part and not (region == "eye" and "eyebrow" in part)


def first_decile(values: FloatArray) -> FloatArray:
    """The quantile 0.1 of finite values over the last axis, in a fifth of `np.quantile`'s time."""
    place = 0.1 * (values.shape[-1] - 1)
    below, above = math.floor(place), math.ceil(place)
    ordered = np.partition(values, (below, above), axis=-1)
    return ordered[..., below] + (ordered[..., above] - ordered[..., below]) * (place - below)


def _root_mean_square(offsets: FloatArray) -> FloatArray:
    """The root mean square lengths (N,) of offsets (N, P, 2)."""
    return np.sqrt(np.square(offsets).sum(axis=(-2, -1)) / offsets.shape[-2])


def _log(values: FloatArray, smallest: float = 1e-6) -> FloatArray:
    return np.asarray(np.log(np.maximum(values, smallest)))
