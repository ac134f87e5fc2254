"""Save and load the state of a training run. Files are replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hihlandmark.errors import TrainingError

LAST, BEST = "last.pt", "best.pt"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while ``path`` is written into a `TrainingError` that names it."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose a writable "
            "folder; the same command resumes from the last checkpoint"
        ) from error


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values. A kill leaves the old file or the new one.

    Raises:
        TrainingError: the disk is full or the folder not writable. The old file stays.
    """
    temporary = path.with_suffix(".part")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                torch.save(dict(content), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):  # torch's writer raises it when the disk is full
                raise OSError(str(error)) from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a file that `save_checkpoint` wrote.

    Raises:
        TrainingError: there is no such file, or it is damaged or something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "step" not in content:
            raise ValueError("it has other content")
    except FileNotFoundError:
        raise TrainingError(f"there is no checkpoint {path}: give the folder of a run") from None
    except Exception as error:  # torch.load raises many classes for damaged bytes
        spare = path.with_name(BEST)
        hint = f" or replace it by {spare}" if path.name == LAST and spare.exists() else ""
        raise TrainingError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); remove it to start anew{hint}"
        ) from error
    return content


def read_average(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint without auxiliary heads, as they are exported."""
    state = load_checkpoint(checkpoint)["average"]
    return {
        name: tensor for name, tensor in state.items() if not name.startswith("auxiliary_heads.")
    }
