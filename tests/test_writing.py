"""Atomic writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hihlandmark.writing import write_atomically


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_permissions_are_those_of_the_user_or_of_the_file_before(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o600)
    write_atomically(tmp_path / "new", b"2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    for content in (b"1", b"2"):
        target.write_bytes(b"old")
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
