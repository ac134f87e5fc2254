"""What a release consists of besides code: that it is there and consistent."""

import re
from pathlib import Path

import pytest

import hihlandmark

ROOT = Path(__file__).parent.parent


def test_version_is_written_in_one_place_and_has_its_changes() -> None:
    assert not re.search(r"^version\b", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", changes, re.M)
    assert versions[0] == hihlandmark.__version__
    kinds = set(re.findall(r"^### (\w+)", changes, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_files_that_pages_link_to_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing
