"""What the size of batches costs and gains: images a second and memory of `predict_many`.

    python benchmarks/batch_size.py --photos DIR --json OUT [--count 60] [--sizes 4 8 16 32]

Each size runs in a process of its own, for the memory of an earlier one does not go away, and all
of them twice over; the faster of the two runs counts. Memory is the largest resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console

from hihlandmark import Detector
from hihlandmark.benchmark import machine, table


def measure(folder: Path, count: int, size: int) -> dict[str, float]:
    """Images a second and MB, in this process."""
    paths = sorted(str(path) for path in folder.iterdir() if path.is_file())
    detector = Detector(batch_size=size)
    list(detector.predict_many(paths[:4]))  # warms up
    start = time.perf_counter()
    for _ in detector.predict_many(islice(cycle(paths), count)):
        pass
    seconds = time.perf_counter() - start
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"photos_a_second": count / seconds, "megabytes": megabytes}


def in_a_process(arguments: argparse.Namespace, size: int) -> dict[str, Any]:
    """As `measure`, in a new process."""
    command = [sys.executable, __file__, "--photos", str(arguments.photos), "--one", str(size)]
    command += ["--count", str(arguments.count), "--json", "-"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.photos, arguments.count, arguments.one)))
        return
    found: dict[int, dict[str, Any]] = {}
    for size in (*arguments.sizes, *arguments.sizes):
        new = in_a_process(arguments, size)
        if size not in found or new["photos_a_second"] > found[size]["photos_a_second"]:
            found[size] = new
    record = {"machine": machine(), "sizes": found}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [
        [size, f"{each['photos_a_second']:.2f}", f"{each['megabytes']:.0f}"]
        for size, each in found.items()
    ]
    lines = table(["crops at once", "photos a second", "MB"], rows)
    Console(soft_wrap=True).print(*lines, sep="\n", markup=False, highlight=False)


if __name__ == "__main__":
    main()
