"""`hihlandmark predict` over very many images: memory over time, and images per second.

    python benchmarks/large_folder.py --json OUT [--count 20000] [--image IMAGE]

A tar archive of COUNT different JPEGs, parts of one image (scikit-image's astronaut), is generated
and predicted with the fastest settings. The memory of that process (resident set, from /proc, so on
Linux only) is recorded after each twentieth of the images.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from hihlandmark import load_image
from hihlandmark.benchmark import machine
from hihlandmark.cli.options import astronaut

_SIDE = 160


def write_archive(path: Path, image: np.ndarray, count: int) -> None:
    """Write different parts of an image (H, W, 3) to an archive."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            left, top = 140 + number % 7, 20 + number // 7 % 5
            part = Image.fromarray(image[top : top + _SIDE, left : left + _SIDE])
            buffer = io.BytesIO()
            part.save(buffer, "JPEG", quality=60 + number % 35)
            member = tarfile.TarInfo(f"{number // 1000:03d}/{number:07d}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)


def resident(process: int) -> float:
    """Memory of a process in MB; 0 once it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def done(out: Path) -> int:
    """Images that are entered in the manifest."""
    import sqlite3

    manifest = out / ".manifest.sqlite"
    if not manifest.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{manifest}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet, or being written
        return 0


def main() -> None:
    """Parse, generate, run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--image", type=Path, help="default: scikit-image's astronaut")
    arguments = parser.parse_args()
    image = load_image(arguments.image or astronaut())
    with tempfile.TemporaryDirectory() as folder:
        archive, out = Path(folder) / "images.tar", Path(folder) / "out"
        write_archive(archive, image, arguments.count)
        command = [sys.executable, "-m", "hihlandmark", "predict", str(archive), "--out", str(out)]
        command += ["--format", "parquet", "--refine", "0", "--no-flip-test", "--layout", "68"]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        steps = np.linspace(0, arguments.count, 21)[1:]
        memory: list[float] = []
        while process.poll() is None:
            time.sleep(0.5)
            if len(memory) < len(steps) and done(out) >= steps[len(memory)]:
                memory.append(resident(process.pid))
        seconds = time.perf_counter() - start
        written = done(out)
    record = {
        "machine": machine(),
        "images": written,
        "images_per_second": written / seconds,
        "memory_mb": memory,
        "exit_code": process.returncode,
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    megabytes = ", ".join(f"{each:.0f}" for each in memory)
    print(f"{written} images, {written / seconds:.1f} per second")
    print(f"MB after each twentieth: {megabytes}")


if __name__ == "__main__":
    main()
