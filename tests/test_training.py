import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from builders import (
    PLAIN,
    as_toml,
    batches,
    small,
    tiny,
    write_data,
    write_set,
    write_teacher,
)
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, WeightsError
from hihlandmark.cli import app
from hihlandmark.errors import DataError, TrainingError
from hihlandmark.layouts import COFW29
from hihlandmark.models.hih import Heatmaps
from hihlandmark.shape_prior import ShapePrior
from hihlandmark.shape_regression import ShapeRegression
from hihlandmark.training import checkpoint as checkpoints
from hihlandmark.training.config import (
    Distillation,
    SelfTraining,
    TrainingConfiguration,
    read_configuration,
)
from hihlandmark.training.data import Batch, UnlabeledBatch
from hihlandmark.training.distillation import PseudoLabeler, read_teacher
from hihlandmark.training.export import shape_regressions
from hihlandmark.training.objectives import Teacher, decoding_of, make_objective
from hihlandmark.training.trainer import (
    RunSummary,
    _without_traceback,
    build_training_network,
    train,
)
from hihlandmark.weights import find_weights
from hihlandmark.weights.card import CropContract, Normalization

CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
VALIDATION = {"every": 2, "sets": [{"folder": "COFW29", "split": "val"}], "images": 0}
UNLABELED = {"sets": [{"folder": "W300_68"}], "layouts": ["WFLW98"]}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def run(
    configuration: TrainingConfiguration, data: Path, folder: Path, **options: Any
) -> RunSummary:
    return train(configuration, data, folder, device="cpu", workers=0, **options)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return checkpoints.read_average(folder / name)


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def command(configuration: TrainingConfiguration, data: Path, folder: Path) -> list[str]:
    """Arguments of Python that train in a folder."""
    toml = folder.with_suffix(".toml")
    toml.write_text(as_toml(configuration))
    options = ["--data", str(data), "--out", str(folder), "--device", "cpu", "--workers", "0"]
    return ["-m", "hihlandmark", "train", str(toml), *options]


# Resuming and several processes


def test_a_killed_run_resumes_to_the_same_weights(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    configuration = tiny(
        stages=[
            {"steps": 6, "crop_size": 64, "batch_size": 2},
            {"steps": 5, "crop_size": 128, "batch_size": 2},
        ],
        self_training={**UNLABELED, "start": 4, "faces": 1},
        distillation={"weights": str(teacher)},
        validation=VALIDATION,
    )
    folder = tmp_path / "killed"
    arguments = [sys.executable, *command(configuration, data, folder)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, env={**os.environ, **CPU})
    while process.poll() is None and not (folder / checkpoints.LAST).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < checkpoints.load_checkpoint(folder / checkpoints.LAST)["step"] < 11

    run(configuration, data, folder)
    run(configuration, data, tmp_path / "whole")
    assert log_of(folder) == log_of(tmp_path / "whole")
    for name in ("last.pt", "best.pt"):
        assert_same(weights_of(folder, name), weights_of(tmp_path / "whole", name))


def test_a_second_run_in_a_folder_is_refused(data: Path, tmp_path: Path) -> None:
    configuration = tiny(stages=[{"steps": 1, "crop_size": 64, "batch_size": 2}])
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(ConfigurationError, match="another process trains"):
            run(configuration, data, tmp_path)
        assert not (tmp_path / checkpoints.LAST).exists()
    run(configuration, data, tmp_path)
    assert (tmp_path / checkpoints.LAST).exists()


def test_workers_run_after_opencv_has_used_its_threads(data: Path, tmp_path: Path) -> None:
    # A forked worker would wait for ever for threads that only the parent has.
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 3)
        configuration = tiny(stages=[{"steps": 2, "crop_size": 64, "batch_size": 2}])
        assert train(configuration, data, tmp_path, device="cpu", workers=1).steps == 2
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def train_in_two_processes(configuration: TrainingConfiguration, data: Path, folder: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [sys.executable, *launch, *command(configuration, data, folder)]
    environment = {**os.environ, **CPU}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_twice_the_batch(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    def part(batch_size: int, faces: int) -> TrainingConfiguration:
        stage = {"steps": 5, "crop_size": 128, "batch_size": batch_size, "learning_rate": 1e-2}
        return tiny(
            stages=[stage],
            # Parameters without gradient: unused shortcuts, and a head that no set trains.
            network={**tiny().network, "unused_shortcuts": True},
            auxiliary_layouts={"SCUT86": 86},
            freeze_bn=True,  # on a CPU each process normalizes by its own batch
            validation=VALIDATION,
            self_training={**UNLABELED, "start": 2, "faces": faces},
            distillation={"weights": str(teacher)},
        )

    train_in_two_processes(part(batch_size=2, faces=1), data, tmp_path / "two")
    run(part(batch_size=4, faces=2), data, tmp_path / "one")
    two, one = log_of(tmp_path / "two"), log_of(tmp_path / "one")
    # Adam amplifies rounding errors, and the maximum of an almost flat heatmap moves.
    for name, count, tolerance in (
        ("integer", 5, 1e-5),
        ("decimal", 5, 1e-5),
        ("distillation", 5, 1e-4),
        ("nme/mean", 3, 2e-2),
    ):
        a, b = ([row[name] for row in log if name in row] for log in (two, one))
        assert len(a) == count
        assert a == pytest.approx(b, rel=tolerance), name


@pytest.mark.slow
def test_two_processes_train_the_same_part_of_a_network(data: Path, tmp_path: Path) -> None:
    def part(batch_size: int) -> TrainingConfiguration:
        stage = {"crop_size": 128, "batch_size": batch_size, "learning_rate": 1e-2}
        # Once as part of all, once alone: which parameters have gradients changes.
        stages = [{**stage, "steps": 2}, {**stage, "steps": 3, "trained": ["stacks.0.predict."]}]
        return tiny(stages=stages, freeze_bn=True)

    train_in_two_processes(part(2), data, tmp_path / "two")
    run(part(4), data, tmp_path / "one")
    two, one = ([row["integer"] for row in log_of(tmp_path / name)] for name in ("two", "one"))
    assert len(one) == 5
    assert one[4] != one[3]
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_processes_on_a_cpu_have_their_own_batch_statistics(data: Path, tmp_path: Path) -> None:
    train_in_two_processes(tiny(), data, tmp_path / "two")
    variances = [v for name, v in weights_of(tmp_path / "two").items() if "running_var" in name]
    assert variances
    assert all(variance.isfinite().all() and (variance != 1).any() for variance in variances)


def test_accumulated_batches_equal_one_large_batch(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    fixed = {"freeze_bn": True, "distillation": {"weights": str(teacher)}}
    stages = [{"steps": 3, "crop_size": 128, "batch_size": 2, "learning_rate": 1e-2}]
    run(tiny(stages=stages, optimizer={"accumulation": 2}, **fixed), data, tmp_path / "parts")
    run(tiny(stages=[{**stages[0], "batch_size": 4}], **fixed), data, tmp_path / "whole")
    parts, whole = log_of(tmp_path / "parts"), log_of(tmp_path / "whole")
    for name in ("integer", "decimal", "distillation"):
        assert [row[name] for row in parts] == pytest.approx([row[name] for row in whole], rel=1e-4)


def test_a_finished_run_stays_and_its_best_checkpoint_can_replace_the_last(
    data: Path, tmp_path: Path
) -> None:
    calls: list[int] = []
    configuration = tiny(validation=VALIDATION)
    whole = run(configuration, data, tmp_path, progress=lambda done, *rest: calls.append(done))
    assert calls == [3, 6, 9, 12, 14, 16]
    ended = weights_of(tmp_path)
    assert run(configuration, data, tmp_path).steps == 6, "a finished run does not change"
    assert_same(ended, weights_of(tmp_path))
    (tmp_path / "best.pt").replace(tmp_path / "last.pt")
    assert run(configuration, data, tmp_path).nme == whole.nme
    assert_same(ended, weights_of(tmp_path))
    (tmp_path / "last.pt").unlink()
    assert run(tiny(), data, tmp_path).checkpoint.name == "last.pt", "best.pt is of another run"


def test_a_run_resumes_with_its_own_configuration_data_and_teacher_only(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    def taught_by(card: Path) -> TrainingConfiguration:
        return tiny(distillation={"weights": str(card)})

    run(taught_by(teacher), data, tmp_path / "run")
    run(taught_by(write_teacher(tmp_path / "moved")), data, tmp_path / "run")
    more = write_data(tmp_path / "more")
    write_set(more / "COFW29", COFW29.mean_shape * 70 + 60, faces=1)
    other = taught_by(write_teacher(tmp_path / "other", seed=2))
    changed = tiny(seed=2, distillation={"weights": str(teacher)})
    for configuration, folder in (
        (other, data),
        (tiny(), data),
        (changed, data),
        (taught_by(teacher), more),
    ):
        with pytest.raises(ConfigurationError, match="another"):
            run(configuration, folder, tmp_path / "run")


def test_a_damaged_checkpoint_is_an_error(data: Path, tmp_path: Path) -> None:
    last = tmp_path / checkpoints.LAST
    checkpoints.save_checkpoint(last, {"step": 1})
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"last\.pt is damaged"):
        run(tiny(), data, tmp_path)


def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / checkpoints.LAST
    checkpoints.save_checkpoint(path, {"step": 1})
    whole = path.read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"the first bytes")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        checkpoints.save_checkpoint(path, {"step": 2})
    assert path.read_bytes() == whole
    assert not list(tmp_path.glob("*.part"))


def test_a_run_folder_must_be_writable_and_fp16_needs_a_gpu(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        run(tiny(), data, tmp_path / "file")
    with pytest.raises(ConfigurationError, match="GPU"):
        run(tiny(optimizer={"precision": "fp16"}), data, tmp_path / "run")


# Losses, precision and validation


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"integer": "mse", "decimal": "csc", "decimal_weight": 8e-4, "integer_sigma": 1.5},
        {"integer": "adaptive_wing"},
        {"point": "star", "point_weight": 0.05},
    ],
    ids=["cross_entropy", "paper", "adaptive_wing", "star"],
)
def test_training_lowers_every_loss(data: Path, tmp_path: Path, loss: dict[str, Any]) -> None:
    stage = {"steps": 20, "crop_size": 64, "batch_size": 3, "learning_rate": 1e-2}
    stages = [{**stage, "warmup_steps": 2}]
    run(tiny(stages=stages, augmentation=PLAIN, loss=loss), data, tmp_path)
    rows = log_of(tmp_path)
    assert rows[-1]["integer"] < 0.99 * rows[0]["integer"]
    if "point" in loss:
        assert rows[-1]["point"] < rows[0]["point"]


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    stages = [{"steps": 6, "crop_size": 64, "batch_size": 2, "learning_rate": 1e30}]
    with pytest.raises(TrainingError, match="not finite"):
        run(tiny(stages=stages, optimizer={"gradient_clip": 0.0}), data, tmp_path)


def test_mixed_precision_and_self_training_change_the_losses(data: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "bf16": {"optimizer": {"precision": "bf16"}},
        "self_training": {"self_training": {**UNLABELED, "start": 2, "faces": 2}},
    }
    losses = {}
    for name, change in changes.items():
        run(tiny(**change), data, tmp_path / name)
        losses[name] = [row["integer"] for row in log_of(tmp_path / name)]
    assert losses["bf16"][0] == pytest.approx(losses["plain"][0], rel=1e-2)
    assert losses["bf16"][0] != losses["plain"][0]
    assert losses["self_training"][:2] == losses["plain"][:2], "it starts with the third step"
    assert losses["self_training"][2] != losses["plain"][2]


def test_validation_keeps_the_best_weights_and_draws(data: Path, tmp_path: Path) -> None:
    validation = {**VALIDATION, "every": 1, "images": 3}
    summary = run(tiny(validation=validation, augmentation=PLAIN), data, tmp_path)
    rows = [row for row in log_of(tmp_path) if "nme/mean" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert summary.checkpoint.name == checkpoints.BEST
    (nme,) = summary.nme.values()
    # The first stage has another crop size.
    assert nme == min(row["nme/mean"] for row in rows if row["step"] > 4)
    best = checkpoints.load_checkpoint(summary.checkpoint)
    assert best["step"] == next(row["step"] for row in rows if row["nme/mean"] == nme)
    with Image.open(tmp_path / "images" / "0000006.png") as image:
        assert min(image.size) >= 64
    assert list((tmp_path / "tensorboard").rglob("events*"))


def test_patience_ends_a_run(data: Path, tmp_path: Path) -> None:
    # With so low a learning rate only the first evaluation differs.
    stages = [{"steps": 30, "crop_size": 64, "batch_size": 2, "learning_rate": 1e-9}]
    validation = {**VALIDATION, "every": 1, "patience": 2}
    slow = tiny(stages=stages, validation=validation, freeze_bn=True, ema_decay=0.0)
    summary = run(slow, data, tmp_path)
    best = checkpoints.load_checkpoint(tmp_path / "best.pt")["step"]
    assert summary.steps == best + 2 < 30
    assert checkpoints.load_checkpoint(tmp_path / "last.pt")["step"] == summary.steps
    assert run(slow, data, tmp_path).steps == summary.steps, "it stays ended"


def test_sets_of_the_same_split_are_validated_apart(data: Path, tmp_path: Path) -> None:
    half = {"folder": "COFW29", "split": "val", "held_out": 1}
    validation = {**VALIDATION, "sets": [*VALIDATION["sets"], half]}
    summary = run(tiny(validation=validation), data, tmp_path)
    assert summary.nme.keys() == {"COFW29/val", "COFW29/val 2"}
    # Without validation the last weights are the result, not the best ones of then.
    summary = run(tiny(), data, tmp_path)
    assert (summary.checkpoint.name, summary.nme) == (checkpoints.LAST, {})


def test_validation_ignores_faces_without_eye_corners(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_set(tmp_path / "set", COFW29.mean_shape * 70 + 60, split=split)
    path = tmp_path / "set" / "annotations.jsonl"
    *rows, last = path.read_text().splitlines()
    face = json.loads(last)
    face["points"][8] = None
    path.write_text("\n".join([*rows, json.dumps(face)]))
    validation = {"sets": [{"folder": "set", "split": "val"}]}
    configuration = tiny(sets=[{"folder": "set"}], validation=validation)
    summary = run(configuration, tmp_path, tmp_path / "run")
    assert np.isfinite(summary.nme["set/val"])


def test_initial_weights_must_fit_but_for_auxiliary_heads(data: Path, tmp_path: Path) -> None:
    run(tiny(augmentation=PLAIN), data, tmp_path / "first")
    initial = weights_of(tmp_path / "first")
    with_extra_head = tiny(auxiliary_layouts={"SCUT86": 86}, ema_decay=0.0)
    run(with_extra_head, data, tmp_path / "second", initial=initial)
    checkpoint = tmp_path / "second" / "last.pt"
    kept = checkpoints.read_average(checkpoint, ["SCUT86"]).keys() - initial.keys()
    assert kept
    assert all(name.startswith("auxiliary_heads.SCUT86.") for name in kept)
    assert checkpoints.read_average(checkpoint).keys() == initial.keys()
    with pytest.raises(WeightsError, match="another network"):
        run(tiny(network={"features": 16}), data, tmp_path / "third", initial=initial)
    assert not (tmp_path / "third").exists()


# Self-training and distillation


@pytest.mark.parametrize("model", ["hih-small-v1", "adnet-small", "awing-small"])
def test_pseudo_labels_move_with_the_crop_and_are_weighted(model: str) -> None:
    configuration = tiny() if model == "hih-small-v1" else small(model)
    settings = SelfTraining.model_validate(
        {"sets": [{}], "layouts": ["COFW29", "WFLW98"], "weight": 0.5}
    )
    teacher = build_training_network(configuration)
    label = PseudoLabeler(teacher, settings, configuration)
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    still = torch.eye(2, 3).repeat(2, 1, 1)
    moved = still.clone()
    moved[:, 0, 2] = 3.0
    one, two = (label(UnlabeledBatch(crops, crops, m), nullcontext()) for m in (still, moved))
    both = (one.weights > 0) & (two.weights > 0)
    assert both[:, :98].any()
    assert both[:, 166:].any()
    assert not one.weights[:, 98:166].any(), "a layout that is not named"
    shifted = one.points + torch.tensor([3.0, 0.0])
    assert torch.allclose(two.points[both], shifted[both], atol=1e-4)
    assert (one.weights <= 0.5).all()
    # The teacher's own decoding, layout by layout.
    points = label.graph(crops)[0]
    inside = one.weights[:, :98] > 0
    assert torch.equal(one.points[:, :98][inside], points[:, 29:][inside])


def test_a_face_trains_the_head_of_its_layout_only(data: Path) -> None:
    # Without the decimal loss: the decimal head has the integer heatmaps of all layouts as input.
    configuration = tiny(loss={"decimal_weight": 0.0})
    objective = make_objective(configuration, build_training_network(configuration))
    batch, _ = batches(data, sets=[{"folder": "COFW29"}], loss={"shared_weight": 0.0})[0]
    objective.weigh(objective(batch, objective.totals(batch))).backward()
    gradient = objective.network.stacks[0].predict.weight.grad
    assert gradient[98 + 68 :].abs().sum() > 0
    assert gradient[: 98 + 68].abs().sum() == 0


def test_distillation_is_the_mean_kl_divergence_from_the_teacher() -> None:
    configuration = tiny()
    student, trained = (build_training_network(configuration) for _ in range(2))
    faces, size = 2, 32
    # The student is uniform. The teacher has probability 1/2 in one cell for 98 of 195 points, and
    # in one bin for all points.
    maps, bins = torch.zeros(faces, 195, size, size), torch.zeros(faces, 195, 8, 8)
    student.forward_stacks = lambda crops: ([maps, maps], bins, torch.zeros(faces, 8, size, size))
    taught, taught_bins = maps.clone(), bins.clone()
    taught[:, :98, 3, 5] = math.log(size**2 - 1)
    taught_bins[:, :, 1, 2] = math.log(63)
    places = {"WFLW98": slice(0, 98), "W300_68": slice(98, 166), "COFW29": slice(166, 195)}
    trained.forward = lambda crops, layouts: {
        name: Heatmaps(taught[:, places[name]], taught_bins[:, places[name]]) for name in layouts
    }
    crops = torch.zeros(faces, 4 * size, 4 * size, 3, dtype=torch.uint8)
    nothing = torch.zeros(faces, 195)
    unlabeled = Batch(crops, torch.zeros(faces, 195, 2), nothing, torch.zeros(faces), nothing)

    def divergence(count: int) -> float:
        return math.log(count) - (math.log(2) + math.log(2 * (count - 1))) / 2

    for layouts, share in ((("WFLW98",), 1.0), (("COFW29",), 0.0), (tuple(places), 98 / 195)):
        objective = make_objective(configuration, student, Teacher(trained, layouts, 3.0, ""))
        found = objective(unlabeled, objective.totals(unlabeled))
        expected = share * divergence(size**2) + 0.5 * divergence(64)
        assert found.tolist() == pytest.approx([0, 0, 0, expected], rel=1e-5)
        assert objective.weigh(found).item() == pytest.approx(3 * expected, rel=1e-5)


def test_a_teacher_trains_heads_without_labels_and_does_not_change(
    data: Path, teacher: Path
) -> None:
    configuration = tiny(distillation={"weights": str(teacher)})
    network = build_training_network(configuration)
    settings = Distillation(weights=str(teacher))
    read = read_teacher(settings, configuration, network.configuration, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in read.network.state_dict().items()}
    objective = make_objective(configuration, network, read)
    assert len(list(objective.parameters())) == len(list(network.parameters()))
    loaded = batches(data, sets=[{"folder": "COFW29"}], loss={"shared_weight": 0.0})
    small_crops, large_crops = (loaded[step][0] for step in (0, 4))
    assert objective(small_crops, objective.totals(small_crops))[-1] == 0, "another crop size"
    objective.train()
    objective.weigh(objective(large_crops, objective.totals(large_crops))).backward()
    gradient = network.stacks[0].predict.weight.grad
    assert (gradient.abs().flatten(1).sum(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in read.network.parameters())
    assert not read.network.training
    assert_same(before, read.network.state_dict())


@pytest.mark.parametrize(
    ("card", "settings", "message"),
    [
        ({"crop": CropContract(pixel_origin=0.0, boxes={})}, {}, "pixel origin"),
        ({"normalization": Normalization(mean=(0.5,) * 3, std=(0.5,) * 3)}, {}, "normalization"),
        ({"decoding": decoding_of(tiny(loss={"integer": "mse"}))}, {}, "decoding"),
        ({}, {"loss": {"integer": "mse"}}, "cross_entropy"),
        ({}, {"distillation": {"layouts": ["HELEN"]}}, "HELEN"),
        ({}, {"layouts": ["WFLW98"], "distillation": {"layouts": ["COFW29"]}}, "COFW29"),
        ({}, {"network": {**tiny().network, "decimal_bins": 4}}, "decimal bins"),
        ({}, {"stages": [{"steps": 1, "crop_size": 64}]}, "128 pixels"),
    ],
)
def test_a_teacher_must_fit(
    tmp_path: Path, card: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = write_teacher(tmp_path, card)
    distillation = {"weights": str(path), **settings.get("distillation", {})}
    configuration = tiny(**{**settings, "distillation": distillation})
    student = build_training_network(configuration).configuration
    assert configuration.distillation is not None
    with pytest.raises(ConfigurationError, match=message):
        read_teacher(configuration.distillation, configuration, student, torch.device("cpu"))


# The command


@pytest.mark.parametrize(
    ("key", "kind"), [("shapes", ShapePrior), ("regressions", ShapeRegression)]
)
def test_the_command_trains_and_its_weights_predict(
    data: Path, tmp_path: Path, key: str, kind: type
) -> None:
    calibration = [{"of": "COFW29", "folder": "COFW29", "split": "val"}]
    card = {
        "license": "research only",
        "calibration": calibration,
        "activation_ranges": [{"folder": "COFW29"}],
        "flip_test": False,
        key: [{"folder": "COFW29"}],
    }
    configuration = tiny(card=card, canonical_scale=1.2)
    options = ["--set", "stages.0.steps=2", "--export", str(tmp_path / "weights")]
    arguments = [*command(configuration, data, tmp_path / "run")[2:], *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 steps" in result.output
    detector = Detector(
        29, "hih-small-v1", weights=tmp_path / "weights" / "tiny.json", device="cpu"
    )
    assert detector.card.license == "research only"
    assert detector.card.decoding == decoding_of(configuration)
    assert detector.box_map("landmarks").scale == pytest.approx(1.4707 * 1.2 / 1.4, abs=1e-3)
    assert detector.card.calibration.keys() == {"COFW29"}
    assert detector.card.activation_ranges
    assert not detector.landmarker.flip_test
    prior = detector.landmarker.shape_prior
    assert isinstance(prior, kind)
    if isinstance(prior, ShapePrior):
        assert prior.covariance_scale != 1, "calibrated without the prior first"
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    (face,) = detector.predict(image, boxes=[[10, 10, 80, 80]])
    assert face.points.shape == (29, 2)


def test_regressions_of_nested_networks_see_the_integer_heatmap(data: Path) -> None:
    card = {"regressions": [{"folder": "COFW29"}]}
    configuration = read_configuration("hih-small").model_copy(
        update={"card": tiny(card=card).card}
    )
    path = find_weights("hih-small").card_path
    tensors = shape_regressions(path, configuration, data)
    weights = tensors["shape_regression.COFW29.weights"]
    assert weights.shape == (4 * 29, 2 * 29)
    assert weights[2 * 29 :].abs().max() > 0


def test_missing_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="w300"):
        run(read_configuration("hih-small-v1"), tmp_path, tmp_path / "run")


def test_exported_weights_replace_none_of_another_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text("mine")
    arguments = [*command(tiny(), data, tmp_path / "run")[2:], "--export", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert not (tmp_path / "run").exists(), "refused before the training"
    assert (tmp_path / "tiny.json").read_text() == "mine"


def test_a_repeated_run_replaces_only_weights_that_it_exported(data: Path, tmp_path: Path) -> None:
    configuration = tiny(stages=[{"steps": 1, "crop_size": 64, "batch_size": 2}])
    folder = tmp_path / "run"
    run(configuration, data, folder)
    arguments = [*command(configuration, data, folder)[2:], "--export", str(tmp_path)]
    (tmp_path / "tiny.json").write_text("mine")
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigurationError)
    (tmp_path / "tiny.json").unlink()
    for _ in range(2):
        assert CliRunner().invoke(app, arguments).exit_code == 0


class Broken(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        raise DataError("the disk is gone: plug it in")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_that_of_the_data(workers: int) -> None:
    loader = DataLoader(Broken(), batch_size=None, sampler=range(3), num_workers=workers)
    with pytest.raises(DataError, match=r"^the disk is gone: plug it in$"):
        list(_without_traceback(loader))
