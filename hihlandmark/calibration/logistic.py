"""Logistic regression with a ridge for each weight: the fits of scores and of other probabilities.

scikit-learn has it with one ridge for all weights, and is a large package for a dozen lines.
"""

from __future__ import annotations

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.errors import missing_extra
from hihlandmark.logits import sigmoid


def fit_logistic(
    inputs: FloatArray,
    probabilities: FloatArray,
    ridge: FloatArray,
    sample_weights: FloatArray | None = None,
) -> FloatArray:
    """The weights (K,) of ``sigmoid(inputs @ weights)`` with the smallest mean cross-entropy.

    Args:
        inputs: (N, K).
        probabilities: (N,) in 0..1, such as outcomes 0 and 1.
        ridge: (K,), the penalty of each weight's square.
        sample_weights: (N,); None: all count alike.

    Raises:
        ConfigurationError: SciPy is missing.
    """
    with missing_extra("train"):
        from scipy.optimize import minimize

    shares = np.ones(len(inputs)) if sample_weights is None else sample_weights
    shares = shares / shares.sum()

    def loss_and_gradient(weights: FloatArray) -> tuple[float, FloatArray]:
        logits = inputs @ weights
        entropy = np.logaddexp(0, logits) - probabilities * logits
        gradient = (shares * (sigmoid(logits) - probabilities)) @ inputs
        loss = float(shares @ entropy + ridge @ np.square(weights))
        return loss, gradient + 2 * ridge * weights

    found: FloatArray = minimize(loss_and_gradient, np.zeros(inputs.shape[1]), jac=True).x
    return found
