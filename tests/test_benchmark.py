"""What `hihlandmark bench` measures and prints."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
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
    assert list(figures["image"]["milliseconds"]) == ["torch", "torch, one crop per face"]
    assert figures["image"]["size"] == [512, 512]
    assert all(seconds > 0 for seconds in figures["first_prediction"].values())
    assert f"{ours['milliseconds']['median']:.1f}" in result.stdout
    assert figures["machine"]["torch"] in result.stdout
