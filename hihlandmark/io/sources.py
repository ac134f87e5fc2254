"""Files, folders, globs, archives, tables, lists and URLs -> images to read, in order."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError, ImageError, missing_extra
from hihlandmark.image import load_image

_SUFFIXES = ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff"
IMAGE_SUFFIXES = frozenset([*_SUFFIXES.split(), ".webp"])
"""Suffixes of images in folders and archives. A file that is named itself may have any suffix."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = (*_TAR_SUFFIXES, ".zip")
# Columns of Parquet files that may hold images; data sets of Hugging Face use the first.
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "content")


@dataclass(frozen=True)
class Source:
    """An image to read, or what stands in its place where there is none.

    Attributes:
        path: identifies the image.
        name: path relative to the folder or archive that was given; names the output files.
        stamp: changes when the image does; "" where that is not known.
        content: the bytes of the image file or a function that reads them; None: `load_image`
            reads the path.
        problem: why there is no image, such as an unreadable folder; None for an image.
    """

    path: str
    name: str
    stamp: str = ""
    content: bytes | Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    problem: str | None = None

    def load(self) -> Image:
        """Read the image (H, W, 3); raises `ImageError` if it cannot be read or there is none."""
        if self.problem is not None:
            raise ImageError(self.problem)
        if self.content is None:
            return load_image(self.path)
        try:
            return load_image(self.content() if callable(self.content) else self.content)
        except (ImageError, OSError) as error:
            raise ImageError(f"{self.path}: {error}") from error

    def stamped_by_content(self) -> Source:
        """The same source with the SHA-256 of its bytes as stamp; "" if they cannot be read."""
        if self.problem is not None:
            return self
        try:
            content = self.content() if callable(self.content) else self.content
            content = Path(self.path).read_bytes() if content is None else content
        except OSError:
            return replace(self, stamp="")
        return replace(self, stamp=hashlib.sha256(content).hexdigest())


def find_images(paths: Iterable[str]) -> Iterator[Source]:
    """Find images in what a user names, in order.

    Args:
        paths: any of

            - files, folders (searched recursively), globs, http(s) URLs;
            - tar archives (such as WebDataset shards), in the order of their members, and zip
              archives, by name: "images.tar/a/b.jpg";
            - Parquet files with a column of image bytes: "faces.parquet#12" is row 12;
            - "@list.txt": a file with one such path per line;
            - URLs that fsspec opens (s3://, gs://, hf://): files, globs and folders.

    Yields:
        A `Source` per image. What holds no images or cannot be read is a source with a
        ``problem``.

    Raises:
        ConfigurationError: an optional package is not installed.
    """
    for path in paths:
        if path.startswith(("http://", "https://")):
            yield Source(path, path.rstrip("/").rpartition("/")[2] or "image")
        elif "://" in path:
            yield from _remote(path)
        elif os.path.lexists(path):
            yield from _local(path)
        elif path.startswith("@"):
            yield from _listed(path[1:])
        elif not glob.has_magic(path):
            yield Source(path, Path(path).name)  # fails when it is read
        elif matches := sorted(glob.glob(path, recursive=True)):
            for match in matches:
                yield from _local(match)
        else:
            yield _failure(path, "no file matches this pattern: check the path")


def _failure(path: str, problem: str) -> Source:
    return Source(path, Path(path).name, problem=f"{path}: {problem}")


def _local(path: str) -> Iterator[Source]:
    """A folder, an archive, a table, or an image with any suffix."""
    lower = path.lower()
    if os.path.isdir(path):
        yield from _folder(path)
    elif lower.endswith(_TAR_SUFFIXES):
        yield from _archive(path, _tar_members)
    elif lower.endswith(".zip"):
        yield from _archive(path, _zip_members)
    elif lower.endswith(".parquet"):
        yield from _archive(path, _table_rows)
    else:
        yield Source(path, Path(path).name, _stamp(path))


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else ""


def _folder(folder: str) -> Iterator[Source]:
    is_empty = True
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for file in filter(_is_image, sorted(files)):
            is_empty = False
            path = os.path.join(parent, file)
            yield Source(path, os.path.relpath(path, folder), _stamp(path))
    for error in unreadable:
        problem = f"the folder cannot be read ({error.strerror}): change its permissions"
        yield _failure(error.filename, problem)
    if is_empty and not unreadable:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        yield _failure(folder, f"no image in this folder (suffixes {suffixes}): check the path")


def _archive(path: str, members: Callable[[str], Iterator[Source]]) -> Iterator[Source]:
    """The images in an archive or a table; of a damaged one those before the damage."""
    is_empty = True
    try:
        for source in members(path):
            is_empty = False
            yield source
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
        yield _failure(path, f"cannot be read to its end ({error}): repair or exclude it")
    else:
        if is_empty:
            yield _failure(path, "no image in this archive: check the suffixes in it")


def _name_in(archive: str, member: str) -> str:
    """A name for the output files of a member, always below the folder of the results."""
    parts = [part for part in Path(member).parts if part not in ("..", os.sep, "/")]
    return os.path.join(Path(archive).name, *parts)


def _tar_members(path: str) -> Iterator[Source]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and _is_image(member.name):
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                stamp, name = f"{member.size}-{member.mtime}", _name_in(path, member.name)
                yield Source(f"{path}/{member.name}", name, stamp, content.read())


def _zip_members(path: str) -> Iterator[Source]:
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=attrgetter("filename")):
            if not member.is_dir() and _is_image(member.filename):
                stamp, name = f"{member.file_size}-{member.CRC}", _name_in(path, member.filename)
                yield Source(f"{path}/{member.filename}", name, stamp, archive.read(member))


def _table_rows(path: str) -> Iterator[Source]:
    pyarrow = require_pyarrow()
    stamp, number = _stamp(path), 0
    with pyarrow.parquet.ParquetFile(path) as table:
        names = table.schema_arrow.names
        column = next((name for name in _IMAGE_COLUMNS if name in names), None)
        if column is None:
            raise ValueError(f"no column named {' or '.join(_IMAGE_COLUMNS)} in {', '.join(names)}")
        for batch in table.iter_batches(batch_size=32, columns=[column]):
            for value in batch.column(0).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                name = _name_in(path, f"{number:08d}")
                yield Source(f"{path}#{number}", name, stamp, content or b"")
                number += 1


def require_pyarrow() -> Any:
    """The package pyarrow, with ``pyarrow.parquet`` imported, or a `ConfigurationError`."""
    with missing_extra("folders"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow


def _listed(path: str) -> Iterator[Source]:
    try:
        with open(path, encoding="utf-8") as lines:
            yield from find_images(filter(None, map(str.strip, lines)))
    except (OSError, UnicodeDecodeError) as error:
        yield _failure(path, f"the list cannot be read ({error}): it must be text in UTF-8")


def _remote(path: str) -> Iterator[Source]:
    """Images at a URL of fsspec; they are downloaded when they are loaded."""
    with missing_extra("folders"):
        import fsspec
    try:
        system, inner = fsspec.core.url_to_fs(path)
        if glob.has_magic(inner):
            found = system.glob(inner)
        elif system.isdir(inner):
            found = list(filter(_is_image, system.find(inner)))
        else:
            found = [inner]
        if not found:
            yield _failure(path, "no image there: check the address and the suffixes")
        for each in found:
            details = system.info(each)
            known = (details.get(key) for key in ("size", "etag", "ETag", "mtime", "LastModified"))
            stamp = "-".join(str(value) for value in known if value is not None)
            is_below = each.startswith(inner.rstrip("/") + "/")
            name = _name_in("", os.path.relpath(each, inner) if is_below else Path(each).name)
            yield Source(system.unstrip_protocol(each), name, stamp, partial(system.cat_file, each))
    except ImportError as error:
        raise ConfigurationError(f"{path}: fsspec lacks a package: {error}") from error
    except (OSError, ValueError) as error:
        yield _failure(path, f"cannot be read ({error}): check the address and your access rights")
