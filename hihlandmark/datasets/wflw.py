"""Reads WFLW as its authors publish it: 98 points, six attributes, 7,500 + 2,500 faces.

::

    WFLW_images/0--Parade/...jpg
    WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{train,test}.txt
    WFLW_annotations/list_98pt_test/list_98pt_test{,_largepose,_expression,...}.txt

A line of a list has 98 x 2 coordinates, then (in the first kind) the face rectangle xmin, ymin,
xmax, ymax and six flags, then the image's path, separated by blanks. Coordinates are used as
published: in pixels with the center of the top-left pixel at (0, 0), as in the authors' code.

The subsets are pose, expression, illumination, makeup, occlusion and blur: from the flags, or for a
test list without flags from the lists of the subsets.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    BadSample,
    Samples,
    ScannedFolders,
    StoredImage,
    check_layout,
    finite_numbers,
    numbered_lines,
    unknown_split,
)
from hihlandmark.errors import DataError
from hihlandmark.layouts import WFLW98

IMAGES, ANNOTATIONS = "WFLW_images", "WFLW_annotations"
# The first list that exists is read.
LISTS = {
    "train": ("list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt",),
    "test": (
        "list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt",
        "list_98pt_test/list_98pt_test.txt",
    ),
}
PUBLISHED = {"train": 7500, "test": 2500}
# In the order of the flags; the list of "pose" is called "largepose".
ATTRIBUTES = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")
SUBSET_LISTS = {
    name: f"list_98pt_test/list_98pt_test_{'largepose' if name == 'pose' else name}.txt"
    for name in ATTRIBUTES
}
COORDINATES, RECTANGLE, FLAGS = 196, 4, 6
NUMBERS_IN_LINE = (COORDINATES, COORDINATES + RECTANGLE, COORDINATES + RECTANGLE + FLAGS)


def recognize(folder: Path) -> bool:
    """Whether the folder is a data set of this format."""
    return (folder / ANNOTATIONS).is_dir() or (folder / IMAGES).is_dir()


def splits(folder: Path) -> list[str]:
    """The splits whose lists exist, and the subsets of the test split."""
    whole = [name for name in LISTS if _list(folder, name) is not None]
    return whole + [f"test/{name}" for name in ATTRIBUTES if "test" in whole]


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated faces of "train" or "test"; see `datasets.read_faces`."""
    check_layout("WFLW", WFLW98, layout)
    if split not in LISTS:
        raise unknown_split(folder, split, LISTS)
    path = _list(folder, split)
    if path is None:
        missing = f"list of WFLW's {split} faces ({' or '.join(LISTS[split])} in {ANNOTATIONS})"
        raise DataError(f"{folder} has no {missing}: unpack WFLW_annotations.tar.gz there")
    if not (folder / IMAGES).is_dir():
        raise DataError(f"{folder} has no folder {IMAGES}: unpack WFLW_images.tar.gz there")
    files = ScannedFolders()
    subset_lists = _subsets_by_face(folder) if split == "test" else {}
    for number, line in numbered_lines(path):
        source = f"{path.name}, line {number}"
        with samples.reading(source):
            image, numbers = _parse(line)
            if not files.has(folder / IMAGES / image):
                raise BadSample(f"there is no image {IMAGES}/{image}")
            rectangle, flags = np.split(numbers[COORDINATES:], [RECTANGLE])
            if not np.isin(flags, (0, 1)).all():
                raise BadSample(f"its attributes {flags} are not all 0 or 1")
            listed = subset_lists.get(_key(image, numbers), set())
            samples.add(
                AnnotatedFace(
                    name=image,
                    load_image=StoredImage(folder / IMAGES / image),
                    points=numbers[:COORDINATES].reshape(-1, 2),
                    split=split,
                    rectangle=rectangle if len(rectangle) else None,
                    subsets=flagged_subsets(flags) if len(flags) else frozenset(listed),
                    source=source,
                )
            )
    return samples.result("WFLW", WFLW98, PUBLISHED[split])


def _list(folder: Path, split: str) -> Path | None:
    places = [folder / ANNOTATIONS / name for name in LISTS[split]]
    return next((place for place in places if place.is_file()), None)


def _parse(line: str) -> tuple[str, FloatArray]:
    """A line -> the image's path, and the numbers before it."""
    *fields, image = line.split()
    if len(fields) not in NUMBERS_IN_LINE:
        known = " or ".join(str(count + 1) for count in NUMBERS_IN_LINE)
        raise BadSample(f"has {len(fields) + 1} columns instead of {known}")
    return image, finite_numbers(fields)


def flagged_subsets(flags: FloatArray) -> frozenset[str]:
    """The names of the attributes whose flags (6,) are 1."""
    return frozenset(name for name, flag in zip(ATTRIBUTES, flags, strict=True) if flag)


def _subsets_by_face(folder: Path) -> dict[tuple[str, bytes], set[str]]:
    """The subset lists that each face of the test split is in; empty without such lists."""
    subsets: dict[tuple[str, bytes], set[str]] = defaultdict(set)
    for name, file in SUBSET_LISTS.items():
        path = folder / ANNOTATIONS / file
        for _, line in numbered_lines(path) if path.is_file() else ():
            try:
                image, numbers = _parse(line)
            except BadSample:  # reported once, for the list of the whole split
                continue
            subsets[_key(image, numbers)].add(name)
    return subsets


def _key(image: str, numbers: FloatArray) -> tuple[str, bytes]:
    """Identifies a face by its image and points, to a tenth of a pixel."""
    return image, np.rint(numbers[:COORDINATES] * 10).astype(np.int64).tobytes()
