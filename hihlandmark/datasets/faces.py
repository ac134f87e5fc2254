"""Annotated faces, the result of every reader, and what the readers share."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from hihlandmark.arrays import BoolArray, FloatArray, Image, IndexArray
from hihlandmark.download import shorten
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.image import EXIF_ORIENTATION_TAG, load_image
from hihlandmark.layouts import LAYOUTS, Layout

OnBadSample = Literal["skip", "raise"]

SHOWN = 5
"""Reasons that an error quotes."""
FARTHEST = 1e6
"""Farthest coordinate, in pixels from the image's corner: no image is as large."""
FARTHEST_SIDES = 10
"""Farthest point outside of its image, in longer sides of the image."""


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
    photo: str = ""
    """The photograph that the image was cut from, where the data set states it."""

    @property
    def visibility(self) -> FloatArray:
        """(P,): 1 for points that can be seen, 0 for hidden ones, NaN where it is unknown.

        So it is of points without coordinates, unless they are annotated as hidden.
        """
        if self.visible is None:
            return np.full(len(self.points), np.nan)
        is_annotated = np.isfinite(self.points).all(axis=-1)
        return np.where(is_annotated | ~self.visible, self.visible, np.nan)


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

    def split(self, held_out: int | Collection[str]) -> tuple[AnnotatedFaces, AnnotatedFaces]:
        """All but some faces, and these.

        Args:
            held_out: the number of these faces, which are the same ones every time; or the names
                of their images, or of single faces, of which some may be missing.

        Raises:
            ConfigurationError: not both parts have faces.
        """
        if isinstance(held_out, int):
            order = np.random.default_rng(0).permutation(len(self))
            held, rest = order[:held_out], np.sort(order[held_out:])
        else:
            names = set(held_out)
            chosen = np.array(
                [not names.isdisjoint((f.name, image_of(f.name))) for f in self], bool
            )
            held, rest = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        if not (len(held) and len(rest)):
            raise ConfigurationError(
                f"held_out must name or number 1 to {len(self) - 1} of the {len(self)} faces of "
                f"{self.name}, not {held_out!s:.80}"
            )
        return (
            replace(self, faces=[self.faces[i] for i in rest]),
            replace(self, faces=[self.faces[i] for i in held]),
        )


def image_of(name: str) -> str:
    """The name of a face's image, from that of the face: "#2" follows for the second face."""
    return re.sub(r"#\d+$", "", name)


def layout_of_size(count: int) -> str:
    """The name of the first layout with a number of points; of a scheme of its own without one."""
    names = (known.name for known in LAYOUTS.values() if known.size == count)
    return next(names, f"POINTS{count}")


class BadSample(Exception):
    """One sample of a data set does not follow its format."""


class Samples:
    """Collects the faces of a split, and the samples that are left out.

    With ``needs_mirror=False`` a scheme whose mirror table is not known gets the identity.
    """

    def __init__(self, on_bad_sample: OnBadSample = "skip", needs_mirror: bool = True) -> None:
        self.on_bad_sample, self.needs_mirror = on_bad_sample, needs_mirror
        self.faces: list[AnnotatedFace] = []
        self.skipped: list[str] = []
        self._times_named: Counter[str] = Counter()
        self._names: set[str] = set()

    def add(self, face: AnnotatedFace) -> None:
        """Keep a face; further faces of one image get a number in their name.

        Raises `BadSample` for points or a rectangle that cannot be those of an image. Points too
        far outside of their image are an `ImageError` when it is loaded.
        """
        unknown = np.isnan(face.points).any(axis=1)
        if unknown.all():
            raise BadSample("none of its points is known")
        check_near("points", face.points[~unknown])
        if face.rectangle is not None:
            check_near("rectangle", face.rectangle)
        for times in count(self._times_named[face.name] + 1):
            name = face.name if times == 1 else f"{face.name}#{times}"
            if name not in self._names:
                break
        self._times_named[face.name] = times
        self._names.add(name)
        load_image = LabeledImage(face.load_image, face.points)
        self.faces.append(replace(face, name=name, load_image=load_image))

    @contextmanager
    def reading(self, where: str) -> Iterator[None]:
        """Skip a `BadSample` of the block at ``where`` (file and line), or raise `DataError`."""
        try:
            yield
        except BadSample as error:
            message = f"{where}: {error}"
            if self.on_bad_sample == "raise":
                raise DataError(f"{message}; repair it, or pass on_bad_sample='skip'") from error
            self.skipped.append(message)

    def result(self, name: str, layout: Layout, published: int | None = None) -> AnnotatedFaces:
        """The collected faces, in a layout of this package."""
        return AnnotatedFaces(name, layout.name, layout.mirror, self.faces, self.skipped, published)


def check_near(what: str, coordinates: FloatArray) -> None:
    """Raises `BadSample` for coordinates that are NaN or too large."""
    wrong = coordinates[~(np.abs(coordinates) <= FARTHEST)]
    if len(wrong):
        raise BadSample(
            f"a coordinate of its {what} is NaN or beyond {FARTHEST:g}: {wrong[0]:g}; repair it"
        )


def finite_numbers(fields: Sequence[str], first_column: int = 1) -> FloatArray:
    """Parse texts as numbers (N,) that are no larger than coordinates can be.

    Raises `BadSample` with the column and its text.
    """
    numbers = np.array([number_or_nan(text) for text in fields])
    wrong = np.flatnonzero(~(np.abs(numbers) <= FARTHEST))
    if len(wrong):
        where = f"{shorten(fields[wrong[0]])} in column {wrong[0] + first_column}"
        raise BadSample(f"{where} is not a number within {FARTHEST:g}")
    return numbers


def number_or_nan(text: str) -> float:
    """The number that a text represents; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, numbered from 1 on. Raises `DataError`."""
    try:
        # "utf-8-sig" drops the byte order mark that Windows editors write.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}; is it UTF-8?") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


class ScannedFolders:
    """Whether files exist, by listing each folder once: much faster than a check of each file."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether the path is an entry of its folder."""
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = frozenset(entry_names(folder))
        return path.name in self._names[folder]


def entry_names(folder: Path) -> list[str]:
    """The names of a folder's files and folders, sorted; none when it is not a folder."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # a name with NUL or without an encoding is a ValueError
        return []


@dataclass(frozen=True)
class StoredImage:
    """Reads an image file without applying its EXIF orientation.

    The published data sets were annotated, and are read by their authors' code, with tools that
    ignore the tag (MATLAB's imread, OpenCV 2, Pillow): their points refer to the stored pixels.
    """

    path: Path

    def __call__(self) -> Image:
        """(H, W, 3) uint8 RGB. Raises `ImageError`."""
        try:
            pillow = Pillow.open(self.path)
        except Exception as error:  # damaged headers make Pillow raise errors of many kinds
            raise ImageError(f"cannot open image {str(self.path)!r}: {error}") from error
        with pillow:
            try:
                pillow.getexif().pop(EXIF_ORIENTATION_TAG, None)
            except Exception:  # damaged metadata: `load_image` also ignores them
                pillow.info.pop("exif", None)
            try:
                return load_image(pillow)
            except ImageError as error:
                raise ImageError(f"file {str(self.path)!r}: {error}") from error


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """Reads an image, and refuses it where a label cannot be that of the image."""

    load: Callable[[], Image]
    points: FloatArray

    def __call__(self) -> Image:
        """(H, W, 3) uint8 RGB. Raises `ImageError`, also for points (P, 2) too far outside."""
        image = self.load()
        extent = np.array(image.shape[1::-1])
        outside = np.maximum(-self.points, self.points - extent).max(axis=1)
        far = np.flatnonzero(outside > FARTHEST_SIDES * extent.max())  # NaN is not
        if len(far):
            x, y = self.points[far[0]]
            raise ImageError(
                f"its point {far[0]} ({x:g}, {y:g}) lies more than {FARTHEST_SIDES} sides outside "
                f"of the image of {extent[0]} x {extent[1]} pixels: repair the label"
            )
        return image


def with_reasons(message: str, reasons: Sequence[str]) -> str:
    """An error message with the first reasons below it, one per line."""
    more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    return "\n  ".join([message, *reasons[:SHOWN], *more])


def unknown_split(folder: Path, split: str, offered: Iterable[str]) -> ConfigurationError:
    """The error for a split that does not exist."""
    known = ", ".join(offered) or "none"
    return ConfigurationError(f"{folder} has no split {split!r}; it has {known}")


def check_layout(data_set: str, own: Layout, wanted: str | None) -> None:
    """Raises `ConfigurationError` when the layout is not the only one of the data set."""
    if wanted is not None and wanted != own.name:
        raise ConfigurationError(
            f"{data_set} is annotated in the layout {own.name}, not in {wanted}: omit layout"
        )
