"""Reads the packed format, which `hihlandmark.datasets.packing` writes.

A folder with ``pack.json`` (layouts, mirror tables, splits) and ``faces.arrow``, a memory-mapped
table of Hugging Face ``datasets`` with one crop per row, in shuffled order. It has fast random
access, which exact resuming of training needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces, Samples, unknown_split
from hihlandmark.errors import ConfigurationError, DataError, ImageError, missing_extra

DESCRIPTION, TABLE = "pack.json", "faces.arrow"
VERSION = 1


def recognize(folder: Path) -> bool:
    """Whether the folder is a data set of this format."""
    return (folder / DESCRIPTION).is_file()


def splits(folder: Path) -> list[str]:
    """The splits of all packed sets."""
    return list(dict.fromkeys(packed["split"] for packed in describe(folder)["sets"]))


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The faces of a split as crops, in the order of the table; see `datasets.read_faces`.

    In splits of several sets, the lower-case name of each set is a subset.
    """
    description = describe(folder)
    sets = [packed for packed in description["sets"] if packed["split"] == split]
    if not sets:
        raise unknown_split(folder, split, splits(folder))
    layouts = list(dict.fromkeys(packed["layout"] for packed in sets))
    chosen = layout or layouts[0]
    if chosen not in layouts or (layout is None and len(layouts) > 1):
        raise ConfigurationError(
            f"layout {layout}: split {split!r} of {folder} has {', '.join(layouts)}: choose one"
        )
    sets = [packed for packed in sets if packed["layout"] == chosen]
    names = list(dict.fromkeys(packed["name"] for packed in sets))
    for face in _faces(folder, split, chosen, several_sets=len(names) > 1):
        samples.add(face)
    mirror = np.array(description["mirrors"][chosen], np.intp)
    return AnnotatedFaces(" + ".join(names), chosen, mirror, samples.faces, samples.skipped)


def describe(folder: Path) -> dict[str, Any]:
    """The contents of ``pack.json``. Raises `DataError` when damaged or of another version."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = description["version"], description["sets"], description["mirrors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged ({error!r}): pack again") from error
    if version != VERSION:
        raise DataError(f"{path} is of version {version}, this package reads {VERSION}: pack again")
    return description


def _faces(folder: Path, split: str, layout: str, several_sets: bool) -> list[AnnotatedFace]:
    table = open_table(folder / TABLE)
    columns = table.remove_columns("image").with_format("arrow")[:]
    numbers = {name: columns.column(name).combine_chunks() for name in _ARRAYS}
    texts = {name: columns.column(name).to_pylist() for name in _TEXTS}
    faces = []
    stamp = _stamp(folder / TABLE)
    for row in range(columns.num_rows):
        if (texts["split"][row], texts["layout"][row]) != (split, layout):
            continue
        points, visible, rectangle = (numbers[name][row].values for name in _ARRAYS)
        subsets = set(texts["subsets"][row])
        if several_sets:
            subsets.add(texts["set"][row].lower())
        faces.append(
            AnnotatedFace(
                name=texts["name"][row],
                load_image=PackedCrop(folder / TABLE, row, stamp),
                points=points.to_numpy().astype(np.float64).reshape(-1, 2),
                split=split,
                rectangle=None if rectangle is None else rectangle.to_numpy(),
                visible=None if visible is None else visible.to_numpy(zero_copy_only=False),
                subsets=frozenset(subsets),
                source=texts["source"][row],
            )
        )
    return faces


_ARRAYS = ("points", "visible", "rectangle")
_TEXTS = ("name", "split", "layout", "set", "source", "subsets")


@dataclass(frozen=True)
class PackedCrop:
    """Reads the crop of a row; each process opens the table on first use."""

    path: Path
    row: int
    stamp: int
    """Identifies the table, which may be replaced."""

    def __call__(self) -> Image:
        """(S, S, 3) uint8 RGB. Raises `ImageError`."""
        place = f"row {self.row} of {self.path}"
        try:
            row = _images(self.path, self.stamp)[self.row]
        except (DataError, OSError, IndexError, ValueError) as error:
            raise ImageError(
                f"cannot read {place}: {error}; read the set again, or pack it again"
            ) from error
        data = np.frombuffer(row.column("image")[0]["bytes"].as_buffer(), np.uint8)
        crop = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if crop is None:
            raise ImageError(f"the image in {place} does not decode: pack again")
        return np.asarray(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB), np.uint8)


@lru_cache(maxsize=8)
def _images(path: Path, stamp: int) -> Any:
    """The column of encoded images of a table."""
    if _stamp(path) != stamp:
        raise DataError("it was replaced after its faces were read: read them again")
    return open_table(path).select_columns("image").with_format("arrow")


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def open_table(path: Path) -> Any:
    """The table, memory-mapped. Raises `DataError`, and `ConfigurationError` without the extra."""
    Dataset = import_datasets().Dataset
    try:
        return Dataset.from_file(str(path))
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError(f"cannot read {path}: {error}; pack again") from error


def import_datasets() -> Any:
    """Hugging Face's ``datasets``, which is optional. Raises `ConfigurationError` without it."""
    with missing_extra("train"):
        import datasets
    return datasets
