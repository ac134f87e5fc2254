"""Errors of wrong input that no other test file raises: the class, and a keyword of the message."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
import typer
from builders import tiny, write_set
from hub_server import local_hub

import hihlandmark.errors
from hihlandmark import (
    ConfigurationError,
    DataError,
    Detector,
    HihlandmarkError,
    ImageError,
    TrainingError,
    WeightsError,
)
from hihlandmark.cli import app
from hihlandmark.cli.options import astronaut
from hihlandmark.crop import BoxMap
from hihlandmark.datasets import cofw, packed, read_faces, w300, wflw
from hihlandmark.datasets.faces import AnnotatedFaces, BadSample
from hihlandmark.datasets.packed import pack
from hihlandmark.datasets.project import label
from hihlandmark.evaluation.protocol import evaluate
from hihlandmark.evaluation.report import new_figure, refuse_other_files
from hihlandmark.io import find_images
from hihlandmark.layouts import COFW29, W300_68
from hihlandmark.models.registry import ARCHITECTURES, build_model, configuration_of
from hihlandmark.runtimes.export import exported_runtime, quantize
from hihlandmark.runtimes.onnxruntime import run_onnx
from hihlandmark.runtimes.openvino import run_openvino
from hihlandmark.training.checkpoint import LAST, load_checkpoint
from hihlandmark.training.config import Distillation, read_configuration
from hihlandmark.training.data import TrainingBatches
from hihlandmark.training.distillation import read_teacher
from hihlandmark.training.export import faces_and_mirror_images
from hihlandmark.training.schedule import Plan
from hihlandmark.training.trainer import build_training_network
from hihlandmark.training.validation import Validator
from hihlandmark.video.frames import read_frames
from hihlandmark.video.tracking import FaceTracker
from hihlandmark.weights import find_weights, pull_weights, read_weights, save_weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

Attempt = Callable[[Path], object]
"""A call with wrong input. It gets an empty folder."""
Case = tuple[type[Exception], str, Attempt]
"""Error class, keyword of the message, and what raises it."""


@cache
def quick_detector() -> Detector:
    return Detector(29, device="cpu", runtime="torch", refine=0, flip_test=False)


def command(line: str) -> None:
    """Runs the command line in this process."""
    app(line.split(), standalone_mode=False)


def row(**changes: object) -> dict[str, object]:
    """A valid line of the project format with 29 points, with changes."""
    points = (COFW29.mean_shape * 30 + 20).tolist()
    return {"image": "a.png", "split": "train", "points": points, **changes}


def read_rows(folder: Path, *rows: object) -> AnnotatedFaces:
    cv2.imwrite(str(folder / "a.png"), np.zeros((40, 40, 3), np.uint8))
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_faces(folder, "train", on_bad_sample="raise")


def faces(folder: Path, **changes: object) -> AnnotatedFaces:
    """One annotated face, whose line has changes."""
    return read_rows(folder, row(**changes))


def test_dir_lists_the_public_names_with_every_error_class() -> None:
    assert dir(hihlandmark) == sorted(hihlandmark.__all__)
    errors = vars(hihlandmark.errors).values()
    ours = [e for e in errors if isinstance(e, type) and issubclass(e, HihlandmarkError)]
    assert {kind.__name__ for kind in ours} < set(dir(hihlandmark))
    with pytest.raises(AttributeError, match="nothing"):
        hihlandmark.nothing  # noqa: B018


def small_detector(folder: Path, **options: Any) -> Detector:
    """With a network of 29 points alone."""
    card = find_weights().card
    small: dict[str, Any] = {
        "stacks": 1,
        "features": 8,
        "decimal_features": 8,
        "layouts": {"COFW29": 29},
    }
    small["auxiliary_layouts"] = {}
    card = card.model_copy(update={"configuration": {**card.configuration, **small}})
    network = build_model(card.architecture, card.configuration)
    weights = save_weights(folder, card, network.state_dict())
    return Detector(weights=weights, device="cpu", runtime="torch", **options)


DETECTOR: list[Case] = [
    (ConfigurationError, "head", lambda folder: small_detector(folder, layout=68)),
    (ConfigurationError, "on_error", lambda _: quick_detector().predict_many([], on_error="skip")),
]


def first_found(*paths: str) -> None:
    """Raises the error that stands for the first of these paths."""
    next(iter(find_images(paths))).load()


def archive_of_texts(folder: Path) -> str:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.txt", "no image")
    return str(folder / "a.zip")


def search_unreadable_folder(_: Path) -> None:
    """Searches a folder without permissions, as user nobody where root runs the tests."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0)
        try:
            os.seteuid(user or 65534)
            first_found(folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o700)


def read_camera_on_windows(_: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        next(read_frames("camera:0"))


FOLDERS_AND_VIDEO: list[Case] = [
    (ImageError, "pattern", lambda folder: first_found(f"{folder}/*.jpg")),
    (ImageError, "folder", search_unreadable_folder),
    (ImageError, "archive", lambda folder: first_found(archive_of_texts(folder))),
    (ConfigurationError, "Linux", read_camera_on_windows),
]


EVAL, CALIBRATE = (f"{name} --data . --split train" for name in ("eval", "calibrate"))


def evaluate_without_points(folder: Path) -> None:
    unknown = [replace(face, points=np.full((29, 2), np.nan)) for face in faces(folder).faces]
    evaluate(quick_detector(), replace(faces(folder), faces=unknown))


def replace_report_of_another_program(folder: Path) -> None:
    (folder / "report.json").write_text('{"layout": "wide"}')
    refuse_other_files(folder)


EVALUATION: list[Case] = [
    (ConfigurationError, "report.json", replace_report_of_another_program),
    (typer.BadParameter, "--every", lambda _: command(f"{EVAL} --every 2")),
    (typer.BadParameter, "--jitter", lambda _: command(f"{EVAL} --jitter --boxes detected")),
    (ConfigurationError, "--dry-run", lambda _: command(f"{CALIBRATE} --out a --dry-run")),
    (DataError, "points", evaluate_without_points),
]


def test_face_without_official_rectangle_is_skipped_with_the_reason(tmp_path: Path) -> None:
    detector = quick_detector()
    both = read_rows(tmp_path, row(), row(rect=[5, 5, 35, 35]))
    result = evaluate(detector, both, boxes="official", official_map=detector.box_map("landmarks"))
    (reason,) = result.skipped
    assert "official" in reason


def run_exported_openvino_on_cuda(folder: Path) -> None:
    card = find_weights().card
    facts = {"card": json.loads(card.to_json()), "layout": "WFLW98"}
    (folder / "a.xml").touch()
    (folder / "a.json").write_text(json.dumps(facts))
    exported_runtime(folder / "a.xml", "WFLW98", card, card.decoding, torch.device("cuda"))


def export_int8_without_faces(folder: Path) -> None:
    command(f"export --to onnx --out {folder} --int8 {folder}")


EXPORT: list[Case] = [
    (ConfigurationError, "cuda", run_exported_openvino_on_cuda),
    (ConfigurationError, "onnxruntime-gpu", lambda folder: run_onnx(folder / "a.onnx", CUDA)),
    (ConfigurationError, "INT8", export_int8_without_faces),
]


def saved_card(folder: Path) -> Path:
    """The card of weights with a single number."""
    card = find_weights().card.model_copy(update={"name": "tiny"})
    return save_weights(folder, card, {"w": torch.zeros(1)})


def pull_weights_with_a_missing_file(folder: Path) -> None:
    values = json.loads(saved_card(folder).read_text())
    values["file"] = "gone.safetensors"
    content = (folder / "tiny.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch, local_hub(patch, folder / "cache") as hub:
        described = json.dumps(values).encode()
        hub.commit("me/faces", {"tiny.json": described, "tiny.safetensors": content})
        pull_weights("me/faces")


def find_card_in_latin_1(folder: Path) -> None:
    saved_card(folder).write_bytes("{é}".encode("latin-1"))
    find_weights(folder)


def read_removed_weights(folder: Path) -> None:
    files = find_weights(saved_card(folder))
    files.path.unlink()
    read_weights(files)


WEIGHTS: list[Case] = [
    (WeightsError, "gone", pull_weights_with_a_missing_file),
    (WeightsError, "tiny.json", find_card_in_latin_1),
    (WeightsError, "tiny.safetensors", read_removed_weights),
]


def read_wflw_list(folder: Path, text: bytes) -> None:
    (folder / wflw.IMAGES).mkdir()
    path = folder / wflw.ANNOTATIONS / wflw.LISTS["train"][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    read_faces(folder, "train")


def read_cofw_of_texts(folder: Path) -> None:
    file = cofw.SPLITS["train"]
    with h5py.File(folder / file.name, "w") as contents:
        for name in (file.images, file.shapes, file.boxes):
            contents[name] = ["no number"]
    read_faces(folder, "train")


def load_image_of_empty_cofw(folder: Path) -> None:
    h5py.File(folder / "cofw.mat", "w").close()
    cofw.CellImage(folder / "cofw.mat", "IsTr", 0)()


def load_damaged_packed_image(folder: Path) -> None:
    write_set(folder / "set", W300_68.mean_shape * 70 + 60, faces=1)
    pack([read_faces(folder / "set", "train")], folder / "packed")
    table = folder / "packed" / packed.TABLE
    content = table.read_bytes()
    start = content.index(b"JFIF") - 6
    table.write_bytes(content[:start] + bytes(200) + content[start + 200 :])
    read_faces(folder / "packed", "train")[0].load_image()


def read_seven_points_without_mirror_table(folder: Path) -> None:
    (folder / "points.json").write_text("{}")
    faces(folder, points=[[n, n] for n in range(7)])


DATA_SETS: list[Case] = [
    (DataError, "usable", lambda folder: read_wflw_list(folder, b"")),
    (DataError, "UTF-8", lambda folder: read_wflw_list(folder, "é".encode("utf-16"))),
    (DataError, "damaged", read_cofw_of_texts),
    (ImageError, "cofw.mat", load_image_of_empty_cofw),
    (ImageError, "decode", load_damaged_packed_image),
    (DataError, "JSON", lambda folder: read_rows(folder, row(), [])),
    (DataError, "points", lambda folder: faces(folder, points=[None] * 29)),
    (DataError, "attributes", lambda folder: faces(folder, attributes=[])),
    (DataError, "flip", read_seven_points_without_mirror_table),
    (BadSample, "read", w300.read_pts),
    (DataError, "face", lambda folder: label([], quick_detector(), folder / "set")),
]


def distill(weights: str, student: str = "hih") -> None:
    model = {"hih": "hih-small-v1", "adnet": "adnet-small"}[student]
    built = ARCHITECTURES[student].configuration(**configuration_of(model, ["COFW29"]))
    read_teacher(Distillation(weights=weights), tiny(model=model), built, torch.device("cpu"))


def load_other_checkpoint(folder: Path) -> None:
    torch.save({"epoch": 1}, folder / LAST)
    load_checkpoint(folder / LAST)


def validate_without_images(folder: Path) -> None:
    unreadable = faces(folder)
    (folder / "a.png").write_bytes(b"")
    maps = {"landmarks:COFW29": BoxMap((0, 0), 1)}
    validator = Validator({"a": unreadable}, ["COFW29"], maps, 0)
    validator.measure(build_training_network(tiny()), find_weights().card.decoding, 64)


RUN = (tiny(), Plan(tiny(), 9), {"COFW29": 28})
"""A run that expects a point less than the layout has."""
LATE = ["first_stage=99"]
TRAINING: list[Case] = [
    (ConfigurationError, "adnet", lambda _: distill("hih", student="adnet")),
    (ConfigurationError, "adnet", lambda _: distill("adnet-small")),
    (WeightsError, "nowhere", lambda _: distill("nowhere")),
    (ConfigurationError, "29", lambda folder: TrainingBatches(*RUN, [faces(folder)])),
    (DataError, "can be read", validate_without_images),
    (
        ConfigurationError,
        "WFLW98",
        lambda folder: Validator({"a": faces(folder)}, ["WFLW98"], {}, 0),
    ),
    (TrainingError, "content", load_other_checkpoint),
    (TrainingError, "checkpoint", lambda folder: load_checkpoint(folder / LAST)),
    (DataError, "card.shapes", lambda folder: faces_and_mirror_images(faces(folder))),
    (ConfigurationError, "first_stage", lambda _: read_configuration("hih-small-v1", LATE)),
]


@pytest.mark.parametrize(
    ("error", "keyword", "attempt"),
    [*DETECTOR, *FOLDERS_AND_VIDEO, *EVALUATION, *EXPORT, *WEIGHTS, *DATA_SETS, *TRAINING],
)
def test_wrong_input_raises(error: Any, keyword: str, attempt: Attempt, tmp_path: Path) -> None:
    with pytest.raises(error, match=keyword):
        attempt(tmp_path)


def read_empty_cofw(folder: Path) -> None:
    (folder / cofw.SPLITS["train"].name).touch()
    read_faces(folder, "train")


MISSING: list[tuple[str, str, Attempt]] = [
    ("h5py", "train", read_empty_cofw),
    ("datasets", "train", load_damaged_packed_image),
    ("matplotlib.figure", "train", lambda _: new_figure(1, 1)),
    ("fsspec", "folders", lambda _: first_found("s3://a/b")),
    ("s3fs", "s3fs", lambda _: first_found("s3://a/b")),
    ("av", "video", lambda _: next(read_frames("a.mp4"))),
    ("trackers", "trackers", lambda _: FaceTracker(quick_detector())),
    ("skimage.data", "demo", lambda _: astronaut()),
    ("onnxruntime", "onnx", lambda folder: run_onnx(folder / "a.onnx", CPU)),
    ("onnxruntime.quantization", "onnx", lambda folder: quantize(folder, np.zeros((2, 8, 8, 3)))),
    ("openvino", "openvino", lambda folder: run_openvino(folder / "a.xml")),
]


@pytest.mark.parametrize(("package", "named", "attempt"), MISSING)
def test_missing_package_names_what_to_install(
    package: str, named: str, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HihlandmarkError, match=named):
        attempt(tmp_path)
