from io import StringIO

import pytest
from rich.console import Console

from hihlandmark.tables import Table

TABLE = Table("Errors", ["name", "NME", "note"], [["a|b", 1.5, "[x]"], ["c", None, None]])


def test_markdown_aligns_numbers_and_escapes_bars() -> None:
    assert TABLE.markdown().splitlines() == [
        "| name | NME | note |",
        "| --- | ---: | --- |",
        r"| a\|b | 1.5 | [x] |",
        "| c |  |  |",
    ]


def test_csv_has_a_header() -> None:
    assert TABLE.csv() == "name,NME,note\na|b,1.5,[x]\nc,,\n"


@pytest.mark.parametrize("rows", [TABLE.rows, []])
def test_terminal_shows_every_cell_as_it_is(rows: list[list[object]]) -> None:
    output = StringIO()
    Table("Errors", TABLE.headers, rows).print(Console(file=output, width=80))
    cells = [str(value) for row in rows for value in row if value is not None]
    assert all(text in output.getvalue() for text in ("Errors", "NME", *cells))
