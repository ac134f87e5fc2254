"""Images in files, folders, archives, tables, lists and at URLs."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hihlandmark import ImageError
from hihlandmark.io import Source, find_images


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def names(found: Iterable[Source]) -> list[str]:
    return [source.name for source in found if source.problem is None]


def find(*paths: object) -> list[Source]:
    return list(find_images(map(str, paths)))


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_globs_files_and_folders_mix(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.PNG", "sub/c.jpg", "notes.txt", "sub/notes.txt"):
        (tmp_path / name).write_bytes(png())
    found = find(tmp_path / "*.png", tmp_path / "sub", tmp_path / "notes.txt", tmp_path)
    assert names(found) == ["a.png", "c.jpg", "notes.txt", "a.png", "b.PNG", "sub/c.jpg"]
    assert all(source.load().shape == (10, 20, 3) for source in found)


def test_archives_are_read_member_by_member(tmp_path: Path) -> None:
    members = {"a/1.png": png(), "a/1.json": b"{}", "2.png": png(2)}
    write_tar(tmp_path / "shard.tar.gz", members, "w:gz")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("sub/3.png", png(3))
        archive.writestr("notes.txt", "no image")
    found = find(tmp_path / "shard.tar.gz", tmp_path / "images.zip")
    assert names(found) == ["shard.tar.gz/a/1.png", "shard.tar.gz/2.png", "images.zip/sub/3.png"]
    assert found[2].path == str(tmp_path / "images.zip" / "sub/3.png")
    assert [source.load().shape[1] for source in found] == [20, 22, 23]


def test_damaged_archive_gives_the_images_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "broken.tar"
    write_tar(path, {f"{number}.png": bytes(2000) for number in range(3)})
    path.write_bytes(path.read_bytes()[:3500])
    *before, last = find(path)
    assert names(before) == ["broken.tar/0.png"]
    with pytest.raises(ImageError, match=r"broken\.tar"):
        last.load()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.zip", b"PK no zip"),
        ("empty.tar", bytes(10240)),
        ("no_column.parquet", b""),
        ("list.txt", b"\xff\xfe"),
    ],
)
def test_what_holds_no_image_is_a_problem(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), path)
    (source,) = find(f"@{path}" if path.suffix == ".txt" else path)
    assert name in str(source.problem)
    with pytest.raises(ImageError, match=name):
        source.load()


@pytest.mark.parametrize("path", [".", "*.jpg", "missing.jpg", "@missing.txt"])
def test_missing_images_fail_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = find(path)
    with pytest.raises(ImageError):
        source.load()


def test_member_named_outside_of_the_archive_is_named_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../up.png", png())
        archive.writestr("/etc/root.png", png())
    assert names(find(tmp_path / "evil.zip")) == ["evil.zip/up.png", "evil.zip/etc/root.png"]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_rows_are_images(tmp_path: Path, as_struct: bool) -> None:
    values: list[Any] = [png(n) for n in range(3)]
    if as_struct:
        values = [{"bytes": value, "path": None} for value in values]
    path = tmp_path / "faces.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": [1, 2, 3], "image": values}), path)
    found = find(path)
    assert [source.path for source in found] == [f"{path}#{n}" for n in range(3)]
    assert found[2].load().shape == (10, 22, 3)


def test_lists_hold_paths_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "list.txt").write_text(f"{tmp_path}/*.png\n\nhttps://example.org/b.jpg\n")
    assert names(find(f"@{tmp_path}/list.txt")) == ["a.png", "b.jpg"]


def test_fsspec_urls_are_read() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/images/sub/{number}.png", png(number))
    memory.pipe("/images/notes.txt", b"no image")
    found = find("memory://images")
    assert names(found) == ["sub/0.png", "sub/1.png", "sub/2.png"]
    assert found[1].load().shape == (10, 21, 3)
    assert names(find("memory://images/sub/2.png")) == ["2.png"]
    for path in ("memory://images/*.gif", "memory://nowhere.png"):
        (source,) = find(path)
        assert path in str(source.problem)


def test_stamp_by_content_ignores_the_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    stamps = []
    for content in (png(), png(), png(1)):
        path.write_bytes(content)
        (source,) = find(path)
        stamps.append(source.stamped_by_content().stamp)
    assert stamps[0] == stamps[1] != stamps[2]
