"""Files that were made once and are kept in a folder: complete and intact, or made again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from hihlandmark.writing import write_atomically


def kept_file(folder: Path, suffix: str, key: str, write: Callable[[Path], None]) -> Path:
    """The file of a key, written unless it is kept in the folder and intact.

    Args:
        folder: where it is kept.
        suffix: of its name, such as ".xml".
        key: tells it from other files; all that its content depends on.
        write: writes it to a path, and other files beside it that belong to it.

    Raises:
        OSError: the folder cannot be written.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path, sums = folder / f"{digest}{suffix}", folder / f"{digest}.sha256"
    if _is_intact(sums):
        return path
    # Under another name until it is complete: another process may look for it, or kill this one.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write(Path(temporary) / path.name)
        parts = sorted(Path(temporary).iterdir())
        lines = [f"{hash_of(part)}  {part.name}\n" for part in parts]
        for part in parts:
            part.replace(folder / part.name)
    write_atomically(sums, "".join(lines).encode())
    return path


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_intact(sums: Path) -> bool:
    """Whether the files beside a list, as ``sha256sum`` writes it, are as it states."""
    try:
        entries = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
        return bool(entries) and all(hash_of(sums.with_name(name)) == sha for sha, name in entries)
    except (OSError, ValueError):
        return False
