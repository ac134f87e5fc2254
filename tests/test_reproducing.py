"""The commands of docs/reproducing.md, on miniature data sets and with a tiny network."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import (
    SOCCER,
    WFLW_TEST,
    WFLW_TRAIN,
    cofw_file,
    pts,
    text_file,
    wflw_line,
    write_image,
)
from typer.testing import CliRunner

from hihlandmark.cli import app
from hihlandmark.datasets.augmentation import NO_AUGMENTATION, generator
from hihlandmark.training.config import read_configuration
from hihlandmark.training.objectives import decoding_of, make_objective
from hihlandmark.training.trainer import build_training_network
from hihlandmark.weights import find_weights

TINY = {"stacks": 1, "features": 8, "depth": 3, "input_size": 128}
STAGES = "stages=[{epochs=2, crop_size=128, batch_size=2, schedule='step', milestones=[1]}]"
SLOW = pytest.mark.slow
HOW_DECODED = {"hih": "argmax", "adnet": "mean", "awing": "quarter_shift"}
"""The decoder of each paper."""


def tiny_network(model: str) -> str:
    """A tiny network as a setting on the command line."""
    fields = {**TINY, "decimal_features": 8} if model == "hih" else TINY
    return f"network={{{', '.join(f'{name}={value}' for name, value in fields.items())}}}"


def write_wflw(root: Path) -> None:
    write_image(root / "WFLW_images" / SOCCER)
    text_file(root / WFLW_TRAIN, wflw_line(), wflw_line(2))
    text_file(root / WFLW_TEST, wflw_line(1, "1 0 0 1 0 0"), wflw_line(2, "0 0 0 0 0 1"))


def write_w300(root: Path) -> None:
    for folder in ("afw", "helen/trainset", "helen/testset", "lfpw/trainset", "lfpw/testset"):
        pts(root / folder / "image_1.pts")
    pts(root / "ibug" / "image_2.pts")


def write_cofw(root: Path) -> None:
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for split in ("train", "test"):
        cofw_file(root / f"COFW_{split}_color.mat", [pixels, pixels])


@pytest.mark.parametrize(
    ("configuration", "write", "test_split", "subsets"),
    [
        ("hih-wflw", write_wflw, "test", {"pose", "makeup", "blur"}),
        pytest.param("hih-300w", write_w300, "full", {"common", "challenge"}, marks=SLOW),
        pytest.param("hih-cofw", write_cofw, "test", set(), marks=SLOW),
        pytest.param("adnet-300w", write_w300, "full", {"common", "challenge"}, marks=SLOW),
        pytest.param("awing-cofw", write_cofw, "test", set(), marks=SLOW),
    ],
)
def test_the_commands_run_from_the_published_folder_to_the_report(
    tmp_path: Path, configuration: str, write, test_split: str, subsets: set[str]
) -> None:
    data, packed, out = tmp_path / "data", tmp_path / "packed", tmp_path / "run"
    model = configuration.partition("-")[0]
    write(data)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert test_split in run("data", "info", data)
    run("data", "prepare", data, "--out", packed, "--split", "train", "--split", test_split)
    settings = [part for setting in (tiny_network(model), STAGES) for part in ("--set", setting)]
    places = ["--data", packed, "--out", out, "--export", out / "export"]
    printed = run("train", configuration, *places, *settings, "--device", "cpu", "--workers", 0)
    assert f"  {test_split}: NME" in printed
    weights = out / "export" / f"{configuration}.json"
    reading = ["--no-flip-test", "--decoder", HOW_DECODED[model], "--device", "cpu", "--json"]
    if configuration.endswith("cofw"):
        reading += ["--normalize", "interpupil"]
    where = ["--data", data, "--split", test_split, "--model", model, "--weights", weights]
    figures = json.loads(run("eval", *where, *reading))
    assert figures["faces"] >= 2
    assert set(figures["subsets"]) == subsets
    assert find_weights(weights).card.decoding.decoder == HOW_DECODED[model]


DATA = {
    "wflw": ("WFLW98", 7500, "test"),
    "300w": ("W300_68", 3148, "full"),
    "cofw": ("COFW29", 1345, "test"),
}
"""Layout, training faces and validation split of each data set."""


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("model", "epochs"), [("hih", 5), ("adnet", 10), ("awing", 5)])
def test_configurations_fit_their_data(model: str, epochs: int, data: str) -> None:
    configuration = read_configuration(f"{model}-{data}")
    layout, faces, split = DATA[data]
    assert configuration.name == f"{model}-{data}"
    assert configuration.network_configuration()["layouts"].keys() == {layout}
    every = epochs * faces / configuration.stages[0].batch_size
    assert configuration.validation.every == pytest.approx(every, abs=1)
    assert [each.split for each in configuration.validation.sets] == [split]


@pytest.mark.parametrize("data", DATA)
def test_configurations_have_the_released_values(data: str) -> None:
    hih, adnet, awing = (read_configuration(f"{model}-{data}") for model in HOW_DECODED)
    (stage,), loss = hih.stages, hih.loss
    assert (stage.epochs, stage.milestones, stage.batch_size) == (60, (30, 50), 16)
    assert (loss.integer, loss.decimal, loss.integer_sigma) == ("mse", "csc", 1.5)
    own = hih.box_maps()[f"landmarks:{DATA[data][0]}"]
    assert own.scale == pytest.approx(1.2, abs=1e-3), "the crop of PFLD"

    (stage,), loss, optimizer = adnet.stages, adnet.loss, adnet.optimizer
    assert (stage.epochs, stage.batch_size, stage.learning_rate) == (500, 32, 1e-3)
    assert (stage.milestones, stage.decay) == ((200, 350, 450), 0.1)
    assert (optimizer.name, optimizer.weight_decay) == ("adam", 0)
    assert adnet.ema_decay == pytest.approx(0.5 ** (8 / 10_000), abs=1e-6)
    assert (loss.integer, loss.point) == ("adaptive_wing", "anisotropic_direction")
    assert loss.point_weight == pytest.approx(2 / 63, abs=1e-6)
    assert (loss.map_weight, 4 * loss.integer_sigma) == (10, 1.5)

    (stage,), loss, optimizer = awing.stages, awing.loss, awing.optimizer
    assert (stage.epochs, stage.milestones) == (240, (80, 160))
    assert (stage.learning_rate, stage.decay) == (1e-4, 0.1)
    assert (optimizer.name, optimizer.betas[0], optimizer.weight_decay) == ("rmsprop", 0, 1e-5)
    assert (loss.integer, loss.integer_sigma, loss.line_sigma) == ("adaptive_wing", 1.75, 1)


@pytest.mark.parametrize("model", ["adnet-small", "awing-small"])
def test_small_configurations_differ_in_model_and_losses_only(model: str) -> None:
    ours, hih = read_configuration(model), read_configuration("hih-small-v1")
    differing = {
        name for name in type(hih).model_fields if getattr(ours, name) != getattr(hih, name)
    }
    assert differing == {"name", "model", "loss"}
    assert (ours.model, ours.loss.integer) == (model, "adaptive_wing")
    decoder = {"adnet-small": "mean", "awing-small": "local_soft_argmax"}[model]
    assert decoding_of(ours).decoder == decoder
    make_objective(ours, build_training_network(ours))


def test_noise_blends_up_to_half_of_every_pixel() -> None:
    gray = np.full((64, 64, 3), 100, np.uint8)
    noisy = replace(NO_AUGMENTATION, noise=1.0)
    shares = []
    for number in range(20):
        look = noisy.look(gray, generator(number))
        # (1 - share) 100 + share n, n even in 0..255 with a standard deviation of 73.9.
        shares.append(look.std() / 73.9)
        assert look.mean() == pytest.approx(100 + shares[-1] * 27.5, abs=1)
    assert 0 < min(shares) < 0.15 < 0.35 < max(shares) < 0.51
