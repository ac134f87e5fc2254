"""`predict` on folders of bad inputs: each is named, the rest is done, and nothing hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import encoded
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, ImageError
from hihlandmark.cli import app
from hihlandmark.io import FORMATS, settings_of
from hihlandmark.video import frames

run = CliRunner()
QUICK = ["--refine", "0", "--no-flip-test", "--no-shape-prior", "--layout", "29"]
COMMAND = [sys.executable, "-m", "hihlandmark"]
PREFIXES = ("", "file:", "file://")
GOOD = {"good.png", "z.png", "member.png", "console.png"}


def png() -> bytes:
    return encoded(Image.new("RGB", (20, 10)))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with good images, bad ones and bad archives, and a list of all of them."""
    folder = tmp_path / "in"
    for name in ("good.png", "z.png", "console.png", "a.jpg.json/in_folder.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    for name in ("a.jpg", "UPPER.png", "upper.png", "nul.png", "a:b.png", "x" * 245 + ".png"):
        (folder / name).write_bytes(png())
    if sys.platform == "linux":
        for undecodable in (b"caf\xe9.jpg", b"\xff/b.jpg"):
            path = os.fsencode(folder) + b"/" + undecodable
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(png())
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        os.mkfifo(tmp_path / "pipe.zip")
    (folder / "truncated.png").write_bytes(png()[:30])
    (folder / "heic.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "._z.png").write_bytes(b"metadata")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name in ("encrypted.png", "member.png", "con.png"):
            archive.writestr(name, png())
    content = bytearray((tmp_path / "bad.zip").read_bytes())
    content[6] = content[content.index(b"PK\1\2") + 8] = 1  # the flag of encryption
    (tmp_path / "bad.zip").write_bytes(content)
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as archive:
        archive.add(folder / "z.png", "z.png")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "cut.tar.gz").read_bytes()[:3])
    lines = ["bad.zip", "cut.tar.gz", "pipe.zip", "nul\0.png", "*\0.png", "nowhere.zip"]
    text = f"{folder}\n@{tmp_path}/list.txt\n" + "".join(f"{tmp_path}/{line}\n" for line in lines)
    (tmp_path / "list.txt").write_text(text + "http://[broken\nhttp://127.0.0.1:9/a?" + "x" * 300)
    return folder


def texts(folder: Path) -> str:
    """What is in the result files, as text."""
    import pyarrow.parquet

    found = []
    for path in folder.rglob("[!.]*"):
        if path.suffix == ".parquet":
            found += pyarrow.parquet.read_table(path)["image"].to_pylist()
        elif path.is_file() and path.suffix != ".png":
            found += [str(path), path.read_text(encoding="utf-8")]
    return "\n".join(found)


@pytest.mark.parametrize(
    ("output_format", "extra"),
    [
        *[(name, []) for name in (*FORMATS, None)],
        ("json", ["--draw"]),
        ("csv", ["--draw", "--by-content"]),
        (None, ["--by-content"]),
    ],
)
def test_bad_inputs_are_named_and_the_rest_is_done(
    hostile: Path, tmp_path: Path, output_format: str | None, extra: list[str]
) -> None:
    out = tmp_path / "out"
    command = ["predict", f"@{tmp_path}/list.txt", *QUICK, *extra]
    if output_format is not None:
        command += ["--out", str(out), "--format", output_format]
    result = run.invoke(app, command)
    assert result.exit_code == 1, result.exception
    done = result.stdout if output_format is None else texts(out)
    for name in GOOD:
        assert name in done or output_format == "pts"
    named = ["truncated.png", "encrypted.png", "cut.tar.gz", "list.txt", "[broken", "nowhere.zip"]
    named += ["caf\\udce9.jpg", "pipe.png", "pipe.zip"] if sys.platform == "linux" else []
    for name in named:
        assert name in result.stderr, name
    assert "._z.png" not in result.stderr
    if output_format is None:
        assert all(json.loads(line)["faces"] == [] for line in result.stdout.splitlines())
    elif extra:
        again = run.invoke(app, command)
        assert "images: 0, faces: 0" in again.stderr
        assert again.exit_code == 1, "those without a row are tried again"


def test_vanished_image_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(png())
    command = ["predict", str(folder), "--out", str(out), "--draw", *QUICK]
    find_faces = Detector.find_faces

    def find_and_remove(self: Detector, image: Any) -> Any:
        (folder / "b.png").unlink(missing_ok=True)
        return find_faces(self, image)

    # b.png is read before a.png has been drawn, or fails as an unreadable image.
    monkeypatch.setattr(Detector, "find_faces", find_and_remove)
    result = run.invoke(app, [*command, "--workers", "3"])
    monkeypatch.undo()
    assert result.exit_code == 1
    assert "images: 2, faces: 0, failed: 1" in result.stderr
    assert "b.png" in result.stderr
    assert (out / "_failed.txt").read_text().startswith(f"{folder / 'b.png'}\t")
    assert {path.name for path in out.glob("*.landmarks.png")} >= {
        "a.png.landmarks.png",
        "c.png.landmarks.png",
    }


def test_output_inside_of_the_input_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for path in (str(tmp_path), f"{tmp_path}/**/*.png"):
        out = tmp_path / f"out-{len(path)}"
        command = ["predict", path, "--out", str(out), "--draw", *QUICK]
        assert "images: 1," in run.invoke(app, command).stderr
        assert "images: 0," in run.invoke(app, command).stderr
        for file in out.rglob("*.png"):
            file.unlink()


def test_skipped_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.cr2").write_bytes(b"raw")
    result = run.invoke(app, ["predict", str(tmp_path), *QUICK])
    assert result.exit_code == 0
    assert "skipped: " in result.stderr
    assert "b.cr2" in result.stderr
    assert "images: 1, faces: 0, failed: 0, skipped: 1" in result.stderr


def test_settings_are_those_that_were_resolved(detector: Detector) -> None:
    settings = settings_of(detector)
    assert settings["weights"] == detector.card.sha256
    assert (settings["model"], settings["layout"]) == ("hih-small", "W300_68")
    assert settings["runtime"] == "torch", "not auto"
    assert settings["precision"] == detector.runtime.precision


@pytest.mark.slow
@pytest.mark.parametrize("other", [["--model", "adnet-small"], ["--runtime", "onnxruntime"]])
def test_job_with_another_model_or_runtime_needs_leave(tmp_path: Path, other: list[str]) -> None:
    (tmp_path / "a.png").write_bytes(png())
    command = ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *QUICK]
    assert run.invoke(app, command).exit_code == 0
    refused = run.invoke(app, [*command, *other])
    assert isinstance(refused.exception, ConfigurationError)
    assert other[1] in str(refused.exception)
    assert run.invoke(app, [*command, *other, "--allow-mixed"]).exit_code == 0


def test_stdout_of_any_encoding_gets_json(tmp_path: Path) -> None:
    encoding = "cp1252"
    for name in ("日本.png", "é😀.png"):
        (tmp_path / name).write_bytes(png())
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [*COMMAND, "predict", str(tmp_path), *QUICK]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.decode(encoding).splitlines()]
    assert {Path(record["image"]).name for record in records} == {"日本.png", "é😀.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "predict", str(tmp_path), *QUICK]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"space" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_video_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    code = """
import sys
from hihlandmark import ImageError
from hihlandmark.video import read_frames
for path in sys.argv[1:]:
    try:
        list(read_frames(path))
    except ImageError as error:
        print(error)
"""
    paths = [f"{prefix}{path}" for prefix in PREFIXES for path in (tmp_path / "a.mp4", "/dev/zero")]
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("not a regular file") == len(paths)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "rtsp", "rtmp", "tcp"])
def test_video_server_that_never_answers_times_out(
    silent_server: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "TIMEOUT", 1.0)
    start = time.monotonic()
    with pytest.raises(ImageError, match=scheme):
        list(frames.read_frames(f"{scheme}://127.0.0.1:{silent_server}/a.mp4"))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("count", [0, 1, 5, 40])
@pytest.mark.parametrize("error", [OSError("disk"), ValueError("row"), RuntimeError("mine")])
def test_images_read_ahead_come_before_the_error_of_their_iterator(
    detector: Detector, astronaut: Any, count: int, error: Exception
) -> None:
    small = astronaut[:280:2, 60:380:2]

    def images() -> Iterator[Any]:
        yield from [small] * count
        raise error

    found = []
    with pytest.raises(type(error)) as raised:
        found.extend(detector.predict_many(images()))
    assert raised.value is error
    assert len(found) == count


def test_settings_hold_what_is_searched_and_how_points_are_decoded(detector: Detector) -> None:
    before = settings_of(detector)
    assert before.keys().isdisjoint({"min_box_score", "detection_size", "decoder"})
    assert json.dumps(settings_of(detector.with_options(min_face=np.int64(50))))
    changes = {"min_face": 50, "min_box_score": 0.9, "detection_size": 320, "decoder": "argmax"}
    assert settings_of(detector.with_options(**changes)) == {**before, **changes}
    own = detector.with_options(decoder=detector.card.decoding.decoder)
    assert settings_of(own) == before, "the same points"
