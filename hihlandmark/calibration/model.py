"""From raw heatmap statistics to honest numbers: probabilities and covariances.

A network's spread is over- or under-confident in its own way; a few numbers a layout, fitted on a
validation split and kept in the model card, put that right. They are fitted in
`hihlandmark.calibration.fit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import WeightsError

NEAR = 0.05
"""A point counts as found within this share of the inter-ocular distance."""
MOST_KNOTS = 20
"""More knots would follow the accidents of a validation split of some hundred faces."""


@dataclass(frozen=True)
class Calibration:
    """A model of "this point is within `NEAR`", and a factor on the covariance.

    ``p = sigmoid(bias + spread * log(s) + mass * log(m / (1 - m)))`` where s is the standard
    deviation of the point in inter-ocular distances and m the share of the integer heatmap around
    its peak. Without ``knots`` the score is p. ``knots`` are up to `MOST_KNOTS` pairs (p, score),
    both rising: the score is interpolated between them, and constant beyond the first and the last.
    """

    bias: float = 0.0
    spread: float = -1.0
    mass: float = 1.0
    covariance_scale: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote; what is left out has its default.

        Raises `WeightsError` for a field that is unknown or not as stated.
        """
        numbers = {key: value for key, value in values.items() if key != "knots"}
        unknown = numbers.keys() - {field.name for field in fields(cls)}
        _expect(not unknown, f"has unknown fields: {', '.join(sorted(unknown))}")
        for name, value in numbers.items():
            _expect(_is_number(value), f"has {name} {value!r}, expected a number")
        scale = numbers.get("covariance_scale", 1.0)
        _expect(scale > 0, f"has covariance_scale {scale!r}, expected a number above 0")
        return cls(**numbers, knots=_checked_knots(values.get("knots", ())))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for the model card; "knots" only where there are some."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "knots"
        }
        return {**values, "knots": [list(knot) for knot in self.knots]} if self.knots else values

    def scores(
        self, covariance: FloatArray, mass: FloatArray, interocular: FloatArray
    ) -> FloatArray:
        """Raw covariance (N, P, 2, 2), mass (N, P), interocular (N,) in the same unit -> (N, P)."""
        return self.scores_of(calibration_features(covariance, mass, interocular))

    def scores_of(self, features: FloatArray) -> FloatArray:
        """Scores (...) in 0..1 of what `calibration_features` returned (..., 3)."""
        logit = features @ np.array([self.bias, self.spread, self.mass])
        score = (1 + np.tanh(logit / 2)) / 2  # the sigmoid, without overflow
        return np.interp(score, *np.transpose(self.knots)) if self.knots else score


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


def _checked_knots(knots: Any) -> tuple[tuple[float, float], ...]:
    try:
        table = np.array([(p, score) for p, score in knots], np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        table = np.full((1, 2), np.nan)
    rising = (np.diff(table[:, 0]) > 0).all() and (np.diff(table[:, 1]) >= 0).all()
    probable = ((table >= 0) & (table <= 1)).all()
    _expect(
        rising and probable and len(table) <= MOST_KNOTS,
        f"has knots that are not up to {MOST_KNOTS} rising pairs of numbers in 0..1",
    )
    return tuple((float(p), float(score)) for p, score in table)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _expect(holds: object, problem: str) -> None:
    if not holds:
        raise WeightsError(
            f"A calibration of the model card {problem}. Fit it anew with `hihlandmark calibrate`."
        )
