"""Files, folders and globs -> images; results -> files. What is in an image is not known here."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hihlandmark.errors import ImageError
from hihlandmark.face import Face

IMAGE_SUFFIXES = frozenset(
    (
        *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", ".avif"),
    )
)
"""What counts as an image in a folder. A file named on its own is tried whatever its name."""


class Source(NamedTuple):
    """An image to read, and its name relative to the folder that was given."""

    path: str
    name: str


def find_images(paths: Iterable[str]) -> Iterator[Source | ImageError]:
    """The images of files, folders (searched to the bottom), globs and http(s) URLs, in order.

    What holds no image at all comes out as an `ImageError` in its place.
    """
    for path in paths:
        if path.startswith(("http://", "https://")):
            yield Source(path, path.rstrip("/").rpartition("/")[2] or "image")
        elif os.path.isdir(path):
            yield from _folder(path)
        elif os.path.lexists(path) or not glob.has_magic(path):
            yield Source(path, Path(path).name)
        else:
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                yield ImageError(f"{path}: no file matches this pattern")
            for match in matches:
                yield from (
                    _folder(match) if os.path.isdir(match) else [Source(match, Path(match).name)]
                )


def _folder(folder: str) -> Iterator[Source | ImageError]:
    empty = True
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for file in sorted(files):
            if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                empty = False
                path = os.path.join(parent, file)
                yield Source(path, os.path.relpath(path, folder))
    for error in unreadable:
        yield ImageError(f"{error.filename}: the folder cannot be read ({error.strerror})")
    if empty and not unreadable:
        yield ImageError(
            f"{folder}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        )


def write_json(faces: Sequence[Face], source: Source) -> dict[str, str]:
    """One JSON object for the image."""
    record = {"image": source.path, "faces": [face.to_dict() for face in faces]}
    return {".json": json.dumps(record, ensure_ascii=False) + "\n"}


def write_csv(faces: Sequence[Face], source: Source) -> dict[str, str]:
    """One row a point, with the face's number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("image", "face", *Face.ROW_FIELDS), lineterminator="\n")
    writer.writeheader()
    for number, face in enumerate(faces):
        writer.writerows({"image": source.path, "face": number, **row} for row in face.to_rows())
    return {".csv": text.getvalue()}


def write_pts(faces: Sequence[Face], _source: Source) -> dict[str, str]:
    """One 300-W .pts file a face."""
    return {f".{number}.pts": face.to_pts() for number, face in enumerate(faces)}


FORMATS: Mapping[str, Callable[[Sequence[Face], Source], dict[str, str]]] = {
    "json": write_json,
    "csv": write_csv,
    "pts": write_pts,
}
"""Output format -> the texts to write for an image, by the suffix that its file gets."""
