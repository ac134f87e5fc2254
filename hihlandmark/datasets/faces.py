"""The result of every reader of data sets: annotated faces, and the samples left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hihlandmark.arrays import BoolArray, FloatArray, Image, IndexArray


@dataclass(frozen=True, eq=False)
class AnnotatedFace:
    """One labeled face of an image, in pixels with the center of the top-left pixel at (0, 0)."""

    name: str
    """Identifies the face: path of its image in the data set; "#2" follows for a second face."""
    load_image: Callable[[], Image]
    """Reads the image: (H, W, 3) uint8 RGB. Picklable. Raises `ImageError`."""
    points: FloatArray
    """(P, 2); NaN where a point is not annotated. Points may lie outside of the image."""
    split: str
    rectangle: FloatArray | None = None
    """(4,) xyxy: the published face rectangle."""
    visible: BoolArray | None = None
    """(P,): False for points annotated as hidden."""
    subsets: frozenset[str] = frozenset()
    """Names of the subsets of the split that the face belongs to, such as "pose"."""
    source: str = ""
    """File and line of the annotation, for messages."""


@dataclass(frozen=True)
class AnnotatedFaces:
    """The faces of one split of a data set, all with the same P points."""

    name: str
    """Of the data set, without the split, such as "WFLW"."""
    layout: str
    """Name of a `Layout`; "POINTS" and the number of points for other schemes."""
    mirror: IndexArray
    """(P,): ``mirror[i]`` is the point that becomes point i in the mirrored image."""
    faces: Sequence[AnnotatedFace]
    skipped: Sequence[str] = field(default=())
    """One message for every sample that was left out: file, line, problem."""
    published: int | None = None
    """The number of faces in the split as published, if known."""

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> AnnotatedFace:
        return self.faces[index]

    def __iter__(self) -> Iterator[AnnotatedFace]:
        return iter(self.faces)
