"""The state of a training run on disk: written whole or not at all, checked when it is read."""

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
    """Turns what goes wrong while a file is written into a `TrainingError` that names it."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. Make room, or choose a folder that "
            "can be written; the same command goes on from the last checkpoint"
        ) from error


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values; a kill leaves the old file or the new one.

    Raises `TrainingError` when the disk is full or the folder not writable; what was there stays.
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
            if isinstance(error, RuntimeError):  # what torch's writer makes of a full disk
                raise OSError(str(error)) from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Raises `TrainingError` for what it did not write."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "step" not in content:
            raise ValueError("it holds something else")
    except FileNotFoundError:
        raise TrainingError(f"there is no checkpoint {path}: name the folder of a run") from None
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        spare = path.with_name(BEST)
        hint = f" or put {spare} in its place" if path.name == LAST and spare.exists() else ""
        raise TrainingError(
            f"{path} is damaged or no checkpoint of ours ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); remove it to start anew{hint}"
        ) from error
    return content


def read_average(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, without the auxiliary heads: what is exported."""
    state = load_checkpoint(checkpoint)["average"]
    return {
        name: tensor for name, tensor in state.items() if not name.startswith("auxiliary_heads.")
    }
