"""From a training checkpoint to weights that can be shipped: card, calibration, fp16 files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hihlandmark.crop import CANONICAL_CROP
from hihlandmark.detector import Detector
from hihlandmark.models.registry import MODELS
from hihlandmark.training.calibrate import fit_calibration
from hihlandmark.training.loop import read_average
from hihlandmark.training.recipes import Recipe
from hihlandmark.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelCard,
    TrainingData,
    boxes_of,
    save_weights,
)

LICENCE = (
    "Research use only, no commercial use: trained on data sets whose terms allow no more. "
    "The Apache-2.0 licence of the code does not extend to these weights."
)
TRAINING_DATA: tuple[TrainingData, ...] = (
    {"name": "300-W (AFW, HELEN, LFPW train)", "licence": "research only", "images": 2010},
    {"name": "WFLW, part of the test list", "licence": "non-commercial research", "images": 347},
    {"name": "LFPW test photos with 29 points", "licence": "research only", "images": 70},
    {
        "name": "YouTube Faces frames, machine-made points",
        "licence": "research only",
        "images": 1731,
    },
    {"name": "SCUT-FBP5500", "licence": "non-commercial research", "images": 2700},
    {
        "name": "London, 3DSK and Canada sets of webmorphR.stim",
        "licence": "CC-BY-4.0",
        "images": 218,
    },
    {"name": "FaceSynthetics sample", "licence": "non-commercial research", "images": 90},
)
CALIBRATION_SPLITS = {
    "WFLW98": ("wflw98", "val"),
    # No 68-point faces are left for this: the points that WFLW shares with 300-W stand in.
    "W300_68": ("wflw98", "val"),
    "COFW29": ("cofw29", "val"),
}


def export(checkpoint: Path, recipe: Recipe, data: Path, folder: Path) -> Path:
    """Writes the averaged weights of a checkpoint, calibrated, and returns the card's path.

    ``data`` is the folder that the recipe was trained on; its validation splits are used.
    """
    state = read_average(checkpoint)
    entry = MODELS[recipe.model]
    softmax = recipe.loss == "cross_entropy"
    card = ModelCard(
        name=recipe.model,
        architecture=entry.architecture,
        configuration=dict(entry.configuration),
        normalisation={"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        crop={"pixel_origin": 0.5, "boxes": boxes_of(CANONICAL_CROP)},
        decoding={
            "decoder": "expectation",
            "bin_centre": 0.5,
            "activation": "softmax" if softmax else "linear",
        },
        training_data=list(TRAINING_DATA),
        licence=LICENCE,
    )
    path = save_weights(folder, card, state)
    calibration = {}
    for layout in entry.configuration["layouts"]:
        set_name, split = CALIBRATION_SPLITS[layout]
        detector = Detector(layout, recipe.model, weights=path)
        calibration[layout] = fit_calibration(detector, data / set_name, split).to_dict()
    return save_weights(folder, replace(card, calibration=calibration), state)
