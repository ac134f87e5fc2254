"""What every reader of a data set returns: annotated faces, and what was left out and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import Image


@dataclass(frozen=True, eq=False)
class AnnotatedFace:
    """One labeled face of an image, in pixels with the center of the top-left pixel at (0, 0)."""

    name: str
    """Names the face in messages, logs and galleries: the image's path within the data set, and a
    suffix ("#2") from the second face of an image on."""
    load_image: Callable[[], Image]
    """Reads the image that the points belong to: (H, W, 3) uint8 RGB. Picklable. Raises
    `ImageError`."""
    points: NDArray[np.float64]
    """(P, 2); NaN where a point is not annotated. Points may lie outside of the image."""
    split: str
    rectangle: NDArray[np.float64] | None = None
    """(4,) xyxy: the face rectangle that the data set's authors publish."""
    visible: NDArray[np.bool_] | None = None
    """(P,): False where the annotators marked a point as hidden."""
    subsets: frozenset[str] = frozenset()
    """Names of the parts of the split that the face belongs to, such as "pose"."""
    source: str = ""
    """File and line that the annotation comes from, for messages."""


@dataclass(frozen=True)
class AnnotatedFaces:
    """The faces of one split of a data set, all with the same P points."""

    name: str
    """Of the data set, without the split: "WFLW"."""
    layout: str
    """Name of a `Layout`; "POINTS" and the number of points where the scheme is none of ours."""
    mirror: NDArray[np.intp]
    """(P,): ``mirror[i]`` is the point that takes place i in the mirrored image."""
    faces: Sequence[AnnotatedFace]
    skipped: Sequence[str] = field(default=())
    """One message for every sample that was left out: file, line, what is wrong with it."""
    published: int | None = None
    """The number of faces in the split as its authors publish it, where that is known."""

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> AnnotatedFace:
        return self.faces[index]

    def __iter__(self) -> Iterator[AnnotatedFace]:
        return iter(self.faces)
