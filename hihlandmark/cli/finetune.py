"""`hihlandmark finetune`: from packaged weights and some annotated faces to better weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hihlandmark.cli.options import (
    AnnotatedOption,
    DataFormatOption,
    DataWorkersOption,
    DeviceOption,
    ModelOption,
    progress_bar,
)
from hihlandmark.writing import check_local


def finetune(
    faces: Annotated[
        Path,
        typer.Argument(
            help="Folder of images with .pts files, or of a data set in another format."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            callback=check_local,
            help="New folder for the weights; resumes a run in it.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", help="Path, packaged name or Hugging Face repository to start from."
        ),
    ] = None,
    layout: Annotated[
        Path | None,
        typer.Option("--layout", help="A .toml or .json file that describes points of your own."),
    ] = None,
    annotated: AnnotatedOption = None,
    data_format: DataFormatOption = "auto",
    model: ModelOption = "hih-small",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Default: by the number of faces.")
    ] = None,
    device: DeviceOption = "auto",
    workers: DataWorkersOption = 1,
) -> None:
    """Adapt weights to your faces, or teach them points of your own, from 20 faces on."""
    from hihlandmark.errors import missing_extra

    with missing_extra("train"):
        from hihlandmark.training import finetune as tuning
        from hihlandmark.training.checkpoint import LAST, load_checkpoint
    from hihlandmark.tables import Table

    try:
        with _progress() as show:
            outcome = tuning.finetune(
                faces,
                out,
                weights=weights,
                model=model,
                layout_file=layout,
                annotated=annotated,
                device=device,
                data_format=data_format,
                steps=steps,
                workers=workers,
                progress=show,
            )
    except KeyboardInterrupt:
        last = out / tuning.RUN / LAST
        kept = "nothing was trained yet"
        if last.exists():
            kept = f"{last} keeps step {load_checkpoint(last)['step']}"
        print(f"stopped: {kept}; the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"weights: {outcome.card.with_suffix('.safetensors')}")
    print(f"faces before and after (green: annotated, red: found): {outcome.drawing}")
    Table(
        "", (f"{len(outcome.after)} faces not trained on", "before", "after"), outcome.rows()
    ).print()
    print(outcome.verdict)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on a terminal, otherwise a line on stderr whenever the note changes."""
    if sys.stderr.isatty():
        with progress_bar("faces") as bar:
            yield bar
        return
    start, first, shown = time.monotonic(), None, ""

    def show(done: int, total: int, note: str) -> None:
        nonlocal first, shown
        first = done if first is None else first
        if note == shown:
            return
        shown = note
        rate = max(done - first, 1) / max(time.monotonic() - start, 1e-3)
        left = round((total - done) / rate)
        line = f"{done} of {total} faces, {rate:.1f} per second, {left // 60}:{left % 60:02} left"
        print(f"{line}, {note}", file=sys.stderr)

    yield show
