"""`Table`: rows of values for the terminal, for Markdown and for CSV files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_NUMBER = re.compile(r"[-+]?\.?\d")


@dataclass
class Table:
    """A titled table. Columns whose cells all start with a number are aligned to the right.

    Attributes:
        title: shown above the table in a terminal; "" for none.
        headers: names of the columns.
        rows: one value per column, written as ``str`` writes it; None is an empty cell.
    """

    title: str
    headers: Sequence[str]
    rows: Iterable[Sequence[object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = list(self.rows)

    def print(self, console: Console | None = None) -> None:
        """Print the table.

        Args:
            console: where to print; None: stdout.
        """
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = RichTable(
            title=Text(self.title) if self.title else None,
            title_justify="left",
            box=SIMPLE,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for header, is_number in zip(self.headers, self._number_columns(), strict=True):
            shown.add_column(Text(header), justify="right" if is_number else "left")
        for row in self._cells():
            shown.add_row(*map(Text, row))
        (console or Console()).print(shown)

    def markdown(self) -> str:
        """The table in Markdown, without its title and a final line break."""
        rules = ["---:" if is_number else "---" for is_number in self._number_columns()]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in self._cells()]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.headers, rules, *escaped))

    def csv(self) -> str:
        """The table as CSV with a header line, without its title."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.headers, *self.rows])
        return text.getvalue()

    def _cells(self) -> list[list[str]]:
        return [["" if value is None else str(value) for value in row] for row in self.rows]

    def _number_columns(self) -> list[bool]:
        columns = zip(*self._cells(), strict=True)
        found = [all(_NUMBER.match(cell) for cell in column if cell) for column in columns]
        return found or [False] * len(self.headers)
