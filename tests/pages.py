"""The code blocks of README and docs/, for the test files that run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^( *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^\1```", re.M | re.S)


def blocks_of(page: Path, language: str) -> list[str]:
    """The texts of the blocks of a language, in order."""
    found = FENCE.finditer(page.read_text("utf-8"))
    return [match["text"] for match in found if match["language"] == language]
