import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import PLAIN, as_toml, tiny, write_data, write_set
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, WeightsError
from hihlandmark.cli import app
from hihlandmark.errors import TrainingError
from hihlandmark.layouts import COFW29
from hihlandmark.models.hih import HIH, Heatmaps
from hihlandmark.training import checkpoint as checkpoints
from hihlandmark.training import trainer
from hihlandmark.training.config import Distillation, TrainingConfiguration
from hihlandmark.training.distillation import Teacher, read_teacher
from hihlandmark.training.distributed import SynchronizedBatchNorm, replace_batch_norm
from hihlandmark.training.objectives import decoding_of, make_objective
from hihlandmark.training.self_training import teach
from hihlandmark.training.trainer import RunSummary, build_training_network, train
from hihlandmark.weights import save_weights
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard

CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a network that teaches, with random weights."""
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def write_teacher(folder: Path, changes: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Writes untrained weights of `tiny` with these settings; ``changes``: of their card."""
    configuration = tiny(**{"seed": 7, **settings})
    card = ModelCard(
        name="teacher",
        architecture="hih",
        configuration=configuration.network_configuration(),
        normalization={"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        crop={"pixel_origin": 0.5, "boxes": {}},
        decoding=decoding_of(configuration),
        training_data=[],
        license="none",
    )
    state = build_training_network(configuration).state_dict()
    for head in ("stacks.0.predict", "decimal_head.predict"):
        state[f"{head}.weight"] *= 10  # heatmaps that are not flat
    return save_weights(folder, replace(card, **(changes or {})), state)


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


def command(toml: Path, data: Path, folder: Path, *options: str) -> list[str]:
    own = ["train", str(toml), "--data", str(data), "--out", str(folder), "--device", "cpu"]
    return ["hihlandmark", *own, "--workers", "0", *options]


def test_a_run_killed_with_kill_9_ends_as_one_that_was_not(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    stages = [{"steps": 8, "crop_size": 64, "batch_size": 2}, {"steps": 7, "crop_size": 128}]
    unlabeled = {"sets": [{"folder": "W300_68"}], "layouts": ["WFLW98"], "start": 5, "faces": 1}
    validation = {"every": 4, "sets": [{"folder": "COFW29", "split": "val"}], "pictures": 0}
    stages[1]["batch_size"] = 2
    configuration = tiny(
        stages=stages,
        self_training=unlabeled,
        distillation={"weights": str(teacher)},
        validation=validation,
    )
    toml = tmp_path / "tiny.toml"
    toml.write_text(as_toml(configuration))
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", *command(toml, data, folder)],
        stderr=subprocess.PIPE,
        env={**os.environ, **CPU},
    )
    while process.poll() is None and not (folder / checkpoints.LAST).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = checkpoints.load_checkpoint(folder / checkpoints.LAST)["step"]
    assert 0 < killed_at < 15

    run(configuration, data, folder)
    run(configuration, data, tmp_path / "whole")
    assert_same(weights_of(folder), weights_of(tmp_path / "whole"))
    assert log_of(folder) == log_of(tmp_path / "whole")
    assert_same(weights_of(folder, "best.pt"), weights_of(tmp_path / "whole", "best.pt"))


@pytest.mark.parametrize("frozen", [False, True], ids=["synchronized", "frozen"])
def test_two_processes_give_the_losses_of_one_with_twice_the_batch(
    data: Path, teacher: Path, tmp_path: Path, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(batch_size: int, faces: int) -> TrainingConfiguration:
        # Adam makes whole steps of rounding errors: with synchronized statistics and crops of 128
        # pixels, as the teacher wants them, they soon show.
        size = 128 if frozen else 64
        stage = {"steps": 5, "crop_size": size, "batch_size": batch_size, "learning_rate": 1e-2}
        unlabeled = {"sets": [{"folder": "W300_68"}], "layouts": ["WFLW98"], "start": 2}
        return tiny(
            stages=[stage],
            # As the paper's network: with parameters that no gradient reaches.
            network={**tiny().network, "unused_shortcuts": True},
            auxiliary_layouts={"SCUT86": 86},  # nor this head: no set teaches it
            freeze_bn=frozen,
            validation={"every": 2, "sets": [{"folder": "COFW29", "split": "val"}], "pictures": 0},
            self_training={**unlabeled, "faces": faces},
            distillation={"weights": str(teacher)} if frozen else None,
        )

    toml = tmp_path / "tiny.toml"
    toml.write_text(as_toml(part(batch_size=2, faces=1)))
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run(
        [sys.executable, "-m", *launch, *command(toml, data, tmp_path / "two")],
        check=True,
        capture_output=True,
        env={**os.environ, **CPU},
    )
    # PyTorch's own batch normalization sums less exactly on a CPU, and its errors grow.
    monkeypatch.setattr(trainer, "build_training_network", with_our_batch_norm)
    run(part(batch_size=4, faces=2), data, tmp_path / "one")
    two, one = log_of(tmp_path / "two"), log_of(tmp_path / "one")
    # An integer heatmap that has learned next to nothing is almost flat: rounding moves its maximum.
    for name, looks, tolerance in (
        ("integer", 5, 1e-5),
        ("decimal", 5, 1e-5),
        ("distillation", 5, 1e-5),
        ("nme/mean", 3, 2e-2),
    ):
        a, b = ([row[name] for row in log if name in row] for log in (two, one))
        assert len(a) == looks
        assert a == pytest.approx(b, rel=tolerance), name


def with_our_batch_norm(configuration: TrainingConfiguration) -> HIH:
    network = build_training_network(configuration)
    replace_batch_norm(network)
    return network


def test_our_batch_norm_is_pytorchs_where_there_is_one_process() -> None:
    theirs, ours = (torch.nn.BatchNorm2d(3, momentum=0.2) for _ in range(2))
    replace_batch_norm(ours)
    assert isinstance(ours, SynchronizedBatchNorm)
    found = []
    for norm in (theirs, ours):
        x = torch.linspace(-2, 5, 120).sin().reshape(2, 3, 4, 5)
        x.requires_grad_()
        (norm(x).relu() * torch.arange(120).reshape(2, 3, 4, 5)).sum().backward()
        evaluated = norm.eval()(x)
        found.append([x.grad, norm.weight.grad, norm.bias.grad, norm.running_var, evaluated])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_accumulated_batches_count_as_one_large_batch(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    """With frozen statistics, since each batch is normalized by its own otherwise."""
    fixed = {"freeze_bn": True, "distillation": {"weights": str(teacher)}}
    stages = [{"steps": 3, "crop_size": 128, "batch_size": 2, "learning_rate": 1e-2}]
    run(tiny(stages=stages, optimizer={"accumulation": 2}, **fixed), data, tmp_path / "parts")
    run(tiny(stages=[{**stages[0], "batch_size": 4}], **fixed), data, tmp_path / "whole")
    parts, whole_log = log_of(tmp_path / "parts"), log_of(tmp_path / "whole")
    for name in ("integer", "decimal", "distillation"):
        expected = [row[name] for row in whole_log]
        assert [row[name] for row in parts] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"integer": "mse", "decimal": "csc", "decimal_weight": 8e-4, "integer_sigma": 1.5},
        {"integer": "adaptive_wing"},
        {"point": "star", "point_weight": 0.05},
        {"point": "direction", "point_weight": 0.05},
    ],
    ids=["cross_entropy", "paper", "adaptive_wing", "star", "direction"],
)
def test_training_lowers_every_loss(data: Path, tmp_path: Path, loss: dict[str, Any]) -> None:
    stages = [
        {"steps": 20, "crop_size": 64, "batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 2}
    ]
    run(tiny(stages=stages, augmentation=PLAIN, loss=loss), data, tmp_path)
    rows = log_of(tmp_path)
    assert rows[-1]["integer"] < 0.99 * rows[0]["integer"]
    if "point" in loss:
        assert rows[-1]["point"] < rows[0]["point"]


def test_mixed_precision_learns_nearly_the_same(data: Path, tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        run(tiny(optimizer={"precision": precision}), data, tmp_path / precision)
    exact, mixed = log_of(tmp_path / "no"), log_of(tmp_path / "bf16")
    assert mixed[0]["integer"] == pytest.approx(exact[0]["integer"], rel=1e-2)
    assert mixed[0]["integer"] != exact[0]["integer"]


def test_validation_keeps_the_best_weights_and_draws(data: Path, tmp_path: Path) -> None:
    validation = {"every": 1, "sets": [{"folder": "COFW29", "split": "val"}], "pictures": 3}
    summary = run(tiny(validation=validation, augmentation=PLAIN), data, tmp_path)
    looks = [row for row in log_of(tmp_path) if "nme/mean" in row]
    assert [row["step"] for row in looks] == [1, 2, 3, 4, 5, 6]
    assert summary.checkpoint.name == checkpoints.BEST
    (nme,) = summary.nme.values()
    # Those of the stage before are at another crop size.
    assert nme == min(row["nme/mean"] for row in looks if row["step"] > 4)
    best = checkpoints.load_checkpoint(summary.checkpoint)
    assert best["step"] == next(row["step"] for row in looks if row["nme/mean"] == nme)
    with Image.open(tmp_path / "pictures" / "0000006.png") as picture:
        assert min(picture.size) >= 64
    assert list((tmp_path / "tensorboard").rglob("events*"))


def test_a_run_that_gets_no_better_ends_early(data: Path, tmp_path: Path) -> None:
    stages = [{"steps": 30, "crop_size": 64, "batch_size": 2, "learning_rate": 1e-9}]
    sets = [{"folder": "COFW29", "split": "val"}]
    # At so low a learning rate only the first look, at the statistics of the first batches, is new.
    validation = {"every": 1, "sets": sets, "pictures": 0, "patience": 2}
    slow = tiny(stages=stages, validation=validation, freeze_bn=True, ema_decay=0.0)
    summary = run(slow, data, tmp_path)
    best = checkpoints.load_checkpoint(tmp_path / "best.pt")["step"]
    assert summary.steps == best + 2 < 30
    assert checkpoints.load_checkpoint(tmp_path / "last.pt")["step"] == summary.steps
    assert run(slow, data, tmp_path).steps == summary.steps, "and stays ended"


def test_a_finished_run_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    run(tiny(), data, tmp_path)
    before = weights_of(tmp_path)
    assert run(tiny(), data, tmp_path).steps == 6
    assert_same(before, weights_of(tmp_path))


def test_the_best_checkpoint_is_of_this_run_and_can_take_the_lasts_place(
    data: Path, tmp_path: Path
) -> None:
    validation = {"every": 2, "sets": [{"folder": "COFW29", "split": "val"}], "pictures": 0}
    whole = run(tiny(validation=validation), data, tmp_path)
    ended = weights_of(tmp_path)
    (tmp_path / "best.pt").replace(tmp_path / "last.pt")
    assert run(tiny(validation=validation), data, tmp_path).nme == whole.nme
    assert_same(ended, weights_of(tmp_path))
    (tmp_path / "last.pt").unlink()
    assert run(tiny(), data, tmp_path).checkpoint.name == "last.pt", "best.pt is of a run before"


def test_faces_without_eye_corners_do_not_spoil_the_validation(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    rows = (data / "COFW29" / "annotations.jsonl").read_text().splitlines()
    (root / "set").mkdir(parents=True)
    for image in (data / "COFW29").glob("*.png"):
        (root / "set" / image.name).write_bytes(image.read_bytes())
    lacking = json.loads(rows[-1])
    lacking["points"][8] = None
    text = "\n".join([*rows[:-1], json.dumps(lacking)])
    (root / "set" / "annotations.jsonl").write_text(text)
    validation = {"sets": [{"folder": "set", "split": "val"}]}
    summary = run(tiny(sets=[{"folder": "set"}], validation=validation), root, tmp_path / "run")
    assert np.isfinite(summary.nme["set/val"])


def test_weights_to_start_from_must_fit(data: Path, tmp_path: Path) -> None:
    first = tiny(augmentation=PLAIN)
    run(first, data, tmp_path / "first")
    start = weights_of(tmp_path / "first")
    with_extra_head = tiny(auxiliary_layouts={"SCUT86": 86}, ema_decay=0.0)
    run(with_extra_head, data, tmp_path / "second", initial=start)
    with pytest.raises(WeightsError, match="of another network"):
        run(tiny(network={"features": 16}), data, tmp_path / "third", initial=start)
    assert not (tmp_path / "third").exists()


def test_a_run_folder_of_another_configuration_is_refused(data: Path, tmp_path: Path) -> None:
    run(tiny(), data, tmp_path)
    with pytest.raises(ConfigurationError, match="another configuration"):
        run(tiny(seed=2), data, tmp_path)
    with pytest.raises(ConfigurationError, match="of other data"):
        run(tiny(), write_more(tmp_path / "more"), tmp_path)


def write_more(root: Path) -> Path:
    write_set(write_data(root) / "COFW29", COFW29.mean_shape * 70 + 60, faces=1, split="train")
    return root


def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    run(tiny(), data, tmp_path)
    last = tmp_path / checkpoints.LAST
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"last\.pt is damaged.*remove it to start anew"):
        run(tiny(), data, tmp_path)


def test_a_full_disk_leaves_the_checkpoint_of_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny(), data, tmp_path)
    whole = (tmp_path / checkpoints.LAST).read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"the first bytes")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device\. Make room"):
        checkpoints.save_checkpoint(tmp_path / checkpoints.LAST, {"step": 1})
    assert (tmp_path / checkpoints.LAST).read_bytes() == whole
    assert not list(tmp_path.glob("*.part"))


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    stages = [{"steps": 6, "crop_size": 64, "batch_size": 2, "learning_rate": 1e30}]
    wild = tiny(stages=stages, optimizer={"gradient_clip": 0.0})
    with pytest.raises(TrainingError, match="not finite up to step"):
        run(wild, data, tmp_path)


def test_self_training_learns_from_the_teacher(data: Path, tmp_path: Path) -> None:
    settings = {"sets": [{"folder": "W300_68"}], "layouts": ["WFLW98"], "start": 2, "faces": 2}
    run(tiny(self_training=settings), data, tmp_path / "with")
    run(tiny(), data, tmp_path / "without")
    with_teacher, without = log_of(tmp_path / "with"), log_of(tmp_path / "without")
    assert with_teacher[1]["integer"] == without[1]["integer"]
    assert with_teacher[2]["integer"] != without[2]["integer"]


def test_the_teachers_points_move_with_the_crop_and_count_by_their_spread() -> None:
    from hihlandmark.training.config import SelfTraining
    from hihlandmark.training.data import UnlabeledBatch

    configuration = tiny()
    settings = SelfTraining.model_validate(
        {"sets": [{}], "layouts": ["WFLW98"], "weight": 0.5, "trusted_spread": 1.5}
    )
    teacher = build_training_network(configuration).eval()
    crops = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    still = torch.eye(2, 3).expand(2, 2, 3).clone()
    moved = still.clone()
    moved[:, 0, 2] = 3.0
    decoding = decoding_of(configuration)
    row = 98 + 68 + 29
    one, two = (
        teach(teacher, UnlabeledBatch(crops, crops, each), settings, decoding, row, nullcontext())
        for each in (still, moved)
    )
    both = (one.weights > 0) & (two.weights > 0)
    assert both[:, :98].any()
    assert not one.weights[:, 98:].any(), "layouts that are not named"
    shifted = one.points + torch.tensor([3.0, 0.0])
    assert torch.allclose(two.points[both], shifted[both], atol=1e-4)
    assert (one.weights[both] < 0.5).all()


def test_a_face_teaches_its_own_head_alone(data: Path) -> None:
    from test_batches import batches

    # Without the decimal loss, since the decimal head sees the integer heatmaps of all layouts.
    configuration = tiny(loss={"decimal_weight": 0.0})
    objective = make_objective(configuration, build_training_network(configuration))
    sets = [{"folder": "COFW29"}]
    batch, _ = batches(data, sets=sets, loss={"shared_weight": 0.0})[0]
    objective.weigh(objective(batch, objective.totals(batch))).backward()
    gradient = objective.network.stacks[0].predict.weight.grad
    assert gradient[98 + 68 :].abs().sum() > 0
    assert gradient[: 98 + 68].abs().sum() == 0


def test_distillation_is_the_mean_divergence_from_the_teachers_distributions() -> None:
    from hihlandmark.training.data import Batch

    configuration = tiny()
    student, trained = (build_training_network(configuration) for _ in range(2))
    faces, size = 2, 32
    # The student knows nothing; the teacher puts half of its belief on one cell, of 98 points of
    # 195, and half on one bin, of all points.
    maps, bins = torch.zeros(faces, 195, size, size), torch.zeros(faces, 195, 8, 8)
    student.forward_stacks = lambda crops: ([maps, maps], bins, torch.zeros(faces, 8, size, size))
    taught, taught_bins = maps.clone(), bins.clone()
    taught[:, :98, 3, 5] = math.log(size**2 - 1)
    taught_bins[:, :, 1, 2] = math.log(63)
    places = {"WFLW98": slice(0, 98), "W300_68": slice(98, 166), "COFW29": slice(166, 195)}
    trained.forward = lambda crops: {
        name: Heatmaps(taught[:, place], taught_bins[:, place]) for name, place in places.items()
    }
    unlabeled = Batch(
        torch.zeros(faces, 4 * size, 4 * size, 3, dtype=torch.uint8),
        torch.zeros(faces, 195, 2),
        torch.zeros(faces, 195),
        torch.zeros(faces),
    )

    def divergence(count: int) -> float:
        return math.log(count) - (math.log(2) + math.log(2 * (count - 1))) / 2

    for layouts, share in ((("WFLW98",), 1.0), (("COFW29",), 0.0), (tuple(places), 98 / 195)):
        objective = make_objective(configuration, student, Teacher(trained, layouts, 3.0, ""))
        found = objective(unlabeled, objective.totals(unlabeled))
        expected = share * divergence(size**2) + 0.5 * divergence(64)
        assert found.tolist() == pytest.approx([0, 0, 0, expected], rel=1e-5)
        assert objective.weigh(found).item() == pytest.approx(3 * expected, rel=1e-5)


def test_a_teacher_teaches_heads_without_labels_and_stays_as_it_is(
    data: Path, teacher: Path
) -> None:
    from test_batches import batches

    configuration = tiny(distillation={"weights": str(teacher)})
    network = build_training_network(configuration)
    read = read_teacher(
        Distillation(weights=str(teacher)),
        configuration,
        network.configuration,
        torch.device("cpu"),
    )
    before = {name: tensor.clone() for name, tensor in read.network.state_dict().items()}
    objective = make_objective(configuration, network, read)
    assert len(list(objective.parameters())) == len(list(network.parameters()))
    sets, loss = [{"folder": "COFW29"}], {"shared_weight": 0.0}
    small, large = (batches(data, sets=sets, loss=loss)[step][0] for step in (0, 4))
    assert objective(small, objective.totals(small))[-1] == 0, "it does not know so small crops"
    objective.train()
    objective.weigh(objective(large, objective.totals(large))).backward()
    gradient = network.stacks[0].predict.weight.grad
    assert (gradient.abs().flatten(1).sum(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in read.network.parameters())
    assert not read.network.training
    assert_same(before, read.network.state_dict())


def test_a_run_goes_on_with_the_same_teacher_alone(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    def taught_by(card: Path) -> TrainingConfiguration:
        return tiny(distillation={"weights": str(card)})

    run(taught_by(teacher), data, tmp_path / "run")
    run(taught_by(write_teacher(tmp_path / "moved")), data, tmp_path / "run")
    other = write_teacher(tmp_path / "other", seed=2)
    for configuration in (taught_by(other), tiny()):
        with pytest.raises(ConfigurationError, match="of another teacher"):
            run(configuration, data, tmp_path / "run")


@pytest.mark.parametrize(
    ("card", "settings", "message"),
    [
        ({"crop": {"pixel_origin": 0.0, "boxes": {}}}, {}, "its pixel origin is 0.0, ours 0.5"),
        (
            {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}},
            {},
            "its crops are normalized by",
        ),
        (
            {"decoding": decoding_of(tiny(loss={"integer": "mse"}))},
            {},
            "its heatmaps are read by",
        ),
        ({}, {"loss": {"integer": "mse"}}, "loss.integer='mse' teaches values"),
        ({}, {"distillation": {"layouts": ["HELEN"]}}, "distillation.layouts: HELEN cannot be"),
        ({}, {"layouts": ["WFLW98"], "distillation": {"layouts": ["COFW29"]}}, "COFW29 cannot be"),
        (
            {},
            {"network": {**tiny().network, "decimal_bins": 4}},
            "has 8 decimal bins a side, ours 4",
        ),
        ({}, {"stages": [{"steps": 1, "crop_size": 64}]}, "crops of 128 pixels, and no stage has"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(
    tmp_path: Path, card: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = write_teacher(tmp_path, card)
    distillation = {"weights": str(path), **settings.get("distillation", {})}
    configuration = tiny(**{**settings, "distillation": distillation})
    student = build_training_network(configuration).configuration
    assert configuration.distillation is not None
    with pytest.raises(ConfigurationError) as error:
        read_teacher(configuration.distillation, configuration, student, torch.device("cpu"))
    assert message in str(error.value)


def test_the_command_trains_exports_and_the_weights_predict(data: Path, tmp_path: Path) -> None:
    toml = tmp_path / "tiny.toml"
    calibration = [{"of": "COFW29", "folder": "COFW29", "split": "val"}]
    shapes = [{"folder": "COFW29"}]
    card = {"license": "research only", "calibration": calibration, "shapes": shapes}
    toml.write_text(as_toml(tiny(card=card, canonical_scale=1.2)))
    options = ["--set", "stages.0.steps=2", "--export", str(tmp_path / "weights")]
    result = CliRunner().invoke(app, command(toml, data, tmp_path / "run", *options)[1:])
    assert result.exit_code == 0, result.output
    assert "4 steps" in result.output
    detector = Detector(29, "hih-small", weights=tmp_path / "weights" / "tiny.json", device="cpu")
    assert detector.card.license == "research only"
    assert detector.box_map("landmarks").scale == pytest.approx(1.4707 * 1.2 / 1.4, abs=1e-3)
    assert detector.card.calibration.keys() == {"COFW29"}
    assert detector.shape_prior is not None
    assert detector.shape_prior.covariance_scale != 1, "fitted without the prior first"
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    (face,) = detector.predict(image, boxes=[[10, 10, 80, 80]])
    assert face.points.shape == (29, 2)
    assert load_file(tmp_path / "weights" / "tiny.safetensors")


def test_the_command_names_what_is_wrong(data: Path, tmp_path: Path) -> None:
    arguments = ["train", "hih-small", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    process = subprocess.run(
        [sys.executable, "-m", "hihlandmark", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **CPU},
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert "w300 does not exist" in process.stderr


def test_a_run_folder_that_is_a_file_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write .*file"):
        run(tiny(), data, tmp_path / "file")
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        run(tiny(optimizer={"precision": "fp16"}), data, tmp_path / "run")
