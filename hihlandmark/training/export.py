"""From a training checkpoint to weights that can be shipped: card, calibration, fp16 files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from hihlandmark.detector import Detector
from hihlandmark.models.registry import MODELS
from hihlandmark.training.calibrate import fit_calibration
from hihlandmark.training.checkpoint import read_average
from hihlandmark.training.configuration import TrainingConfiguration
from hihlandmark.training.datasets import read_faces
from hihlandmark.training.objective import decoding_of
from hihlandmark.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelCard,
    TrainingData,
    boxes_of,
    save_weights,
)


def export(
    checkpoint: Path, configuration: TrainingConfiguration, data: Path, folder: Path
) -> Path:
    """Writes the averaged weights of a checkpoint, calibrated, and returns the card's path.

    ``data`` is the folder that the run was trained on; scores are fitted on the splits that the
    configuration names in ``card.calibration``, and stay uncalibrated for layouts without one.
    """
    state = read_average(checkpoint)
    fields = configuration.network_configuration()
    card = ModelCard(
        name=configuration.name,
        architecture=MODELS[configuration.model].architecture,
        configuration=fields,
        normalisation={"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        crop={"pixel_origin": 0.5, "boxes": boxes_of(configuration.box_maps())},
        decoding=decoding_of(configuration.loss),
        training_data=[
            cast(TrainingData, source.model_dump()) for source in configuration.card.training_data
        ],
        licence=configuration.card.licence,
    )
    path = save_weights(folder, card, state)
    calibration = {}
    for faces in configuration.card.calibration:
        detector = Detector(faces.of, configuration.model, weights=path)
        annotated = read_faces(
            data / faces.folder, faces.split, format=faces.format, layout=faces.layout
        )
        calibration[faces.of] = fit_calibration(detector, annotated).to_dict()
    return save_weights(folder, replace(card, calibration=calibration), state)
