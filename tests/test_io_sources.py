"""Images in files, folders, archives, tables, lists and at URLs."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from builders import encoded
from PIL import Image

from hihlandmark import ImageError
from hihlandmark.image import readable_formats
from hihlandmark.io import Result, ResultFolder, Source, find_images
from hihlandmark.layouts import W300_68


def png(number: int = 0) -> bytes:
    return encoded(Image.new("RGB", (20 + number, 10), (number, 0, 0)))


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


def problems(found: Iterable[Source]) -> list[str]:
    return [source.problem for source in found if source.problem is not None]


def within(seconds: float, task: Callable[[], Any]) -> Any:
    """The result of a task that must not hang."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(task()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, "it hangs"
    return results[0]


def write_zip(path: Path, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    """Three images of noise, a.png to c.png; returns the content."""
    noise = random.Random(0)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in "abc":
            archive.writestr(f"{name}.png", png() + noise.randbytes(2000) * 2)
    return bytearray(path.read_bytes())


def set_field(content: bytearray, offset: int, value: int) -> None:
    """Set a field of b.png in a zip file, both where its data is and in the directory."""
    local = content.index(b"b.png") - 30 + offset
    central = content.rindex(b"b.png") - 46 + offset + 2
    content[local : local + 2] = content[central : central + 2] = value.to_bytes(2, "little")


def damage(content: bytearray) -> None:
    start = content.index(b"b.png") + 100
    content[start : start + 1000] = bytes(1000)


@pytest.mark.parametrize("method", [0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize(
    "spoil",
    [
        damage,
        lambda content: set_field(content, 6, 1),  # encrypted
        lambda content: set_field(content, 8, 99),  # an unknown method
        lambda content: set_field(content, 8, 12),  # another method
        lambda content: set_field(content, 8, 14),
    ],
)
def test_damaged_member_of_a_zip_fails_alone(
    tmp_path: Path, method: int, spoil: Callable[[bytearray], None]
) -> None:
    path = tmp_path / "images.zip"
    content = write_zip(path, method)
    original = bytes(content)
    spoil(content)
    path.write_bytes(content)
    found = find(path)
    if content != original:
        (problem,) = problems(found)
        assert "b.png" in problem
    assert {"images.zip/a.png", "images.zip/c.png"} <= set(names(found))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
@pytest.mark.parametrize("length", [0, 1, 3, 10, 17, 40, 300, 600, 2000])
def test_archive_cut_anywhere_is_a_problem(tmp_path: Path, mode: str, length: int) -> None:
    path = tmp_path / f"cut.tar{mode[1:].replace(':', '.')}"
    noise = random.Random(0)
    write_tar(path, {f"{n}.png": noise.randbytes(2000) for n in range(3)}, mode)
    path.write_bytes(path.read_bytes()[:length])
    assert "cut.tar" in problems(find(path))[-1]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".parquet"])
def test_noise_in_archives_is_a_problem(tmp_path: Path, suffix: str) -> None:
    noise = random.Random(0)
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".zip":
        write_zip(whole)
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"image": [png(), png(1)]}), whole)
    else:
        mode = {".tar": "w", ".tar.xz": "w:xz"}.get(suffix, "w:gz")
        write_tar(whole, {"a.png": png(), "b.png": png(1)}, mode)
    path = tmp_path / f"noise{suffix}"
    for _ in range(100):
        content = bytearray(whole.read_bytes())
        for _ in range(noise.choice([1, 3, 30])):
            content[noise.randrange(len(content))] = noise.randrange(256)
        path.write_bytes(content[: noise.choice([len(content), noise.randrange(len(content))])])
        for source in within(20, lambda: find(path)):
            with suppress(ImageError):
                source.load()


def test_sparse_member_of_a_tar_is_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("sparse.png")
        info.size = 512
        size = 100 * 2**30
        info.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.size": str(size),
            "GNU.sparse.map": "0,512",
            "GNU.sparse.numblocks": "1",
        }
        archive.addfile(info, io.BytesIO(bytes(512)))
        info = tarfile.TarInfo("after.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
    found = within(20, lambda: find(path))
    assert names(found) == ["sparse.tar/after.png"]
    assert "max_bytes" in problems(found)[0]


TEXTS = ["/etc/passwd", Path(__file__).as_uri(), "http://127.0.0.1:9/a.png"]


@pytest.mark.parametrize(
    "values", [TEXTS, [{"bytes": None, "path": text} for text in TEXTS], [1, 2], [[1], []]]
)
def test_table_cells_that_are_not_bytes_are_not_read(tmp_path: Path, values: list[Any]) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": values}), path)
    found = find(path)
    assert len(found) == len(values)
    for source in found:
        with pytest.raises(ImageError, match="bytes"):
            source.load()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"\xff/a.png", b"a\xed\xa0\x80.png"])
def test_name_that_is_not_utf8_is_a_problem(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    for each, content in ((path, png()), (os.fsencode(tmp_path) + b"/z.png", png())):
        with open(each, "wb") as file:
            file.write(content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(path, os.fsdecode(name))
        archive.add(tmp_path / "z.png", "z.png")
    for found in (find(tmp_path), find(tmp_path / "a.tar"), find(f"{tmp_path}/**/*.[pj][np]g")):
        (problem,) = problems(found)
        assert "UTF-8" in problem
        assert "\\udc" in problem
        assert all(f"{s.path}{s.name}{s.problem}".encode() for s in found)
        assert [Path(each).name for each in names(found)] == ["z.png"]


def test_list_may_start_with_a_byte_order_mark_and_hold_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    image = str(tmp_path / "a.png").encode()
    (tmp_path / "list.txt").write_bytes(
        b"\xef\xbb\xbf" + image + b"\r\ncaf\xe9.png\na.zip/a\0b.png\n*\0.png\n@\0\n" + image + b"\n"
    )
    found = find(f"@{tmp_path}/list.txt")
    assert names(found) == ["a.png", "a.png"]
    assert "line 2" in problems(found)[0]
    assert len(problems(found)) == 4
    assert all(source.stamped_by_content() for source in found)


def test_lists_that_name_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    own, first, second = (tmp_path / f"{name}.txt" for name in ("own", "first", "second"))
    own.write_text(f"@{own}\n{tmp_path}/a.png\n")
    first.write_text(f"@{second}\n@{tmp_path}/link.txt\n")
    second.write_text(f"{tmp_path}/a.png\n@{first}\n")
    (tmp_path / "link.txt").symlink_to(first)
    for path, count in ((own, 1), (first, 2), (second, 2)):
        found = within(20, lambda path=path: find(f"@{path}"))
        assert names(found) == ["a.png"]
        assert len(problems(found)) == count
    for number in range(2000):
        (tmp_path / f"{number}.txt").write_text(f"@{tmp_path}/{number + 1}.txt\n")
    (problem,) = problems(within(20, lambda: find(f"@{tmp_path}/0.txt")))
    assert ".txt" in problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "name",
    ["a.jpg", "a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.parquet", "l.txt"],
)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/random"])
def test_what_is_not_a_regular_file_is_a_problem(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    prefixes = ["@"] if name == "l.txt" else ["", "file://", "local://"]
    (tmp_path / "list.txt").write_text("".join(f"{prefix}{path}\n" for prefix in prefixes))
    arguments = [f"{prefix}{path}" for prefix in prefixes] + [f"@{tmp_path}/list.txt"]
    arguments += [str(tmp_path), f"{tmp_path}/a.*"] * (name == "a.jpg")
    found = [
        source.stamped_by_content()
        for argument in arguments
        for source in within(20, lambda argument=argument: find(argument))
    ]
    assert len(found) >= 2
    for source in found:
        assert source.problem is not None or source.stamp == ""
        with pytest.raises(ImageError, match="not a regular file"):
            source.load()


def test_files_of_macos_beside_images_are_ignored(tmp_path: Path) -> None:
    members = ("a.png", "._a.png", "__MACOSX/a.png", "sub/__MACOSX/._a.png", "sub/b.png")
    for name in members:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    write_tar(tmp_path / "a.tar", dict.fromkeys(members, png()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in members:
            archive.writestr(name, png())
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name in members:
        memory.pipe(f"/macos/{name}", png())
    arguments = (tmp_path / "in", tmp_path / "a.tar", tmp_path / "a.zip", "memory://macos")
    for argument in (*arguments, f"{tmp_path}/in/**/*.png"):
        found = find(argument)
        assert [Path(name).name for name in names(found)] == ["a.png", "b.png"]
        assert not problems(found)


UNUSUAL = {"JPEG2000": ".jp2", "TGA": ".tga", "MPO": ".mpo", "PSD": ".psd", "QOI": ".qoi"}


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "MPO"])
def test_unusual_formats_in_folders_are_read(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / f"a{UNUSUAL[kind]}", kind)
    (source,) = find(tmp_path)
    assert source.load().shape == (20, 30, 3)


def test_photoshop_and_qoi_files_in_folders_are_found(tmp_path: Path) -> None:
    for name in ("a.psd", "b.qoi", "c.MPO"):
        (tmp_path / name).write_bytes(b"damaged")
    assert names(find(tmp_path)) == ["a.psd", "b.qoi", "c.MPO"]


@pytest.mark.parametrize("name", ["a.HEIC", "b.heif", "c.jxl", "d.CR2", "e.nef"])
def test_formats_without_a_package_are_named_as_skipped(tmp_path: Path, name: str) -> None:
    if {".heic": "HEIF", ".heif": "HEIF", ".jxl": "JXL"}.get(
        Path(name).suffix.lower()
    ) in readable_formats():
        pytest.skip("its package is installed")
    folder = tmp_path / "in"
    folder.mkdir()
    for each in (name, "z.png"):
        (folder / each).write_bytes(png())
    write_tar(tmp_path / "a.tar", {name: png(), "z.png": png()})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / name, name)
        archive.write(folder / "z.png", "z.png")
    for path in (folder, tmp_path / "a.tar", tmp_path / "a.zip"):
        found = find(path)
        assert [(s.is_skipped, Path(s.path).name) for s in found] == [
            (True, name),
            (False, "z.png"),
        ]
        assert name in str(found[0].problem)
    (folder / "z.png").unlink()
    skipped, empty = find(folder)
    assert (skipped.is_skipped, empty.is_skipped) == (True, False)


def test_excluded_folder_is_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "out/b.png", "out/sub/c.png", "outer/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for pattern in (str(tmp_path), f"{tmp_path}/**/*.png", f"{tmp_path}/*"):
        for exclude in (tmp_path / "out", f"{tmp_path}/outer/../out/", tmp_path / "link"):
            found = {Path(s.path).name for s in find_images([pattern], exclude=exclude)}
            assert found == {"a.png", "d.png"}


class Unreliable:
    """A file system whose calls fail in its own way."""

    class Error(Exception):
        pass

    def __call__(self) -> bytes:
        raise self.Error("throttled")


def test_errors_of_remote_file_systems_are_image_errors() -> None:
    source = Source("s3://bucket/a.png", "a.png", content=Unreliable())
    with pytest.raises(ImageError, match="throttled"):
        source.load()
    assert source.stamped_by_content().stamp == ""
    (source,) = find("nosuch://x")
    assert "nosuch" in str(source.problem)


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    folder, other = tmp_path / "in", tmp_path / "other"
    for each in (folder / "sub", other):
        each.mkdir(parents=True)
    for path in (folder / "a.png", folder / "sub" / "b.png", other / "c.png"):
        path.write_bytes(png())
    (folder / "again").symlink_to(folder / "sub")
    (folder / "linked").symlink_to(other)
    (folder / "twice").symlink_to(other)
    (other / "up").symlink_to(folder)
    (folder / "a").mkdir()
    (folder / "a" / "link").symlink_to(folder / "sub")  # the walk meets it before its target
    assert names(find(folder)) == ["a.png", "linked/c.png", "sub/b.png"]


def test_one_path_may_stand_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for given in (path, str(path), [path], [str(path)]):
        assert [source.path for source in find_images(given)] == [str(path)]


def test_links_in_a_tar_are_named(tmp_path: Path) -> None:
    path = tmp_path / "linked.tar"
    (tmp_path / "a.png").write_bytes(png())
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("a.png")
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", "b.png", "c.png"):
            archive.add(tmp_path / name, name)
    found = find(path)
    assert names(found) == ["linked.tar/a.png"]
    assert [problem.partition(": ")[0] for problem in problems(found)] == [
        f"{path}/b.png",
        f"{path}/c.png",
    ]


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_second_image_of_a_name_in_an_archive_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"twice{suffix}"
    if suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for number in (0, 1):
                info = tarfile.TarInfo("a.png")
                info.size = len(png(number))
                archive.addfile(info, io.BytesIO(png(number)))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", png())
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a.png", png(1))
    found = find(path)
    assert names(found) == [f"twice{suffix}/a.png"]
    (problem,) = problems(found)
    assert "several images named a.png" in problem
    with ResultFolder(tmp_path / "out", "jsonl", {}) as results:
        for source in results.pending(find_images([path, path])):
            results.add(Result(source))
    assert results.failures is not None
    assert str(path / "a.png") not in results.failures.read_text()
    assert str(path) in results.failures.read_text()


def test_patterns_of_folders_and_what_is_in_them_find_each_image_once(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/sub/b.png", "in-2/c.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    assert names(find(tmp_path / "in" / "**")) == ["a.png", "sub/b.png"]
    assert sorted(names(find(tmp_path / "in*"))) == ["a.png", "c.png", "sub/b.png"]
    assert names(find(tmp_path / "in" / "**" / "*.png")) == ["a.png", "b.png"]


def test_a_remote_file_that_cannot_be_looked_up_is_a_failure_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    for name in "abc":
        fsspec.filesystem("memory").pipe(f"/denied/{name}.png", png())
    info = MemoryFileSystem.info

    def denied(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("a.png"):
            raise PermissionError("denied")
        return info(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", denied)
    first, *others = find("memory://denied/*.png")
    assert "denied" in str(first.problem)
    assert names(others) == ["b.png", "c.png"]


def test_images_in_archives_and_tables_have_paths(tmp_path: Path) -> None:
    zipped, packed, table = (tmp_path / f"a.{suffix}" for suffix in ("zip", "tar", "parquet"))
    members = {f"sub/{number}.png": png(number) for number in range(3)}
    write_tar(packed, members)
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    pyarrow.parquet.write_table(pyarrow.table({"image": list(members.values())}), table)
    paths = [f"{zipped}/sub/2.png", f"{zipped}/sub/0.png", f"{packed}/sub/1.png", f"{table}#2"]
    listed = tmp_path / "list.txt"
    lines = [*paths, f"{zipped}/no.png"]
    listed.write_text("\n".join(f"{path}\twhy it failed" for path in lines))
    found = find(f"@{listed}")
    assert sorted(source.path for source in found if source.problem is None) == sorted(paths)
    (problem,) = problems(found)
    assert "holds no such image" in problem
    (again,) = find(f"{tmp_path}/.//a.zip//sub/2.png")
    assert again.path == paths[0]
    zipped.write_bytes(b"no archive")
    assert "zip" in problems(find(paths[0]))[0], "the reason is told"


def test_archives_are_read_once_for_all_paths_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for archive in ("a.tar", "b.tar"):
        write_tar(tmp_path / archive, {f"{number}.png": png() for number in range(5)})
        paths += [f"{tmp_path / archive}/{number}.png" for number in range(4)]
    opened: list[int] = []
    open_ = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(1) or open_(*a, **k))
    random.Random(0).shuffle(paths)
    assert sorted(source.path for source in find(*paths)) == sorted(paths)
    assert len(opened) == 2


def test_patterns_of_folders_find_archives_too(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(png())
    write_tar(tmp_path / "sub" / "b.tar", {"c.png": png()})
    found = find(tmp_path / "**")
    assert [os.path.basename(source.path) for source in found] == ["a.png", "c.png"]


def test_one_image_has_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    for path in ("in", "./in", "in/", ".//in", "./in/a.png", "."):
        assert [source.path for source in find(path)] == [os.path.join("in", "a.png")]


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_drawings_in_folders_of_results_are_no_input(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "sub" / "b.png"):
        path.write_bytes(png())
    sources = find(tmp_path)
    with ResultFolder(tmp_path / "out", name, {}, drawings=True) as folder:
        for each in folder.pending(sources):
            folder.add(Result(each, size=(21, 10), layout=W300_68), png(1))
    assert len(list((tmp_path / "out").rglob("*.landmarks.png"))) == 2
    assert names(find(tmp_path)) == ["a.png", os.path.join("sub", "b.png")]


def test_every_path_that_is_found_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "x.zip"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    write_tar(folder / "b.tar", {"1.png": png(), "/abs/2.png": png(2)})
    found = [source.path for source in find(tmp_path / "**")]
    assert len(found) == len(set(found)) == 3
    for path in found:
        assert [source.path for source in find(path)] == [path]


def test_the_column_of_a_table_that_holds_bytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "bytes": [png()]}), path)
    (found,) = find(path)
    assert found.load().shape == (10, 20, 3)


def test_members_of_archives_may_begin_with_a_dot(tmp_path: Path) -> None:
    write_tar(tmp_path / "dot.tar", {"./a/1.png": png(), "./2.png": png()})
    (found,) = find(tmp_path / "dot.tar" / "a" / "1.png")
    assert found.load().shape == (10, 20, 3)


def test_names_in_lists_may_end_in_blanks(tmp_path: Path) -> None:
    path = tmp_path / "a.png "
    path.write_bytes(png())
    (tmp_path / "b.png").write_bytes(png(1))
    (tmp_path / "list.txt").write_text(f"{path}\r\n  {tmp_path}/b.png  \n\n")
    assert names(find(f"@{tmp_path}/list.txt")) == ["a.png ", "b.png"]
