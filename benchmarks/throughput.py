"""Many images through `Detector.predict_many`: speed, how busy the cores are, and memory.

    python benchmarks/throughput.py --photos DIR --json OUT [--count 500] [--long 10000]

The images of DIR, over and over until there are COUNT: one by one through `Detector.predict`, then
through `predict_many`, whose ratio is what working ahead gains. "cores busy" is processor time over
time on the clock, in per cent of the cores. Then LONG of them, with the memory of the process after
each tenth, and an image of 50 megapixels made of the first image. Memory is the largest resident
set so far, less what it was before the first image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from hihlandmark import Detector, load_image
from hihlandmark.benchmark import machine, table
from hihlandmark.threads import default_workers

LARGE = (5800, 8700)


def photos(folder: Path, count: int) -> Iterator[str]:
    """Paths of the folder's images, over and over."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return itertools.islice(map(str, itertools.cycle(paths)), count)


def peak() -> float:
    """Largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(results: Iterator[Any], workers: str) -> dict[str, Any]:
    """Images and faces a second, and how busy the cores were, while an iterator is used up."""
    start, used = time.perf_counter(), time.process_time()
    images = faces = 0
    for found in results:
        images, faces = images + 1, faces + len(found)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "way": workers,
        "images": images,
        "faces": faces,
        "images_a_second": images / seconds,
        "cores_busy": 100 * used / seconds / len(os.sched_getaffinity(0)),
    }


def memory_on_the_way(detector: Detector, folder: Path, count: int) -> list[float]:
    """Peak memory in MB after each tenth of many images."""
    peaks = []
    for number, _ in enumerate(detector.predict_many(photos(folder, count)), start=1):
        if number % max(1, count // 10) == 0:
            peaks.append(peak())
    return peaks


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--long", type=int, default=10_000)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    detector = Detector(98, runtime=arguments.runtime, device=arguments.device)
    list(detector.predict_many(photos(arguments.photos, 4)))  # warms up
    before = peak()
    first = next(photos(arguments.photos, 1))
    large = np.asarray(cv2.resize(load_image(first), LARGE[::-1]), np.uint8)
    detector.predict(large)
    after_large = peak()
    del large
    rows = [
        measure(
            (detector.predict(path) for path in photos(arguments.photos, arguments.count)),
            "predict, one by one",
        ),
        measure(
            detector.predict_many(photos(arguments.photos, arguments.count)),
            f"predict_many, {default_workers()} workers",
        ),
    ]
    peaks = memory_on_the_way(detector, arguments.photos, arguments.long)
    record = {
        "machine": machine(),
        "runtime": detector.runtime.name,
        "throughput": rows,
        "memory_mb": {"before": before, "large_photo": after_large, "long": peaks},
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    lines = table(
        ["way", "photos", "faces", "photos a second", "times", "cores busy"],
        [
            [
                row["way"],
                row["images"],
                row["faces"],
                f"{row['images_a_second']:.2f}",
                f"{row['images_a_second'] / rows[0]['images_a_second']:.2f}",
                f"{row['cores_busy']:.0f} %",
            ]
            for row in rows
        ],
    )
    lines.append(f"\n50 megapixels: {after_large - before:.0f} MB more than before")
    lines.append(
        f"{arguments.long} photos, after each tenth: "
        + ", ".join(f"{mb - before:.0f}" for mb in peaks)
        + " MB more than before"
    )
    Console(soft_wrap=True).print("\n".join(lines), markup=False, highlight=False)


if __name__ == "__main__":
    main()
