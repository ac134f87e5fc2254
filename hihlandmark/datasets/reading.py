"""What the readers of all formats share: bad samples, numbers in text, files that must exist."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces, Image
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.image import EXIF_ORIENTATION_TAG, load_image
from hihlandmark.layouts import Layout

OnBadSample = Literal["skip", "raise"]


class BadSample(Exception):
    """One sample of a data set is not what its format says; the message says how."""


class Samples:
    """Gathers the faces of a split, and the samples that had to be left out."""

    def __init__(self, on_bad_sample: OnBadSample = "skip") -> None:
        self.on_bad_sample = on_bad_sample
        self.faces: list[AnnotatedFace] = []
        self.skipped: list[str] = []
        self._times_named: Counter[str] = Counter()

    def add(self, face: AnnotatedFace) -> None:
        """Keeps a face; further faces of one image get a number in their name."""
        self._times_named[face.name] += 1
        times = self._times_named[face.name]
        self.faces.append(face if times == 1 else replace(face, name=f"{face.name}#{times}"))

    @contextmanager
    def reading(self, where: str) -> Iterator[None]:
        """Turns a `BadSample` of its block into a skipped sample, or into a `DataError`.

        ``where``: file and line, for the message.
        """
        try:
            yield
        except BadSample as error:
            message = f"{where}: {error}"
            if self.on_bad_sample == "raise":
                raise DataError(f"{message}; mend it, or pass on_bad_sample='skip'") from error
            self.skipped.append(message)

    def result(self, name: str, layout: Layout, published: int | None = None) -> AnnotatedFaces:
        """What was gathered, for a layout of ours."""
        return AnnotatedFaces(name, layout.name, layout.mirror, self.faces, self.skipped, published)


def finite_numbers(fields: Sequence[str], first_column: int = 1) -> NDArray[np.float64]:
    """Texts -> (N,) finite numbers. Raises `BadSample` that names the column and its text."""
    try:
        numbers = np.array(fields, np.float64)
    except ValueError:
        numbers = np.array([_number_or_nan(text) for text in fields], np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        column = int(wrong[0])
        raise BadSample(f"{fields[column]!r} in column {column + first_column} is no finite number")
    return numbers


def _number_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1 on.

    Raises `DataError` when the file is missing, cannot be read, or is no UTF-8 text.
    """
    try:
        # "utf-8-sig" drops the byte order mark that Windows editors write.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read {path}: {reason}; check the path, and save it as UTF-8"
        ) from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line


class ScannedFolders:
    """Whether files exist, by listing each folder once: much cheaper than asking for each file."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether the path is an entry of its folder."""
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = frozenset(entry_names(folder))
        return path.name in self._names[folder]


def entry_names(folder: Path) -> list[str]:
    """The names of a folder's files and folders, sorted; none when it is no folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


@dataclass(frozen=True)
class StoredPhoto:
    """Reads an image file as it is stored, without turning it as its EXIF says.

    The published data sets were annotated, and are read by their authors' code, with tools that
    ignore the tag (MATLAB's imread, OpenCV 2, Pillow): their points belong to the stored pixels.
    """

    path: Path

    def __call__(self) -> Image:
        """(H, W, 3) uint8 RGB. Raises `ImageError`."""
        try:
            picture = Pillow.open(self.path)
        except Exception as error:  # damaged headers make Pillow raise errors of many kinds
            raise ImageError(
                f"cannot open image {str(self.path)!r}: {error}; fetch or save it again"
            ) from error
        with picture:
            try:
                picture.getexif().pop(EXIF_ORIENTATION_TAG, None)
            except Exception:  # damaged metadata: `load_image` then ignores them too
                picture.info.pop("exif", None)
            try:
                return load_image(picture)
            except ImageError as error:
                raise ImageError(f"file {str(self.path)!r}: {error}") from error


def unknown_split(folder: Path, split: str, offered: Iterable[str]) -> ConfigurationError:
    """The error for a split that the data set does not have."""
    known = ", ".join(offered) or "none"
    return ConfigurationError(f"{folder} has no split {split!r}; it has {known}")


def check_layout(data_set: str, own: Layout, wanted: str | None) -> None:
    """Raises `ConfigurationError` when another layout is wanted than the data set's only one."""
    if wanted is not None and wanted != own.name:
        raise ConfigurationError(
            f"{data_set} is annotated in the layout {own.name}, not in {wanted}: leave layout out"
        )
