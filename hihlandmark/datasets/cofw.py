"""Reads COFW as its authors publish it: 29 points with occlusion, in MATLAB v7.3 files.

``COFW_train_color.mat`` (1,345 faces) and ``COFW_test_color.mat`` (507). Such a file is HDF5 with
all axes reversed: ``IsTr`` / ``IsT`` refer to the images, (3, W, H) or gray (W, H); ``phisTr`` /
``phisT`` (87, N) hold 29 x, 29 y and 29 occlusion flags; ``bboxesTr`` / ``bboxesT`` (4, N) hold x,
y, width, height. The order of the points is that of our `COFW29`.

Coordinates count from 1: the authors' own code (RCPR, MATLAB) clips them to 1..width and indexes
the image with them. So 1 is subtracted here. HRNet's reader and its successors do not subtract it,
which shifts their points by a pixel down and right, in training and test alike; an NME measured
within COFW does not change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    Samples,
    check_layout,
    check_near,
    unknown_split,
)
from hihlandmark.errors import DataError, ImageError, missing_extra
from hihlandmark.image import load_image
from hihlandmark.layouts import COFW29


class SplitFile(NamedTuple):
    """The file of a split, the names of its arrays, and the published number of faces."""

    name: str
    images: str
    shapes: str
    boxes: str
    published: int


SPLITS = {
    "train": SplitFile("COFW_train_color.mat", "IsTr", "phisTr", "bboxesTr", 1345),
    "test": SplitFile("COFW_test_color.mat", "IsT", "phisT", "bboxesT", 507),
}


def recognize(folder: Path) -> bool:
    """Whether the folder is a data set of this format."""
    return any((folder / file.name).is_file() for file in SPLITS.values())


def splits(folder: Path) -> list[str]:
    """The splits whose files exist."""
    return [split for split, file in SPLITS.items() if (folder / file.name).is_file()]


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated faces of "train" or "test"; see `datasets.read_faces`. Needs h5py."""
    check_layout("COFW", COFW29, layout)
    if split not in SPLITS:
        raise unknown_split(folder, split, SPLITS)
    file = SPLITS[split]
    path = folder / file.name
    if not path.is_file():
        source = "COFW_color.zip (https://data.caltech.edu/records/20099)"
        raise DataError(f"{folder} has no {file.name}: unpack {source} there")
    shapes, boxes = _annotations(path, file)
    for index, (shape, box) in enumerate(zip(shapes, boxes, strict=True)):
        source = f"{file.name}, face {index + 1}"
        with samples.reading(source):
            check_near("points or box", np.concatenate([shape, box]))
            x, y, occluded = shape.reshape(3, COFW29.size)
            corner = box[:2] - 1
            samples.add(
                AnnotatedFace(
                    name=f"{split}/{index + 1:04d}",
                    load_image=CellImage(path, file.images, index),
                    points=np.stack([x, y], axis=-1) - 1,
                    split=split,
                    rectangle=np.concatenate([corner, corner + box[2:]]),
                    visible=occluded == 0,
                    source=source,
                )
            )
    return samples.result("COFW", COFW29, file.published)


def _annotations(path: Path, file: SplitFile) -> tuple[FloatArray, FloatArray]:
    """The shapes (N, 87) and boxes (N, 4) of a file, checked."""
    contents = _opened(path, os.getpid())
    names = (file.images, file.shapes, file.boxes)
    if missing := [name for name in names if name not in contents]:
        raise DataError(f"{path} has no {', '.join(missing)}: is it the color version of COFW?")
    try:
        shapes = np.asarray(contents[file.shapes], np.float64).T
        boxes = np.asarray(contents[file.boxes], np.float64).T
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}; download it again") from error
    expected = [(contents[file.images].size, columns) for columns in (3 * COFW29.size, 4)]
    if [shapes.shape, boxes.shape] != expected:
        raise DataError(
            f"{path}: {file.shapes} and {file.boxes} have the shapes {shapes.shape} and "
            f"{boxes.shape} instead of {expected}; download it again"
        )
    return shapes, boxes


@lru_cache(maxsize=4)
def _opened(path: Path, process: int) -> Any:
    """The opened file, one per process: a forked worker must not move its parent's position."""
    with missing_extra("train"):
        import h5py
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path} is not a MATLAB v7.3 (HDF5) file or damaged: {error}; download it again"
        ) from error


@dataclass(frozen=True)
class CellImage:
    """Reads an image of a MATLAB cell array."""

    path: Path
    array: str
    index: int

    def __call__(self) -> Image:
        """(H, W, 3) uint8 RGB. Raises `ImageError`."""
        try:
            contents = _opened(self.path, os.getpid())
            reference = np.ravel(contents[self.array])[self.index]
            pixels = np.asarray(contents[reference])
        except (DataError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
            place = f"image {self.index + 1} of {self.array} in {self.path}"
            raise ImageError(f"cannot read {place}: {error}; is the file complete?") from error
        return load_image(np.ascontiguousarray(pixels.T))
