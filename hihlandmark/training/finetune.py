"""Fine-tuning in one call: split, start, train, calibrate, and compare with the start.

A layout that the weights predict is trained further; a new one gets a head of its own (`new_head`).
The weights after the last step are the result: the faces of the comparison choose none. They decide
whether a shape regression of the start is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PillowImage

from hihlandmark.calibration.fit import fit, measure_points
from hihlandmark.datasets import dataset_splits, read_faces
from hihlandmark.datasets.augmentation import Augmentation
from hihlandmark.datasets.faces import AnnotatedFaces, image_of
from hihlandmark.datasets.inspection import contact_sheet, find_unreadable
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, DataError
from hihlandmark.evaluation.metrics import Evaluation, failure_rate, mean_error
from hihlandmark.evaluation.protocol import evaluate, refuse_ambiguous
from hihlandmark.evaluation.report import comparison_tile
from hihlandmark.layouts import BUILT_IN, LAYOUTS, Layout, find_or_register, get_layout
from hihlandmark.models.nested import Nested, NestedConfiguration
from hihlandmark.models.registry import MODELS
from hihlandmark.runtimes.int8 import observed_ranges
from hihlandmark.runtimes.torch_devices import has_native_bf16, resolve_device
from hihlandmark.shape_regression import ShapeRegression
from hihlandmark.training.checkpoint import LAST, read_average
from hihlandmark.training.config import (
    Distillation,
    FaceSet,
    Loss,
    Optimizer,
    Stage,
    TrainingConfiguration,
    TrainingSet,
    Validation,
)
from hihlandmark.training.data import select_points, usable_faces
from hihlandmark.training.export import network_of
from hihlandmark.training.layout_file import describe, read_layout_file
from hihlandmark.training.new_head import (
    add_head,
    fit_crop,
    locate,
    points_inside,
    select,
)
from hihlandmark.training.trainer import TrainingProgress, train
from hihlandmark.weights import (
    DEFAULT_MODEL,
    LoadedModel,
    correction_tensors,
    find_weights,
    load_model,
    save_weights,
)
from hihlandmark.weights.card import NAME, DataSource, Figure, LayoutDefinition, ModelCard
from hihlandmark.writing import write_atomically

RECORD, DRAWING, RUN, START = "finetune.json", "before-after.png", "run", "run/start"
VAL_SHARE = 0.2
"""Share of the images that are held out where there is no split "val"."""
MOST_SKIPPED = 0.2
"""Share of the annotations that may be unusable."""
FEW_TO_CALIBRATE = 10
"""With fewer faces, a calibration that the weights have is better than a new one, and a lower error
may be chance."""
NAMED = 3
"""Samples of each problem that are named."""
DRAWN, TILE = 6, 400
"""Faces in the image of both, and sides of their crops in pixels."""

Say = Callable[[str], None]


class Split(NamedTuple):
    """Faces to train on and others to measure on, as sets of a configuration, and how they read."""

    training: TrainingSet
    val: FaceSet
    faces: AnnotatedFaces
    val_faces: AnnotatedFaces
    note: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of `finetune`."""

    card: Path
    """Of the weights."""
    drawing: Path
    steps: int
    before: Evaluation
    """Of the weights at the start, on the faces that were not trained on."""
    after: Evaluation

    @property
    def nme(self) -> tuple[float, float]:
        """Mean errors (0..1) before and after."""
        return mean_error(self.before.face_errors), mean_error(self.after.face_errors)

    @property
    def verdict(self) -> str:
        """Whether it helped, as a sentence."""
        before, after = self.nme
        change = self.after.face_errors - self.before.face_errors
        change = change[np.isfinite(change)]
        count = len(change)
        if after >= before:
            return (
                f"Fine-tuning did not help: the error on {count} faces was {100 * before:.2f} % "
                f"and is {100 * after:.2f} %. The weights that it started from are better."
            )
        if count < FEW_TO_CALIBRATE:
            faces = "1 held-out face is" if count == 1 else f"{count} held-out faces are"
            return (
                f"{faces} too few to show whether fine-tuning helped: the error went from "
                f"{100 * before:.2f} % to {100 * after:.2f} %, which may be chance. Hold out "
                f"{FEW_TO_CALIBRATE} or more."
            )
        doubt = 2 * change.std(ddof=1) / np.sqrt(count)
        chance = "" if before - after > doubt else ", a difference that may be chance"
        return (
            f"Fine-tuning helped: the error on {count} faces fell from {100 * before:.2f} % to "
            f"{100 * after:.2f} %{chance}."
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: what was measured, before, after."""
        both = (self.before, self.after)
        nme = [f"{100 * mean_error(each.face_errors):.2f}" for each in both]
        median = [f"{100 * float(np.nanmedian(each.face_errors)):.2f}" for each in both]
        failures = [f"{100 * failure_rate(each.face_errors):.1f}" for each in both]
        return [
            ("NME, %", nme[0], nme[1]),
            ("median error of a face, %", median[0], median[1]),
            ("faces with an error above 10 %, %", failures[0], failures[1]),
        ]


def finetune(
    faces: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    model: str = DEFAULT_MODEL,
    layout_file: str | Path | None = None,
    annotated: str | None = None,
    data_format: str = "auto",
    device: str = "auto",
    steps: int | None = None,
    workers: int = 1,
    say: Say = print,
    progress: TrainingProgress | None = None,
) -> Outcome:
    """Adapt weights to annotated faces, or teach them a new layout.

    A stopped call continues when it is repeated, and ends with the same weights.

    Args:
        faces: folder of a data set that `read_faces` reads, such as images with ``.pts`` files.
        out: folder for weights, card, an image of some faces before and after, and the run.
        weights: to start from, as `find_weights` takes them; None: those of ``model``.
        model: name of packaged weights.
        layout_file: describes points that the weights do not know, see `LayoutFile`.
        annotated: name of the layout of the faces, where it does not follow from their format.
        data_format: of the data set.
        device: "auto", "cpu", "cuda" or "mps".
        steps: of training; None: by the number of faces.
        workers: processes that prepare data.
        say: called with lines for the user.
        progress: of the training.

    Raises:
        DataError: there are no annotations, too few, or bad ones.
        ConfigurationError: the layout file, the weights and the faces do not fit, or ``out`` has
            something else.
        WeightsError: the weights cannot be found or read.
    """
    faces, out = Path(faces), Path(out)
    layout_file = None if layout_file is None else Path(layout_file)
    chosen_device = resolve_device(device)
    start = find_weights(weights, model=model).card_path
    loaded = load_model(start)
    if not isinstance(loaded.network, Nested):
        raise ConfigurationError(
            f"{loaded.card.name} has architecture {loaded.card.architecture!r}: only weights of "
            "'nested' networks, such as hih-small, can be fine-tuned by this command"
        )
    if layout_file and annotated:
        raise ConfigurationError("give a layout file, or the name of a layout that is annotated")
    split = split_faces(faces, data_format, layout_file is not None, annotated)
    if not (layout_file or annotated):
        refuse_ambiguous(split.faces, loaded.card, faces, data_format)
    say(split.note)
    layout_name = read_layout_file(layout_file)[0] if layout_file else split.faces.layout
    is_new = layout_file is not None or layout_name not in loaded.card.configuration["layouts"]
    if is_new and layout_file is None and layout_name not in LAYOUTS:
        raise ConfigurationError(
            f"the faces have {len(split.faces.mirror)} points, {loaded.card.name} predicts "
            f"{', '.join(loaded.card.configuration['layouts'])}: describe the points in a layout "
            "file (--layout)"
        )
    if layout_file and layout_name in BUILT_IN:
        raise ConfigurationError(
            f"there is a layout {layout_name} already: give the one in {layout_file} another name, "
            "or leave --layout out to train it"
        )
    if layout_file and layout_name in loaded.card.configuration["layouts"]:
        raise ConfigurationError(
            f"{loaded.card.name} has a layout {layout_name} already: give the one in {layout_file} "
            "another name, or leave --layout out to train it further"
        )
    record = {
        "weights": loaded.card.sha256,
        "layout": layout_file.read_text(encoding="utf-8-sig") if layout_file else layout_name,
        "faces": _digest(split),
        "steps": steps,
    }
    _claim(out, record)
    say(f"license of the result, as of {loaded.card.name}: {loaded.card.license}")
    if is_new:
        if not (out / START).is_dir():
            _make_start(loaded, start, split, layout_name, layout_file, out, chosen_device, say)
        start = out / START
    before = load_model(start)
    layout = get_layout(layout_name)
    if is_new and layout_file:
        kept = json.loads((out / START / "points.json").read_text(encoding="utf-8"))
        split = _with_points(split, layout, kept)
    configuration = make_configuration(before.card, split, layout, is_new, start, steps, device)
    summary = train(
        configuration,
        faces,
        out / RUN,
        device=chosen_device,
        initial=before.network.state_dict(),
        workers=workers,
        progress=progress,
    )
    for message in summary.skipped[:NAMED]:
        say(f"left out: {message}")
    if summary.replaced:
        times = "1 time" if summary.replaced == 1 else f"{summary.replaced} times"
        say(f"unreadable images were replaced by another face {times}")
        unreadable = find_unreadable(split.faces, range(len(split.faces)))
        for _, message in islice(unreadable, NAMED):
            say(f"unreadable: {message}")
    say("training has ended; measuring")
    found = _measure(start, model, layout, split, device)
    unmeasured = [each for each in found.skipped if each not in split.val_faces.skipped]
    for message in unmeasured[:NAMED]:
        say(f"not measured: {message}")
    card_path = _write_result(before, split, layout, out, faces, device, found, say)
    after = _measure(card_path, model, layout, split, device)
    options = {
        "--weights": _without_folder(weights),
        "--layout": _without_folder(layout_file),
        "--annotated": annotated,
        "--steps": steps,
        "--model": None if model == DEFAULT_MODEL else model,
        "--format": None if data_format == "auto" else data_format,
    }
    given = [f"{name} {each}" for name, each in options.items() if each is not None]
    command = f"hihlandmark finetune {faces.resolve().name} --out {out.resolve().name}"
    _add_figure(card_path, after, " ".join([command, *given]))
    drawing = out / DRAWING
    _draw(found, after, split.val_faces, drawing)
    return Outcome(card_path, drawing, summary.steps, found, after)


# The faces


def split_faces(
    folder: Path, data_format: str, has_layout_file: bool = False, annotated: str | None = None
) -> Split:
    """The faces of a folder to train on and to measure on; no image has faces of both.

    Without a split "val", `VAL_SHARE` of the images are held out, the same ones every time.

    Raises:
        DataError: there are too few faces or images, or too many bad annotations.
        ConfigurationError: there is no split to train on.
    """
    data_format, splits = dataset_splits(folder, data_format)
    if not splits:
        raise DataError(f"{folder} has no annotated faces")
    train_split = "train" if "train" in splits or len(splits) > 1 else splits[0]
    if train_split not in splits:
        raise ConfigurationError(
            f"{folder} has the splits {', '.join(splits)}: name the one to train on train"
        )
    common: dict[str, Any] = {"split": train_split, "format": data_format, "layout": annotated}
    faces = _read(folder, FaceSet(**common), has_layout_file)
    if "val" in splits and train_split != "val":
        val_set = FaceSet(split="val", format=data_format, layout=annotated)
        val = _read(folder, val_set, has_layout_file)
        if len(val.mirror) != len(faces.mirror):
            raise DataError(
                f"{folder}: faces of train have {len(faces.mirror)} points, those of val "
                f"{len(val.mirror)}"
            )
        if both := {image_of(f.name) for f in faces} & {image_of(f.name) for f in val}:
            raise DataError(f"{folder}: {min(both)} is in the splits train and val: choose one")
        return Split(
            TrainingSet(**common),
            val_set,
            faces,
            val,
            f"{len(faces)} faces of the split train to learn from, {len(val)} of val to measure on",
        )
    images = sorted({image_of(face.name) for face in faces})
    if len(images) < 2:
        raise DataError(f"{folder} has faces of one image: annotate more, some are held out")
    count = max(1, round(VAL_SHARE * len(images)))
    order = np.random.default_rng(0).permutation(len(images))
    chosen = {images[i] for i in order[:count]}
    held_out = tuple(face.name for face in faces if image_of(face.name) in chosen)
    rest, val = faces.split(held_out)
    common["held_out"] = held_out
    note = (
        f"{len(rest)} faces to learn from; {len(val)} faces ({count} of {len(images)} images) are "
        "held out to measure on, as there is no split val"
    )
    return Split(TrainingSet(**common), FaceSet(**common), rest, val, note)


def _read(folder: Path, face_set: FaceSet, has_layout_file: bool) -> AnnotatedFaces:
    """The usable faces of a split, with all annotated points."""
    faces = read_faces(
        folder,
        face_set.split,
        format=face_set.format,
        layout=face_set.layout,
        needs_mirror=not has_layout_file,
    )
    count = len(faces) + len(faces.skipped)
    if len(faces.skipped) > MOST_SKIPPED * count:
        shown = "\n  ".join(faces.skipped[:3])
        raise DataError(
            f"{folder}: {len(faces.skipped)} of {count} annotations cannot be used, such as\n"
            f"  {shown}\nRepair or remove them; all faces must have the same points"
        )
    return usable_faces(TrainingSet(), faces)


def _digest(split: Split) -> str:
    """Identifies the faces of both sides."""
    content = hashlib.sha256()
    for faces in (split.faces, split.val_faces):
        for face in faces:
            content.update(face.name.encode("utf-8", "surrogateescape"))
            content.update(face.points.astype(np.float64).tobytes())
        content.update(b"\n")
    return content.hexdigest()


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Make the folder of a run, or check that it is the folder of the same run."""
    path = out / RECORD
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        if other := [key for key, value in record.items() if known.get(key) != value]:
            raise ConfigurationError(
                f"{out} holds a fine-tuning with other {', '.join(other)}: choose a new folder, or "
                "remove this one"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} holds something else: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


# A new layout


def _make_start(
    loaded: LoadedModel,
    source: str | Path,
    split: Split,
    name: str,
    layout_file: Path | None,
    out: Path,
    device: torch.device,
    say: Say,
) -> None:
    """Write the weights with a new head for the layout; features and other heads stay.

    Beside them, ``points.json`` lists the annotated points that are used.
    """
    detector = Detector(
        next(iter(loaded.card.configuration["layouts"])),
        weights=source,
        device=str(device),
        runtime="torch",
        flip_test=False,
    )
    say("locating the faces")
    located = locate(detector, split.faces)
    kept: list[int] = list(range(len(split.faces.mirror)))
    definitions = dict(loaded.card.layouts)
    if layout_file:
        both = (*split.faces, *split.val_faces)  # which point is which is no measurement
        shapes = np.stack([face.points for face in both])
        whole = describe(layout_file, shapes)
        inside = points_inside(located)
        inside &= inside[whole.layout.mirror]
        if lost := [whole.layout.point_names[i] for i in np.flatnonzero(~inside)]:
            if inside.sum() < 3:
                raise DataError(f"{layout_file}: its points lie outside of the crops of most faces")
            say(
                f"{len(lost)} points lie outside of the crops of most faces and are left out: "
                f"{', '.join(lost)}"
            )
        kept = np.flatnonzero(inside).tolist()
        described = describe(layout_file, shapes, kept)
        for line in described.guessed:
            say(f"guessed {line}")
        find_or_register(described.layout)
        definitions[name] = LayoutDefinition.of(described.layout)
    located = select(located, kept)
    if not located:
        raise DataError(f"{split.faces.name}: no face has two points inside of its crop")
    network, apart = add_head(loaded, name, located, device)
    say(
        f"{len(kept)} points start from known ones, at a median distance of {apart:.1f} crop pixels"
    )
    card = loaded.card
    boxes = {**card.crop.boxes, f"landmarks:{name}": fit_crop(located)}
    layouts = {**card.configuration["layouts"], name: len(kept)}
    auxiliary = {n: p for n, p in card.configuration["auxiliary_layouts"].items() if n != name}
    own = {"layouts": layouts, "auxiliary_layouts": auxiliary}
    card = card.model_copy(
        update={
            "name": "start",
            "configuration": {**card.configuration, **own},
            "crop": card.crop.model_copy(update={"boxes": boxes}),
            "layouts": definitions,
            "figures": (),
        }
    )
    temporary = out / f"{START}.part"
    former = f"auxiliary_heads.{name}."
    state = {n: each for n, each in network.state_dict().items() if not n.startswith(former)}
    save_weights(temporary, card, state | _corrections(loaded))
    (temporary / "points.json").write_text(json.dumps(kept), encoding="utf-8")
    temporary.rename(out / START)


def _corrections(loaded: LoadedModel, without: str | None = None) -> dict[str, torch.Tensor]:
    """The corrections of weights, as tensors to store, but for that of a layout."""
    tensors: dict[str, torch.Tensor] = {}
    for name, correction in loaded.corrections.items():
        if name != without:
            tensors |= correction_tensors(name, correction)
    return tensors


def _with_points(split: Split, layout: Layout, kept: list[int]) -> Split:
    """The split with the points of a layout alone."""
    update = {"points": tuple(kept), "layout": layout.name}
    training = split.training.model_copy(update=update)
    val = split.val.model_copy(update=update)
    return split._replace(
        training=training,
        val=val,
        faces=select_points(split.faces, kept, layout),
        val_faces=usable_faces(TrainingSet(), select_points(split.val_faces, kept, layout)),
    )


# Training


def make_configuration(
    card: ModelCard,
    split: Split,
    layout: Layout,
    is_new: bool,
    start: str | Path,
    steps: int | None,
    device: str,
) -> TrainingConfiguration:
    """The configuration of a run, with settings that suit the number of faces.

    - A new layout: its head alone, on frozen features, which takes a minute. From 300 faces on all
      parameters follow, in three quarters of the ``steps`` if these are given.
    - A known layout: with fewer than 20 faces its head alone, otherwise all parameters at a low
      learning rate, with more steps the more faces there are.

    Where the features are trained, the weights at the start are the teacher of all layouts but a
    new one, so that points without labels stay as good as they were. Batch norm statistics are
    kept.
    """
    count, chosen = len(split.faces), resolve_device(device)
    head = (f"heads.{layout.name}.",)
    stage = partial(_stage, card.configuration["input_size"])
    if is_new:
        following = 0
        if count >= 300:
            following = min(count, 3000) if steps is None else steps * 3 // 4
        stages = [stage(250 if steps is None else steps - following, 2e-3, head)]
        if following:
            stages.append(stage(following, 3e-4, ()))
    elif count < 20:
        stages = [stage(steps or 150, 3e-4, head)]
    else:
        rate = 1e-4 if count < 300 else 3e-4
        stages = [stage(steps or min(120 + 4 * count, 6000), rate, ())]
    total = sum(each.steps or 0 for each in stages)
    trains_features = any(not each.trained for each in stages)
    known = tuple(name for name in card.configuration["layouts"] if name != layout.name)
    teacher = Distillation(weights=str(start), weight=0.5, layouts=known if is_new else None)
    precision = "bf16" if has_native_bf16(chosen) else "no"
    return TrainingConfiguration(
        name="fine-tuned",
        model=next(name for name, row in MODELS.items() if row.architecture == card.architecture),
        # With the fields that the card omits: the registered model may have others.
        network=asdict(NestedConfiguration(**card.configuration)),
        auxiliary_layouts=card.configuration.get("auxiliary_layouts", {}),
        boxes=card.crop.boxes,
        sets=(split.training,),
        stages=tuple(stages),
        augmentation=Augmentation(scale=0.11, shift=0.05, occlusion=0.45),
        loss=Loss(decimal_weight=1.0, shared_weight=0.4),
        optimizer=Optimizer(betas=(0.9, 0.99), weight_decay=2e-2, precision=precision),
        ema_decay=0.98 if total < 2000 else 0.998,
        freeze_bn=True,
        distillation=teacher if trains_features else None,
        validation=Validation(every=max(10, -(-total // 4)), sets=(split.val,), images=0),
        save_every=max(10, total // 12),
    )


def _stage(crop_size: int, steps: int, rate: float, trained: tuple[str, ...]) -> Stage:
    return Stage(
        crop_size=crop_size,
        steps=steps,
        learning_rate=rate,
        trained=trained,
        batch_size=12,
        warmup_steps=min(20, steps // 5),
    )


# The result


def _measure(
    weights: str | Path, model: str, layout: Layout, split: Split, device: str
) -> Evaluation:
    """The errors of weights on the faces not trained on, with crops around their points."""
    detector = Detector(layout, model, weights=weights, device=device, runtime="torch", refine=0)
    return evaluate(detector, split.val_faces)


def _is_harmful(weights: Path, layout: Layout, split: Split, device: str) -> bool:
    """Whether the shape regression of weights, fitted before their training, now does harm."""
    detector = Detector(layout, weights=weights, device=device, runtime="torch", refine=0)
    with_it, without = (
        mean_error(evaluate(each, split.val_faces).face_errors)
        for each in (detector, detector.with_options(shape_prior=False))
    )
    return without < with_it


def _write_result(
    before: LoadedModel,
    split: Split,
    layout: Layout,
    out: Path,
    faces: Path,
    device: str,
    found: Evaluation,
    say: Say,
) -> Path:
    """Write the weights of the last step with their card, and calibrate them. Returns the card."""
    folder = faces.resolve().name or "faces"
    used = {image_of(face.name) for face in split.faces}
    source = DataSource(
        name=f"Fine-tuning: {folder}", license="as of these faces", images=len(used)
    )
    name = out.resolve().name
    is_free = NAME.fullmatch(name) and f"{name.lower()}.json" != RECORD
    kept = before.card.configuration["layouts"]
    calibration = {name: own for name, own in before.card.calibration.items() if name in kept}
    is_calibrated = layout.name in calibration
    is_few = len(found) < FEW_TO_CALIBRATE
    if is_calibrated and is_few:
        say(
            f"fewer than {FEW_TO_CALIBRATE} held-out faces: the calibration of {before.card.name} "
            "is kept"
        )
    else:
        say("calibrating")
        calibration.pop(layout.name, None)
    card = before.card.model_copy(
        update={
            "name": name if is_free and len(name) < 100 else "tuned",
            # The averaged weights are without auxiliary heads.
            "configuration": {**before.card.configuration, "auxiliary_layouts": {}},
            "training_data": (*before.card.training_data, source),
            "calibration": calibration,
            "figures": (),
        }
    )
    trained = read_average(out / RUN / LAST)
    state = trained | _corrections(before)
    path = save_weights(out, card, state)
    has_regression = isinstance(before.corrections.get(layout.name), ShapeRegression)
    if has_regression and not is_few and _is_harmful(path, layout, split, device):
        state = trained | _corrections(before, without=layout.name)
        path = save_weights(out, card, state)
    if layout.name in calibration and not card.activation_ranges:
        return path
    detector = Detector(layout, weights=path, device=device, runtime="torch")
    with observed_ranges(network_of(detector)) as ranges:
        measured = measure_points(detector, split.val_faces, mirrored=True)
    update: dict[str, Any] = {}
    if layout.name not in calibration:
        update["calibration"] = {**calibration, layout.name: fit(measured)}
    if card.activation_ranges:
        update["activation_ranges"] = {**card.activation_ranges, **ranges}
    return save_weights(out, card.model_copy(update=update), state)


def _without_folder(source: str | Path | None) -> str | None:
    """The name of a file or folder on disk; names of weights and repositories as they are."""
    if source is None:
        return None
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else str(source)


def _add_figure(card_path: Path, after: Evaluation, command: str) -> None:
    """Add the measured error, and the command that gives it, to a card."""
    card = ModelCard.from_json(card_path.read_text(encoding="utf-8"))
    figure = Figure(
        split="held out of the fine-tuning faces",
        points=after.layout.size,
        metric="NME",
        value=round(100 * mean_error(after.face_errors), 3),
        command=command,
        faces=len(after),
    )
    card = card.model_copy(update={"figures": (figure,)})
    write_atomically(card_path, card.to_json().encode())


def _draw(before: Evaluation, after: Evaluation, faces: AnnotatedFaces, path: Path) -> None:
    """Write an image of some faces: annotated points, and those found before and after."""
    by_name = {face.name: face for face in faces}
    tiles = []
    for index, name in enumerate(after.names[:DRAWN]):
        image = by_name[name].load_image()
        for what, evaluation in (("before", before), ("after", after)):
            error = 100 * float(evaluation.face_errors[index])
            caption = f"{what}: {error:.2f} %  {name}"
            points = evaluation.truth[index], evaluation.predicted[index]
            tiles.append(comparison_tile(image, *points, caption, TILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(tiles, columns=4 if len(tiles) > 2 else 2, tile_size=TILE)
    PillowImage.fromarray(sheet).save(path)
