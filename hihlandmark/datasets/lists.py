"""Reads lists of ready crops, as PFLD's tools write them and the HIH repository uses them.

::

    train.txt  train/...png                    (HIH: data/benchmark/WFLW)
    train_data/list.txt  train_data/imgs/...   (PFLD)

A line has the crop's path (first or last) and P x 2 coordinates in 0..1 of the crop's width and
height, separated by blanks. PFLD adds WFLW's six attribute flags, which become subsets, and three
angles, which are not used. A split is the name of a list: "test_largepose" for test_largepose.txt.

A coordinate v stands for pixel v * side: the tools subtract the crop's whole-pixel corner and
divide by its side before they resize it. (The half-pixel shift of the resized crop depends on the
original side, which no list states.)
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from hihlandmark.arrays import FloatArray
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    BadSample,
    Samples,
    ScannedFolders,
    StoredImage,
    entry_names,
    finite_numbers,
    number_or_nan,
    numbered_lines,
    unknown_split,
)
from hihlandmark.datasets.wflw import ATTRIBUTES, flagged_subsets
from hihlandmark.errors import DataError
from hihlandmark.layouts import COFW29, W300_68, WFLW98, Layout, get_layout

# What may follow the coordinates: nothing, angles, flags, or flags and angles.
ANGLES, FLAGS = 3, len(ATTRIBUTES)
EXTRAS = (0, ANGLES, FLAGS, FLAGS + ANGLES)
FARTHEST = 1.0
"""Farthest coordinate outside of 0..1: jaws reach beyond tight crops, but coordinates in pixels are
an error."""


def recognize(folder: Path) -> bool:
    """Whether the folder is a data set of this format."""
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
    except (StopIteration, DataError):
        return False
    return len(line.split()) > 2 * COFW29.size


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated crops of a list; see `datasets.read_faces`.

    Without a ``layout``, it follows from the number of coordinates.
    """
    found = _lists(folder)
    if split not in found:
        raise unknown_split(folder, split, found)
    path = found[split]
    lines = []
    for number, text in numbered_lines(path):
        with samples.reading(f"{path.name}, line {number}"):
            lines.append((number, _parse(text)))
    counts = Counter(len(numbers) for _, (_, numbers) in lines)
    scheme = get_layout(layout) if layout else _layout_of(path, counts.most_common(1))
    files = ScannedFolders()
    first: dict[str, tuple[int, FloatArray]] = {}
    for number, (image, numbers) in lines:
        source = f"{path.name}, line {number}"
        with samples.reading(source):
            coordinates, extras = np.split(numbers, [2 * scheme.size])
            if len(coordinates) < 2 * scheme.size or len(extras) not in EXTRAS:
                known = " or ".join(str(2 * scheme.size + extra) for extra in EXTRAS)
                raise BadSample(f"has {len(numbers)} numbers instead of {known}")
            if np.abs(coordinates - 0.5).max() > 0.5 + FARTHEST:
                raise BadSample("its coordinates are not in 0..1 of the crop; are they in pixels?")
            line, same = first.setdefault(image, (number, coordinates))
            if not np.array_equal(coordinates, same):
                raise BadSample(f"line {line} has other points for this crop")
            crop = _find_crop(folder, path, split, image, files)
            flags = extras[:FLAGS]
            has_flags = len(flags) == FLAGS and np.isin(flags, (0, 1)).all()
            samples.add(
                AnnotatedFace(
                    name=image,
                    load_image=StoredImage(crop),
                    points=coordinates.reshape(-1, 2) * _size(crop),
                    split=split,
                    subsets=flagged_subsets(flags) if has_flags else frozenset(),
                    source=source,
                )
            )
    return samples.result(folder.name, scheme)


def _parse(line: str) -> tuple[str, FloatArray]:
    """The path of a crop, and the numbers (N,) of a line."""
    fields = line.split()
    if np.isnan(number_or_nan(fields[0])):
        return fields[0], finite_numbers(fields[1:], first_column=2)
    return fields[-1], finite_numbers(fields[:-1])


def _layout_of(path: Path, most_common: list[tuple[int, int]]) -> Layout:
    """The layout whose coordinates, and maybe extras, make up the lines of a list."""
    if not most_common:  # every line was skipped, and is reported by the caller
        return WFLW98
    count = most_common[0][0]
    for layout in (WFLW98, W300_68, COFW29):
        if count - 2 * layout.size in EXTRAS:
            return layout
    raise DataError(
        f"{path}: {count} numbers a line match no layout; there are lists of 98, 68 and 29 points"
    )


def _find_crop(folder: Path, path: Path, split: str, image: str, files: ScannedFolders) -> Path:
    """The file of a crop in a list at ``path``.

    HIH's lists name crops relative to the folder of the split; PFLD's contain paths of the machine
    that wrote them, whose last part is in ``imgs`` beside the list.
    """
    roots = [folder / split, path.parent, folder, folder / split.split("_")[0]]
    places = [root / image for root in roots]
    places += [root / Path(image).name for root in (path.parent / "imgs", folder / split)]
    for place in places:
        if files.has(place):
            return place
    raise BadSample(f"there is no image {image} in {', '.join(map(str, roots))}")


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a crop, from the header of its file."""
    try:
        with Pillow.open(path) as image:
            return image.size
    except Exception as error:  # damaged headers make Pillow raise errors of many kinds
        raise BadSample(f"{path} is not a readable image: {error}") from error
