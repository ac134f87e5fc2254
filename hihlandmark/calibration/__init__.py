"""Fit, judge and store calibrations; `hihlandmark.weights.calibration` applies them."""
