"""The packed format: reading and writing.

A folder with ``pack.json`` (layouts, mirror tables, splits) and ``faces.arrow``, a memory-mapped
table of Hugging Face ``datasets`` with one crop per row, in shuffled order. It has fast random
access, which exact resuming of training needs.
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
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image, Progress
from hihlandmark.crop import crop_matrix, cut_crop, known_points, tight_boxes, transform_points
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    BadSample,
    Samples,
    unknown_split,
)
from hihlandmark.errors import (
    ConfigurationError,
    DataError,
    ImageError,
    abbreviate,
    missing_extra,
)

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
    mirror = np.array(description["mirrors"][chosen], np.intp)
    for row, face in _faces(folder, split, chosen, several_sets=len(names) > 1):
        with samples.reading(f"{TABLE}, row {row}"):
            if len(face.points) != len(mirror):
                raise BadSample(f"has {len(face.points)} points instead of {len(mirror)}")
            samples.add(face)
    return AnnotatedFaces(" + ".join(names), chosen, mirror, samples.faces, samples.skipped)


def describe(folder: Path) -> dict[str, Any]:
    """The contents of ``pack.json``. Raises `DataError` when damaged or of another version."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = description["version"], description["sets"], description["mirrors"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is missing or damaged ({error!r}): pack again") from error
    if version != VERSION:
        raise DataError(f"{path} is of version {version}, this package reads {VERSION}: pack again")
    return description


def _faces(
    folder: Path, split: str, layout: str, several_sets: bool
) -> Iterator[tuple[int, AnnotatedFace]]:
    table = open_table(folder / TABLE)
    columns = table.remove_columns("image").with_format("arrow")[:]
    numbers = {name: columns.column(name).combine_chunks() for name in _ARRAYS}
    texts = {name: columns.column(name).to_pylist() for name in _TEXTS}
    stamp = _stamp(folder / TABLE)
    for row in range(columns.num_rows):
        if (texts["split"][row], texts["layout"][row]) != (split, layout):
            continue
        points, visible, rectangle = (numbers[name][row].values for name in _ARRAYS)
        subsets = set(texts["subsets"][row])
        if several_sets:
            subsets.add(texts["set"][row].lower())
        yield (
            row,
            AnnotatedFace(
                name=texts["name"][row],
                load_image=PackedCrop(folder / TABLE, row, stamp),
                points=points.to_numpy().astype(np.float64).reshape(-1, 2),
                split=split,
                rectangle=None if rectangle is None else rectangle.to_numpy(),
                visible=None if visible is None else visible.to_numpy(zero_copy_only=False),
                subsets=frozenset(subsets),
                source=texts["source"][row],
            ),
        )


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
        row = "{name:{width}}  {split:10}  {layout:10}  {packed:6} packed  {skipped} skipped"
        rows = [row.format(width=width, **vars(packed)) for packed in self.sets]
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
    cannot be read is left out and counted. The folder appears when it is complete.

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
    if not 1 <= side <= 10:
        raise ConfigurationError(f"side={side}: must be 1 to 10 longer sides of the face's box")
    if not 16 <= max_side <= WIDEST:
        raise ConfigurationError(f"max_side={max_side}: must be 16 to {WIDEST} pixels")
    if not 1 <= quality <= 100:
        raise ConfigurationError(f"quality={quality}: JPEG's quality is 1 to 100")
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
        if not any(result.packed for result in results):
            shown = "\n  ".join(["all samples were skipped", *messages[:5]])
            raise DataError(f"nothing to write to {out}: {shown}")
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
            row = {"set": sets[which].name, "layout": sets[which].layout}
            try:
                write({**row, **cropping(face)})
            except (BadSample, ImageError) as error:
                skipped[which].append(f"{face.source or face.name}: {error}")
            if progress is not None:
                progress(done, len(order))
    return skipped


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
                f"two sets of the layout {faces.layout} have different mirror tables: read one "
                "with another layout=..."
            )
    return mirrors


@dataclass(frozen=True)
class _Cropping:
    """Cuts and encodes crops, and transforms their labels."""

    side: float
    max_side: int
    quality: int

    def __call__(self, face: AnnotatedFace) -> dict[str, Any]:
        """The columns of a face. Raises `BadSample` and `ImageError`."""
        square = self.square(face.points)
        width = int(square[2])
        image = face.load_image()
        low, high = square[:2] - square[2] / 2, square[:2] + square[2] / 2
        extent = np.array(image.shape[1::-1])
        if (high <= -0.5).any() or (low >= extent - 0.5).any():
            raise BadSample(f"the face lies outside of its image of {extent.tolist()} pixels")
        crop = cut_crop(image, square, width)
        size = min(width, self.max_side)
        if size < width:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        done, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), options)
        assert done  # any (S, S, 3) uint8 array can be encoded
        matrix = crop_matrix(square, size)
        corners = None if face.rectangle is None else face.rectangle.reshape(2, 2)
        return {
            "image": {"bytes": data.tobytes(), "path": None},
            "points": transform_points(matrix, face.points).ravel().astype(np.float32),
            "rectangle": None if corners is None else transform_points(matrix, corners).ravel(),
            "square": square,
            "name": face.name,
            "split": face.split,
            "subsets": sorted(face.subsets),
            "source": face.source,
            "visible": None if face.visible is None else face.visible.tolist(),
        }

    def square(self, points: FloatArray) -> FloatArray:
        """The crop square (4,) of points (P, 2), of whole pixels, so that cutting copies pixels.

        Raises `BadSample` when the points coincide or span too large an area.
        """
        known = known_points(points)
        box = tight_boxes(known) if len(known) else np.zeros(4)
        longer = float((box[2:] - box[:2]).max())
        if not 0 < longer * self.side <= WIDEST:
            raise BadSample(f"the {len(known)} known points of the face span {longer:g} pixels")
        width = int(np.ceil(longer * self.side))
        half = (width - 1) / 2
        left_top = np.rint((box[:2] + box[2:]) / 2 - half)
        return np.array([*(left_top + half), width, 0.0])


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / DESCRIPTION).is_file():
        raise ConfigurationError(f"{out} is not a packed data set: choose another folder")
    others = sorted({path.name for path in out.iterdir()} - {DESCRIPTION, TABLE})
    if overwrite and others:
        raise ConfigurationError(
            f"{out} also holds {abbreviate(others)}: move that away, or choose another folder"
        )
    if not overwrite:
        raise ConfigurationError(
            f"{out} is a packed data set already: replace it by --overwrite (overwrite=True), or "
            "choose another folder"
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
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
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

    texts = dict.fromkeys(("name", "split", "layout", "set", "source"), datasets.Value("string"))
    lists = {"points": "float32", "visible": "bool", "rectangle": "float64", "square": "float64"}
    lists["subsets"] = "string"
    columns = {name: datasets.Sequence(datasets.Value(kind)) for name, kind in lists.items()}
    features = datasets.Features({"image": datasets.Image(decode=False), **texts, **columns})
    with ArrowWriter(path=str(path), features=features, writer_batch_size=ROWS_IN_MEMORY) as writer:
        yield writer.write
        writer.finalize()
    with path.open("r+b") as file:  # Windows flushes only writable files
        os.fsync(file.fileno())  # a full disk may be detected only here
