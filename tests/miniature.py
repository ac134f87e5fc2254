"""A data folder with a few faces of noise, and training runs of seconds on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hihlandmark.layouts import COFW29, W300_68, WFLW98
from hihlandmark.training.config import TrainingConfiguration
from hihlandmark.training.data import TrainingBatches, read_face_set, usable_faces
from hihlandmark.training.objectives import NORMALIZATION, decoding_of
from hihlandmark.training.schedule import Plan
from hihlandmark.weights import save_weights
from hihlandmark.weights.card import CropContract, ModelCard

LAYOUTS = {layout.name: layout.size for layout in (WFLW98, W300_68, COFW29)}
PLAIN = {
    **dict.fromkeys(("rotation_degrees", "scale", "shift", "flip", "color", "gray"), 0.0),
    **dict.fromkeys(("blur", "motion_blur", "shrink", "jpeg", "occlusion", "patch"), 0.0),
}
"""No augmentation."""


def write_set(folder: Path, points: np.ndarray, faces: int = 3, split: str = "train") -> None:
    """Images of 120 x 120 pixels of noise with the same points on each, and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "annotations.jsonl").open("a", encoding="utf-8") as lines:
        for number in range(faces):
            name = f"{split}_{number}.png"
            noise = rng.integers(0, 256, (120, 120, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name)
            row = {"image": name, "points": points.tolist(), "split": split}
            lines.write(json.dumps(row) + "\n")


def write_data(root: Path) -> Path:
    """A folder with a set of each layout, named after it, with splits train and val."""
    for layout in (WFLW98, W300_68, COFW29):
        for split in ("train", "val"):
            write_set(root / layout.name, layout.mean_shape * 70 + 60, split=split)
    return root


def tiny(**changes: Any) -> TrainingConfiguration:
    """Six steps of a network of a few thousand parameters on crops of 64 pixels and more."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": "hih-small",
        "network": {"features": 8, "depth": 3, "decimal_features": 8, "input_size": 128},
        "sets": [{"folder": name, "share": 1} for name in LAYOUTS],
        "stages": [
            {
                "steps": 4,
                "crop_size": 64,
                "batch_size": 3,
                "learning_rate": 1e-2,
                "warmup_steps": 2,
            },
            {
                "steps": 2,
                "crop_size": 128,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "warmup_steps": 1,
            },
        ],
        "save_every": 1,
    }
    return TrainingConfiguration.model_validate({**values, **changes})


def as_toml(configuration: TrainingConfiguration) -> str:
    """The configuration as TOML, in which scalars, lists and inline tables are as in JSON."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            pairs = (f"{key} = {value(v)}" for key, v in item.items() if v is not None)
            return "{ " + ", ".join(pairs) + " }"
        if isinstance(item, (list, tuple)):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item)

    fields = configuration.model_dump(mode="json")
    return "".join(f"{key} = {value(v)}\n" for key, v in fields.items() if v is not None)


def small(model: str, loss: dict[str, Any] | None = None, **changes: Any) -> TrainingConfiguration:
    """`tiny` without augmentation for "adnet-small" or "awing-small"."""
    losses: dict[str, Any] = {"sub_cell": True, "integer_sigma": 1.5}
    if model == "adnet-small":
        losses = {"point": "anisotropic_direction", "point_weight": 1.0}
    values = {
        "model": model,
        "network": {"features": 8, "depth": 3, "input_size": 128},
        "loss": {"integer": "adaptive_wing", **losses, **(loss or {})},
        "augmentation": PLAIN,
    }
    return tiny(**{**values, **changes})


def batches(data: Path, process: int = 0, processes: int = 1, **changes: Any) -> TrainingBatches:
    """The batches of `tiny` on the miniature data."""
    configuration = tiny(**changes)
    sets = [usable_faces(each, read_face_set(data, each)) for each in configuration.sets]
    settings = configuration.self_training
    unlabeled = [read_face_set(data, each) for each in settings.sets] if settings else []
    group = processes * configuration.optimizer.accumulation
    plan = Plan(configuration, sum(map(len, sets)), group)
    return TrainingBatches(configuration, plan, LAYOUTS, sets, unlabeled, process, processes)


def write_teacher(folder: Path, changes: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Write untrained weights of `tiny` with these settings; ``changes``: of their card."""
    from hihlandmark.training.trainer import build_training_network

    configuration = tiny(**{"seed": 7, **settings})
    card = ModelCard(
        name="teacher",
        architecture="hih",
        configuration=configuration.network_configuration(),
        normalization=NORMALIZATION,
        crop=CropContract(pixel_origin=0.5, boxes={}),
        decoding=decoding_of(configuration),
        training_data=(),
        license="none",
    )
    state = build_training_network(configuration).state_dict()
    for head in ("stacks.0.predict", "decimal_head.predict"):
        state[f"{head}.weight"] *= 10  # heatmaps that are not flat
    return save_weights(folder, card.model_copy(update=changes or {}), state)
