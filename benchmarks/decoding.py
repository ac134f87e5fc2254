"""Times of decoding heatmaps to points, and of the sums over windows within it.

    python benchmarks/decoding.py --json OUT [--rounds 15]

One face of 98 points, and eight: each decoder of `heatmap.decode`, and the sums over windows by
which "local_soft_argmax" finds the peak: by two matrix products, as it does, and by pooling.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from hihlandmark.benchmark import machine, time_interleaved
from hihlandmark.heatmap import WINDOW, box_sums, decode, to_distributions
from hihlandmark.tables import Table
from hihlandmark.weights.card import HEATMAP_DECODERS

POINTS = 98


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """The means over the windows that `box_sums` sums over."""
    return torch.nn.functional.avg_pool2d(maps, 2 * WINDOW + 1, 1, WINDOW)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    record, rows = [], []
    for faces in (1, 8):
        raw = torch.randn(faces, POINTS, 64, 64), torch.randn(faces, POINTS, 8, 8)
        integer, decimal = to_distributions(*raw)
        runs: dict[str, Callable[[], object]] = {
            "windows, pooled": partial(pooled, integer),
            "windows, by products": partial(box_sums, integer),
        }
        for decoder in HEATMAP_DECODERS:
            beside = decimal if decoder in ("argmax", "local_soft_argmax") else None
            runs[f"decode, {decoder}"] = partial(decode, integer, beside, decoder, stride=4)
        times = time_interleaved(runs, arguments.rounds, each=faces)
        record += [
            {"faces": faces, "what": name, "milliseconds": asdict(timing)}
            for name, timing in times.items()
        ]
        rows += [[name, faces, timing] for name, timing in times.items()]
    content = {"machine": machine(), "decoding": record}
    arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(Table("", ["", "faces", "ms per face"], rows).markdown())


if __name__ == "__main__":
    main()
