"""Folders of results: each image once, whatever interrupts the work."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, Face, ImageError
from hihlandmark.cli import app
from hihlandmark.io import (
    Result,
    ResultFolder,
    Shard,
    Source,
    find_images,
    job,
    predict_sources,
    settings_of,
)
from hihlandmark.layouts import get_layout
from hihlandmark.writing import write_new

SETTINGS = {"layout": "29", "weights": "1" * 64}
FORMATS_OF_MANY = ["jsonl", "csv", "parquet"]
QUICK = ["--refine", "0", "--no-flip-test", "--layout", "29"]


FACE = Face(np.zeros((29, 2)), np.ones(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, get_layout(29))


def result(name: str, faces: int = 1, stamp: str = "1", error: str | None = None) -> Result:
    return Result(Source(name, name, stamp), [FACE] * faces, (640, 480), error)


def images_in(folder: Path) -> list[str]:
    """The images of all parts, with repetitions."""
    found: list[str] = []
    for part in sorted(folder.glob("part*")):
        if part.suffix == ".jsonl":
            found += [json.loads(line)["image"] for line in part.read_text().splitlines()]
        elif part.suffix == ".csv":
            rows = csv.DictReader(part.open(newline=""))
            found += [row["image"] for row in rows if row["point"] in ("", "0")]
        else:
            found += pyarrow.parquet.read_table(part)["image"].to_pylist()
    return found


def write(folder: Path, results: Iterable[Result], name: str = "jsonl", **options: Any) -> None:
    with ResultFolder(folder, name, SETTINGS, **options) as target:
        for each in results:
            target.add(each)


def sources(letters: str, stamp: str = "1") -> list[Source]:
    return [Source(letter, letter, stamp) for letter in letters]


def split(found: Iterable[Source]) -> tuple[list[str], list[str]]:
    """The paths of images, and the paths of those with a problem."""
    found = list(found)
    images = [source.path for source in found if source.problem is None]
    return images, [source.path for source in found if source.problem is not None]


@pytest.mark.parametrize("name", FORMATS_OF_MANY)
def test_every_image_is_in_the_output(tmp_path: Path, name: str) -> None:
    results = [result("two", 2), result("none", 0), result("bad", 0, error="broken"), result("one")]
    write(tmp_path, results, name, part_size=3)
    assert len(list(tmp_path.glob("part*"))) == 2
    assert set(images_in(tmp_path)) == {"bad", "none", "one", "two"}


def test_images_with_a_result_are_not_pending(tmp_path: Path) -> None:
    write(tmp_path, [result("a"), result("b", 0, error="broken")])
    with ResultFolder(tmp_path, "jsonl", SETTINGS) as folder:
        assert split(folder.pending(sources("abcc"))) == (["c"], [])
        assert (folder.done_before, folder.repeated) == (2, 1)


@pytest.mark.parametrize("part_size", [1, 100])
def test_an_image_that_is_named_again_in_a_run_is_repeated(tmp_path: Path, part_size: int) -> None:
    write(tmp_path, [result("a")])
    with ResultFolder(tmp_path, "jsonl", SETTINGS, part_size=part_size) as folder:
        for source in folder.pending(sources("abcb")):
            folder.add(result(source.path))
        assert (folder.done_before, folder.repeated) == (1, 1)


@pytest.mark.parametrize("name", ["jsonl", "parquet", "json", "pts"])
def test_changed_image_is_a_problem_and_its_result_stays(tmp_path: Path, name: str) -> None:
    write(tmp_path, [result("a", 2), result("b")], name)
    before = {path: path.read_bytes() for path in tmp_path.glob("[!._]*")}
    with ResultFolder(tmp_path, name, SETTINGS) as folder:
        (changed,) = folder.pending([*sources("a", "2"), *sources("b")])
        with pytest.raises(ImageError, match="changed"):
            changed.load()
        folder.add(Result(changed, error=changed.problem))
        assert folder.done_before == 1
    assert {path: path.read_bytes() for path in tmp_path.glob("[!._]*")} == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", FORMATS_OF_MANY)
@pytest.mark.parametrize("moment", ["before the file", "after the file"])
def test_kill_at_any_moment_neither_loses_nor_doubles_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    write(tmp_path, [result(letter) for letter in "abcd"], name, part_size=2)
    folder = ResultFolder(tmp_path, name, SETTINGS)

    def write_and_die(path: Path, content: bytes, temporary: Path) -> None:
        if moment == "after the file":
            write_new(path, content, temporary)
        temporary.write_bytes(content)
        raise Killed

    monkeypatch.setattr(job, "write_new", write_and_die)
    for letter in "xy":
        folder.add(result(letter))
    with pytest.raises(Killed):
        folder.flush()
    monkeypatch.undo()
    assert len(list(tmp_path.glob("part*"))) == 2 + (moment == "after the file")
    folder._manifest.close()  # as the system does for a killed process
    folder._lock.release()

    with ResultFolder(tmp_path, name, SETTINGS) as again:
        assert len(list(tmp_path.glob("part*"))) == 2
        for source in list(again.pending(sources("abcdxy"))):
            again.add(result(source.path, stamp=source.stamp))
    assert sorted(images_in(tmp_path)) == list("abcdxy")


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    write(tmp_path, [result("a.jpg")], "json")
    own = [tmp_path / name for name in ("part-000002.json", "part-mine.json", "a.jpg.old.json")]
    for path in own:
        path.write_text("mine")
    write(tmp_path, [result("b.jpg")], "json")
    assert [path.read_text() for path in own] == ["mine"] * 3


def test_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [result("a")])

    def full(path: Path, content: bytes, temporary: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(job, "write_new", full)
    with pytest.raises(OSError, match="space"):
        write(tmp_path, [result("b")], part_size=1)
    monkeypatch.undo()
    write(tmp_path, [result("b")])
    assert images_in(tmp_path) == ["a", "b"]


def test_second_process_is_refused(tmp_path: Path) -> None:
    with (
        ResultFolder(tmp_path, "jsonl", SETTINGS),
        pytest.raises(ConfigurationError, match="another process"),
    ):
        ResultFolder(tmp_path, "jsonl", SETTINGS)
    ResultFolder(tmp_path, "jsonl", SETTINGS).__exit__(None, None, None)


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 3)])
def test_another_number_of_shards_is_refused(tmp_path: Path, shard: Shard) -> None:
    write(tmp_path, [result("a")], shard=Shard(1, 2))
    with pytest.raises(ConfigurationError, match="shards"):
        ResultFolder(tmp_path, "jsonl", SETTINGS, shard=shard)
    assert images_in(tmp_path) == ["a"]


def test_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".manifest.sqlite").write_bytes(b"not a data base, " * 100)
    with pytest.raises(ConfigurationError, match="damaged"):
        ResultFolder(tmp_path, "jsonl", SETTINGS)


def test_images_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    same = [Source(f"{folder}/1.jpg", "1.jpg", "1") for folder in "abc"]
    with ResultFolder(tmp_path, "json", SETTINGS) as folder:
        assert split(folder.pending(same)) == (["a/1.jpg"], ["b/1.jpg", "c/1.jpg"])
        folder.add(replace(result("1.jpg"), source=same[0]))
    with ResultFolder(tmp_path, "json", SETTINGS) as folder:
        assert split(folder.pending(same)) == ([], ["b/1.jpg", "c/1.jpg"])
    with ResultFolder(tmp_path / "parts", "jsonl", SETTINGS) as folder:
        assert len(list(folder.pending(same))) == 3


def test_shards_share_the_work(tmp_path: Path) -> None:
    images = [Source(f"{n}.jpg", f"{n}.jpg", "1") for n in range(200)]
    failure = Source("nowhere", "nowhere", problem="no image")
    with (
        ResultFolder(tmp_path, "jsonl", SETTINGS, shard=Shard(1, 2)) as first,
        ResultFolder(tmp_path, "jsonl", SETTINGS, shard=Shard.parse("2/2")) as second,
    ):
        for folder, problems in ((first, ["nowhere"]), (second, [])):
            mine, failed = split(folder.pending([*images, failure]))
            assert 60 < len(mine) < 140
            assert failed == problems
            for name in mine:
                folder.add(result(name))
    assert sorted(images_in(tmp_path)) == sorted(source.path for source in images)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b"])
def test_malformed_shards_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="shard"):
        Shard.parse(text)


@pytest.fixture
def images(tmp_path: Path, astronaut: Any) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "face.jpg")
    Image.new("RGB", (80, 60)).save(folder / "nobody.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    return folder


def test_results_come_in_order_with_size_and_error(images: Path, detector: Any) -> None:
    missing = Source("nowhere", "nowhere", problem="no image in nowhere")
    broken, found, nobody, nowhere = predict_sources(
        detector, [*find_images([str(images)]), missing]
    )
    assert "broken.jpg" in str(broken.error)
    assert (len(found.faces), found.size) == (1, (512, 512))
    assert (len(nobody.faces), nobody.size, nobody.error) == (0, (80, 60), None)
    assert nowhere.error == missing.problem
    assert found.model["model"] == "hih-small"


def test_predict_continues_where_it_stopped(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["predict", str(images), "--out", str(out), "--format", "parquet", *QUICK]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 1
    assert "images: 2, faces: 1, failed: 1" in first.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "images: 0, faces: 0, failed: 0, done before: 3 (1 of them failed)" in again.stderr
    Image.new("RGB", (90, 60)).save(images / "nobody.png")
    changed = CliRunner().invoke(app, command)
    assert changed.exit_code == 1
    assert "nobody.png: changed" in changed.stderr
    assert "failed: 1, done before: 2" in changed.stderr
    assert pyarrow.parquet.read_table(out).num_rows == 3
    other = CliRunner().invoke(app, [*command, "--any-rotation"])
    assert isinstance(other.exception, ConfigurationError)
    failing = CliRunner().invoke(app, [*command[:3], str(tmp_path / "other"), "--fail-fast"])
    assert "broken.jpg" in str(failing.exception)


@pytest.mark.slow
def test_killed_job_gives_every_image_once(tmp_path: Path, astronaut: Any) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    small = Image.fromarray(astronaut[:280, 60:380])
    for number in range(150):
        small.save(images / f"{number:03d}.jpg", quality=60 + number % 30)
    command = [sys.executable, "-m", "hihlandmark", "predict", str(images), "--out", str(out)]
    command += ["--format", "jsonl", "--part-size", "5", *QUICK]
    chance = random.Random(7)
    kills = 0
    for _ in range(10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before, deadline = len(images_in(out)), time.monotonic() + 120
        while process.poll() is None:
            assert time.monotonic() < deadline
            # A part that was begun before the kill may be removed while it is read.
            with suppress(FileNotFoundError):
                if len(images_in(out)) > before:
                    break
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.6))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 5
    subprocess.run(command, check=True)
    assert sorted(images_in(out)) == sorted(str(path) for path in images.iterdir())


def test_shards_agree_on_images_whose_folder_is_named_in_several_ways(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
    ways = [folder, folder / ".." / "images"]
    shares = [
        {source.name for source in find_images([str(way)]) if Shard(k, 2).holds(source.name)}
        for k, way in enumerate(ways, 1)
    ]
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 12


def test_another_calibration_is_another_setting(detector: Detector, tmp_path: Path) -> None:
    name = detector.landmarker.layout.name
    changed = detector.card.calibration[name].model_copy(update={"bias": -5.0})
    card = detector.card.model_copy(update={"calibration": {name: changed}})
    other = copy.copy(detector)
    other.card = card
    with ResultFolder(tmp_path, "jsonl", settings_of(detector)):
        pass
    with pytest.raises(ConfigurationError, match="card was"):
        ResultFolder(tmp_path, "jsonl", settings_of(other))
    with ResultFolder(tmp_path / "old", "jsonl", _without_card(detector)):
        pass
    with ResultFolder(tmp_path / "old", "jsonl", settings_of(detector)):
        pass  # begun before the card was a setting


def _without_card(detector: Detector) -> dict[str, object]:
    return {key: value for key, value in settings_of(detector).items() if key != "card"}


def test_second_results_and_unknown_formats_are_errors(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no format 'xml'"):
        ResultFolder(tmp_path, "xml", settings_of(detector))
    result = Result(Source("a.png", "a.png"), [], (4, 4))
    with ResultFolder(tmp_path, "jsonl", settings_of(detector)) as folder:
        folder.add(result)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="a result already"):
                folder.add(result)
            folder.flush()
    with pytest.raises(ConfigurationError, match="workers"):
        next(predict_sources(detector, [result.source], workers=0))


def test_a_pattern_that_matches_results_alone_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "out" / "a.png")
    (failure,) = find_images([str(tmp_path / "out" / "*.png")], exclude=tmp_path / "out")
    assert failure.problem


def test_a_folder_that_is_used_elsewhere_is_not_called_damaged(
    detector: Detector, tmp_path: Path
) -> None:
    result = Result(Source("a.png", "a.png"), [], (4, 4))
    with ResultFolder(tmp_path, "jsonl", settings_of(detector)) as folder:
        with ThreadPoolExecutor(1) as pool:
            error = pool.submit(folder.add, result).exception()
        assert isinstance(error, ConfigurationError)
        assert "in the thread that opened it" in str(error)
    with pytest.raises(ConfigurationError, match="inside of its with block"):
        folder.add(result)


def test_settings_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    other = Detector(29, refine=np.int64(1), any_rotation=np.bool_(False), flip_test=np.bool_(True))
    with ResultFolder(tmp_path, "jsonl", settings_of(other)):
        assert settings_of(other)["refine"] == 1
