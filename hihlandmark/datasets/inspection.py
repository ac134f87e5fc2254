"""Counts of a split of a data set, and its unusable samples, to check before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hihlandmark.arrays import Progress
from hihlandmark.datasets import packed
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.errors import ImageError


@dataclass(frozen=True)
class SplitContent:
    """Counts of one split; ``outside`` and ``unreadable`` are None when no image was read."""

    layout: str
    points: int
    """Annotated points a face."""
    faces: int
    subsets: Mapping[str, int]
    """Faces in each subset, in the order of their names."""
    unknown: int
    """Points of all faces that are not annotated."""
    hidden: int
    """Points of all faces that are annotated as hidden."""
    outside: int | None
    """Points of all faces that lie outside of their image."""
    unreadable: Sequence[str] | None
    """One message for every face whose image cannot be read."""
    skipped: Sequence[str]
    """One message for every sample that the reader left out."""


def split_layouts(folder: Path, format_name: str, split: str) -> list[str | None]:
    """The layouts of a split, each to be read by itself; None stands for the only one.

    Args:
        folder: of the data set.
        format_name: a key of `datasets.FORMATS`. Only a packed set can have several layouts.
        split: name of the split.
    """
    if format_name != "packed":
        return [None]
    sets = packed.describe(folder)["sets"]
    return list(dict.fromkeys(each["layout"] for each in sets if each["split"] == split))


def inspect_split(
    faces: AnnotatedFaces, read_images: bool = True, progress: Progress | None = None
) -> SplitContent:
    """Count the contents of a split.

    Args:
        faces: of the split.
        read_images: also read every image, which takes a while.
        progress: called with the number of images read and of all images.
    """
    outside, unreadable = 0, []
    for number, face in enumerate(faces if read_images else ()):
        try:
            height, width = face.load_image().shape[:2]
        except ImageError as error:
            unreadable.append(f"{face.name}: {error}")
        else:
            beyond = (face.points < -0.5) | (face.points >= np.array([width, height]) - 0.5)
            outside += int(beyond.any(axis=1).sum())
        if progress is not None:
            progress(number + 1, len(faces))
    subsets = Counter(subset for face in faces for subset in face.subsets)
    return SplitContent(
        layout=faces.layout,
        points=len(faces.mirror),
        faces=len(faces),
        subsets=dict(sorted(subsets.items())),
        unknown=sum(int(np.isnan(face.points).any(axis=1).sum()) for face in faces),
        hidden=sum(int((~face.visible).sum()) for face in faces if face.visible is not None),
        outside=outside if read_images else None,
        unreadable=unreadable if read_images else None,
        skipped=faces.skipped,
    )
