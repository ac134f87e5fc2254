"""HIH, ADNet and Adaptive Wing on the same data, crops and schedule: a Markdown table and JSON.

    python benchmarks/three_systems.py --data DIR --runs DIR --json OUT

The data folder has the sets of the configuration ``hih-small-v1``. Each of `SYSTEMS` is trained
from random weights with its own configuration, the stages of `STAGES` and the same batches. Its
averaged weights are exported to ``RUNS/NAME/weights`` and measured as by `hihlandmark eval`,
without flip test and shape prior. Milliseconds per face are those of network and decoding in
batches of `BATCH` crops, interleaved: the median, and the quartiles in brackets. A stopped run is
resumed, a finished one is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hihlandmark import Detector
from hihlandmark.cli.options import progress_bar
from hihlandmark.evaluation import evaluate
from hihlandmark.evaluation.report import face_figures
from hihlandmark.models.registry import build_model
from hihlandmark.training.config import FaceSet, TrainingConfiguration, read_configuration
from hihlandmark.training.data import read_face_set
from hihlandmark.training.export import export
from hihlandmark.training.trainer import train
from hihlandmark.weights import load_model

SYSTEMS = ("hih-small-v1", "adnet-small", "awing-small")
STAGES = (
    "{steps = 1200, crop_size = 128, batch_size = 16, learning_rate = 2e-3, warmup_steps = 100}",
    "{steps = 450, crop_size = 256, batch_size = 12, learning_rate = 1e-3, warmup_steps = 50}",
)
SPLITS = (
    FaceSet(folder="w300", split="helen_test"),
    FaceSet(folder="wflw98", split="val"),
    FaceSet(folder="cofw29", split="val"),
)
BATCH = 8
ROUNDS = 30


def train_system(name: str, arguments: argparse.Namespace) -> Path:
    """The card of the weights of a system, trained unless they exist."""
    changes = [
        f"stages=[{', '.join(STAGES)}]",
        "first_stage=1",
        # No selection on the faces that are measured.
        "validation.sets=[]",
        "card.shapes=[]",
        *arguments.set,
    ]
    configuration: TrainingConfiguration = read_configuration(name, changes)
    folder = arguments.runs / name
    card = folder / "weights" / f"{name}.json"
    if not card.exists():
        with progress_bar("faces") as bar:
            summary = train(
                configuration, arguments.data, folder, device=arguments.device, progress=bar
            )
        export(summary.checkpoint, configuration, arguments.data, card.parent)
    return card


def errors(card: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """NME, FR10 and AUC10 in per cent by split."""
    found = {}
    for split in SPLITS:
        faces = read_face_set(arguments.data, split)
        detector = Detector(
            faces.layout, weights=card, device=arguments.device, flip_test=False, refine=0
        )
        figures = face_figures(evaluate(detector, faces).face_errors)
        found[split.title] = {name: float(figures[name]) for name in ("nme", "fr10", "auc10")}
    return found


def gflop(network: nn.Module, side: int) -> float:
    """GFLOP for one crop of ``side`` pixels; a multiplication with an addition counts as two."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side, device=device))
    return counter.get_total_flops() / 1e9


def size(card: Path) -> dict[str, float]:
    """Parameters in millions and GFLOP per face; a multiply-add is two operations."""
    weights = load_model(card).card
    with torch.device("meta"):
        network = build_model(weights.architecture, weights.configuration).eval()
    parameters = sum(p.numel() for p in network.parameters())
    work = gflop(network, weights.configuration["input_size"])
    return {"parameters": parameters / 1e6, "gflop": work}


def milliseconds(cards: dict[str, Path], device: str) -> dict[str, list[float]]:
    """Quartiles of the milliseconds per face of each system, interleaved."""
    detectors = {
        name: Detector(68, weights=card, device=device, flip_test=False)
        for name, card in cards.items()
    }
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, 256, 256, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {name: [] for name in cards}
    for round_number in range(ROUNDS + 3):
        for name, detector in detectors.items():
            start = time.perf_counter()
            detector.predict_crops(crops)
            if round_number >= 3:  # warm-up
                times[name].append((time.perf_counter() - start) / BATCH * 1000)
    return {name: np.percentile(each, (25, 50, 75)).tolist() for name, each in times.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table with NME / FR10 / AUC10 of each split."""
    splits = list(rows[0]["errors"])
    table = [["system", *splits, "parameters", "GFLOP", "ms per face"]]
    table.append(["---"] + ["---:"] * (len(splits) + 3))
    for row in rows:
        figures = [row["errors"][split] for split in splits]
        low, middle, high = row["milliseconds"]
        table.append(
            [
                row["system"],
                *(f"{f['nme']:.2f} / {f['fr10']:.1f} / {f['auc10']:.1f}" for f in figures),
                f"{row['parameters']:.2f} M",
                f"{row['gflop']:.2f}",
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def main() -> None:
    """Parse, train, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for all runs")
    arguments = parser.parse_args()
    cards = {name: train_system(name, arguments) for name in SYSTEMS}
    times = milliseconds(cards, arguments.device)
    rows = [
        {
            "system": name,
            "sha256": load_model(card).card.sha256,
            "errors": errors(card, arguments),
            "milliseconds": times[name],
            **size(card),
        }
        for name, card in cards.items()
    ]
    arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    Console(soft_wrap=True).print(markdown(rows), markup=False, highlight=False)


if __name__ == "__main__":
    main()
