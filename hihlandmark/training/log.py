"""The log of a run: lines of JSON, TensorBoard and images."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from PIL import Image as PillowImage

from hihlandmark.arrays import Image
from hihlandmark.training.checkpoint import disk_errors
from hihlandmark.writing import write_atomically


class RunLog:
    """Appends to the log of a run; only the main process writes.

    Lines after ``step`` are removed: a run that was killed after its last checkpoint left them, and
    the resumed run writes them again.

    Args:
        folder: of the run.
        step: where the run resumes.
        accelerator: of the run.

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

    def close(self) -> None:
        """Flush TensorBoard's files."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize
