"""What `hihlandmark bench` measures and prints."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from builders import CPU, write_own_layout
from typer.testing import CliRunner

from hihlandmark import benchmark
from hihlandmark.cli import app


def test_calls_are_interleaved_after_a_warmup() -> None:
    order: list[str] = []
    times = benchmark.time_interleaved(
        {"quick": lambda: order.append("q"), "slow": lambda: (order.append("s"), time.sleep(0.01))},
        rounds=3,
        each=2,
    )
    assert "".join(order) == "qs" * 5, "two rounds warm up"
    assert times["slow"].low <= times["slow"].median <= times["slow"].high
    assert times["slow"].low >= 5, "milliseconds of one of two"
    assert times["quick"].median < times["slow"].median


@pytest.mark.usefixtures("own_layouts")
def test_the_precision_and_layout_of_a_detector_are_measured_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "RUNTIMES", {"torch": None})
    monkeypatch.setattr(benchmark, "first_prediction", lambda *_: {"ready": 1, "first_image": 1})
    monkeypatch.setattr("hihlandmark.runtimes.torch_devices.has_native_bf16", lambda device: True)
    weights = write_own_layout(tmp_path)
    image = np.zeros((64, 64, 3), np.uint8)
    figures = benchmark.measure(str(weights), None, image, CPU, batches=(1,), rounds=1)
    assert (figures["layout"], figures["default"]) == ("OWN29", "torch bf16")
    assert [(row["runtime"], row["is_default"]) for row in figures["network"]] == [
        (benchmark.PLAIN, False),
        ("torch fp32", False),
    ]
    (auto,) = figures["network_auto"]
    assert (auto["runtime"], auto["precision"], auto["is_default"]) == ("torch bf16", "bf16", True)
    assert set(figures["image"]["precisions"].values()) == {"bf16"}
    cells = [line.split(" | ")[0] for line in benchmark.markdown(figures).splitlines()]
    assert cells.count("| torch bf16 (default)") == 2
    assert "| torch bf16, one crop per face" in cells


@pytest.mark.slow
def test_bench_prints_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RUNTIMES", {"torch": None})
    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--batch", "1", "--rounds", "1", "--json", str(file)]
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    plain, ours = figures["network"]
    assert (plain["runtime"], ours["runtime"]) == (benchmark.PLAIN, "torch fp32")
    assert ours["distance"] < 0.01
    assert plain["speedup"] == 1
    assert list(figures["image"]["milliseconds"]) == ["torch", "torch, with flip test"]
    assert figures["image"]["size"] == [512, 512]
    assert all(seconds > 0 for seconds in figures["first_prediction"].values())
    assert f"{ours['milliseconds']['median']:.1f}" in result.stdout
    assert figures["machine"]["torch"] in result.stdout
