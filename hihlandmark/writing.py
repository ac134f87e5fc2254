"""Atomic writes: a file is complete or absent, even after an interruption."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write_path(path: Path) -> Iterator[Path]:
    """An empty file in the same folder, which replaces ``path`` if the block ends without an error.

    Creates the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file and create its folder; readers see the old or the new content, never a part."""
    with atomic_write_path(path) as temporary:
        temporary.write_bytes(content)
