"""The commands of docs/reproducing.md, on miniature data sets and with a tiny network."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_datasets import SOCCER, cofw_file, photo, pts, text_file, wflw_line
from test_datasets import TEST as WFLW_TEST
from test_datasets import TRAIN as WFLW_TRAIN
from typer.testing import CliRunner

from hihlandmark.cli import app
from hihlandmark.weights import find_weights

TINY = [
    "network={stacks=1, features=8, depth=3, decimal_features=8, input_size=128}",
    "stages=[{epochs=2, crop_size=128, batch_size=2, schedule='step', milestones=[1]}]",
]


def write_wflw(root: Path) -> None:
    photo(root / "WFLW_images" / SOCCER)
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
        ("hih-300w", write_w300, "full", {"common", "challenge"}),
        ("hih-cofw", write_cofw, "test", set()),
    ],
)
def test_the_papers_protocol_runs_from_the_published_folder_to_the_report(
    tmp_path: Path, configuration: str, write, test_split: str, subsets: set[str]
) -> None:
    data, packed, out = tmp_path / "data", tmp_path / "packed", tmp_path / "run"
    write(data)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert test_split in run("data", "info", data)
    run("data", "prepare", data, "--out", packed, "--split", "train", "--split", test_split)
    settings = [part for setting in TINY for part in ("--set", setting)]
    places = ["--data", packed, "--out", out, "--export", out / "export"]
    printed = run("train", configuration, *places, *settings, "--device", "cpu", "--workers", 0)
    assert f"  {test_split}: NME" in printed
    weights = out / "export" / f"{configuration}.json"
    reading = ["--no-mirror", "--decoder", "argmax", "--device", "cpu", "--json"]
    where = ["--data", data, "--split", test_split, "--model", "hih", "--weights", weights]
    figures = json.loads(run("eval", *where, *reading))
    assert figures["faces"] >= 2
    assert set(figures["subsets"]) == subsets
    assert find_weights(str(weights)).card.decoding["decoder"] == "argmax"
