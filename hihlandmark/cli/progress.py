"""The progress bar of all commands, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ProgressBar(Protocol):
    """Moves the bar; an `arrays.Progress`."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show how many units are done, of how many (None: unknown), and a text beside them."""


@contextmanager
def progress_bar(unit: str) -> Iterator[ProgressBar]:
    """Show a bar while the block runs, with count, speed and time left.

    Nothing is shown where stderr is not a terminal.

    Args:
        unit: what is counted, such as "faces".

    Yields:
        A function that moves the bar.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    class Speed(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> str:
            return f"{task.speed:.1f} per second" if task.speed else ""

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        Speed(),
        rich_progress.TextColumn("{task.fields[note]}"),
        rich_progress.TimeRemainingColumn(),
    )
    # Rich also takes a pipe for a terminal where FORCE_COLOR is set, as in Jupyter.
    is_hidden = not sys.stderr.isatty()
    console = Console(stderr=True)
    with rich_progress.Progress(
        *columns, console=console, transient=True, disable=is_hidden
    ) as shown:
        task = shown.add_task(unit, total=None, note="")

        def move(done: int, total: int | None = None, note: str = "") -> None:
            shown.update(task, completed=done, total=total, note=note)

        yield move
