"""The effect of the batch size: images per second and memory of `predict_many`.

    python benchmarks/batch_size.py --images DIR --json OUT [--count 60] [--sizes 4 8 16 32]

Each size runs twice, in a new process, because memory of earlier runs is not released; the faster
run counts. Memory is the largest resident set.
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

from hihlandmark import Detector
from hihlandmark.benchmark import machine
from hihlandmark.tables import Table


def measure(folder: Path, count: int, size: int) -> dict[str, float]:
    """Images per second and MB, in this process."""
    paths = sorted(str(path) for path in folder.iterdir() if path.is_file())
    detector = Detector(batch_size=size)
    list(detector.predict_many(paths[:4]))  # warms up
    start = time.perf_counter()
    for _ in detector.predict_many(islice(cycle(paths), count)):
        pass
    seconds = time.perf_counter() - start
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": count / seconds, "megabytes": megabytes}


def in_a_process(arguments: argparse.Namespace, size: int) -> dict[str, Any]:
    """As `measure`, in a new process."""
    command = [sys.executable, __file__, "--images", str(arguments.images), "--one", str(size)]
    command += ["--count", str(arguments.count), "--json", "-"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.images, arguments.count, arguments.one)))
        return
    found: dict[int, dict[str, Any]] = {}
    for size in (*arguments.sizes, *arguments.sizes):
        new = in_a_process(arguments, size)
        if size not in found or new["images_per_second"] > found[size]["images_per_second"]:
            found[size] = new
    record = {"machine": machine(), "sizes": found}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [
        [size, f"{each['images_per_second']:.2f}", f"{each['megabytes']:.0f}"]
        for size, each in found.items()
    ]
    print(Table("", ["batch size", "images per second", "MB"], rows).markdown())


if __name__ == "__main__":
    main()
