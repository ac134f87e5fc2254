"""The logistic function and its inverse."""

from __future__ import annotations

import numpy as np

from hihlandmark.arrays import FloatArray


def sigmoid(logit: FloatArray) -> FloatArray:
    """Probabilities in 0..1, without overflow."""
    return np.asarray((1 + np.tanh(logit / 2)) / 2)


def logit(probability: float) -> float:
    """The logit of a probability in 0..1; that of 0 and 1 is finite."""
    probability = min(max(probability, 1e-9), 1 - 1e-9)
    return float(np.log(probability / (1 - probability)))
