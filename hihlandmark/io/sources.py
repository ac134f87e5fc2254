"""Files, folders, globs, archives, tables, lists and URLs -> images to read, in order."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path, PurePath
from typing import IO, Any, TypeVar

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError, ImageError, missing_extra
from hihlandmark.image import MAX_BYTES, MAX_PIXELS, ImageInput, load_image, readable_formats

Loaded = TypeVar("Loaded")

_SUFFIXES = (
    ".apng .avif .avifs .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo "
    ".pbm .pgm .png .pnm .ppm .psd .qoi .tga .tif .tiff .webp"
)
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of images in folders and archives. A file that is named itself may have any suffix."""
# Pillow's format, and how to read it, by suffix: images that are named where they cannot be read.
_HEIF = ("HEIF", "pip install 'hihlandmark[heif]'")
_JXL = ("JXL", "pip install pillow-jxl-plugin")
_RAW = ("", "convert it to JPEG or PNG")
_OTHER_SUFFIXES = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), _HEIF),
    ".jxl": _JXL,
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), _RAW),
}
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = (*_TAR_SUFFIXES, ".zip")
# What a `ResultFolder` writes.
MANIFEST, DRAWING = ".manifest", ".landmarks.png"
_MACOS = "__MACOSX"  # folder of metadata in archives that macOS packed
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
        problem: why there is no image, such as an unreadable folder; None for an image. A path
            or name that is not UTF-8 is one: no format of results could hold it.
        is_skipped: the problem is an image format for which a package is not installed.
    """

    path: str
    name: str
    stamp: str = ""
    content: bytes | Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    problem: str | None = None
    is_skipped: bool = False

    def __post_init__(self) -> None:
        path, name = escape(self.path), escape(self.name)
        if (path, name) != (self.path, self.name):
            problem = self.problem or f"{path}: its name is not UTF-8: rename it"
            for attribute, value in (("path", path), ("name", name), ("problem", escape(problem))):
                object.__setattr__(self, attribute, value)

    def load(self, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image:
        """Read the image (H, W, 3) within the limits of `load_image`.

        Raises:
            ImageError: it cannot be read, or there is none.
        """
        return self.load_by(partial(load_image, max_pixels=max_pixels, max_bytes=max_bytes))

    def load_by(self, load: Callable[[ImageInput], Loaded]) -> Loaded:
        """What ``load`` makes of the path or bytes of the image; raises as `load`."""
        if self.problem is not None:
            raise ImageError(self.problem)
        if self.content is None:
            return load(self.path)
        try:
            return load(self.content() if callable(self.content) else self.content)
        except Exception as error:  # file systems of fsspec raise errors of many kinds
            raise ImageError(f"{self.path}: {error}") from error

    def stamped_by_content(self) -> Source:
        """The same source with the SHA-256 of its bytes as stamp; "" if they cannot be read."""
        if self.problem is not None:
            return self
        if self.content is None:
            return replace(self, stamp=_digest(self.path))
        try:
            content = self.content() if callable(self.content) else self.content
        except Exception:  # as in load, which names it
            return replace(self, stamp="")
        return replace(self, stamp=hashlib.sha256(content).hexdigest())


def _digest(path: str) -> str:
    try:
        with _open_regular(path) as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.hexdigest()
    except (OSError, ValueError):
        return ""


def escape(text: str) -> str:
    r"""The text with what UTF-8 cannot express as ``\\udce9``, such as undecodable file names."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _open_regular(path: str) -> IO[bytes]:
    """Open a regular file; raises OSError for others, which could block or never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")
    return open(path, "rb")


def find_images(
    paths: str | Path | Iterable[str | Path],
    *,
    exclude: str | Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Source]:
    """Find images in what a user names, in order; those in archives by their paths come last.

    Files of macOS beside images (``._a.jpg``, ``__MACOSX/``) are ignored.

    Args:
        paths: one or several of

            - files, folders (searched recursively, linked ones too), globs, http(s) URLs;
            - tar archives (such as WebDataset shards), in the order of their members, and zip
              archives, by name: "images.tar/a/b.jpg";
            - Parquet files with a column of image bytes: "faces.parquet#12" is row 12;
            - images in them by such paths, once each, in the order of the archive;
            - "@list.txt": a file with one such path per line;
            - URLs that fsspec opens (s3://, gs://, hf://): files, globs and folders.
        exclude: a folder that is left out of folders and globs, such as that of the results.
        max_bytes: limit on an image in an archive, in a table or at a URL of fsspec.

    Yields:
        A `Source` per image. What holds no images or cannot be read is a source with a
        ``problem``.

    Raises:
        ConfigurationError: an optional package is not installed.
    """
    finder = _Finder(os.path.realpath(exclude) if exclude else None, max_bytes)
    given = [paths] if isinstance(paths, (str, Path)) else paths
    yield from finder.find((os.fspath(each) for each in given), ())


def _failure(path: str, problem: object) -> Source:
    return Source(path, PurePath(path).name, problem=f"{path}: {problem}")


def _named_twice(archive: str, member: str) -> Source:
    # Not the path of the image: the first one of the name may have a result.
    return _failure(archive, f"holds several images named {member}: rename them, pack it again")


def _skipped(path: str) -> Source:
    format_name, advice = _OTHER_SUFFIXES[PurePath(path).suffix.lower()]
    problem = f"no package for {format_name} images is installed: {advice}"
    return replace(
        _failure(path, problem if format_name else f"not a format that is read: {advice}"),
        is_skipped=True,
    )


def _may_be_image(name: str) -> bool:
    """Whether a name has the suffix of an image and is no file of macOS beside one."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    is_known = suffix in IMAGE_SUFFIXES or suffix in _OTHER_SUFFIXES
    return is_known and not path.name.startswith("._") and _MACOS not in path.parts


def _is_readable(path: str) -> bool:
    """Whether Pillow and its installed plug-ins read images with this suffix."""
    suffix = PurePath(path).suffix.lower()
    return suffix not in _OTHER_SUFFIXES or _OTHER_SUFFIXES[suffix][0] in readable_formats()


def _is_inside(place: str, folder: str) -> bool:
    """Whether a real path is that of a folder or below it."""
    return place == folder or place.startswith(os.path.join(folder, ""))


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(f"larger than max_bytes={max_bytes}: pass a larger limit if you trust it")


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else ""


@dataclass(frozen=True)
class _Finder:
    """`find_images` with its options."""

    exclude: str | None
    max_bytes: int

    def find(self, paths: Iterable[str | Source], lists: tuple[str, ...]) -> Iterator[Source]:
        """The images of paths; ``lists`` are those that the paths stand in, the inmost last.

        Failures among the paths are passed on.
        """
        members: dict[str, set[str]] = {}  # of archives, which are read once, at the end
        for path in paths:
            if isinstance(path, Source):
                yield path
            elif (place := split_archive(path)) is not None:
                archive, member = place
                members.setdefault(archive, set()).add(_one_slash(archive + member))
            elif path.lower().startswith(("http://", "https://")):
                yield Source(path, re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "image")
            elif path.lower().startswith(("file://", "local://")):
                yield from self.find([path.partition("://")[2]], lists)
            elif "://" in path:
                yield from self._remote(path)
            elif "\0" in path:
                yield _failure(path, "not a path: it holds a NUL character")
            elif os.path.lexists(path):
                yield from self._local(path)
            elif path.startswith("@"):
                yield from self._listed(path[1:], lists)
            elif not glob.has_magic(path):
                yield Source(path, PurePath(path).name)  # fails when it is read
            else:
                yield from self._matching(path)
        for archive, wanted in members.items():
            yield from self._members(archive, wanted)

    def _members(self, archive: str, wanted: set[str]) -> Iterator[Source]:
        """Images in an archive or a table, by the paths that they have as sources."""
        reason = f"{archive} holds no such image"
        for source in self._local(archive):
            if (path := _one_slash(source.path)) in wanted:
                wanted.remove(path)
                yield source
            elif source.path == archive and source.problem is not None:
                reason = source.problem  # such as why it cannot be read to its end
            if not wanted:
                return
        for path in sorted(wanted):
            yield _failure(path, reason)

    def _matching(self, pattern: str) -> Iterator[Source]:
        matches = sorted(glob.glob(pattern, recursive=True))
        folders: set[PurePath] = set()  # "**" matches what is in them as well
        excluded = 0
        for match in matches:
            path = PurePath(match)
            is_folder = os.path.isdir(match)
            is_archive = not is_folder and match.lower().endswith((*ARCHIVE_SUFFIXES, ".parquet"))
            if not is_archive and not folders.isdisjoint(path.parents):
                continue
            if is_folder:
                folders.add(path)
            if self._is_excluded(match):
                excluded += 1
            elif _MACOS not in path.parts:
                yield from self._local(match)
        if not matches:
            yield _failure(pattern, "no file matches this pattern: check the path")
        elif excluded == len(matches):
            yield _failure(pattern, "all that it matches lies in the folder of the results")

    def _is_excluded(self, path: str) -> bool:
        if self.exclude is None:
            return False
        return _is_inside(os.path.realpath(path), self.exclude)

    def _local(self, path: str) -> Iterator[Source]:
        """A folder, an archive, a table, or an image with any suffix."""
        path = os.fspath(PurePath(path))  # "./a" and "a" are one image
        lower = path.lower()
        if os.path.isdir(path):
            yield from self._folder(path)
        elif lower.endswith(_TAR_SUFFIXES):
            yield from self._archive(path, self._tar_members)
        elif lower.endswith(".zip"):
            yield from self._archive(path, self._zip_members)
        elif lower.endswith(".parquet"):
            yield from self._archive(path, self._table_rows)
        else:
            yield Source(path, PurePath(path).name, _stamp(path))

    def _folder(self, folder: str) -> Iterator[Source]:
        is_empty = True
        unreadable: list[OSError] = []
        root = os.path.realpath(folder)
        seen = {root}  # links may lead to one folder, or to one above it
        results: dict[str, bool] = {}  # whether folders are those of a job: drawings are no input
        for parent, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
            names = sorted(each for each in folders if each != _MACOS)
            folders.clear()
            for each in names:
                path = os.path.join(parent, each)
                place = os.path.realpath(path)
                # What lies inside is found under its own name.
                is_repeated = place in seen or (os.path.islink(path) and _is_inside(place, root))
                if not is_repeated and not self._is_excluded(place):
                    folders.append(each)
                    seen.add(place)
            is_job = any(file.startswith(MANIFEST) for file in files)
            results[parent] = is_job or results.get(os.path.dirname(parent), False)
            if results[parent]:
                files = [file for file in files if not file.endswith(DRAWING)]
            for file in filter(_may_be_image, sorted(files)):
                path = os.fspath(PurePath(parent, file))
                if _is_readable(path):
                    is_empty = False
                    yield Source(path, os.path.relpath(path, folder), _stamp(path))
                else:
                    yield _skipped(path)
        for error in unreadable:
            problem = f"the folder cannot be read ({error.strerror}): change its permissions"
            yield _failure(error.filename, problem)
        if is_empty and not unreadable:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            yield _failure(folder, f"no image in this folder (suffixes {suffixes}): check the path")

    def _archive(self, path: str, members: Callable[[str], Iterator[Source]]) -> Iterator[Source]:
        """The images in an archive or a table; of a damaged one those before the damage."""
        is_empty = True
        try:
            for source in members(path):
                is_empty = False
                yield source
        except ConfigurationError:
            raise
        except Exception as error:  # damaged archives lead to errors of many kinds
            reason = str(error) or type(error).__name__
            yield _failure(path, f"cannot be read to its end ({reason}): repair or exclude it")
        else:
            if is_empty:
                yield _failure(path, "no image in this archive: check its suffixes or rows")

    def _member(
        self, archive: str, member: str, stamp: str, size: int, read: Callable[[], bytes]
    ) -> Source:
        """An image in an archive, or why it cannot be read."""
        path = f"{archive}/{member}"
        if not _is_readable(member):
            return _skipped(path)
        _check_size(size, self.max_bytes)
        return Source(path, _name_in(archive, member), stamp, read())

    def _tar_members(self, path: str) -> Iterator[Source]:
        with _open_regular(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            seen: set[str] = set()
            for member in archive:
                if member.isdir() or not _may_be_image(member.name):
                    continue
                name = f"{path}/{member.name}"
                if member.name in seen:
                    yield _named_twice(path, member.name)
                    continue
                seen.add(member.name)
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    advice = "pack it with tar --dereference --hard-dereference"
                    yield _failure(name, f"a link or device: {advice}")
                    continue
                stamp = f"{member.size}-{member.mtime}"
                try:
                    yield self._member(path, member.name, stamp, member.size, content.read)
                except ImageError as error:
                    yield _failure(name, error)

    def _zip_members(self, path: str) -> Iterator[Source]:
        with _open_regular(path) as file, zipfile.ZipFile(file) as archive:
            last = None
            for member in sorted(archive.infolist(), key=attrgetter("filename")):
                name, size = member.filename, member.file_size
                if member.is_dir() or not _may_be_image(name):
                    continue
                if name == last:
                    yield _named_twice(path, name)
                    continue
                last = name
                read = partial(archive.read, member)
                try:
                    yield self._member(path, name, f"{size}-{member.CRC}", size, read)
                except Exception as error:  # damaged, encrypted, or packed by an unknown method
                    yield _failure(f"{path}/{name}", f"cannot be read ({error}): pack it again")

    def _table_rows(self, path: str) -> Iterator[Source]:
        pyarrow = require_pyarrow()
        stamp, number = _stamp(path), 0
        with _open_regular(path) as file, pyarrow.parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            known = [name for name in _IMAGE_COLUMNS if name in schema.names]
            # Others of these names may hold paths or labels.
            of_bytes = [name for name in known if _holds_bytes(schema.field(name).type)]
            column = next(iter(of_bytes or known), None)
            if column is None:
                wanted, names = " or ".join(_IMAGE_COLUMNS), ", ".join(schema.names)
                yield _failure(path, f"no column of images, {wanted}, among {names}: rename it")
                return
            for batch in table.iter_batches(batch_size=32, columns=[column]):
                for value in batch.column(0).to_pylist():
                    content = value.get("bytes") if isinstance(value, dict) else value
                    row = f"{path}#{number}"
                    if not isinstance(content, (bytes, type(None))):
                        # A path or URL in a table could be that of any file of this machine.
                        yield _failure(row, f"{column!r} must hold bytes of images")
                    elif len(content or b"") > self.max_bytes:
                        yield _failure(row, f"larger than max_bytes={self.max_bytes}")
                    else:
                        yield Source(row, _name_in(path, f"{number:08d}"), stamp, content or b"")
                    number += 1

    def _listed(self, path: str, lists: tuple[str, ...]) -> Iterator[Source]:
        """The images of a list: UTF-8, with or without a byte order mark.

        What follows a tab is no part of the path: so ``_failed.txt`` of a result folder is a list.
        """
        place = os.path.realpath(path)
        if place in lists or len(lists) > 20:
            yield _failure(path, "this list names itself: remove the line")
            return

        def texts(lines: Iterable[bytes]) -> Iterator[str | Source]:
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                except UnicodeDecodeError:
                    yield _failure(path, f"line {number} is not UTF-8: save the list as UTF-8")
                    continue
                if not os.path.lexists(text):  # names may end in blanks and hold tabs
                    text = text.strip()
                if text and not os.path.lexists(text):
                    text = text.partition("\t")[0]
                if text:
                    yield text

        try:
            with _open_regular(path) as file:
                yield from self.find(texts(file), (*lists, place))
        except (OSError, ValueError) as error:
            yield _failure(path, f"the list cannot be read ({error}): it must be a text file")

    def _remote(self, path: str) -> Iterator[Source]:
        """Images at a URL of fsspec; they are downloaded when they are loaded."""
        with missing_extra("folders"):
            import fsspec
        try:
            system, inner = fsspec.core.url_to_fs(path)
            if glob.has_magic(inner):
                found = system.glob(inner)
            elif system.isdir(inner):
                found = list(filter(_may_be_image, system.find(inner)))
            else:
                found = [inner]
            if not found:
                yield _failure(path, "no image there: check the address and the suffixes")
            for each in found:
                is_below = each.startswith(inner.rstrip("/") + "/")
                name = os.path.relpath(each, inner) if is_below else PurePath(each).name
                url = system.unstrip_protocol(each)
                if each == inner and not _leads_to(url, system, inner):
                    url = path
                try:
                    source = self._remote_image(system, each, url, _name_in("", name))
                except Exception as error:
                    if each == inner:
                        raise
                    source = _failure(url, _unreachable(error))
                yield source
        except ImportError as error:
            yield _failure(path, f"fsspec lacks a package: {error}")
        except Exception as error:  # file systems raise errors of many kinds
            yield _failure(path, _unreachable(error))

    def _remote_image(self, system: Any, inner: str, url: str, name: str) -> Source:
        if not _is_readable(inner):
            return _skipped(url)
        try:
            details = system.info(inner)
            _check_size(details.get("size") or 0, self.max_bytes)
        except ImageError as error:
            return _failure(url, error)
        known = (details.get(key) for key in ("size", "etag", "ETag", "mtime", "LastModified"))
        stamp = "-".join(str(value) for value in known if value is not None)
        return Source(url, name, stamp, partial(system.cat_file, inner))


_END_OF_ARCHIVE = re.compile(
    rf"(?:{'|'.join(map(re.escape, ARCHIVE_SUFFIXES))})(?=/)|\.parquet(?=#\d+$)", re.IGNORECASE
)


def _one_slash(path: str) -> str:
    """A path by which members of archives are compared: names may begin with "/" or "./"."""
    return re.sub(r"/(\./|/)*", "/", path)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column of this type of Arrow holds bytes, or structures with some."""
    types = require_pyarrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def split_archive(path: str) -> tuple[str, str] | None:
    """The archive or table in which an image lies, and the rest of its path.

    Of "a.zip/1.jpg" and "a.parquet#1"; None for other paths. A folder may be named "a.zip" as well.
    """
    places = [match.end() for match in _END_OF_ARCHIVE.finditer(path)]
    if not places or "://" in path or "\0" in path or os.path.lexists(path):
        return None
    for place in places:
        if os.path.isfile(path[:place]):
            return os.fspath(PurePath(path[:place])), path[place:]
    return None


def _leads_to(url: str, system: Any, inner: str) -> bool:
    """Whether a URL of fsspec names the same file: some lack the host or the archive."""
    import fsspec

    with suppress(Exception):
        return bool(fsspec.core.url_to_fs(url) == (system, inner))
    return False


def _unreachable(error: Exception) -> str:
    return f"cannot be read ({error}): check the address and your access rights"


def _name_in(archive: str, member: str) -> str:
    """A name for the output files of a member, always below the folder of the results."""
    parts = [part for part in PurePath(member).parts if part not in ("..", os.sep, "/")]
    return os.path.join(PurePath(archive).name, *parts)


def require_pyarrow() -> Any:
    """The package pyarrow, with ``pyarrow.parquet`` imported, or a `ConfigurationError`."""
    with missing_extra("folders"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow
