"""Writes annotated faces as one packed, shuffled data set with fast random access.

Every face becomes a square crop, large enough for augmentation, in a memory-mapped table of Hugging
Face ``datasets``; tar shards can only be read in order.
`hihlandmark.datasets.packed` reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image, Progress
from hihlandmark.crop import crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.datasets.packed import DESCRIPTION, TABLE, VERSION, import_datasets
from hihlandmark.datasets.reading import BadSample
from hihlandmark.errors import ConfigurationError, DataError, ImageError

WIDEST = 20_000
"""Largest crop in image pixels: larger ones come from wrong points, and would fill the memory."""
ROWS_IN_MEMORY = 64


@dataclass(frozen=True)
class PackedSet:
    """Numbers of faces of one set that were packed and skipped."""

    name: str
    layout: str
    split: str
    packed: int
    skipped: int


@dataclass(frozen=True)
class PackingReport:
    """The result of `pack`. Prints as a table."""

    folder: Path
    sets: tuple[PackedSet, ...]
    skipped: tuple[str, ...]
    """A message for every sample that was left out, by the reader of the data set or here."""
    bytes: int
    seconds: float

    @property
    def faces(self) -> int:
        """The number of packed faces."""
        return sum(packed.packed for packed in self.sets)

    def __str__(self) -> str:
        width = max(len(packed.name) for packed in self.sets)
        rows = [
            f"{s.name:{width}}  {s.split:10}  {s.layout:10}  {s.packed:6} packed  "
            f"{s.skipped} skipped"
            for s in self.sets
        ]
        size = f"{self.faces} faces, {self.bytes / 1e6:.1f} MB in {self.folder}"
        messages = [f"  skipped {message}" for message in self.skipped]
        return "\n".join([*rows, f"{size} ({self.seconds:.1f} s)", *messages])


def pack(
    sets: Sequence[AnnotatedFaces],
    out: Path,
    *,
    side: float = 2.0,
    max_side: int = 384,
    quality: int = 95,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackingReport:
    """Crop, encode and shuffle the faces of all sets into one folder.

    A crop is a square of whole pixels around the center of the tight box of a face's known points,
    black outside of the image. Points and rectangles are stored in crop pixels. A face whose image
    cannot be read is left out and counted. The folder appears when it is complete. The memory holds
    `ROWS_IN_MEMORY` crops at a time, whatever the number of faces.

    Args:
        sets: the faces, one set per split.
        out: the folder to write.
        side: of a crop, in longer sides of the box.
        max_side: larger crops are shrunk to this, in pixels; none is enlarged.
        quality: of the JPEG files, in 1..100.
        seed: of the order.
        overwrite: replace a packed data set at ``out``.
        progress: called with the number of faces done and of all faces.

    Raises:
        ConfigurationError: an argument is invalid, or sets contradict each other.
        DataError: the folder cannot be written, or no face is left.
    """
    _check_arguments(side, max_side, quality)
    mirrors = _mirrors(sets)
    out = Path(out)
    _check_target(out, overwrite)
    started = time.perf_counter()
    cropping = _Cropping(side, max_side, quality)
    order = [(s, f) for s, faces in enumerate(sets) for f in range(len(faces))]
    np.random.default_rng(seed).shuffle(order)
    with _whole_folder(out, overwrite) as folder:
        skipped = _write_table(sets, order, cropping, folder / TABLE, progress)
        messages = tuple(message for of_set in skipped for message in of_set)
        results = tuple(
            PackedSet(x.name, x.layout, _split(x), len(x) + len(x.skipped) - len(left), len(left))
            for x, left in zip(sets, skipped, strict=True)
        )
        _check_any(out, results, messages)
        description = {
            "version": VERSION,
            "sets": [vars(result) for result in results if result.packed],
            "mirrors": mirrors,
            "crops": {"side": side, "max_side": max_side, "quality": quality, "seed": seed},
            "skipped": messages,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
    return PackingReport(out, results, messages, size, time.perf_counter() - started)


def _write_table(
    sets: Sequence[AnnotatedFaces],
    order: Sequence[tuple[int, int]],
    cropping: _Cropping,
    path: Path,
    progress: Progress | None,
) -> list[list[str]]:
    """Write the faces, given as (set, face), in this order. Returns the skipped ones per set."""
    skipped = [list(faces.skipped) for faces in sets]
    with _table_writer(path) as write:
        for done, (which, index) in enumerate(order, start=1):
            face = sets[which][index]
            try:
                write({**_labels(sets[which], face), **cropping(face)})
            except (BadSample, ImageError) as error:
                skipped[which].append(f"{face.source or face.name}: {error}")
            if progress is not None:
                progress(done, len(order))
    return skipped


def _check_arguments(side: float, max_side: int, quality: int) -> None:
    if not 1 <= side <= 10:
        raise ConfigurationError(f"side={side}: must be 1 to 10 longer sides of the face's box")
    if not 16 <= max_side <= WIDEST:
        raise ConfigurationError(f"max_side={max_side}: must be 16 to {WIDEST} pixels")
    if not 1 <= quality <= 100:
        raise ConfigurationError(f"quality={quality}: JPEG's quality is 1 to 100")


def _split(faces: AnnotatedFaces) -> str:
    """The split of all faces of a set."""
    names = {face.split for face in faces}
    if len(names) != 1:
        raise ConfigurationError(f"{faces.name} has {len(names)} splits: pass one set per split")
    return names.pop()


def _mirrors(sets: Sequence[AnnotatedFaces]) -> dict[str, list[int]]:
    """Layout -> its mirror table, which all sets of the layout must share."""
    if not sets:
        raise ConfigurationError("pass at least one set")
    mirrors: dict[str, list[int]] = {}
    for faces in sets:
        _split(faces)
        mirror = faces.mirror.tolist()
        if mirrors.setdefault(faces.layout, mirror) != mirror:
            raise ConfigurationError(
                f"two sets of the layout {faces.layout} have different mirror tables: read one of "
                "them with another name, layout=..."
            )
    return mirrors


def _check_any(out: Path, results: Sequence[PackedSet], skipped: Sequence[str]) -> None:
    if not any(result.packed for result in results):
        shown = "".join(f"\n  {message}" for message in skipped[:5])
        raise DataError(
            f"nothing to write to {out}: all {len(skipped)} samples were skipped{shown}"
        )


def _labels(faces: AnnotatedFaces, face: AnnotatedFace) -> dict[str, Any]:
    """The columns of a face that do not depend on its crop."""
    return {
        "name": face.name,
        "set": faces.name,
        "split": face.split,
        "layout": faces.layout,
        "subsets": sorted(face.subsets),
        "source": face.source,
        "visible": None if face.visible is None else face.visible.tolist(),
    }


@dataclass(frozen=True)
class _Cropping:
    """Cuts and encodes crops, and transforms their labels."""

    side: float
    max_side: int
    quality: int

    def __call__(self, face: AnnotatedFace) -> dict[str, Any]:
        """The columns that depend on the crop. Raises `BadSample` and `ImageError`."""
        square = self.square(face.points)
        width = int(square[2])
        image = face.load_image()
        _check_overlap(square, image)
        crop = cut_crop(image, square, width)
        size = min(width, self.max_side)
        if size < width:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        matrix = crop_matrix(square, size)
        corners = None if face.rectangle is None else face.rectangle.reshape(2, 2)
        return {
            "image": {"bytes": self._encoded(crop), "path": None},
            "points": transform_points(matrix, face.points).ravel().astype(np.float32),
            "rectangle": None if corners is None else transform_points(matrix, corners).ravel(),
            "square": square,
        }

    def square(self, points: FloatArray) -> FloatArray:
        """The crop square (4,) of points (P, 2), of whole pixels, so that cutting copies pixels.

        Raises `BadSample` when the points coincide or span too large an area.
        """
        known = points[np.isfinite(points).all(axis=1)]
        box = tight_boxes(known) if len(known) else np.zeros(4)
        longer = float((box[2:] - box[:2]).max())
        if not 0 < longer * self.side <= WIDEST:
            raise BadSample(f"the {len(known)} known points of the face span {longer:g} pixels")
        width = int(np.ceil(longer * self.side))
        half = (width - 1) / 2
        left_top = np.rint((box[:2] + box[2:]) / 2 - half)
        return np.array([*(left_top + half), width, 0.0])

    def _encoded(self, crop: Any) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        done, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), options)
        assert done  # any (S, S, 3) uint8 array can be encoded
        return data.tobytes()


def _check_overlap(square: FloatArray, image: Image) -> None:
    """Raises `BadSample` when the square (4,) and the image (H, W, 3) do not overlap."""
    low, high = square[:2] - square[2] / 2, square[:2] + square[2] / 2
    height, width = image.shape[:2]
    if (high <= -0.5).any() or low[0] >= width - 0.5 or low[1] >= height - 0.5:
        raise BadSample(f"the face lies outside of its image of {width} x {height} pixels")


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise ConfigurationError(f"{out} is not a packed data set: choose another folder")
    if not overwrite:
        raise ConfigurationError(
            f"{out} is a packed data set: choose another folder, or overwrite it"
        )


@contextmanager
def _whole_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``out``, which replaces it after the block."""
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        new = temporary / "new"
        new.mkdir()  # with the usual permissions: mkdtemp lets nobody else read
        yield new
        _check_target(out, overwrite)  # again: packing takes a while
        _replace(out, new, temporary / "old")
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(out: Path, new: Path, old: Path) -> None:
    """Move ``new`` to ``out``, and what was there to ``old``; if that fails, nothing changes."""
    if not out.exists():
        new.rename(out)
        return
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise


@contextmanager
def _table_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write rows to a table; at most `ROWS_IN_MEMORY` are kept in memory."""
    datasets = import_datasets()
    from datasets.arrow_writer import ArrowWriter

    text, numbers = datasets.Value("string"), datasets.Value("float64")
    features = datasets.Features(
        {
            "name": text,
            "image": datasets.Image(decode=False),
            "points": datasets.Sequence(datasets.Value("float32")),
            "visible": datasets.Sequence(datasets.Value("bool")),
            "rectangle": datasets.Sequence(numbers),
            "square": datasets.Sequence(numbers),
            "split": text,
            "subsets": datasets.Sequence(text),
            "layout": text,
            "set": text,
            "source": text,
        }
    )
    with ArrowWriter(path=str(path), features=features, writer_batch_size=ROWS_IN_MEMORY) as writer:
        yield writer.write
        writer.finalize()
    with path.open("r+b") as file:  # Windows flushes only writable files
        os.fsync(file.fileno())  # a full disk may be detected only here
