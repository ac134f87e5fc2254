"""Many images through `Detector.predict_many`: speed, how busy the cores are, and memory.

    python benchmarks/throughput.py --images DIR --json OUT [--count 500] [--long 10000]

COUNT images, the images of DIR repeated: one by one through `Detector.predict`, then through
`predict_many`; the ratio is the gain of working ahead. "cores busy" is processor time divided by
elapsed time, in percent of the cores. Then LONG images, with the memory of the process after each
tenth, and an image of 50 megapixels made of the first image. Memory is the largest resident set so
far, less what it was before the first image.
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

from hihlandmark import Detector, load_image
from hihlandmark.benchmark import machine
from hihlandmark.tables import Table
from hihlandmark.threads import default_workers

LARGE = (5800, 8700)


def image_paths(folder: Path, count: int) -> Iterator[str]:
    """Paths of the images of a folder, repeated."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return itertools.islice(map(str, itertools.cycle(paths)), count)


def peak() -> float:
    """Largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(results: Iterator[Any], method: str) -> dict[str, Any]:
    """Speed and use of the cores while an iterator is consumed."""
    start, used = time.perf_counter(), time.process_time()
    images = faces = 0
    for found in results:
        images, faces = images + 1, faces + len(found)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "method": method,
        "images": images,
        "faces": faces,
        "images_per_second": images / seconds,
        "cores_busy": 100 * used / seconds / len(os.sched_getaffinity(0)),
    }


def memory_over_time(detector: Detector, folder: Path, count: int) -> list[float]:
    """Peak memory in MB after each tenth of many images."""
    peaks = []
    for number, _ in enumerate(detector.predict_many(image_paths(folder, count)), start=1):
        if number % max(1, count // 10) == 0:
            peaks.append(peak())
    return peaks


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--long", type=int, default=10_000)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    detector = Detector(98, runtime=arguments.runtime, device=arguments.device)
    list(detector.predict_many(image_paths(arguments.images, 4)))  # warms up
    before = peak()
    first = next(image_paths(arguments.images, 1))
    large = np.asarray(cv2.resize(load_image(first), LARGE[::-1]), np.uint8)
    detector.predict(large)
    after_large = peak()
    del large
    rows = [
        measure(
            (detector.predict(path) for path in image_paths(arguments.images, arguments.count)),
            "predict, one by one",
        ),
        measure(
            detector.predict_many(image_paths(arguments.images, arguments.count)),
            f"predict_many, {default_workers()} workers",
        ),
    ]
    peaks = memory_over_time(detector, arguments.images, arguments.long)
    record = {
        "machine": machine(),
        "runtime": detector.runtime.name,
        "throughput": rows,
        "memory_mb": {"before": before, "large_image": after_large, "long": peaks},
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    first_speed = rows[0]["images_per_second"]
    table = Table(
        "",
        ["method", "images", "faces", "images per second", "speedup", "cores busy"],
        [
            [
                row["method"],
                row["images"],
                row["faces"],
                f"{row['images_per_second']:.2f}",
                f"{row['images_per_second'] / first_speed:.2f}",
                f"{row['cores_busy']:.0f} %",
            ]
            for row in rows
        ],
    )
    print(table.markdown())
    print(f"\n50 megapixels: {after_large - before:.0f} MB more than before")
    added = ", ".join(f"{mb - before:.0f}" for mb in peaks)
    print(f"{arguments.long} images, after each tenth: {added} MB more than before")


if __name__ == "__main__":
    main()
