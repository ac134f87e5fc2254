"""The calibration of one layout: heatmap statistics to probabilities and covariances.

The spread of a network's heatmaps is over- or underconfident. A few numbers for each layout, fitted
on a validation split and kept in the model card, correct that; `hihlandmark.calibration` fits them.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat

from hihlandmark.arrays import FloatArray

NEAR = 0.05
"""A point counts as found within this share of the inter-ocular distance."""
MAX_KNOTS = 20
"""More knots would follow the noise of a validation split of some hundred faces."""

Probability = Annotated[StrictFloat, Field(ge=0, le=1)]
Knots = tuple[tuple[Probability, Probability], ...]


def _check_rising(knots: Knots) -> Knots:
    table = np.array(knots).reshape(-1, 2)
    if not ((np.diff(table[:, 0]) > 0).all() and (np.diff(table[:, 1]) >= 0).all()):
        raise ValueError("knots must be rising pairs")
    return knots


class Calibration(BaseModel):
    """A logistic model of "this point is within `NEAR`", and a factor on the covariance.

    ``p = sigmoid(bias + spread * log(s) + mass * log(m / (1 - m)))`` where s is the standard
    deviation of the point in inter-ocular distances and m the share of the integer heatmap around
    its peak. Without ``knots`` the score is p. ``knots`` are up to `MAX_KNOTS` rising pairs
    (p, score): the score is interpolated between them, and constant beyond the first and the last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bias: StrictFloat = 0.0
    spread: StrictFloat = -1.0
    mass: StrictFloat = 1.0
    covariance_scale: StrictFloat = Field(1.0, gt=0)
    knots: Annotated[Knots, Field(max_length=MAX_KNOTS), AfterValidator(_check_rising)] = ()

    def scores(
        self, covariance: FloatArray, mass: FloatArray, interocular: FloatArray
    ) -> FloatArray:
        """Calibrated scores of points.

        Args:
            covariance: (N, P, 2, 2), raw.
            mass: (N, P) in 0..1.
            interocular: (N,) distance of the outer eye corners, in the unit of the covariance.

        Returns:
            (N, P) probabilities.
        """
        return self.scores_of(calibration_features(covariance, mass, interocular))

    def scores_of(self, features: FloatArray) -> FloatArray:
        """Scores (...) in 0..1 of the features (..., 3) from `calibration_features`."""
        logit = features @ np.array([self.bias, self.spread, self.mass])
        score: FloatArray = (1 + np.tanh(logit / 2)) / 2  # the sigmoid, without overflow
        return np.interp(score, *np.transpose(self.knots)) if self.knots else score


def calibration_features(
    covariance: FloatArray, mass: FloatArray, interocular: FloatArray
) -> FloatArray:
    """The inputs of the logistic model: (N, P, 3) as (1, log spread, log odds of mass)."""
    trace = np.trace(covariance, axis1=-2, axis2=-1)
    spread = np.sqrt(trace / 2) / np.maximum(interocular[:, None], 1e-6)
    mass = np.clip(mass, 1e-4, 1 - 1e-4)
    return np.stack(
        [np.ones_like(mass), np.log(np.maximum(spread, 1e-6)), np.log(mass / (1 - mass))], axis=-1
    )
