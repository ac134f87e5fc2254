"""What the site has beyond its pages: links to code, model cards, and the commands' options.

MkDocs calls `on_page_markdown` for every page. Pages are also read where no site was built, so what
is made here is only what a reader there finds in the repository itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from hihlandmark.cli import app
from hihlandmark.tables import Table
from hihlandmark.weights.card import ModelCard
from hihlandmark.weights.publish import card_sections

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


# Model cards


def model_cards() -> Iterator[str]:
    """The cards in weights/, each as a section."""
    for path in sorted((ROOT / "weights").glob("*.json")):
        card = ModelCard.from_json(path.read_text(encoding="utf-8"))
        yield f"\n## {card.name}\n"
        yield "\n\n".join(card_sections(card, "###"))


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
    usage = [name, *(["[OPTIONS]"] if options else []), *(_name(p) for p in arguments)]
    yield from ("```", " ".join(usage), "```")
    if arguments:
        rows = [(f"`{_name(p)}`", getattr(p, "help", "") or "") for p in arguments]
        yield "\n" + Table("", ("argument", ""), rows).markdown() + "\n"
    if options:
        annotations = get_type_hints(command.callback)
        rows = [_option(option, annotations[option.name]) for option in options]
        yield "\n" + Table("", ("option", "", "default"), rows).markdown() + "\n"


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _option(option: Any, annotation: Any) -> tuple[str, str, str]:
    names = " / ".join(f"`{each}`" for each in (*option.opts, *option.secondary_opts))
    default, shown = option.default, ""
    if choices := [each for each in get_args(annotation) if isinstance(each, str)]:
        names += "<br>" + ", ".join(f"`{each}`" for each in choices)
    if option.required:
        shown = "must be given"
    elif option.secondary_opts:
        shown = f"`{(option.opts if default else option.secondary_opts)[0]}`"
    elif not option.is_flag and default not in (None, [], ()):
        shown = f"`{default}`"
    return names, option.help or "", shown


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))
