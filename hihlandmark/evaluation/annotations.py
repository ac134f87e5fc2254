"""Annotated faces in the project's own format, `annotations.jsonl`, as plain objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hihlandmark.errors import ConfigurationError


def read_annotations(folder: Path, split: str) -> list[dict[str, Any]]:
    """The annotated faces of a split: the objects of ``annotations.jsonl`` that have points.

    Raises `ConfigurationError` when the folder is none of this format or has no such split.
    """
    path = folder / "annotations.jsonl"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} has no annotations.jsonl; give a folder that holds one, such as DIR/w300"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    chosen = [row for row in rows if row["split"] == split and row.get("points")]
    if not chosen:
        splits = ", ".join(sorted({row["split"] for row in rows if row.get("points")}))
        raise ConfigurationError(
            f"{path} has no annotated faces in split {split!r}; it has {splits or 'none'}"
        )
    return chosen
