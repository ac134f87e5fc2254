"""The runtimes against each other on the same crops: a Markdown table, and JSON.

    python benchmarks/runtimes.py --json OUT [--model hih-small] [--weights W] [--threads N]

Each runtime that is installed runs the network for 98 points on batches of crops, the runtimes
taking turns, and plain PyTorch (no folded batch norms, channels-first, as a network comes out of
training) with them. Milliseconds a face: the median over the rounds, and the middle half in
brackets; "times" is the ratio of plain PyTorch's median to it. Points of every runtime are compared
with those of plain PyTorch in float32, in crop pixels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from hihlandmark.heatmap import read_heatmaps
from hihlandmark.models.network import Heatmaps
from hihlandmark.models.registry import MODELS
from hihlandmark.runtimes import RUNTIMES, make_runtime
from hihlandmark.runtimes.export import drawn_faces
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.pytorch import resolve_device
from hihlandmark.weights import LoadedModel, load_model

LAYOUT = "WFLW98"
BATCHES = (1, 8)

Run = Callable[[NDArray[np.uint8]], Heatmaps]


def plain(model: LoadedModel, device: torch.device) -> Run:
    """The network as it is, on the device."""
    graph = CropGraph(model.network, LAYOUT, model.card.normalisation).to(device)

    @torch.inference_mode()
    def run(crops: NDArray[np.uint8]) -> Heatmaps:
        integer, *decimal = graph(torch.from_numpy(crops).to(device))
        return Heatmaps(integer, decimal[0] if decimal else None)

    return run


def runs_of(model: LoadedModel, device: torch.device, bf16: bool) -> dict[str, Run]:
    """What is compared, by name."""
    runs: dict[str, Run] = {"plain PyTorch": plain(model, device)}
    for name in RUNTIMES:
        if find_spec(name) and (name != "openvino" or device.type == "cpu"):
            for precision in ("fp32", "bf16") if bf16 and name != "onnxruntime" else ("fp32",):
                runs[f"{name} {precision}"] = make_runtime(
                    name, model.network, LAYOUT, model.card, device, precision
                )
    return runs


def points(heatmaps: Heatmaps, model: LoadedModel) -> NDArray[np.floating]:
    """(N, P, 2) in crop pixels."""
    integer, decimal = heatmaps.float()
    return read_heatmaps(integer, decimal, model.card.decoding).points.cpu().numpy()


def milliseconds(
    runs: dict[str, Run], crops: NDArray[np.uint8], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Quartiles of the time a face of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run(crops).integer.sum().item()  # waits for a GPU
            if number >= 2:
                times[name].append((time.perf_counter() - start) / len(crops) * 1000)
    return {name: np.percentile(each, (25, 50, 75)).tolist() for name, each in times.items()}


def measure(model: LoadedModel, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each runtime and batch size."""
    device = resolve_device(arguments.device)
    runs, size = runs_of(model, device, arguments.bf16), model.card.configuration["input_size"]
    rows = []
    for batch in BATCHES:
        crops = drawn_faces(LAYOUT, size, batch)
        expected = points(runs["plain PyTorch"](crops), model)
        quartiles = milliseconds(runs, crops, arguments.rounds, device)
        for name, run in runs.items():
            apart = np.linalg.norm(points(run(crops), model) - expected, axis=-1)
            rows.append(
                {
                    "runtime": name,
                    "batch": batch,
                    "milliseconds": quartiles[name],
                    "times": quartiles["plain PyTorch"][1] / quartiles[name][1],
                    "largest_difference": float(apart.max()),
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    table = [["runtime", "batch", "ms a face", "times", "points apart, px"]]
    table.append(["---"] + ["---:"] * 4)
    for row in rows:
        low, middle, high = row["milliseconds"]
        table.append(
            [
                row["runtime"],
                str(row["batch"]),
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{row['times']:.2f}",
                f"{row['largest_difference']:.2g}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--model", default="hih-small", choices=sorted(MODELS))
    parser.add_argument("--weights", help="path, packaged name or Hub repository")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of every runtime")
    parser.add_argument("--bf16", action="store_true", help="in bf16, too, where it is not slow")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = measure(load_model(arguments.weights, model=arguments.model), arguments)
    arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    Console(soft_wrap=True).print(markdown(rows), markup=False, highlight=False)


if __name__ == "__main__":
    main()
