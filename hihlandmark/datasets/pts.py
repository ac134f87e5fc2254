"""Reads folders of images with ``.pts`` files beside them, of any number of points.

Folders in the folder are its splits, such as ``train/`` and ``val/``; without them all images are
of the split "train". As in 300-W, coordinates count from 1, so 1 is subtracted; unlike there, they
are those of the upright image, after its EXIF orientation is applied, as `Face.to_pts` writes them.
The layout follows from the number of points, which must be the same in most files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.datasets.faces import (
    AnnotatedFaces,
    Samples,
    entry_names,
    layout_of_size,
    unknown_split,
)
from hihlandmark.datasets.w300 import read_folder
from hihlandmark.errors import ConfigurationError, DataError, abbreviate
from hihlandmark.image import load_image
from hihlandmark.layouts import LAYOUTS

ALL = "train"
"""The split of images that lie in the folder itself."""
MOST = 0.8
"""Share of the files with as many points, from which on the others are bad samples."""


def recognize(folder: Path) -> bool:
    """Whether the folder, or a folder in it, has ``.pts`` files."""
    return bool(splits(folder))


def splits(folder: Path) -> list[str]:
    """The splits: the folder itself as `ALL`, or the folders in it with ``.pts`` files."""
    if _annotations(folder):
        return [ALL]
    return sorted(
        _annotated_folders(folder), key=lambda name: (name != "train", name != "val", name)
    )


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated faces of a split; see `datasets.read_faces`."""
    if split not in splits(folder):
        raise unknown_split(folder, split, splits(folder))
    place = folder if _annotations(folder) else folder / split
    if place == folder and (inside := _annotated_folders(folder)):
        raise DataError(
            f"{folder} has .pts files beside folders with .pts files ({abbreviate(inside)}): move "
            "them into one of these, or give one folder as the data set"
        )
    counts = Counter(filter(None, map(_count, _annotations(place))))
    count, files = next(iter(counts.most_common(1)), (0, 0))
    if files < MOST * counts.total():  # a few other files are bad samples
        kinds = ", ".join(f"{files} with {points} points" for points, files in counts.items())
        raise DataError(f"{place} has .pts files of several layouts ({kinds}): use one folder each")
    layout = layout or layout_of_size(count)
    known = LAYOUTS.get(layout)
    if known is not None and counts and known.size != count:
        raise ConfigurationError(
            f"{folder} has {count} points per face, {layout} has {known.size}: "
            "give the layout in which it is annotated"
        )
    if known is None and counts and samples.needs_mirror:
        raise DataError(
            f"{folder} has {count} points per face, which is no known layout: describe them in a "
            "layout file (--layout of hihlandmark finetune and data), or use annotations.jsonl "
            "with points.json"
        )
    read_folder(folder, place, split, samples, count, load=_upright)
    mirror = np.arange(count) if known is None else known.mirror
    return AnnotatedFaces(folder.name, layout, mirror, samples.faces, samples.skipped)


def _upright(path: Path) -> Callable[[], Image]:
    return partial(load_image, path)


def _annotations(folder: Path) -> list[Path]:
    return [folder / name for name in entry_names(folder) if Path(name).suffix.lower() == ".pts"]


def _annotated_folders(folder: Path) -> list[str]:
    return [name for name in entry_names(folder) if _annotations(folder / name)]


def _count(path: Path) -> int:
    """The number of points that a file claims to have, or has; 0 if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return 0
    if found := re.search(r"n_points\s*:\s*(\d{1,6})", text[:1000]):
        return int(found[1])
    inside = text.partition("{")[2].partition("}")[0]
    return len(inside.split()) // 2
