"""The faces of every image of a folder, as JSON Lines: a line an image, in order.

    python examples/batch_folder.py PHOTOS landmarks.jsonl

An image that cannot be read is a line with its ``error``. Images are read as they are needed, so
that memory does not grow with their number. For work that goes on after a kill, Parquet, archives
or cloud storage take ``hihlandmark predict PHOTOS --out DIR`` (docs/folders.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hihlandmark import Detector, ImageError
from hihlandmark.io import IMAGE_SUFFIXES


def photos_in(folder: Path) -> list[Path]:
    """The image files of a folder and of all folders below it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def records(detector: Detector, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """One object ready for JSON an image: its path, and its faces or the error.

    Images come as `predict_many` is done with them, the first before the last is read.
    """
    paths = list(paths)
    results = detector.predict_many(paths, on_error="yield")
    for path, found in zip(paths, results, strict=True):
        if isinstance(found, ImageError):
            yield {"image": str(path), "error": str(found)}
        else:
            yield {"image": str(path), "faces": [face.to_dict() for face in found]}


def main(folder: str, out: str = "landmarks.jsonl") -> None:
    """Writes a line an image and says how many images, faces and errors there were."""
    photos = faces = errors = 0
    with open(out, "w", encoding="utf-8") as lines:
        for record in records(Detector(), photos_in(Path(folder))):
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            photos += 1
            faces += len(record.get("faces", ()))
            errors += "error" in record
    print(f"{photos} photos, {faces} faces, {errors} that could not be read; {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
