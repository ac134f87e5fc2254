"""Calibrated scores and covariances: the model, its fit, its metrics and its report."""
