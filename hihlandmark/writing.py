"""Writing files so that they are whole or not there, whatever interrupts it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write_path(path: Path) -> Iterator[Path]:
    """An empty file to write to, which takes the path's place when all went well.

    Makes the file's folder if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp lets nobody else read it
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old one or the new one, never a part.

    Makes the file's folder if need be.
    """
    with atomic_write_path(path) as temporary:
        temporary.write_bytes(content)
