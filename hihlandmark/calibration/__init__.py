"""Fit, judge and store calibrations; `hihlandmark.weights.card` applies them."""
