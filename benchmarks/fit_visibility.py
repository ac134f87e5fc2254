"""Train and calibrate the head for `Face.visibility` of nested weights; their points stay the same.

    python benchmarks/fit_visibility.py --data DATA --weights weights/hih-small.json --out weights

Only the head is trained, with `hihlandmark train`'s configuration hih-small-visibility and the
sizes of the card, on faces covered by pasted occluders. Its probabilities are calibrated on the 100
faces of 300-W that are held out of training, half of them covered: those of each layout by their
own two numbers in the card. A head that the weights have already is trained further.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hihlandmark import Detector
from hihlandmark.arrays import FloatArray
from hihlandmark.calibration.logistic import fit_logistic
from hihlandmark.calibration.metrics import area_under_roc, expected_calibration_error
from hihlandmark.models.nested import NestedConfiguration, is_of_visibility
from hihlandmark.models.registry import LAYOUT_POINTS
from hihlandmark.training.checkpoint import load_checkpoint
from hihlandmark.training.config import TrainingConfiguration, TrainingSet, read_configuration
from hihlandmark.training.data import TrainingBatches, read_face_set, read_training_set
from hihlandmark.training.schedule import Plan
from hihlandmark.training.trainer import train
from hihlandmark.weights import find_weights, read_weights, save_weights
from hihlandmark.weights.card import ModelCard

CONFIGURATION = "hih-small-visibility"
HELD_OUT = 100
"""Faces of 300-W train that no packaged weights were trained on."""
CROPS = 800
"""For the calibration: each held-out face 8 times."""
BATCH_SIZE = 16
RIDGE = 1e-4


def configuration_for(card: ModelCard, steps: int | None) -> TrainingConfiguration:
    """The training of the head of a network of the sizes in the card."""
    configuration = read_configuration(CONFIGURATION)
    # All of them: what a card leaves out has the default of the architecture.
    sizes = asdict(NestedConfiguration(**card.configuration))
    layouts, auxiliary = sizes["layouts"], sizes.pop("auxiliary_layouts")
    heads = [f"heads.{n}.visibility." for n in layouts]
    heads += [f"auxiliary_heads.{n}.visibility." for n in auxiliary]
    changed: dict[str, Any] = {"trained": ("visibility_features.", *heads)}
    changed |= {"steps": steps} if steps else {}
    (stage,) = configuration.stages
    # The sets have labels of layouts that the weights may not predict.
    labeled = {"MESH478": 478, **LAYOUT_POINTS, **auxiliary}
    values = configuration.model_dump()
    values |= {
        "network": {**sizes, "visibility": configuration.network["visibility"]},
        "auxiliary_layouts": {n: count for n, count in labeled.items() if n not in layouts},
        "exported_auxiliary": list(auxiliary),
        "stages": [stage.model_dump() | changed | {"crop_size": sizes["input_size"]}],
    }
    return TrainingConfiguration.model_validate(values)


def calibration_batches(configuration: TrainingConfiguration, data: Path) -> TrainingBatches:
    """Crops of the held-out faces of 300-W, half of them covered, otherwise hardly changed."""
    source = next(each for each in configuration.sets if each.folder == "w300")
    _, held = read_face_set(data, TrainingSet(folder="w300")).split(HELD_OUT)
    names = "|".join(re.escape(face.name) for face in held)
    only = source.model_copy(update={"held_out": 0, "names": names, "share": None})
    values = configuration.model_dump()
    values["augmentation"] |= {"occluders": 0.5, "shift": 0.04, "rotation_degrees": 8.0}
    values |= {"sets": [only.model_dump()], "seed": 2}
    (stage,) = values["stages"]
    values["stages"] = [stage | {"steps": CROPS // BATCH_SIZE, "batch_size": BATCH_SIZE}]
    changed = TrainingConfiguration.model_validate(values)
    faces, mesh = read_training_set(data, changed.sets[0], changed.mesh)
    layouts = {**changed.network["layouts"], **changed.auxiliary_layouts}
    return TrainingBatches(changed, Plan(changed, len(faces), 1), layouts, [faces], meshes=[mesh])


def fit_platt(logits: FloatArray, visible: FloatArray) -> tuple[float, float]:
    """Bias and slope that maximize the likelihood of ``visible`` (N,), in 0..1, by logits (N,)."""
    inputs = np.column_stack([np.ones(len(logits)), logits])
    bias, slope = fit_logistic(inputs, visible, np.full(2, RIDGE))
    return round(float(bias), 4), round(float(slope), 4)


def calibrate(
    card_path: Path, configuration: TrainingConfiguration, data: Path
) -> dict[str, tuple[float, float]]:
    """The two numbers of each layout, by its name; prints what they do."""
    batches = calibration_batches(configuration, data)
    drawn = [batches[step][0] for step in range(len(batches))]
    found = {}
    start = 0
    for name, count in batches.layouts.items():
        place = slice(start, start + count)
        start += count
        if name not in ModelCard.from_json(card_path.read_text("utf-8")).heads:
            continue
        detector = Detector(name, weights=card_path)
        logits = np.concatenate(
            [detector.predict_crops(batch.crops.numpy()).visibility for batch in drawn]
        )
        visible = torch.cat([batch.visible[:, place] for batch in drawn]).numpy().astype(float)
        known = np.isfinite(visible)
        bias, slope = found[name] = fit_platt(logits[known], visible[known])
        plain = known & ((visible < 0.1) | (visible > 0.9))
        hidden = visible[plain] < 0.5
        landmark = np.nonzero(plain)[1]
        area = area_under_roc(-logits[plain], hidden, landmark)
        score = 1 / (1 + np.exp(-bias - slope * logits[plain]))
        print(
            f"{name}: {bias} + {slope} x; hidden {hidden.mean():.3f}, AUC within landmarks "
            f"{area:.4f}, ECE {100 * expected_calibration_error(score, ~hidden):.2f} %",
            flush=True,
        )
    return found


def main() -> None:
    """Train, calibrate and write."""
    parser = argparse.ArgumentParser(description="Fit Face.visibility.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    parser.add_argument("--run", type=Path, help="folder of the run, which can be resumed")
    parser.add_argument("--steps", type=int, help="of 32 crops; default: the configuration's")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare data")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    card = files.card
    whole = read_weights(files)
    state = {n: t for n, t in whole.items() if not is_of_visibility(n)}
    configuration = configuration_for(card, arguments.steps)
    # A head that the weights already hold is trained further.
    initial = {
        n: t.float()
        for n, t in whole.items()
        if not n.startswith(("shape_prior.", "shape_regression."))
    }
    run = arguments.run or Path(tempfile.mkdtemp())
    summary = train(
        configuration,
        arguments.data,
        run,
        device="cpu",
        initial=initial,
        workers=arguments.workers,
        progress=lambda done, total, note: print(done, total, note, flush=True),
    )
    trained = load_checkpoint(summary.checkpoint)["average"]
    kept = [f"auxiliary_heads.{n}." for n in card.configuration["auxiliary_layouts"]]
    state |= {
        name: tensor
        for name, tensor in trained.items()
        if is_of_visibility(name)
        and (not name.startswith("auxiliary_heads.") or name.startswith(tuple(kept)))
    }
    sizes = {**card.configuration, "visibility": configuration.network["visibility"]}
    card = card.model_copy(update={"configuration": sizes})
    path = save_weights(arguments.out, card, state)
    fitted = calibrate(path, configuration, arguments.data)
    calibration = {
        name: each.model_copy(update={"visibility": fitted.get(name)})
        for name, each in card.calibration.items()
    }
    path = save_weights(arguments.out, card.model_copy(update={"calibration": calibration}), state)
    print(path, find_weights(path).card.sha256)


if __name__ == "__main__":
    main()
