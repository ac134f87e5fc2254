"""From a checkpoint to weights that can be shipped: card, shapes, calibration, fp16 files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.calibration.fit import fit_calibration
from hihlandmark.calibration.model import Calibration
from hihlandmark.datasets import AnnotatedFaces
from hihlandmark.detector import Detector
from hihlandmark.errors import DataError
from hihlandmark.layouts import mirror_points
from hihlandmark.models.registry import MODELS
from hihlandmark.shape_prior import fit_shape_prior
from hihlandmark.training.checkpoint import read_average
from hihlandmark.training.config import TrainingConfiguration
from hihlandmark.training.data import read_face_set
from hihlandmark.training.objectives import decoding_of
from hihlandmark.weights import save_weights, shape_prior_tensors
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard, TrainingData, boxes_of


def export(
    checkpoint: Path, configuration: TrainingConfiguration, data: Path, folder: Path
) -> Path:
    """Writes the averaged weights of a checkpoint, calibrated, and returns the card's path.

    ``data`` is the folder that the run was trained on; scores are fitted on the splits that the
    configuration names in ``card.calibration``, and stay uncalibrated for layouts without one. The
    faces of ``card.shapes`` make the layouts' shape priors.
    """
    state = read_average(checkpoint)
    fields = configuration.network_configuration()
    card = ModelCard(
        name=configuration.name,
        architecture=MODELS[configuration.model].architecture,
        configuration=fields,
        normalization={"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        crop={"pixel_origin": 0.5, "boxes": boxes_of(configuration.box_maps())},
        decoding=decoding_of(configuration),
        training_data=[
            cast(TrainingData, source.model_dump()) for source in configuration.card.training_data
        ],
        license=configuration.card.license,
    )
    path = save_weights(folder, card, state)
    calibrations = _calibrations(path, configuration, data)
    if configuration.card.shapes:
        state |= _shape_priors(configuration, data, calibrations)
        path = save_weights(folder, card, state)
        calibrations = _calibrations(path, configuration, data)
    fitted = {layout: calibration.to_dict() for layout, calibration in calibrations.items()}
    return save_weights(folder, replace(card, calibration=fitted), state)


def _calibrations(
    weights: Path, configuration: TrainingConfiguration, data: Path
) -> dict[str, Calibration]:
    """Fitted to the weights as they are, by layout."""
    return {
        faces.of: fit_calibration(
            Detector(faces.of, configuration.model, weights=weights), read_face_set(data, faces)
        )
        for faces in configuration.card.calibration
    }


def _shape_priors(
    configuration: TrainingConfiguration, data: Path, calibrations: Mapping[str, Calibration]
) -> dict[str, torch.Tensor]:
    """The tensors of the prior of each layout that ``card.shapes`` has faces of.

    ``calibrations``: of the weights without priors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for each in configuration.card.shapes:
        faces = read_face_set(data, each)
        prior = fit_shape_prior(faces_and_mirror_images(faces))
        scale = calibrations.get(faces.layout, Calibration()).covariance_scale
        tensors |= shape_prior_tensors(faces.layout, replace(prior, covariance_scale=scale))
    return tensors


def faces_and_mirror_images(faces: AnnotatedFaces) -> NDArray[np.float64]:
    """The shapes (2N, P, 2) of the N faces that are annotated completely, and their mirror images.

    Raises `DataError` when that are fewer than two.
    """
    points = np.array([face.points for face in faces])
    complete = points[np.isfinite(points).all(axis=(1, 2))]
    if len(complete) < 2:
        raise DataError(
            f"{faces.name} has {len(complete)} completely annotated faces, too few for card.shapes"
            ": name another set there"
        )
    return np.concatenate([complete, mirror_points(complete, faces.mirror, width=0)])
