"""The files of a training run: checkpoints, and the log as JSON lines, TensorBoard and images."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image as PillowImage

from hihlandmark.arrays import Image
from hihlandmark.errors import TrainingError
from hihlandmark.writing import write_atomically

LAST, BEST = "last.pt", "best.pt"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` while ``path`` is written into a `TrainingError` that names it."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another "
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
        reason = "".join(str(error).splitlines()[:1])
        raise TrainingError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}: {reason}); "
            f"remove it to start anew{hint}"
        ) from error
    return content


def read_average(checkpoint: Path, auxiliary: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, as they are exported.

    Of the auxiliary heads, only those of the layouts ``auxiliary`` are kept.
    """
    state = load_checkpoint(checkpoint)["average"]
    kept = tuple(f"auxiliary_heads.{layout}." for layout in auxiliary)
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(kept) or not name.startswith("auxiliary_heads.")
    }


class RunLog:
    """Appends to the log of a run; only the main process writes.

    A run that was killed after its last checkpoint, at ``step``, left later lines. They are
    removed, and the resumed run writes them again.

    Raises:
        TrainingError: the log cannot be written.
    """

    def __init__(self, folder: Path, step: int, accelerator: Accelerator) -> None:
        self.accelerator, self.folder = accelerator, folder
        self.path = folder / "log.jsonl"
        if not accelerator.is_main_process:
            return
        with disk_errors(self.path):
            if self.path.exists():
                lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
                write_atomically(self.path, "".join(kept).encode())
            purge = {"tensorboard": {"purge_step": step + 1}}
            accelerator.init_trackers("tensorboard", init_kwargs=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step."""
        if not self.accelerator.is_main_process:
            return
        with disk_errors(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self.accelerator.log(dict(values), step=step)

    def write_image(self, step: int, image: Image) -> None:
        """Write an image (H, W, 3) as PNG and to TensorBoard."""
        path = self.folder / "images" / f"{step:07}.png"
        with disk_errors(path):
            path.parent.mkdir(exist_ok=True)
            PillowImage.fromarray(image).save(path)
            for tracker in self.accelerator.trackers:
                tracker.log_images({"predictions": image[None]}, step=step, dataformats="NHWC")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize
