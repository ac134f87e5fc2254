"""Many images through `Detector.predict_many`: speed, how busy the cores are, and memory.

    python benchmarks/throughput.py --images DIR --json OUT [--count 500] [--long 10000]

COUNT images, the images of DIR repeated: one by one through `Detector.predict`, then through
`predict_many`; the ratio is the gain of working ahead. "cores busy" is processor time divided by
elapsed time, in percent of the cores. Then LONG images, with the resident memory of the process
after each tenth. And the memory that an image of 50 megapixels adds, made of the first image: the
largest resident set so far, less what it was before.
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


def resident() -> float:
    """Resident set of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


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
        "cpu_ms_per_image": 1000 * used / images,
        "cores_busy": 100 * used / seconds / len(os.sched_getaffinity(0)),
    }


def memory_over_time(detector: Detector, folder: Path, count: int) -> list[float]:
    """Resident memory in MB after each tenth of many images."""
    found = []
    for number, _ in enumerate(detector.predict_many(image_paths(folder, count)), start=1):
        if number % max(1, count // 10) == 0:
            found.append(resident())
    return found


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
    memory = memory_over_time(detector, arguments.images, arguments.long)
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
    record = {
        "machine": machine(),
        "runtime": detector.runtime.name,
        "throughput": rows,
        "memory_mb": {"before": before, "large_image": after_large, "long": memory},
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    first_speed = rows[0]["images_per_second"]
    table = Table(
        "",
        ["method", "images", "faces", "CPU-ms", "images per second", "speedup", "cores busy"],
        [
            [
                row["method"],
                row["images"],
                row["faces"],
                f"{row['cpu_ms_per_image']:.0f}",
                f"{row['images_per_second']:.2f}",
                f"{row['images_per_second'] / first_speed:.2f}",
                f"{row['cores_busy']:.0f} %",
            ]
            for row in rows
        ],
    )
    print(table.markdown())
    print(f"\n50 megapixels: {after_large - before:.0f} MB more than before")
    after = ", ".join(f"{mb:.0f}" for mb in memory)
    print(f"{arguments.long} images, resident after each tenth: {after} MB")


if __name__ == "__main__":
    main()
