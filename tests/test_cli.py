import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import Face
from hihlandmark.cli import app
from hihlandmark.io import Result, Source, find_images
from hihlandmark.io.formats import write_pts

run = CliRunner()


@pytest.fixture
def photos(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    """A folder with a face, a face in a sub-folder, an image without one, and no images."""
    folder = tmp_path / "photos with ünïcode"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(astronaut).save(folder / "face.png")
    Image.fromarray(astronaut).save(folder / "sub" / "face.jpg")
    Image.new("RGB", (80, 60)).save(folder / "nobody.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_prints_a_line_of_json_an_image(photos: Path) -> None:
    result = run.invoke(app, ["predict", str(photos), "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(r["image"]).name for r in records] == ["face.png", "nobody.png", "face.jpg"]
    assert [len(r["faces"]) for r in records] == [1, 0, 1]
    assert Face.from_dict(records[0]["faces"][0]).layout.size == 98
    assert "3 images, 2 faces, 0 failed" in result.stderr


def test_predict_writes_each_format_and_the_drawing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, layout in (("json", "98"), ("csv", "68"), ("pts", "29")):
        arguments = ["--out", str(out / name), "--format", name, "--layout", layout, "--draw"]
        result = run.invoke(app, ["predict", str(photos), *arguments])
        assert result.exit_code == 0, result.stderr
    assert json.loads((out / "json" / "sub" / "face.jpg.json").read_text())["faces"]
    with (out / "csv" / "part-000001.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 68 + 1 + 68, "one for the image without a face"
    assert rows[30]["name"]
    assert (out / "pts" / "face.png.0.pts").read_text().startswith("version: 1\nn_points: 29\n")
    assert not (out / "pts" / "nobody.png.0.pts").exists()
    with (
        Image.open(out / "json" / "face.png.landmarks.png") as drawn,
        Image.open(photos / "face.png") as raw,
    ):
        assert drawn.size == raw.size
        assert np.any(np.array(drawn) != np.array(raw))


def test_failures_are_named_and_the_rest_is_done(photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    result = run.invoke(app, ["predict", str(photos), "nowhere.png", str(photos / "*.bmp")])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3
    for name in ("broken.jpg", "nowhere.png", "*.bmp"):
        assert name in result.stderr
    assert "3 failed" in result.stderr


def test_globs_files_and_folders_mix(photos: Path) -> None:
    found = list(
        find_images([str(photos / "*.png"), str(photos / "sub"), str(photos / "notes.txt")])
    )
    names = [item.name for item in found if isinstance(item, Source)]
    assert names == ["face.png", "nobody.png", "face.jpg", "notes.txt"]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("text")
    result = run.invoke(app, ["predict", str(tmp_path)])
    assert result.exit_code == 1
    assert "no image in this folder" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "Missing argument"),
        (["predict", "x.png", "--draw"], "--out"),
        (["predict", "x.png", "--format", "csv"], "--out"),
        (["predict", "x.png", "--layout", "5"], "98"),
        (["predict", "x.png", "--format", "xml"], "json"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: list[str], message: str) -> None:
    result = run.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_demo_writes_the_picture_and_the_json(tmp_path: Path) -> None:
    result = run.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    picture, record = tmp_path / "astronaut.landmarks.png", tmp_path / "astronaut.json"
    assert str(picture) in result.stdout
    assert str(record) in result.stdout
    with Image.open(picture) as drawn:
        assert drawn.size == (512, 512)
    assert len(json.loads(record.read_text())["faces"]) == 1


def test_doctor_reports_device_weights_and_extras() -> None:
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stdout
    for text in ("torch", "Device:", "hih-small", "verified", "openvino"):
        assert text in result.stdout
    assert ("tomli" in result.stdout) == (sys.version_info < (3, 11)), "only older Pythons need it"


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hihlandmark.doctor._version", lambda package: None)
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "openvino: pip install 'hihlandmark[openvino]'" in result.stdout


def test_weights_commands_find_and_verify_the_packaged_weights() -> None:
    assert "hih-small" in run.invoke(app, ["weights", "list"]).stdout
    assert "verified" in run.invoke(app, ["weights", "verify"]).stdout
    path = Path(run.invoke(app, ["weights", "path", "hih-small"]).stdout.strip())
    assert path.suffix == ".safetensors"
    assert path.is_file()


def test_eval_prints_the_figures_and_the_weights_hash(
    tmp_path: Path, astronaut: NDArray[np.uint8]
) -> None:
    from hihlandmark import Detector

    (face,) = Detector(29, device="cpu").predict(astronaut)
    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    row = {"image": "photo.png", "points": face.points.tolist(), "split": "val"}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row))
    result = run.invoke(app, ["eval", "--data", str(tmp_path), "--split", "val", "--json"])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["layout"] == "COFW29"
    assert figures["nme"] < 5
    assert len(figures["weights"]["hih-small.safetensors"]) == 64


def test_pts_files_are_numbered_by_face() -> None:
    from hihlandmark.layouts import COFW29

    face = Face(np.zeros((29, 2)), np.ones(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, COFW29)
    assert list(write_pts(Result(Source("a.png", "a.png"), [face, face]))) == [".0.pts", ".1.pts"]
