"""Reads lists of ready crops, as PFLD's tools write them and the HIH repository uses them.

::

    train.txt  train/...png                    (HIH: data/benchmark/WFLW)
    train_data/list.txt  train_data/imgs/...   (PFLD)

A line has the crop's path (first, or last) and P x 2 coordinates in 0..1 of the crop's width and
height, with blanks between. PFLD adds WFLW's six attribute flags and three angles; flags become
subsets, angles are not used. A split is a list's name: "test_largepose" for test_largepose.txt.

A coordinate v stands for pixel v * side: the tools subtract the crop's whole-pixel corner and
divide by its side before they resize it. (The half pixel by which the resized crop moves depends on
the side before, which no list states.)
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.datasets.reading import (
    BadSample,
    Samples,
    ScannedFolders,
    StoredPhoto,
    entry_names,
    finite_numbers,
    numbered_lines,
    unknown_split,
)
from hihlandmark.datasets.wflw import ATTRIBUTES
from hihlandmark.errors import DataError
from hihlandmark.layouts import COFW29, W300_68, WFLW98, Layout, get_layout

# What may follow the coordinates: nothing, angles, flags, or flags and angles.
ANGLES, FLAGS = 3, len(ATTRIBUTES)
EXTRAS = (0, ANGLES, FLAGS, FLAGS + ANGLES)
FARTHEST = 1.0
"""How far outside of 0..1 a coordinate may be: jaws reach beyond tight crops, but a list in pixels
is not read as one in shares."""


class Line(NamedTuple):
    """What a line of a list says: the crop's path, and the numbers (N,)."""

    image: str
    numbers: NDArray[np.float64]


def recognize(folder: Path) -> bool:
    """Whether the folder holds a data set of this format."""
    return bool(splits(folder))


def splits(folder: Path) -> list[str]:
    """The names of the lists."""
    return list(_lists(folder))


def _lists(folder: Path) -> dict[str, Path]:
    """Split -> its list."""
    names = entry_names(folder)
    found = {Path(name).stem: folder / name for name in names if name.endswith(".txt")}
    for name in names:
        found.setdefault(name.removesuffix("_data"), folder / name / "list.txt")
    return {split: path for split, path in found.items() if _looks_like_list(path)}


def _looks_like_list(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        _, line = next(numbered_lines(path))
        fields = line.split()
        return len(fields) > 2 * COFW29.size and len(_parse(line).numbers) > 0
    except (StopIteration, DataError):
        return False
    except BadSample:  # a list, whose first line is a bad one
        return True


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated crops of a list. ``layout``: default, by the number of coordinates.

    Raises `DataError` and `ConfigurationError`.
    """
    found = _lists(folder)
    if split not in found:
        raise unknown_split(folder, split, found)
    path = found[split]
    lines = []
    for number, text in numbered_lines(path):
        with samples.reading(f"{path.name}, line {number}"):
            lines.append((number, _parse(text)))
    counts = Counter(len(line.numbers) for _, line in lines)
    scheme = get_layout(layout) if layout else _layout_of(path, counts.most_common(1))
    crops = CropFinder(folder, path, split)
    for number, line in lines:
        source = f"{path.name}, line {number}"
        with samples.reading(source):
            samples.add(_face(line, scheme, crops, split, source))
    return samples.result(folder.name, scheme)


def _parse(text: str) -> Line:
    fields = text.split()
    if _is_number(fields[0]):
        return Line(fields[-1], finite_numbers(fields[:-1]))
    return Line(fields[0], finite_numbers(fields[1:], first_column=2))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _layout_of(path: Path, most_common: list[tuple[int, int]]) -> Layout:
    """The layout whose coordinates, and maybe extras, make up the lines of a list."""
    if not most_common:  # every line was skipped, and is reported by the caller
        return WFLW98
    count = most_common[0][0]
    for layout in (WFLW98, W300_68, COFW29):
        if count - 2 * layout.size in EXTRAS:
            return layout
    raise DataError(
        f"{path}: {count} numbers a line are the points of no layout; lists of 98, 68 and 29 "
        "points are read, with or without six flags and three angles behind them"
    )


class CropFinder:
    """Finds the files that a list names.

    HIH's lists name them within the folder of the split; PFLD's carry paths of the machine that
    wrote them, whose last part is in ``imgs`` beside the list.
    """

    def __init__(self, folder: Path, path: Path, split: str) -> None:
        self.files = ScannedFolders()
        self.roots = (folder / split, path.parent, folder, folder / split.split("_")[0])
        self.last_resort = (path.parent / "imgs", folder / split)

    def find(self, image: str) -> Path:
        """The file of a crop. Raises `BadSample`."""
        places = [root / image for root in self.roots]
        places += [root / Path(image).name for root in self.last_resort]
        found = next((place for place in places if self.files.has(place)), None)
        if found is None:
            looked = ", ".join(
                str(root) for root in dict.fromkeys((*self.roots, *self.last_resort))
            )
            raise BadSample(f"there is no image {image} in {looked}")
        return found


def _face(line: Line, layout: Layout, crops: CropFinder, split: str, source: str) -> AnnotatedFace:
    coordinates = line.numbers[: 2 * layout.size]
    extras = line.numbers[2 * layout.size :]
    if len(coordinates) < 2 * layout.size or len(extras) not in EXTRAS:
        known = " or ".join(str(2 * layout.size + extra) for extra in EXTRAS)
        raise BadSample(f"has {len(line.numbers)} numbers instead of {known}")
    if np.abs(coordinates - 0.5).max() > 0.5 + FARTHEST:
        raise BadSample("its coordinates are not in 0..1 of the crop; are they in pixels?")
    path = crops.find(line.image)
    return AnnotatedFace(
        name=line.image,
        load_image=StoredPhoto(path),
        points=coordinates.reshape(-1, 2) * _size(path),
        split=split,
        subsets=_subsets(extras),
        source=source,
    )


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a crop, from the header of its file."""
    try:
        with Pillow.open(path) as picture:
            return picture.size
    except Exception as error:  # damaged headers make Pillow raise errors of many kinds
        raise BadSample(f"{path} is no image that opens: {error}") from error


def _subsets(extras: NDArray[np.float64]) -> frozenset[str]:
    flags = extras[:FLAGS]
    if len(flags) < FLAGS or not np.isin(flags, (0, 1)).all():
        return frozenset()
    return frozenset(name for name, flag in zip(ATTRIBUTES, flags, strict=True) if flag)
