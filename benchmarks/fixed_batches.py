"""OpenVINO's networks for one size of batches against one for any size.

    python benchmarks/fixed_batches.py --json OUT [--sizes 1 2 4 8] [--rounds 40]

The packaged network with its decoding, in the precision that `Detector` takes by default, from
crops to points, in turn. The milliseconds are CPU time a crop, and those of the first run of a
network in this process: compiled, and read as it was compiled before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hihlandmark.arrays import Image
from hihlandmark.benchmark import machine, time_interleaved
from hihlandmark.runtimes import Precision, Run, choose_precision
from hihlandmark.runtimes.base import ANY
from hihlandmark.runtimes.devices import CPU
from hihlandmark.runtimes.export import drawn_faces
from hihlandmark.runtimes.graph import graph_of_card
from hihlandmark.runtimes.openvino import run_openvino, write_openvino
from hihlandmark.tables import Table
from hihlandmark.weights import load_model


def first_run(path: Path, precision: Precision, crops: Image) -> tuple[Run, float]:
    """The network for the batch, opened, and the milliseconds until its first points."""
    start = time.process_time()
    run = run_openvino(path, CPU, precision, cache_compiled=True)
    run(crops)
    return run, (time.process_time() - start) * 1000


def main() -> None:
    """Convert, time, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--layout", default="WFLW98")
    arguments = parser.parse_args()
    model = load_model("hih-small")
    card, side = model.card, model.card.configuration["input_size"]
    has_ranges = bool(card.activation_ranges)
    precision = choose_precision("auto", "openvino", CPU, has_ranges=has_ranges)
    graph = graph_of_card(model.network, arguments.layout, card, card.decoding, precision)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        write_openvino(graph.on_pixels(side), path)
        # Another dimension of any size keeps OpenVINO from preparing fixed ones.
        any_size = run_openvino(path, CPU, precision, shape=(ANY, ANY, side, 3))
        for size in arguments.sizes:
            crops = drawn_faces(arguments.layout, side, size)
            _, compiled = first_run(path, precision, crops)
            fixed, kept = first_run(path, precision, crops)
            runs: dict[str, Callable[[], object]] = {
                "any size": partial(any_size, crops),
                "fixed size": partial(fixed, crops),
            }
            times = time_interleaved(runs, arguments.rounds, size, time.process_time)
            row = {name: timing.median for name, timing in times.items()}
            rows.append({"batch": size, **row, "compiled": compiled, "kept": kept})
    record = {"machine": machine(), "precision": precision, "rows": rows}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    columns = ["batch", "any size", "fixed size", "compiled", "kept"]
    cells = [
        [f"{row[name]:.1f}" if name != "batch" else row[name] for name in columns] for row in rows
    ]
    print(Table("", columns, cells).markdown())


if __name__ == "__main__":
    main()
