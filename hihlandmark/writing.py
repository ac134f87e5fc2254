"""Atomic writes: a file is complete or absent, even after an interruption."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hihlandmark.errors import ConfigurationError

# "s3:/" as well: `Path` makes one slash of two. A drive of Windows has one letter.
_URL = re.compile(r"[a-z][a-z0-9+.-]+:[/\\]", re.IGNORECASE)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_existing(path: Path | None) -> None:
    """Raise `ConfigurationError` for a file that exists: it may be the user's."""
    if path is not None and os.path.lexists(path):
        raise ConfigurationError(f"{path} exists already: choose another name, or remove it")


def check_local(path: Path | None) -> Path | None:
    """The path; `ConfigurationError` for a URL: as a path, it would be a folder named "s3:"."""
    if path is not None and _URL.match(str(path)):
        raise ConfigurationError(
            f"{path} is a URL: results are written to local folders, upload them afterwards"
        )
    return path


def relative_name(path: str | Path, folder: Path) -> str:
    """A path relative to a folder, with slashes; it holds also where links lead to either."""
    parent, name = os.path.split(os.path.abspath(path))
    found = os.path.join(os.path.realpath(parent), name)
    return Path(os.path.relpath(found, os.path.realpath(folder))).as_posix()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block has ended.

    The main thread alone receives signals, so in others there is nothing to hold back.
    """
    held: list[int] = []

    def deliver() -> None:
        if held:
            signal.raise_signal(held[0])

    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.callback(deliver)
            numbers = [signal.SIGINT, signal.SIGTERM]
            numbers += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
            for number in numbers:
                if callable(handler := signal.getsignal(number)):
                    stack.callback(signal.signal, number, handler)
                    signal.signal(number, lambda number, _: held.append(number))
        yield


@contextmanager
def atomic_write_path(path: Path) -> Iterator[Path]:
    """An empty file in the same folder, which replaces ``path`` if the block ends without an error.

    Creates the folder. A link stays, and so do the permissions of a file that is replaced. Nothing
    is replaced where the block has removed the file.

    Raises:
        OSError: the file cannot be written; that of a full disk names it.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_full_disk(path):
        temporary = path.parent / f".{path.name[:50]}.{secrets.token_hex(4)}"
        temporary.touch(exist_ok=False)  # with the user's permissions: mkstemp makes it private
        try:
            yield temporary
            if temporary.exists():
                with suppress(FileNotFoundError):
                    shutil.copymode(path, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())  # so that the name never appears before the content
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file and create its folder; readers see the old or the new content, never a part."""
    with atomic_write_path(path) as temporary:
        temporary.write_bytes(content)


def write_new(path: Path, content: bytes, temporary: Path) -> None:
    """Write a file that does not exist, as `write_atomically` does.

    Args:
        path: the file; its folder is created.
        content: what it holds.
        temporary: a path on the same disk that only the caller uses.

    Raises:
        FileExistsError: there is a file or folder of this name, which stays.
        OSError: as of `atomic_write_path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_full_disk(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _move_to_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Name the file and the remedy in the error of a full disk, which a write does not do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        advice = "free space and run the command again; what is finished is kept"
        raise OSError(error.errno, f"{os.strerror(error.errno)}: {advice}", str(path)) from error


def _move_to_new(source: Path, target: Path) -> None:
    """Rename a file unless the new name exists."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        # The file system has no hard links, or the name is invalid, which rename reports as well.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
