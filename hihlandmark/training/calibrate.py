"""Fits a `Calibration` to a detector's errors on annotated faces that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from hihlandmark.calibration import NEAR, Calibration, calibration_features
from hihlandmark.crop import crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.detector import Detector
from hihlandmark.evaluate import normalised_errors, read_annotations
from hihlandmark.image import load_image
from hihlandmark.layouts import get_conversion, get_layout

MEDIAN_CHI2 = 2 * np.log(2)
"""Median of the squared Mahalanobis distance of a 2-D Gaussian."""
RIDGE = 1e-3
"""Keeps the fit finite when every point of a small split is near."""


def fit_calibration(detector: Detector, folder: Path, split: str) -> Calibration:
    """The calibration of the detector's layout on a split of a data folder.

    The annotations may be in another layout that shares points with the detector's (98 for a
    detector of 68): the fit then sees the shared points only. Raises `ConfigurationError` when the
    split is not there or there is no conversion between the layouts.
    """
    rows = read_annotations(folder, split)
    annotated = get_layout(len(rows[0]["points"]))
    table = get_conversion(annotated, detector.layout)
    box_map = detector.box_map(f"landmarks:{annotated.name}")
    features, distances, errors = [], [], []
    for row in rows:
        points = np.array(row["points"], np.float64)
        (square,) = box_map.squares(tight_boxes(points))
        crop = cut_crop(load_image(folder / row["image"]), square, detector.crop_size)
        found = detector.predict_crops(crop[None])
        truth = table(transform_points(crop_matrix(square, detector.crop_size), points))
        left, right = detector.layout.ocular_pair
        interocular = np.linalg.norm(found.points[:, left] - found.points[:, right], axis=-1)
        seen = calibration_features(found.covariance, found.mass, interocular)[0]
        offset = (found.points[0] - truth)[table.exact]
        precision = np.linalg.inv(found.covariance[0, table.exact])
        features.append(seen[table.exact])
        distances.append(np.einsum("pi,pij,pj->p", offset, precision, offset))
        error = normalised_errors(found.points[0], truth, detector.layout.ocular_pair)
        errors.append(error[table.exact])
    near = np.concatenate(errors) <= NEAR
    weights = _fit_logistic(np.concatenate(features), near)
    scale = float(np.median(np.concatenate(distances)) / MEDIAN_CHI2)
    return Calibration(*(round(float(value), 5) for value in (*weights, scale)))


def _fit_logistic(features: NDArray[np.floating], near: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Weights (3,) that maximise the likelihood of ``near`` (N,) given features (N, 3)."""
    sign = np.where(near, 1.0, -1.0)

    def negative_log_likelihood(weights: NDArray[np.floating]) -> float:
        losses = np.logaddexp(0, -sign * (features @ weights))
        return float(losses.mean() + RIDGE * np.square(weights).sum())

    return minimize(negative_log_likelihood, np.zeros(features.shape[1])).x
