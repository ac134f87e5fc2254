"""A folder of results never replaces, removes or reads again what is not its own."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hihlandmark import ConfigurationError, Face
from hihlandmark.io import FORMATS, Result, ResultFolder, Shard, Source, find_images, job
from hihlandmark.layouts import get_layout
from hihlandmark.writing import write_new

SETTINGS = {"layout": "29", "weights": "1" * 64, "runtime": "torch"}
OF_MANY = [name for name, each in FORMATS.items() if each.of_many is not None]
OF_IMAGE = [name for name in FORMATS if name not in OF_MANY]
FACE = Face(np.zeros((29, 2)), np.ones(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, get_layout(29))
MANIFEST = ".manifest.sqlite"


def result(name: str, faces: int = 2) -> Result:
    return Result(Source(f"in/{name}", name, "1"), [FACE] * faces, (640, 480))


def write(folder: Path, names: Iterable[str], output_format: str, **options: Any) -> ResultFolder:
    """Do what the command does, with results made here."""
    drawing = [b"a drawing"] if options.get("drawings") else []
    with ResultFolder(folder, output_format, SETTINGS, **options) as target:
        for source in list(target.pending(result(name).source for name in names)):
            target.add(replace(result(source.name), source=source), *drawing)
    return target


def tree(folder: Path, hidden: bool = True) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (hidden or not path.name.startswith("."))
    }


def images_in(folder: Path) -> list[str]:
    """The images of all JSON and JSON Lines files, with repetitions."""
    files = [path for path in folder.rglob("*.json*") if path.is_file()]
    lines = [line for path in files for line in path.read_text().splitlines()]
    return sorted(json.loads(line)["image"] for line in lines)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "metadata of Google Takeout": lambda folder: (folder / "000.jpg.json").write_text("mine"),
    "a part of Spark": lambda folder: (folder / "part-00000-1234.snappy.parquet").write_text(
        "mine"
    ),
    "a part of the same name": lambda folder: (folder / "part-000001.jsonl").write_text("mine"),
    "images": lambda folder: (folder / "000.jpg").write_text("mine"),
    "a file in a subfolder": lambda folder: (
        (folder / "sub").mkdir() or (folder / "sub" / "a.txt").write_text("mine")
    ),
    "an empty manifest": lambda folder: (
        (folder / MANIFEST).touch() or (folder / "part-000001.csv").write_text("mine")
    ),
    "an empty manifest of a shard": lambda folder: (
        (folder / ".manifest-1-of-2.sqlite").touch() or (folder / "a.jpg.json").write_text("mine")
    ),
    "a manifest of another program": lambda folder: (
        sqlite3.connect(folder / MANIFEST).execute("CREATE TABLE mine (x)"),
        (folder / "b.txt").write_text("mine"),
    ),
    "a lock of another program": lambda folder: (folder / ".lock").write_text("mine"),
}


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_folder_with_files_of_others_and_no_manifest_is_refused(
    tmp_path: Path, foreign: str, output_format: str
) -> None:
    FOREIGN[foreign](tmp_path)
    before = tree(tmp_path)
    named = next(name for name, content in before.items() if content == b"mine")
    for shard in (Shard(), Shard(2, 2)):
        if shard.total > 1 and foreign == "a lock of another program":
            continue
        with pytest.raises(ConfigurationError, match=named):
            write(tmp_path, ["000.jpg"], output_format, shard=shard)
        assert tree(tmp_path) == before


def test_manifest_of_another_program_alone_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / MANIFEST) as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(ConfigurationError, match="not a manifest"):
        write(tmp_path, ["a.jpg"], "jsonl")


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("loss", ["copied without hidden files", "empty manifest"])
def test_results_without_their_manifest_are_refused_and_kept(
    tmp_path: Path, output_format: str, loss: str
) -> None:
    out = tmp_path / "out"
    write(out, ["a.jpg", "b.jpg"], output_format)
    if loss == "empty manifest":
        (out / MANIFEST).write_bytes(b"")
    else:
        shutil.copytree(out, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
        out = tmp_path / "copy"
    before = tree(out)
    with pytest.raises(ConfigurationError, match=r"part-|\.jpg\."):
        write(out, ["a.jpg", "c.jpg"], output_format)
    assert tree(out) == before


def test_a_part_that_was_removed_is_written_again_with_its_drawings(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    write(tmp_path, names, "jsonl", drawings=True, part_size=2)
    (tmp_path / "part-000001.jsonl").unlink()
    folder = write(tmp_path, names, "jsonl", drawings=True, part_size=2)
    assert (folder.done_before, folder.failed) == (1, 0)
    assert images_in(tmp_path) == [f"in/{name}" for name in names]
    assert len(list(tmp_path.glob("*.landmarks.png"))) == 3


def test_drawings_that_are_wanted_too_late_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, ["a.jpg", "b.jpg"], "jsonl")
    assert not caplog.messages
    write(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], "jsonl", drawings=True)
    assert caplog.messages == ["2 finished images get no drawing: use a new folder"]


def test_the_list_of_failures_is_a_list_of_images(tmp_path: Path) -> None:
    bad = [Source("in/a b.jpg", "a b.jpg", "1"), Source("in/c.jpg", "c.jpg", "1")]
    with ResultFolder(tmp_path, "jsonl", SETTINGS) as target:
        for source in list(target.pending(bad)):
            target.add(Result(source, error="cannot be\tread\nat all"))
    listed = tmp_path / "_failed.txt"
    reason = "\tcannot be read at all\n"
    assert listed.read_text() == f"in/a b.jpg{reason}in/c.jpg{reason}"
    assert [source.path for source in find_images([f"@{listed}"])] == ["in/a b.jpg", "in/c.jpg"]


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("drawings", [False, True])
def test_file_of_others_in_a_begun_folder_stays(
    tmp_path: Path, output_format: str, drawings: bool
) -> None:
    write(tmp_path, ["a.jpg"], output_format, drawings=drawings)
    suffix = FORMATS[output_format].suffix
    names = [f"part-000002{suffix}", "b.jpg.json", "b.jpg.1.pts", "b.jpg.landmarks.png"]
    for name in names:
        (tmp_path / name).write_text("mine")
    # What earlier versions left, and hidden files that look like it.
    (tmp_path / f".part-000002{suffix}.abc").write_text("mine")
    before = tree(tmp_path, hidden=False)
    folder = write(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], output_format, drawings=drawings)
    after = tree(tmp_path)
    assert before.items() <= after.items()
    assert after[f".part-000002{suffix}.abc"] == b"mine"
    new = after.keys() - before.keys() - {f".part-000002{suffix}.abc"}
    assert [name for name in new if not name.startswith(".")], "the rest is done"
    assert folder.failed == (output_format in OF_IMAGE or drawings)
    again = write(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], output_format, drawings=drawings)
    assert again.done_before == 3 - folder.failed


@pytest.mark.parametrize("output_format", FORMATS)
def test_file_of_others_under_the_name_of_an_unfinished_one_stays(
    tmp_path: Path, output_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ["a.jpg"], output_format)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    folder = ResultFolder(tmp_path, output_format, SETTINGS)
    monkeypatch.setattr("hihlandmark.io.job.write_new", die)
    folder.add(result("b.jpg"))
    with pytest.raises(KeyboardInterrupt):
        folder.flush()
    monkeypatch.undo()
    folder._manifest.close()
    folder._lock.release()
    suffix = ".json" if output_format == "json" else ".0.pts"
    name = f"b.jpg{suffix}" if output_format in OF_IMAGE else folder._part_name.format(2)
    (tmp_path / name).write_text("mine")
    write(tmp_path, ["c.jpg"], output_format)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("output_format", FORMATS)
def test_edited_results_stay(tmp_path: Path, output_format: str) -> None:
    write(tmp_path, ["a.jpg"], output_format)
    for name in tree(tmp_path, hidden=False):
        (tmp_path / name).write_text("edited")
    before = tree(tmp_path, hidden=False)
    again = write(tmp_path, ["a.jpg", "b.jpg"], output_format)
    assert again.done_before == 1
    assert before.items() <= tree(tmp_path).items()


@pytest.mark.parametrize("output_format", ["json", "jsonl"])
def test_deleted_result_is_named_and_made_again(
    tmp_path: Path, output_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    write(tmp_path, names, output_format, part_size=1)
    deleted = sorted(tree(tmp_path, hidden=False))[1]
    (tmp_path / deleted).unlink()
    again = write(tmp_path, names, output_format, part_size=1)
    assert deleted in caplog.text
    assert again.done_before == 2
    assert images_in(tmp_path) == [f"in/{name}" for name in names]


def test_deleted_file_of_an_edited_result_does_not_cost_the_other(tmp_path: Path) -> None:
    write(tmp_path, ["a.jpg"], "pts")
    (tmp_path / "a.jpg.0.pts").write_text("edited")
    (tmp_path / "a.jpg.1.pts").unlink()
    assert write(tmp_path, ["a.jpg"], "pts").failed == 1
    assert (tmp_path / "a.jpg.0.pts").read_text() == "edited"


@pytest.mark.parametrize("page", range(8))
def test_damaged_page_of_the_manifest_loses_nothing(tmp_path: Path, page: int) -> None:
    names = [f"{number:040d}.jpg" for number in range(100)]
    write(tmp_path, names, "jsonl", part_size=20)
    manifest = tmp_path / MANIFEST
    content = bytearray(manifest.read_bytes())
    assert len(content) >= 8 * 4096
    content[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    manifest.write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(ConfigurationError, match=r"damaged.*kept"):
        write(tmp_path, names, "jsonl")
    assert tree(tmp_path) == before


@contextmanager
def limited_file_size(limit: int) -> Iterator[None]:
    """Writing fails above this size, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 1000, 20_000, 40_000])
@pytest.mark.parametrize("output_format", ["json", "jsonl", "parquet"])
def test_full_disk_is_named_with_a_remedy(tmp_path: Path, output_format: str, limit: int) -> None:
    out = tmp_path / "out"
    names = [f"{n}.jpg" for n in range(30)]
    write(out, ["a.jpg"], output_format)
    before = tree(out, hidden=False)
    errors: list[OSError] = []
    with limited_file_size(limit):
        try:
            write(out, names, output_format, part_size=3)
        except OSError as error:
            errors.append(error)
    assert errors or limit > 1000
    for error in errors:
        assert str(out) in str(error.filename)
        assert "run the command again" in str(error.strerror)
    assert before.items() <= tree(out).items()
    write(out, names, output_format)
    if output_format != "parquet":
        assert images_in(out) == sorted(f"in/{name}" for name in ("a.jpg", *names))
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("limit", [0, 20_000])
def test_full_disk_in_a_new_folder_is_named(tmp_path: Path, limit: int) -> None:
    with limited_file_size(limit), pytest.raises(OSError, match=str(tmp_path)) as raised:
        write(tmp_path, ["a.jpg"], "jsonl")
    assert "run the command again" in str(raised.value)
    write(tmp_path, ["a.jpg"], "jsonl")
    assert images_in(tmp_path) == ["in/a.jpg"]


BAD_NAMES = [
    "a:b.jpg",
    "con.jpg",
    "sub/NUL",
    "Com1.tar.jpg",
    "aux/a.jpg",
    "../up.jpg",
    "sub/../../up.jpg",
    "x" * 251 + ".jpg",
    "é" * 130 + ".jpg",
    "B.JPG",
]


@pytest.mark.parametrize("options", [{}, {"drawings": True}])
@pytest.mark.parametrize("output_format", FORMATS)
def test_name_that_no_file_can_have_fails_alone(
    tmp_path: Path, output_format: str, options: dict[str, bool]
) -> None:
    out = tmp_path / "out"
    good = ["a.jpg", "b.jpg", "c.jpg", "console.jpg"]
    with ResultFolder(out, output_format, SETTINGS, **options) as folder:
        sources = [result(name).source for name in [*good[:2], *BAD_NAMES, *good[2:]]]
        problems = 0
        for source in folder.pending(sources):
            problems += source.problem is not None
            drawing = [b"a drawing"] if options else []
            folder.add(replace(result(source.name), source=source), *drawing)
    failed = len(BAD_NAMES) if output_format in OF_IMAGE or options else 0
    assert problems + folder.failed == failed
    with ResultFolder(out, output_format, SETTINGS, **options) as folder:
        list(folder.pending(sources))
        assert folder.done_before == len(sources) - failed
    assert not list(tmp_path.glob("up*"))


@pytest.mark.parametrize("output_format", OF_IMAGE)
@pytest.mark.parametrize("file_first", [False, True])
def test_image_beside_a_folder_of_the_name_of_its_result(
    tmp_path: Path, output_format: str, file_first: bool
) -> None:
    suffix = {"json": ".json", "pts": ".1.pts"}[output_format]
    names = ["a.jpg", f"a.jpg{suffix}/b.jpg"]
    folder = write(tmp_path, [*(names if file_first else names[::-1]), "c.jpg"], output_format)
    assert folder.failed == 1
    assert (tmp_path / f"c.jpg{suffix}").is_file()
    assert (tmp_path / f"a.jpg{suffix}").is_file() == file_first
    assert (tmp_path / "a.jpg.0.pts").is_file() == (file_first and output_format == "pts")


def test_shards_do_not_replace_files_of_each_other(tmp_path: Path) -> None:
    sources = [Source(f"{n}/a.jpg", "a.jpg", "1") for n in range(10)]
    done = failed = 0
    for number in (1, 2):
        shard = Shard(number, 2)
        with ResultFolder(tmp_path, "json", SETTINGS, shard=shard) as folder:
            for source in folder.pending(sources):
                failed += source.problem is not None
                done += source.problem is None
                folder.add(replace(result("a.jpg"), source=source))
        failed, done = failed + folder.failed, done - folder.failed
    assert (done, failed) == (1, 9)


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2), Shard(2, 2)])
@pytest.mark.parametrize("name", ["weights", "runtime", "layout"])
def test_resuming_with_other_settings_needs_leave(tmp_path: Path, shard: Shard, name: str) -> None:
    first = Shard(1, 2) if shard.total > 1 else shard
    write(tmp_path, ["a.jpg"], "jsonl", shard=first)
    other = SETTINGS | {name: "other"}
    with pytest.raises(ConfigurationError, match=f"{name} was .*other.*--allow-mixed"):
        ResultFolder(tmp_path, "jsonl", other, shard=shard)
    with ResultFolder(tmp_path, "jsonl", other, shard=shard, allow_mixed=True):
        pass
    with pytest.raises(ConfigurationError, match="format"):
        ResultFolder(tmp_path, "csv", other, shard=shard, allow_mixed=True)


@pytest.mark.parametrize("output_format", FORMATS)
def test_drawing_is_never_later_than_its_result(tmp_path: Path, output_format: str) -> None:
    folder = ResultFolder(tmp_path, output_format, SETTINGS, drawings=True, part_size=2)
    for name in "abc":
        folder.add(result(name), drawing=b"a drawing")
    # Killed: the result of c is not written.
    folder._manifest.close()
    folder._lock.release()
    assert (tmp_path / "a.landmarks.png").read_bytes() == b"a drawing"
    again = write(tmp_path, "abc", output_format, drawings=True)
    assert again.done_before == 2
    assert again.failed == 0
    assert len(list(tmp_path.glob("*.landmarks.png"))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("output_format", ["json", "jsonl"])
def test_a_part_is_written_whole_when_interrupted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    output_format: str,
    number: signal.Signals,
) -> None:
    def write_and_interrupt(*arguments: Any) -> None:
        write_new(*arguments)
        signal.raise_signal(number)

    monkeypatch.setattr(job, "write_new", write_and_interrupt)
    handler = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], output_format, part_size=2)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, handler)
    assert images_in(tmp_path) == ["in/a.jpg", "in/b.jpg"]
    monkeypatch.undo()
    again = write(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], output_format, part_size=2)
    assert (again.done_before, again.failed) == (2, 0)
    assert images_in(tmp_path) == ["in/a.jpg", "in/b.jpg", "in/c.jpg"]
    assert not caplog.records
