"""What a run tells: lines of JSON, TensorBoard, images, and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hihlandmark.training.checkpoint import disk_errors
from hihlandmark.writing import write_atomically


class RunLog:
    """The log of the run in a folder, from a step on; only the main process writes it.

    Lines of later steps, which a run killed after its last checkpoint has left, are removed: they
    will come again. Raises `TrainingError` when the disk is full.
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
        """A row of values."""
        if not self.accelerator.is_main_process:
            return
        with disk_errors(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self.accelerator.log(dict(values), step=step)

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """An image (H, W, 3), as PNG and in TensorBoard."""
        path = self.folder / "pictures" / f"{step:07}.png"
        with disk_errors(path):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)
            for tracker in self.accelerator.trackers:
                tracker.log_images({"predictions": picture[None]}, step=step, dataformats="NHWC")

    def close(self) -> None:
        """Flushes TensorBoard's files."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


def progress_bar(shown: bool) -> Progress:
    """Faces done, faces a second, the loss, and the time left."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _FacesASecond(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


class _FacesASecond(ProgressColumn):
    """Speed of the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} faces/s" if task.speed else "", style="progress.data.speed")
