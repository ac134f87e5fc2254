"""The faces of every image in a folder as JSON Lines: one line per image, in order.

    python examples/batch_folder.py IMAGES landmarks.jsonl

An image that cannot be read is a line with its ``error``. Images are read as they are needed, so
memory does not grow with their number. ``hihlandmark predict IMAGES --out DIR`` also resumes, and
handles Parquet, archives and cloud storage (docs/folders.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hihlandmark import Detector, ImageError
from hihlandmark.io import IMAGE_SUFFIXES


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def records(detector: Detector, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """One object for JSON per image: its path, and its faces or the error.

    Objects are yielded while later images are still being read.
    """
    paths = list(paths)
    results = detector.predict_many(paths, on_error="yield")
    for path, found in zip(paths, results, strict=True):
        if isinstance(found, ImageError):
            yield {"image": str(path), "error": str(found)}
        else:
            yield {"image": str(path), "faces": [face.to_dict() for face in found]}


def main(folder: str, out: str = "landmarks.jsonl") -> None:
    """Write a line per image, and print the numbers of images, faces and errors."""
    images = faces = errors = 0
    with open(out, "w", encoding="utf-8") as lines:
        for record in records(Detector(), images_in(Path(folder))):
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            images += 1
            faces += len(record.get("faces", ()))
            errors += "error" in record
    print(f"images: {images}, faces: {faces}, unreadable: {errors}; results in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
