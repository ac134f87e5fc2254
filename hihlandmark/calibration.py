"""From raw heatmap statistics to honest numbers: probabilities and covariances.

A network's spread is over- or under-confident in its own way; a few numbers a layout, fitted on a
validation split and kept in the model card, put that right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

NEAR = 0.05
"""A point counts as found within this share of the inter-ocular distance."""


@dataclass(frozen=True)
class Calibration:
    """A logistic model of "this point is within `NEAR`", and a factor on the covariance.

    ``score = sigmoid(bias + spread * log(s) + mass * log(m / (1 - m)))`` where s is the standard
    deviation of the point in inter-ocular distances and m the share of the integer heatmap around
    its peak.
    """

    bias: float = 0.0
    spread: float = -1.0
    mass: float = 1.0
    covariance_scale: float = 1.0

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Calibration:
        """The calibration that `to_dict` wrote."""
        return cls(**values)

    def to_dict(self) -> dict[str, float]:
        """Plain numbers for the model card."""
        return asdict(self)

    def scores(
        self, covariance: FloatArray, mass: FloatArray, interocular: FloatArray
    ) -> FloatArray:
        """Raw covariance (N, P, 2, 2), mass (N, P), interocular (N,) in the same unit -> (N, P)."""
        features = calibration_features(covariance, mass, interocular)
        logit = features @ np.array([self.bias, self.spread, self.mass])
        return 1 / (1 + np.exp(-logit))


def calibration_features(
    covariance: FloatArray, mass: FloatArray, interocular: FloatArray
) -> FloatArray:
    """What the logistic model sees of a point: (N, P, 3) as (1, log spread, log odds of mass)."""
    trace = np.trace(covariance, axis1=-2, axis2=-1)
    spread = np.sqrt(trace / 2) / np.maximum(interocular[:, None], 1e-6)
    mass = np.clip(mass, 1e-4, 1 - 1e-4)
    return np.stack(
        [np.ones_like(mass), np.log(np.maximum(spread, 1e-6)), np.log(mass / (1 - mass))], axis=-1
    )
