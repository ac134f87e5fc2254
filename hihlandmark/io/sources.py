"""Files, folders, globs, archives, tables, lists and URLs -> images to read, in order.

What is in an image is not known here.
"""

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

import numpy as np
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.image import load_image

IMAGE_SUFFIXES = frozenset(
    (
        *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", ".avif"),
    )
)
"""What counts as an image in a folder or an archive. A file named on its own is tried whatever its
name."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = (*_TAR_SUFFIXES, ".zip")
"""Files that hold images: tar archives, plain or compressed, and zip archives."""
_LIST_MARK = "@"
# Columns of Parquet files in which images are looked for; Hugging Face's data sets use the first.
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "content")


@dataclass(frozen=True)
class Source:
    """An image to read.

    ``path`` names it everywhere; ``name`` is that relative to the folder or archive given;
    ``stamp`` changes when the image does, "" where that is not known; ``content``: its bytes, or
    what gets them; None where `load_image` can read the path.
    """

    path: str
    name: str
    stamp: str = ""
    content: bytes | Callable[[], bytes] | None = field(default=None, repr=False, compare=False)

    def load(self) -> NDArray[np.uint8]:
        """The image (H, W, 3). Raises `ImageError`."""
        if self.content is None:
            return load_image(self.path)
        try:
            return load_image(self.content() if callable(self.content) else self.content)
        except (ImageError, OSError) as error:
            raise ImageError(f"{self.path}: {error}") from error

    def stamped_by_content(self) -> Source:
        """The same source with the SHA-256 of its bytes for a stamp; "" if they cannot be read."""
        try:
            content = self.content() if callable(self.content) else self.content
            content = Path(self.path).read_bytes() if content is None else content
        except OSError:
            return replace(self, stamp="")
        return replace(self, stamp=hashlib.sha256(content).hexdigest())


def find_images(paths: Iterable[str]) -> Iterator[Source | ImageError]:
    """The images of what a user names, in order:

    - files, folders (searched to the bottom), globs, http(s) URLs;
    - tar archives (so WebDataset's shards), in the order of their members, and zip archives, by
      name: "images.tar/a/b.jpg";
    - Parquet files with a column of image bytes: "faces.parquet#12" is row 12;
    - "@list.txt": whatever stands in the lines of a file;
    - what fsspec opens (s3://, gs://, hf://): files, globs and folders.

    What holds no image at all comes out as an `ImageError` in its place.
    """
    for path in paths:
        yield from _found(path)


def _found(path: str) -> Iterator[Source | ImageError]:
    if path.startswith(("http://", "https://")):
        yield Source(path, path.rstrip("/").rpartition("/")[2] or "image")
    elif "://" in path:
        yield from _remote(path)
    elif os.path.isdir(path):
        yield from _folder(path)
    elif os.path.lexists(path):
        yield from _file(path)
    elif path.startswith(_LIST_MARK):
        yield from _listed(path[len(_LIST_MARK) :])
    elif not glob.has_magic(path):
        yield Source(path, Path(path).name)  # reading it will say that it is not there
    else:
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            yield ImageError(f"{path}: no file matches this pattern: check the path")
        for match in matches:
            yield from _folder(match) if os.path.isdir(match) else _file(match)


def _file(path: str) -> Iterator[Source | ImageError]:
    """One file: an archive, a table, or an image whatever its name."""
    lower = path.lower()
    if lower.endswith(_TAR_SUFFIXES):
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


def _folder(folder: str) -> Iterator[Source | ImageError]:
    empty = True
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for file in sorted(files):
            if _is_image(file):
                empty = False
                path = os.path.join(parent, file)
                yield Source(path, os.path.relpath(path, folder), _stamp(path))
    for error in unreadable:
        yield ImageError(
            f"{error.filename}: the folder cannot be read ({error.strerror}): allow it, or name "
            "other folders"
        )
    if empty and not unreadable:
        yield ImageError(
            f"{folder}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))}): "
            "check the path and the suffixes"
        )


Members = Callable[[str], Iterator[Source]]


def _archive(path: str, members: Members) -> Iterator[Source | ImageError]:
    """The images in an archive or a table; of a broken one those before the break."""
    empty = True
    try:
        for source in members(path):
            empty = False
            yield source
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
        yield ImageError(f"{path}: cannot be read to its end ({error}): mend it, or leave it out")
    else:
        if empty:
            yield ImageError(f"{path}: no image in this archive: check the suffixes in it")


def _inside(archive: str, member: str) -> str:
    """A name for what is written of a member, that other archives do not have.

    However the member is called, it leads to no other folder: a stranger may have made the archive.
    """
    parts = [part for part in Path(member).parts if part not in ("..", os.sep, "/")]
    return os.path.join(Path(archive).name, *parts)


def _tar_members(path: str) -> Iterator[Source]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if not member.isfile() or not _is_image(member.name):
                continue
            content = archive.extractfile(member)
            assert content is not None  # a file has some
            stamp = f"{member.size}-{member.mtime}"
            yield Source(f"{path}/{member.name}", _inside(path, member.name), stamp, content.read())


def _zip_members(path: str) -> Iterator[Source]:
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=attrgetter("filename")):
            if member.is_dir() or not _is_image(member.filename):
                continue
            stamp = f"{member.file_size}-{member.CRC}"
            name = _inside(path, member.filename)
            yield Source(f"{path}/{member.filename}", name, stamp, archive.read(member))


def _table_rows(path: str) -> Iterator[Source]:
    pyarrow = require_pyarrow()
    stamp, number = _stamp(path), 0
    with pyarrow.parquet.ParquetFile(path) as table:
        names = table.schema_arrow.names
        column = next((name for name in _IMAGE_COLUMNS if name in names), None)
        if column is None:
            raise ValueError(
                f"no column named {' or '.join(_IMAGE_COLUMNS)} among {', '.join(names)}"
            )
        for batch in table.iter_batches(batch_size=32, columns=[column]):
            for value in batch.column(0).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                name = _inside(path, f"{number:08d}")
                yield Source(f"{path}#{number}", name, stamp, content or b"")
                number += 1


def require_pyarrow() -> Any:
    """The package, with ``pyarrow.parquet``. Raises `ConfigurationError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            "Parquet files need pyarrow: pip install 'hihlandmark[folders]'"
        ) from error
    return pyarrow


def _listed(path: str) -> Iterator[Source | ImageError]:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield from _found(line.strip())
    except (OSError, UnicodeDecodeError) as error:
        yield ImageError(f"{path}: the list cannot be read ({error}): it must be text in UTF-8")


def _remote(path: str) -> Iterator[Source | ImageError]:
    """What fsspec knows of a URL: its files are read when their turn comes."""
    try:
        import fsspec
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: needs fsspec: pip install 'hihlandmark[folders]'"
        ) from error
    try:
        system, inner = fsspec.core.url_to_fs(path)
        if glob.has_magic(inner):
            found = system.glob(inner)
        elif system.isdir(inner):
            found = [each for each in system.find(inner) if _is_image(each)]
        else:
            found = [inner]
        if not found:
            yield ImageError(f"{path}: no image there: check the address and the suffixes")
        for each in found:
            details = system.info(each)
            known = (details.get(key) for key in ("size", "etag", "ETag", "mtime", "LastModified"))
            stamp = "-".join(str(value) for value in known if value is not None)
            below = each.startswith(inner.rstrip("/") + "/")
            name = _inside("", os.path.relpath(each, inner) if below else Path(each).name)
            yield Source(system.unstrip_protocol(each), name, stamp, partial(system.cat_file, each))
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: fsspec lacks a package for this address: {error}"
        ) from error
    except (OSError, ValueError) as error:
        yield ImageError(f"{path}: cannot be read ({error}): check the address and your rights")
