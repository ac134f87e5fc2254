"""Small inputs that several test files build: faces, data sets, networks, training runs."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ImageError
from hihlandmark.crop import BoxMap
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.layouts import COFW29, LAYOUTS, W300_68, WFLW98
from hihlandmark.models.registry import build_model, configuration_of
from hihlandmark.runtimes import export
from hihlandmark.training.config import TrainingConfiguration
from hihlandmark.training.data import TrainingBatches, read_face_set, usable_faces
from hihlandmark.training.objectives import NORMALIZATION, decoding_of
from hihlandmark.training.schedule import Plan
from hihlandmark.weights import LoadedModel, save_weights
from hihlandmark.weights.card import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropContract,
    Decoding,
    LayoutDefinition,
    ModelCard,
    Normalization,
)

Array = NDArray[np.floating]


def annotated(
    image: NDArray[np.uint8] | ImageError, points: Array, name: str = "one", **more: Any
) -> AnnotatedFace:
    """A face of an image, or of one that cannot be read, with points (P, 2)."""

    def load_image() -> NDArray[np.uint8]:
        if isinstance(image, ImageError):
            raise image
        return image

    return AnnotatedFace(name, load_image, np.asarray(points, np.float64), "val", **more)


def split_of(*faces: AnnotatedFace) -> AnnotatedFaces:
    """A split in the layout with the faces' number of points, or in a scheme of its own."""
    count = len(faces[0].points)
    layout = next((each for each in LAYOUTS.values() if each.size == count), None)
    if layout is None:
        return AnnotatedFaces("faces/val", f"POINTS{count}", np.arange(count), faces)
    return AnnotatedFaces("faces/val", layout.name, layout.mirror, faces)


POINTS = {layout.name: layout.size for layout in (WFLW98, W300_68, COFW29)}
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
        "model": "hih-small-v1",
        "network": {"features": 8, "depth": 3, "decimal_features": 8, "input_size": 128},
        "sets": [{"folder": name, "share": 1} for name in POINTS],
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
    return TrainingBatches(configuration, plan, POINTS, sets, unlabeled, process, processes)


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


def encoded(image: Image.Image | NDArray[np.uint8], format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file with the image, written by Pillow."""
    buffer = io.BytesIO()
    pillow = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pillow.save(buffer, format, **options)
    return buffer.getvalue()


# Networks with random weights, for runtimes

CPU = torch.device("cpu")
CROP_SIZE = 64
DECODINGS = {
    "hih": Decoding(decoder="local_soft_argmax", activation="softmax", stride=4),
    "adnet": Decoding(decoder="mean", activation="linear", stride=4),
    "awing": Decoding(decoder="quarter_shift", activation="linear", stride=4),
    "nested": Decoding(decoder="soft", activation="softmax", stride=8),
}
_MODELS = {
    "hih": "hih-small-v1",
    "adnet": "adnet-small",
    "awing": "awing-small",
    "nested": "hih-small",
}


def tiny_model(architecture: str) -> LoadedModel:
    """A narrow network with random weights and lively batch norms, and its card."""
    torch.manual_seed(5)
    configuration = configuration_of(_MODELS[architecture], ["COFW29"])
    configuration |= {"features": 16, "depth": 2, "input_size": CROP_SIZE}
    if architecture == "hih":
        configuration |= {"decimal_features": 8, "decimal_bins": 4}
    network = build_model(architecture, configuration)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    for name, parameter in network.named_parameters():
        if name.endswith("visibility.bias"):
            torch.nn.init.normal_(parameter)
    card = ModelCard(
        name=f"{architecture}-tiny",
        architecture=architecture,
        configuration=configuration,
        normalization=Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        crop=CropContract(pixel_origin=0.5, boxes={"mtcnn": BoxMap((0.0, 0.0), 1.0)}),
        decoding=DECODINGS[architecture],
        training_data=[],
        license="test",
        file=f"{architecture}-tiny.safetensors",
        sha256="0" * 64,
    )
    return LoadedModel(network.eval(), card, {})


def write_own_layout(folder: Path) -> Path:
    """Write weights of `tiny_model` that define their one layout, OWN29, themselves."""
    _, card, _ = tiny_model("hih")
    own = replace(COFW29, name="OWN29", aliases=(), mirror_table=tuple(COFW29.mirror.tolist()))
    configuration = {**card.configuration, "layouts": {own.name: own.size}}
    boxes = {**card.crop.boxes, f"landmarks:{own.name}": BoxMap((0.0, 0.0), 1.0)}
    crop = CropContract(pixel_origin=0.5, boxes=boxes)
    layouts = {own.name: LayoutDefinition.of(own)}
    update = {"configuration": configuration, "crop": crop, "layouts": layouts}
    state = build_model("hih", configuration).state_dict()
    return save_weights(folder, card.model_copy(update=update), state)


def some_crops(count: int) -> NDArray[np.uint8]:
    """Crops (count, S, S, 3) of drawn faces, for `tiny_model`."""
    return export.drawn_faces("COFW29", CROP_SIZE, count)


# Data sets in the formats of their authors


def shape(count: int, offset: float = 0.0) -> np.ndarray:
    """Some points (P, 2) within an image of 60 x 40."""
    return np.stack([np.linspace(5, 50, count), np.linspace(30, 8, count)], axis=-1) + offset


def write_image(path: Path, seed: int = 0, width: int = 60, height: int = 40) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def text_of(points: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in points.ravel())


def text_file(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


WFLW_TRAIN = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"


WFLW_TEST = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt"


SOCCER = "37--Soccer/37_Soccer_soccer_ball_37_45.png"


def wflw_line(offset: float = 0, flags: str = "0 0 0 0 0 0", image: str = SOCCER) -> str:
    return f"{text_of(shape(98, offset))} 4 7 51 31 {flags} {image}"


HEADERS = {
    "one blank": "version: 1\nn_points: 68\n{\n",
    "two blanks": "version: 1\nn_points:  68\n{\n",
    "no blanks": "version:1\nn_points:68\n{\n",
}


def pts(path: Path, offset: float = 0, header: str = HEADERS["one blank"], **kinds) -> np.ndarray:
    """A .pts file and its image; returns the points as stored in the file."""
    points = shape(kinds.get("count", 68), offset)
    body = "".join(f"{x:.6f} {y:.6f}\n" for x, y in points)
    text = kinds.get("edit", lambda t: t)(f"{header}{body}}}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.replace("\n", kinds.get("newline", "\n")).encode())
    write_image(path.with_suffix(kinds.get("suffix", ".jpg")))
    return points


def cofw_file(path: Path, images: list[np.ndarray], **changes) -> np.ndarray:
    """A MATLAB v7.3 file as MATLAB writes it; returns the shapes (N, 87) in it."""
    suffix = "Tr" if "train" in path.name else "T"
    count = len(images)
    shapes = np.array([[*shape(29, i).T.ravel(), *[0.0] * 28, 1.0] for i in range(count)])
    shapes = changes.get("shapes", lambda s: s)(shapes)
    boxes = np.tile([10.0, 12.0, 30.0, 20.0], (count, 1))
    with h5py.File(path, "w", userblock_size=512) as file:
        cell = file.create_dataset(f"Is{suffix}", (1, count), h5py.ref_dtype)
        for i, pixels in enumerate(images):
            cell[0, i] = file.create_dataset(f"#refs#/{i}", data=pixels.T).ref
        file[changes.get("key", f"phis{suffix}")] = shapes.T
        file[f"bboxes{suffix}"] = boxes.T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return shapes
