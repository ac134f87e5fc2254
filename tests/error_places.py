"""Where the package makes its errors and what they say, read from its source.

`tests/conftest.py` notes which errors are made while tests run, and `tests/test_errors.py` compares
these notes and `docs/troubleshooting.md` with what is found here. What differs from case to case
stands in a message as `GAP`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import hihlandmark

PACKAGE = Path(hihlandmark.__file__).parent
GAP = "…"

OURS = frozenset(
    {
        "HihlandmarkError",
        "ImageError",
        "WeightsError",
        "ConfigurationError",
        "DataError",
        "TrainingError",
        "ExportError",
        "BadSample",  # becomes a `DataError`, or a line in the list of samples left out
        "BadParameter",  # typer's, for options that do not go together
    }
)
PYTHONS = frozenset({"AttributeError", "IndexError", "KeyError", "OSError", "ValueError"})
"""Errors of Python's that the package raises, most of them to put their text into one of ours."""

SUBJECTS = frozenset({"name", "package", "prefix", "provider", "scheme", "source", "where"})
"""Variables that say of what a message speaks: a gap, although the source tells some values."""
LISTING = frozenset({"some"})
"""Functions that give a list of names: a gap, too."""
DEEPEST = 12
"""Variables and functions that stand for texts are followed so far."""

_SCOPES = (ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Place:
    """An expression that makes an error, or one of the reasons that a message joins.

    ``file`` is relative to the package, ``first`` and ``last`` are its lines. ``error`` is the name
    of the class, and empty for a reason. ``messages`` holds every wording that can be told from the
    source, ``general`` the one wording that covers them all.
    """

    file: str
    first: int
    last: int
    error: str
    messages: tuple[str, ...]
    general: str

    @property
    def has_words(self) -> bool:
        """False where all words come from elsewhere, as in "…: …" around another error."""
        return any(character.isalpha() for character in "".join(self.messages))

    def __str__(self) -> str:
        return f"hihlandmark/{self.file}:{self.first}: {self.general}"


def pattern(message: str) -> re.Pattern[str]:
    """What fits a message: its `GAP` stand for anything."""
    return re.compile(re.escape(message).replace(re.escape(GAP), ".*"), re.DOTALL)


def in_one_line(text: str) -> str:
    """With single spaces for line breaks, and one gap for several side by side."""
    return " ".join(re.sub(f"{GAP}+", GAP, text).split())


@cache
def places() -> tuple[Place, ...]:
    """All places of the package, in the order of files and lines."""
    return tuple(
        place
        for path in sorted(PACKAGE.rglob("*.py"))
        for place in sorted(_places_in(path), key=lambda place: place.first)
    )


def _places_in(path: Path) -> Iterator[Place]:
    source = path.read_text(encoding="utf-8")
    if "Error" not in source and "BadParameter" not in source and "problems" not in source:
        return
    module = _Module(ast.parse(source))
    raised = {id(node.exc) for node in module.nodes if isinstance(node, ast.Raise)}
    for node in module.nodes:
        if not isinstance(node, ast.Call) or not node.args:
            continue
        error = _name(node.func)
        if error in OURS:
            yield _place(path, module, node, error, node.args[0])
        elif error in PYTHONS and id(node) in raised:
            yield _place(path, module, node, error, node.args[-1])  # OSError has a number before
    for function in module.functions.values():
        if function.name.lstrip("_").startswith("problems"):
            for reason in _reasons(function):
                yield _place(path, module, reason, "", reason)


def _reasons(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """What a function of problems yields, appends, or returns in a list."""
    for node in ast.walk(function):
        if isinstance(node, ast.Yield) and node.value is not None:
            yield node.value
        elif isinstance(node, ast.Call) and _name(node.func) == "append":
            yield node.args[0]
        elif isinstance(node, ast.Return) and node.value is not None:
            for each in ast.walk(node.value):
                yield from each.elts if isinstance(each, ast.List) else ()


def _place(path: Path, module: _Module, node: ast.expr, error: str, text: ast.expr) -> Place:
    words = _Words(module, module.around(node))
    return Place(
        path.relative_to(PACKAGE).as_posix(),
        node.lineno,
        node.end_lineno or node.lineno,
        error,
        tuple(dict.fromkeys(map(in_one_line, words.of(text)))),
        in_one_line(words.general(text)),
    )


class _Module:
    """The syntax tree of a file, and which function and statements a node is in."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.nodes = list(ast.walk(tree))
        self.parents = {
            id(child): node for node in self.nodes for child in ast.iter_child_nodes(node)
        }

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        return {node.name: node for node in self.nodes if isinstance(node, ast.FunctionDef)}

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [node for node in self.nodes if isinstance(node, ast.Call)]

    def around(self, node: ast.AST) -> ast.FunctionDef | None:
        while (node := self.parents.get(id(node), self.tree)) is not self.tree:
            if isinstance(node, ast.FunctionDef):
                return node
        return None

    def before(self, node: ast.AST) -> Iterator[list[ast.stmt]]:
        """Statements that come before a node: those of its own block, of the block around ..."""
        while (parent := self.parents.get(id(node))) is not None:
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(parent, block, None)
                if isinstance(statements, list) and node in statements:
                    yield statements[: statements.index(node)]
            if isinstance(parent, ast.For):
                yield [ast.For(parent.target, self._rows(parent), [], [])]
            node = parent

    def _rows(self, loop: ast.For) -> ast.expr:
        """What a loop goes through; the items of a dictionary as a tuple of pairs."""
        if isinstance(loop.iter, ast.Call) and _name(loop.iter.func) == "items":
            assert isinstance(loop.iter.func, ast.Attribute)
            for statements in self.before(loop):
                for table in _assigned(statements, _name(loop.iter.func.value)):
                    if isinstance(table, ast.Dict):
                        pairs = zip(table.keys, table.values, strict=True)
                        rows = [ast.Tuple([k, v], ast.Load()) for k, v in pairs if k is not None]
                        return ast.Tuple([*rows], ast.Load())
        return loop.iter


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


@dataclass(frozen=True)
class _Words:
    """What expressions of one function can say."""

    module: _Module
    function: ast.FunctionDef | None

    def general(self, node: ast.expr) -> str:
        """The text with a gap for all that varies."""
        return "".join(
            words[0] if len(words := self.of(part)) == 1 else GAP for part in _parts(node)
        )

    def of(self, node: ast.expr, depth: int = DEEPEST) -> list[str]:
        """The texts that an expression may be; where several of its parts vary, one at a time."""
        deeper = depth - 1
        if deeper < 0:
            return [GAP]
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else [GAP] * (node.value is not None)
        if isinstance(node, ast.FormattedValue):
            plain = node.conversion == -1 and node.format_spec is None
            return self.of(node.value, deeper) if plain else [GAP]
        if isinstance(node, ast.IfExp):
            return _each(self.of(node.body, deeper), self.of(node.orelse, deeper))
        if isinstance(node, ast.Name) and node.id not in SUBJECTS:
            return _each(*(words.of(value, deeper) for words, value in self._values(node)))
        if isinstance(node, ast.Call):
            return self._called(node, deeper)
        parts = _parts(node)
        return [GAP] if parts == [node] else _one_at_a_time([self.of(p, deeper) for p in parts])

    def _called(self, node: ast.Call, depth: int) -> list[str]:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":  # a table's text
            for table in _assigned(self.module.tree.body, _name(node.func.value)):
                if isinstance(table, ast.Dict):
                    return _each(*(self.of(value, depth) for value in table.values), [GAP])
        function = self.module.functions.get(_name(node.func))
        if function is None or function.name in LISTING or not isinstance(node.func, ast.Name):
            return [GAP]
        inside = _Words(self.module, function)
        returned = [each.value for each in ast.walk(function) if isinstance(each, ast.Return)]
        return _each(*(inside.of(value, depth) for value in returned if value is not None))

    def _values(self, node: ast.Name) -> list[tuple[_Words, ast.expr]]:
        """What a variable may stand for: what was assigned to it last, or given by callers."""
        for statements in self.module.before(node):
            if found := _assigned(statements, node.id):
                return [(self, value) for value in found]
        return list(self._given(node.id)) if self.function else []

    def _given(self, name: str) -> Iterator[tuple[_Words, ast.expr]]:
        """What callers in this module pass as an argument of the function."""
        assert self.function is not None
        arguments = [each.arg for each in self.function.args.args]
        for call in self.module.calls if name in arguments else ():
            if isinstance(call.func, ast.Name) and call.func.id == self.function.name:
                words = _Words(self.module, self.module.around(call))
                if arguments.index(name) < len(call.args):
                    yield words, call.args[arguments.index(name)]
                yield from ((words, each.value) for each in call.keywords if each.arg == name)


def _parts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.JoinedStr):
        return node.values
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_parts(node.left), *_parts(node.right)]
    return [node]


def _assigned(statements: list[ast.stmt], name: str) -> list[ast.expr]:
    """All that these statements, and those inside of them, assign to a variable."""
    found: list[ast.expr] = []
    open_to_all = (each for each in statements if not isinstance(each, _SCOPES))
    for node in (node for statement in open_to_all for node in ast.walk(statement)):
        if isinstance(node, ast.Assign):
            found += [each for target in node.targets for each in _taken(target, node.value, name)]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            found += _taken(node.target, node.value, name)
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            found += [each for row in node.iter.elts for each in _taken(node.target, row, name)]
    return found


def _taken(target: ast.expr, value: ast.expr, name: str) -> list[ast.expr]:
    """What an assignment gives to a variable; a gap where that cannot be told."""
    names = [_name(each) for each in target.elts] if isinstance(target, ast.Tuple) else None
    if names is None:
        return [value] if isinstance(target, ast.Name) and target.id == name else []
    if name not in names:
        return []
    return [value.elts[names.index(name)]] if isinstance(value, ast.Tuple) else [ast.Constant(GAP)]


def _each(*choices: list[str]) -> list[str]:
    """All different texts of several lists; a gap for none, and for a gap or nothing."""
    texts = dict.fromkeys(text for choice in choices for text in choice)
    return [text for text in texts if text or GAP not in texts] or [GAP]


def _one_at_a_time(parts: list[list[str]]) -> list[str]:
    usual = [texts[0] if len(texts) == 1 else GAP for texts in parts]
    varied = [
        "".join([*usual[:place], text, *usual[place + 1 :]])
        for place, texts in enumerate(parts)
        if len(texts) > 1
        for text in texts
    ]
    return varied or ["".join(usual)]
