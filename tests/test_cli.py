"""The commands predict, demo, doctor, weights and eval."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import Detector, Face, HihlandmarkError
from hihlandmark.cli import app
from hihlandmark.cli.export import crops_of_faces
from hihlandmark.io import find_images

run = CliRunner()


@pytest.fixture
def images(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    """A folder with a face, a face in a subfolder, an image without one, and no images."""
    folder = tmp_path / "images with ünïcode"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(astronaut).save(folder / "face.png")
    Image.fromarray(astronaut).save(folder / "sub" / "face.jpg")
    Image.new("RGB", (80, 60)).save(folder / "nobody.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_prints_a_line_of_json_per_image(images: Path) -> None:
    result = run.invoke(app, ["predict", str(images), "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(r["image"]).name for r in records] == ["face.png", "nobody.png", "face.jpg"]
    assert [len(r["faces"]) for r in records] == [1, 0, 1]
    assert Face.from_dict(records[0]["faces"][0]).layout.size == 98
    assert "images: 3, faces: 2, failed: 0" in result.stderr


def test_predict_writes_each_format_and_the_drawing(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, layout in (("json", "WFLW98"), ("csv", "68"), ("pts", "29")):
        arguments = ["--out", str(out / name), "--format", name, "--layout", layout, "--draw"]
        arguments += ["--refine", "0", "--no-flip-test"]
        result = run.invoke(app, ["predict", str(images), *arguments])
        assert result.exit_code == 0, result.stderr
    assert json.loads((out / "json" / "sub" / "face.jpg.json").read_text())["faces"]
    with (out / "csv" / "part-000001.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 68 + 1 + 68, "one for the image without a face"
    assert (out / "pts" / "face.png.0.pts").read_text().startswith("version: 1\nn_points: 29\n")
    assert not (out / "pts" / "nobody.png.0.pts").exists()
    with (
        Image.open(out / "json" / "face.png.landmarks.png") as drawn,
        Image.open(images / "face.png") as raw,
    ):
        assert drawn.size == raw.size
        assert np.any(np.array(drawn) != np.array(raw))


def test_failures_are_named_and_the_rest_is_done(images: Path, tmp_path: Path) -> None:
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    (tmp_path / "empty").mkdir()
    failing = ["nowhere.png", str(images / "*.bmp"), str(tmp_path / "empty")]
    result = run.invoke(app, ["predict", str(images), *failing, "--refine", "0", "--no-flip-test"])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3
    for name in ("broken.jpg", "nowhere.png", "*.bmp", "empty"):
        assert name in result.stderr
    assert "failed: 4" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        (["predict"], "PATH"),
        (["predict", "x.png", "--draw"], "--out"),
        (["predict", "x.png", "--format", "csv"], "--out"),
        (["predict", "x.png", "--format", "xml"], "json"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: list[str], keyword: str) -> None:
    result = run.invoke(app, arguments)
    assert result.exit_code == 2
    assert keyword in result.stderr


@pytest.mark.parametrize("layout", ["5", "wflw99"])
def test_layout_that_the_weights_lack_is_refused(layout: str) -> None:
    result = run.invoke(app, ["predict", "x.png", "--layout", layout])
    assert isinstance(result.exception, HihlandmarkError)


def test_demo_writes_image_and_json(tmp_path: Path) -> None:
    result = run.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "astronaut.landmarks.png") as drawn:
        assert drawn.size == (512, 512)
    assert len(json.loads((tmp_path / "astronaut.json").read_text())["faces"]) == 1


def test_doctor_reports_device_weights_and_extras() -> None:
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stdout
    for text in ("torch", "Device:", "hih-small", "verified", "openvino"):
        assert text in result.stdout
    assert ("tomli" in result.stdout) == (sys.version_info < (3, 11)), "only older Pythons need it"


def test_doctor_names_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hihlandmark.doctor._version", lambda package: None)
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "openvino: pip install 'hihlandmark[openvino]'" in result.stdout


def test_crops_for_int8_are_cut_around_the_faces(
    images: Path, detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "broken.jpg").write_bytes(b"no image")
    crops = list(crops_of_faces(detector, find_images([str(images)])))
    assert [crop.shape for crop in crops] == [(256, 256, 3)] * 2
    points = detector.predict_crops(np.stack(crops[:1])).points[0]
    np.testing.assert_allclose((points.min(axis=0) + points.max(axis=0)) / 2, 128, atol=25)
    assert "broken.jpg" in caplog.text


def test_weights_commands_find_and_verify_the_packaged_weights() -> None:
    assert "hih-small" in run.invoke(app, ["weights", "list"]).stdout
    assert "verified" in run.invoke(app, ["weights", "verify"]).stdout
    path = Path(run.invoke(app, ["weights", "path", "hih-small"]).stdout.strip())
    assert path.suffix == ".safetensors"
    assert path.is_file()


def test_eval_prints_errors_and_the_hash_of_the_weights(
    tmp_path: Path, astronaut: NDArray[np.uint8]
) -> None:
    (face,) = Detector(29, device="cpu").predict(astronaut)
    Image.fromarray(astronaut).save(tmp_path / "image.png")
    row = {"image": "image.png", "points": face.points.tolist(), "split": "val"}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row))
    result = run.invoke(app, ["eval", "--data", str(tmp_path), "--split", "val", "--json"])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["layout"] == "COFW29"
    assert figures["nme"] < 5
    assert len(figures["weights"]) == 64
