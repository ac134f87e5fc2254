"""Images a second by one and by two Ray workers of one core each.

    python benchmarks/ray_workers.py --photos DIR --json OUT [--count 120]

The photos of DIR, over and over until there are COUNT. The clock runs from the first result to the
last, so without the start of Ray and of the workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from hihlandmark import Detector
from hihlandmark.benchmark import machine, table
from hihlandmark.folder import Source, find_images
from hihlandmark.ray import predict_on_ray


def rate(sources: list[Source], workers: int) -> float:
    """Images a second."""
    results = predict_on_ray(partial(Detector, 98), sources, workers=workers, cores=1, job_size=4)
    next(results)
    start = time.perf_counter()
    rest = sum(1 for _ in results)
    return rest / (time.perf_counter() - start)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--count", type=int, default=120)
    arguments = parser.parse_args()
    found = [each for each in find_images([str(arguments.photos)]) if isinstance(each, Source)]
    cycle = itertools.islice(itertools.cycle(found), arguments.count)
    sources = [replace(each, name=str(number)) for number, each in enumerate(cycle)]
    rates = {workers: rate(sources, workers) for workers in (1, 2)}
    record = {"machine": machine(), "images_a_second": rates}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [[count, f"{each:.2f}", f"{each / rates[1]:.2f}"] for count, each in rates.items()]
    lines = table(["workers", "photos a second", "times"], rows)
    Console(soft_wrap=True).print(*lines, sep="\n", markup=False, highlight=False)


if __name__ == "__main__":
    main()
