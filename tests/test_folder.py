"""Where images come from, and results that are whole whatever interrupts them."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Face, ImageError
from hihlandmark.cli import app
from hihlandmark.io import Result, ResultFolder, Shard, Source, find_images, predict_sources
from hihlandmark.layouts import get_layout

SETTINGS = {"layout": "29", "weights": {"a.safetensors": "1" * 64}}
FORMATS_OF_MANY = ["jsonl", "csv", "coco", "parquet"]


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def face(seed: int = 0) -> Face:
    points = np.random.default_rng(seed).uniform(0, 50, (29, 2))
    covariance = np.tile(np.eye(2), (29, 1, 1))
    return Face(points, np.full(29, 0.5), covariance, np.array([0, 0, 50, 50]), 0.9, get_layout(29))


def result(name: str, faces: int = 1, stamp: str = "1", error: str | None = None) -> Result:
    model = {"model": "hih-small", "weights": "1" * 64}
    found = [face(seed) for seed in range(faces)]
    return Result(Source(name, name, stamp), found, (640, 480), error, model)


def images_in(folder: Path) -> list[str]:
    """The images of all parts, with repetitions."""
    found: list[str] = []
    for part in sorted(folder.glob("part*")):
        if part.suffix == ".jsonl":
            found += [json.loads(line)["image"] for line in part.read_text().splitlines()]
        elif part.suffix == ".csv":
            rows = csv.DictReader(part.open(newline=""))
            found += [row["image"] for row in rows if row["point"] in ("", "0")]
        elif part.suffix == ".json":
            found += [image["file_name"] for image in json.loads(part.read_text())["images"]]
        else:
            found += pyarrow.parquet.read_table(part)["image"].to_pylist()
    return found


def write(folder: Path, results: Iterable[Result], name: str = "jsonl", **options: Any) -> None:
    with ResultFolder(folder, name, SETTINGS, **options) as results_of:
        for each in results:
            results_of.add(each)


def names(found: Iterable[Source | ImageError]) -> list[str]:
    return [item.name for item in found if isinstance(item, Source)]


# Sources


def test_archives_are_read_member_by_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar.gz", "w:gz") as archive:
        for name in ("a/1.png", "a/1.json", "2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("sub/3.png", png(3))
        archive.writestr("notes.txt", "no image")
    found = list(find_images([str(tmp_path / "shard.tar.gz"), str(tmp_path / "photos.zip")]))
    assert names(found) == ["shard.tar.gz/a/1.png", "shard.tar.gz/2.png", "photos.zip/sub/3.png"]
    assert isinstance(found[2], Source)
    assert found[2].path == str(tmp_path / "photos.zip" / "sub/3.png")
    assert found[2].load().shape == (10, 23, 3)


def test_an_archive_that_breaks_off_gives_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "broken.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 2000
            archive.addfile(info, io.BytesIO(bytes(2000)))
    path.write_bytes(path.read_bytes()[:3500])
    *before, last = find_images([str(path)])
    assert names(before) == ["broken.tar/0.png"]
    assert isinstance(last, ImageError)
    assert "broken.tar: cannot be read to its end" in str(last)
    (tmp_path / "none.zip").write_bytes(b"PK no zip")
    (error,) = find_images([str(tmp_path / "none.zip")])
    assert isinstance(error, ImageError)


def test_a_member_named_outside_of_the_archive_is_written_inside_of_the_folder(
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../up.png", png())
        archive.writestr("/etc/root.png", png())
    assert names(find_images([str(tmp_path / "evil.zip")])) == [
        "evil.zip/up.png",
        "evil.zip/etc/root.png",
    ]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_rows_are_images(tmp_path: Path, as_struct: bool) -> None:
    values: list[Any] = [png(n) for n in range(3)]
    if as_struct:
        values = [{"bytes": value, "path": None} for value in values]
    path = tmp_path / "faces.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": [1, 2, 3], "image": values}), path)
    found = [item for item in find_images([str(path)]) if isinstance(item, Source)]
    assert [item.path for item in found] == [f"{path}#{n}" for n in range(3)]
    assert found[2].load().shape == (10, 22, 3)
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), path)
    (error,) = find_images([str(path)])
    assert "no column named image" in str(error)


def test_lists_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "list.txt").write_text(f"{tmp_path}/*.png\n\nhttps://example.org/b.jpg\n")
    assert names(find_images([f"@{tmp_path}/list.txt"])) == ["a.png", "b.jpg"]
    (error,) = find_images([f"@{tmp_path}/gone.txt"])
    assert "the list cannot be read" in str(error)


def test_what_fsspec_opens_is_read() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/photos/sub/{number}.png", png(number))
    memory.pipe("/photos/notes.txt", b"no image")
    found = [item for item in find_images(["memory://photos"]) if isinstance(item, Source)]
    assert [item.name for item in found] == ["sub/0.png", "sub/1.png", "sub/2.png"]
    assert found[1].load().shape == (10, 21, 3)
    assert names(find_images(["memory://photos/sub/2.png"])) == ["2.png"]
    (error,) = find_images(["memory://photos/*.gif"])
    assert isinstance(error, ImageError)
    (error,) = find_images(["memory://nowhere.png"])
    assert isinstance(error, ImageError)


# Results


@pytest.mark.parametrize("name", FORMATS_OF_MANY)
def test_every_image_is_in_the_output_once(tmp_path: Path, name: str) -> None:
    results = [result("two", 2), result("none", 0), result("bad", 0, error="broken"), result("one")]
    write(tmp_path, results, name, part_size=3)
    assert len(list(tmp_path.glob("part*"))) == 2
    assert sorted(set(images_in(tmp_path))) == ["bad", "none", "one", "two"]
    assert (
        sorted(images_in(tmp_path))
        == ["bad", "none", "one", "two", "two"][: 4 + (name in ("csv", "parquet"))]
    )


def test_parquet_has_a_row_a_face(tmp_path: Path) -> None:
    write(tmp_path, [result("two", 2), result("bad", 0, error="broken")], "parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "part-000001.parquet").to_pylist()
    assert [(row["image"], row["face"], row["error"]) for row in rows] == [
        ("two", 0, None),
        ("two", 1, None),
        ("bad", None, "broken"),
    ]
    np.testing.assert_allclose(rows[1]["points"], face(1).points, atol=1e-5)
    assert (rows[0]["width"], rows[0]["model"], rows[0]["layout"]) == (640, "hih-small", "COFW29")
    assert np.shape(rows[0]["covariance"]) == (29, 4)


def test_covariances_can_be_left_out(tmp_path: Path) -> None:
    for name in ("parquet", "parquet-points"):
        write(tmp_path / name, [result("a")], name)
    whole, slim = (
        pyarrow.parquet.read_table(tmp_path / name) for name in ("parquet", "parquet-points")
    )
    assert set(whole.column_names) - set(slim.column_names) == {"covariance"}
    assert slim["points"] == whole["points"]


def test_coco_has_what_its_tools_read(tmp_path: Path) -> None:
    write(tmp_path, [result("a", 2), result("b", 0), result("c", 0, error="broken")], "coco")
    record = json.loads((tmp_path / "part-000001.coco.json").read_text())
    a, b, c = record["images"]
    assert (a["file_name"], a["width"], a["height"]) == ("a", 640, 480)
    assert c["error"] == "broken"
    assert len({image["id"] for image in (a, b, c)}) == 3
    first, second = record["annotations"]
    assert first["id"] != second["id"] < 2**63
    assert first["image_id"] == second["image_id"] == a["id"]
    assert first["bbox"] == [0, 0, 50, 50]
    points = np.reshape(first["keypoints"], (29, 3))
    np.testing.assert_allclose(points[:, :2], face(0).points, atol=1e-3)
    assert (points[:, 2] == 2).all()
    (category,) = record["categories"]
    assert category["id"] == first["category_id"]
    assert category["keypoints"] == list(get_layout(29).point_names)
    assert np.array(category["skeleton"]).min() == 1
    assert np.array(category["skeleton"]).max() <= 29


def test_done_images_are_not_pending_until_they_change(tmp_path: Path) -> None:
    write(tmp_path, [result("a"), result("b", 0, error="broken")])
    sources = [Source("a", "a", "1"), Source("b", "b", "1"), Source("c", "c", "1")]
    with ResultFolder(tmp_path, "jsonl", SETTINGS) as folder:
        assert names(folder.pending([*sources, sources[2]])) == ["c"]
        assert (folder.done_before, folder.repeated) == (2, 1)
        assert folder.totals() == (2, 1, 1)
    with ResultFolder(tmp_path, "jsonl", SETTINGS, retry_failed=True) as folder:
        assert names(folder.pending(sources)) == ["b", "c"]
    with ResultFolder(tmp_path, "jsonl", SETTINGS) as folder:
        assert names(folder.pending([replace(sources[0], stamp="2")])) == ["a"]


@pytest.mark.parametrize("name", FORMATS_OF_MANY)
def test_a_changed_image_replaces_its_old_result(tmp_path: Path, name: str) -> None:
    write(tmp_path, [result("a"), result("b"), result("c")], name)
    write(tmp_path, [result("b", 0, stamp="2", error="broken now")], name)
    assert sorted(images_in(tmp_path)) == ["a", "b", "c"]
    assert len(list(tmp_path.glob("part*"))) == 2
    write(tmp_path, [result("a", stamp="3"), result("b", stamp="3")], name)
    assert sorted(images_in(tmp_path)) == ["a", "b", "c"]


def test_files_of_an_image_are_replaced_too(tmp_path: Path) -> None:
    write(tmp_path, [result("sub/a.jpg", 2)], "pts")
    write(tmp_path, [result("sub/a.jpg", 1, stamp="2")], "pts")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.jpg.0.pts"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", FORMATS_OF_MANY)
@pytest.mark.parametrize("moment", ["before a file", "after a file", "after the manifest"])
def test_a_kill_at_any_moment_costs_no_image_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    from hihlandmark.io import results as module

    write(tmp_path, [result(letter) for letter in "abcd"], name, part_size=2)
    folder = ResultFolder(tmp_path, name, SETTINGS)

    def killed(*arguments: Any, **options: Any) -> None:
        raise Killed

    write_file = module.write_atomically
    calls = 0

    def write_once(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if moment == "before a file" or (moment == "after a file" and calls > 1):
            raise Killed
        write_file(path, content)

    monkeypatch.setattr(module, "write_atomically", write_once)
    if moment == "after the manifest":
        monkeypatch.setattr(Path, "unlink", killed)
    for letter in "bxy":  # one of them anew, in an old part
        folder.add(result(letter, stamp="2"))
    with pytest.raises(Killed):
        folder.flush()
    monkeypatch.undo()
    folder._manifest.close()  # as the system does for a killed process
    folder._lock.release()

    sources = [Source(letter, letter, "2" if letter in "bxy" else "1") for letter in "abcdxy"]
    with ResultFolder(tmp_path, name, SETTINGS) as again:
        for source in list(again.pending(sources)):
            assert isinstance(source, Source)
            again.add(result(source.path, stamp=source.stamp))
    assert sorted(images_in(tmp_path)) == list("abcdxy")


def test_a_full_disk_loses_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hihlandmark.io import results as module

    write(tmp_path, [result("a")])

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, [result("b")], part_size=1)
    monkeypatch.undo()
    write(tmp_path, [result("b")])
    assert images_in(tmp_path) == ["a", "b"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        ResultFolder(tmp_path, "jsonl", SETTINGS),
        pytest.raises(ConfigurationError, match="another process writes"),
    ):
        ResultFolder(tmp_path, "jsonl", SETTINGS)
    ResultFolder(tmp_path, "jsonl", SETTINGS).__exit__(None, None, None)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [result("a")])
    other = {**SETTINGS, "layout": "98"}
    with pytest.raises(ConfigurationError, match='layout was "29", is "98"'):
        ResultFolder(tmp_path, "jsonl", other)
    with pytest.raises(ConfigurationError, match='format was "jsonl", is "csv"'):
        ResultFolder(tmp_path, "csv", SETTINGS)
    (tmp_path / ".manifest.sqlite").write_bytes(b"not a data base, " * 100)
    with pytest.raises(ConfigurationError, match="damaged or no manifest"):
        ResultFolder(tmp_path, "jsonl", SETTINGS)


def test_images_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    sources = [Source(f"{folder}/1.jpg", "1.jpg", "1") for folder in "abc"]
    write(tmp_path, [replace(result("1.jpg"), source=sources[0])], "json")
    with ResultFolder(tmp_path, "json", SETTINGS) as folder:
        errors = list(folder.pending(sources))
        assert len(errors) == 2
        assert "b/1.jpg: its results would replace those of a/1.jpg" in str(errors[0])
    with ResultFolder(tmp_path / "other", "json", SETTINGS) as folder:
        first, *others = folder.pending(sources)
        assert first == sources[0]
        assert all(isinstance(other, ImageError) for other in others)
    with ResultFolder(tmp_path / "parts", "jsonl", SETTINGS) as folder:
        assert len(names(folder.pending(sources))) == 3


def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [result("a")], shard=Shard(1, 2))
    for shard in (Shard(), Shard(1, 3)):
        with pytest.raises(ConfigurationError, match="another number of shards"):
            ResultFolder(tmp_path, "jsonl", SETTINGS, shard=shard)
    assert images_in(tmp_path) == ["a"]


def test_shards_share_the_work(tmp_path: Path) -> None:
    sources = [Source(f"{n}.jpg", f"{n}.jpg", "1") for n in range(200)]
    with (
        ResultFolder(tmp_path, "jsonl", SETTINGS, shard=Shard(1, 2)) as first,
        ResultFolder(tmp_path, "jsonl", SETTINGS, shard=Shard.parse("2/2")) as second,
    ):
        for folder in (first, second):
            mine = names(folder.pending([*sources, ImageError("nowhere")]))
            assert 60 < len(mine) < 140
            for name in mine:
                folder.add(result(name))
    assert sorted(images_in(tmp_path)) == sorted(source.path for source in sources)
    for text in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ConfigurationError, match="a shard is written 2/8"):
            Shard.parse(text)


# Together


@pytest.fixture
def photos(tmp_path: Path, astronaut: Any) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "face.jpg")
    Image.new("RGB", (80, 60)).save(folder / "nobody.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    return folder


def test_results_come_in_order_with_size_and_error(photos: Path, detector: Any) -> None:
    sources = [*find_images([str(photos)]), ImageError("nowhere")]
    broken, found, nobody, nowhere = predict_sources(detector, sources)
    assert isinstance(broken, Result)
    assert isinstance(found, Result)
    assert isinstance(nobody, Result)
    assert "broken.jpg" in str(broken.error)
    assert (len(found.faces), found.size) == (1, (512, 512))
    assert (len(nobody.faces), nobody.size, nobody.error) == (0, (80, 60), None)
    assert isinstance(nowhere, ImageError)
    assert found.model["model"] == "hih-small"


def test_predict_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ["--refine", "0", "--no-flip-test", "--layout", "29"]
    command = ["predict", str(photos), "--out", str(out), "--format", "parquet", *quick]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 1
    assert "2 images, 1 face, 1 failed; results in" in first.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "0 images, 0 faces, 0 failed, 3 done before" in again.stderr
    table = pyarrow.parquet.read_table(out)
    assert table.num_rows == 3
    other = CliRunner().invoke(app, [*command, "--any-rotation"])
    assert "holds results of other settings" in str(other.exception)
    failing = CliRunner().invoke(app, [*command[:3], str(tmp_path / "other"), "--fail-fast"])
    assert "broken.jpg" in str(failing.exception)


@pytest.mark.slow
def test_a_killed_job_gives_every_image_once(tmp_path: Path, astronaut: Any) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    small = Image.fromarray(astronaut[:280, 60:380])
    for number in range(150):
        small.save(photos / f"{number:03d}.jpg", quality=60 + number % 30)
    quick = ["--refine", "0", "--no-flip-test", "--layout", "29", "--part-size", "5"]
    command = [sys.executable, "-m", "hihlandmark", "predict", str(photos), "--out", str(out)]
    command += ["--format", "jsonl", *quick]
    chance = random.Random(7)
    kills = 0
    for _ in range(10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before, deadline = len(images_in(out)), time.monotonic() + 120
        while len(images_in(out)) <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.6))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 5
    subprocess.run(command, check=True)
    assert sorted(images_in(out)) == sorted(str(path) for path in photos.iterdir())
