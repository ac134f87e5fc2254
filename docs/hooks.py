"""What the site has beyond its pages: links to code, model cards, and the commands' options.

MkDocs calls `on_page_markdown` for every page. Pages are also read where no site was built, so what
is made here is only what a reader there finds in the repository itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from typer.main import get_command

from hihlandmark.cli import app

ROOT = Path(__file__).parent.parent

_CODE_LINK = re.compile(r"\]\((?:\.\./)+(?P<module>hihlandmark(?:/\w+)+)\.py\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    if page.file.src_uri == "model-cards.md":
        markdown += "\n" + "\n".join(model_cards())
    elif page.file.src_uri == "reference/command-line.md":
        markdown += "\n" + "\n".join(commands())
    return links_to_reference(markdown)


def links_to_reference(markdown: str) -> str:
    """Links to source files lead to the API reference of their modules."""

    def reference(match: re.Match[str]) -> str:
        return f"][{match['module'].replace('/', '.').removesuffix('.__init__')}]"

    return _CODE_LINK.sub(reference, markdown)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield from ("", _row(header), _row(["---"] * len(header)), *map(_row, rows), "")


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


# Model cards

_FIGURE_KEYS = ("split", "boxes", "points", "faces", "missed")
_FIGURES = {
    "NME, %": "value",
    "FR10, %": "fr10",
    "AUC10": "auc10",
    "calibration error, %": "calibration_error",
}


def model_cards() -> Iterator[str]:
    """The cards in weights/, each as a section."""
    for path in sorted((ROOT / "weights").glob("*.json")):
        yield from _card(json.loads(path.read_text(encoding="utf-8")))


def _card(card: dict[str, Any]) -> Iterator[str]:
    configuration = card["configuration"]
    layouts = [f"{points} ({name})" for name, points in configuration["layouts"].items()]
    sizes = {key: configuration[key] for key in ("stacks", "features", "depth")}
    decoding, normalisation = card["decoding"], card["normalisation"]
    yield from ("", f"## {card['name']}", "", card["licence"])
    yield from table(
        ("", ""),
        [
            ("Architecture", f"`{card['architecture']}`, {_pairs(sizes)}"),
            ("Points", ", ".join(layouts)),
            ("Crop", f"{configuration['input_size']} pixels a side, RGB"),
            ("Normalisation", f"mean {normalisation['mean']}, deviation {normalisation['std']}"),
            ("Reading", _pairs(decoding)),
            *(("SHA-256", f"`{name}`<br>`{digest}`") for name, digest in card["files"].items()),
        ],
    )
    yield from ("### Measured", "")
    yield from table(
        ("data", "boxes", "points", "faces", "missed", *_FIGURES),
        [
            tuple(figure.get(key, "") for key in _FIGURE_KEYS + tuple(_FIGURES.values()))
            for figure in card["figures"]
        ],
    )
    yield from ("```sh", *dict.fromkeys(figure["command"] for figure in card["figures"]), "```", "")
    yield from ("### Trained on", "")
    yield from table(
        ("data", "images", "licence"),
        [(data["name"], data["images"], data["licence"]) for data in card["training_data"]],
    )
    yield from ("### From boxes to crops", "")
    yield from table(
        ("kind of box", "shift of the centre", "side"),
        [(f"`{kind}`", box["shift"], box["scale"]) for kind, box in card["crop"]["boxes"].items()],
    )


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


# Commands


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    yield from _command(get_command(app), "hihlandmark")


def _command(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for part, below in command.commands.items():
            yield from _command(below, f"{name} {part}")
        return
    yield from ("", f"## {name}", "", _paragraphs(command.help), "")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = [name, "[OPTIONS]" * bool(options), *(_name(p) for p in arguments)]
    yield from ("```", " ".join(filter(None, usage)), "```")
    if arguments:
        rows = [(f"`{_name(p)}`", getattr(p, "help", "") or "") for p in arguments]
        yield from table(("argument", ""), rows)
    if options:
        yield from table(("option", "", "default"), map(_option, options))


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _option(option: Any) -> tuple[str, str, str]:
    names = " / ".join(f"`{each}`" for each in (*option.opts, *option.secondary_opts))
    default, shown = option.default, ""
    if isinstance(default, Enum):
        names += "<br>" + ", ".join(f"`{each.value}`" for each in type(default))
        default = default.value
    if option.required:
        shown = "must be given"
    elif option.secondary_opts:
        shown = f"`{(option.opts if default else option.secondary_opts)[0]}`"
    elif not option.is_flag and default not in (None, [], ()):
        shown = f"`{default}`"
    return names, option.help or "", shown


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))
