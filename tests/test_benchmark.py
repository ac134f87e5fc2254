"""What `hihlandmark bench` measures and how it says it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hihlandmark import benchmark
from hihlandmark.cli import app


def test_calls_take_turns_and_warm_up_first() -> None:
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


def test_bench_prints_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RUNTIMES", {"torch": None})
    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--batch", "1", "--rounds", "1", "--json", str(file)]
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    plain, ours = figures["network"]
    assert (plain["runtime"], ours["runtime"]) == (benchmark.PLAIN, "torch fp32")
    assert ours["apart"] < 0.01
    assert plain["times"] == 1
    assert list(figures["photo"]["milliseconds"]) == ["torch", "torch, one crop a face"]
    assert figures["photo"]["size"] == [512, 512]
    assert all(seconds > 0 for seconds in figures["first_prediction"].values())
    assert f"{ours['milliseconds']['median']:.1f}" in result.stdout
    assert figures["machine"]["torch"] in result.stdout


def test_a_photo_of_ones_own_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "missing.jpg")])
    assert result.exit_code != 0
    assert "missing.jpg" in str(result.exception)


def test_tables_are_markdown() -> None:
    lines = benchmark.table(["name", "ms"], [["a", benchmark.Timing(1, 2, 3)], ["b", np.pi]])
    assert lines[:3] == ["| name | ms |", "| --- | ---: |", "| a | 2.0 (1.0 to 3.0) |"]
