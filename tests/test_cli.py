"""The commands predict, demo, doctor, weights and eval."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from builders import write_own_layout
from numpy.typing import NDArray
from PIL import Image
from typer import Exit
from typer.main import get_command
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, Face, HihlandmarkError, __version__
from hihlandmark.cli import app, options
from hihlandmark.cli.export import ExportFormat, crops_of_faces
from hihlandmark.cli.predict import MIN_RELIABILITY as MIN_RELIABILITY_OF_PREDICT
from hihlandmark.cli.predict import _is_quick_to_count
from hihlandmark.datasets import DATASET_FORMATS
from hihlandmark.face_detection import FACE_DETECTORS
from hihlandmark.image import MAX_BYTES, MAX_PIXELS
from hihlandmark.io import ResultFolder, find_images
from hihlandmark.layouts import COFW29, register_layout
from hihlandmark.reliability import MIN_RELIABILITY
from hihlandmark.runtimes import RUNTIMES
from hihlandmark.runtimes.base import FileFormat, PixelGraph
from hihlandmark.runtimes.export import _file_part, export_formats
from hihlandmark.runtimes.pytorch import run_module
from hihlandmark.training import shipped_configurations

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


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        (["predict"], "PATH"),
        (["predict", "x.png", "--draw"], "--out"),
        (["predict", "x.png", "--format", "csv"], "--out"),
        (["predict", "x.png", "--format", "xml"], "json"),
        (["predict", "x.png", "--face-detector", "yolo"], "blazeface"),
        (["predict", "x.png", "--allow-mixed", "--part-size", "5"], "--out"),
        (["predict", "x.png", "--explain", "--fail-fast"], "--fail-fast"),
        (["predict", "x.png", "--explain", "--out", "x", "--draw"], "--draw"),
        (["eval", "--data", "x", "--split", "x", "--min-face", "30"], "--boxes"),
        (["export", "--out", "x", "--to", "onnx", "--face-detector", "centerface"], "--int8"),
        (["export", "--out", "x", "--to", "openvino", "--int8", "."], "--int8"),
        (["demo", "--web", "--max-pixels", "1000"], "--max-megapixels"),
        (["video", "x.mp4", "--draw-numbers"], "--draw-numbers"),
        (["video", "x.mp4", "--no-draw-boxes", "--points", "x.jsonl"], "--no-draw-boxes"),
        (["eval", "--data", "x", "--format", "coco"], "wflw"),
        (["export", "--out", "x", "--to", "coreml"], "onnx"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_exits_with_two(arguments: list[str], keyword: str) -> None:
    result = run.invoke(app, arguments)
    assert result.exit_code == 2
    assert keyword in result.stderr


@pytest.mark.parametrize("layout", ["7", "wflw99"])
def test_layout_that_the_weights_lack_is_refused(layout: str) -> None:
    result = run.invoke(app, ["predict", "x.png", "--layout", layout])
    assert isinstance(result.exception, HihlandmarkError)


def test_demo_writes_image_and_json(tmp_path: Path) -> None:
    result = run.invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "astronaut.landmarks.png") as drawn:
        assert drawn.size == (512, 512)
    assert len(json.loads((tmp_path / "astronaut.landmarks.json").read_text())["faces"]) == 1


def test_demo_replaces_its_own_files_alone(tmp_path: Path) -> None:
    record = tmp_path / "astronaut.landmarks.json"
    record.write_text("precious")
    refused = run.invoke(app, ["demo", "--out", str(tmp_path)])
    assert isinstance(refused.exception, ConfigurationError)
    assert [path.name for path in tmp_path.iterdir()] == [record.name]
    assert record.read_text() == "precious"
    record.unlink()
    for _ in range(2):
        assert run.invoke(app, ["demo", "--out", str(tmp_path)]).exit_code == 0


def test_a_url_is_downloaded_once_for_points_and_drawing(
    tmp_path: Path, astronaut: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def download(url: str, timeout: float, max_bytes: int) -> bytes:
        fetched.append(url)
        content = io.BytesIO()
        Image.fromarray(astronaut).save(content, "PNG")
        return content.getvalue()

    monkeypatch.setattr("hihlandmark.download.download", download)
    monkeypatch.setattr("hihlandmark.image.download", download)
    url = "http://localhost/a.png"
    for command in (["predict", url, "--draw", "--format", "jsonl"], ["demo", url]):
        fetched.clear()
        done = run.invoke(app, [*command, "--out", str(tmp_path / command[0])])
        assert done.exit_code == 0, done.output
        assert fetched == [url]


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


def test_doctor_reports_optional_packages_and_what_auto_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("hihlandmark.runtimes._cache_folder", lambda package: tmp_path / package)
    result = run.invoke(app, ["doctor"])
    assert version("onnxruntime") in result.stdout
    expected = r"auto takes: torch \(from HIHLANDMARK_RUNTIME\), in (bf16|fp32) for hih-small"
    assert re.search(expected, result.stdout)
    assert f"{tmp_path}, writable" in result.stdout


def test_doctor_says_what_a_read_only_cache_and_a_wrong_runtime_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hihlandmark.runtimes._cache_folder", lambda package: None)
    monkeypatch.setenv("HIHLANDMARK_RUNTIME", "tensorrt")
    result = run.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "not writable" in result.stdout
    assert "HF_HOME" in result.stdout
    assert "no runtime 'tensorrt'" in result.stdout


def test_layout_is_that_of_the_weights_by_default_in_every_command() -> None:
    found = [
        parameter
        for command in commands(get_command(app))
        for parameter in command.params
        if command.name in ("predict", "video", "demo", "label", "export", "bench")
        and "--layout" in parameter.opts
    ]
    assert len(found) == 6
    assert [parameter.default for parameter in found] == [None] * 6
    assert len({parameter.help for parameter in found}) == 1


def test_train_lists_all_shipped_configurations() -> None:
    (command,) = (each for each in commands(get_command(app)) if each.name == "train")
    (help_text,) = (each.help for each in command.params if each.name == "configuration")
    assert set(shipped_configurations()) <= set(re.findall(r"[\w-]+", help_text))


@pytest.mark.parametrize("command", [["demo"], ["data", "label", "x.png", "--out", "x"]])
def test_no_layout_leaves_the_choice_to_the_detector(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def stop(layout: Any, *arguments: Any, **options: Any) -> None:
        given.append(layout)
        raise Exit

    for module in ("options", "data"):
        monkeypatch.setattr(f"hihlandmark.cli.{module}.make_detector", stop)
    assert run.invoke(app, command).exit_code == 0
    assert given == [None]


def test_demo_page_shows_98_points_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("hihlandmark.demo.serve", lambda make, **options: given.update(options))
    assert run.invoke(app, ["demo", "--web"]).exit_code == 0
    assert given["layout"] == 98


@pytest.mark.usefixtures("own_layouts")
def test_export_takes_the_layout_that_weights_define_and_names_the_file_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[PixelGraph] = []

    def write(graph: PixelGraph, path: Path) -> None:
        graphs.append(graph)
        path.touch()

    file = FileFormat("onnx", ".onnx", "onnx", write, lambda *_: run_module(graphs[0].module))
    formats = {"onnx": ("onnxruntime", file)}
    monkeypatch.setattr("hihlandmark.runtimes.export.export_formats", lambda: formats)
    weights = write_own_layout(tmp_path / "weights")
    arguments = ["export", "--to", "onnx", "--weights", str(weights), "--out", str(tmp_path / "x")]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [
        "hih-tiny-OWN29.json",
        "hih-tiny-OWN29.onnx",
    ]


def test_file_names_have_the_number_of_points_of_built_in_layouts() -> None:
    assert _file_part("WFLW98") == "98"


@pytest.mark.usefixtures("own_layouts")
def test_layout_names_with_folders_are_not_part_of_file_names() -> None:
    register_layout(replace(COFW29, name="../OWN", aliases=()))
    assert _file_part("../OWN") == "29"


def test_crops_for_int8_are_cut_around_the_faces(
    images: Path, detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "broken.jpg").write_bytes(b"no image")
    crops = list(crops_of_faces(detector, find_images([str(images)])))
    size = detector.landmarker.crop_size
    assert [crop.shape for crop in crops] == [(size, size, 3)] * 2
    points = detector.predict_crops(np.stack(crops[:1])).points[0]
    np.testing.assert_allclose((points.min(axis=0) + points.max(axis=0)) / 2, size / 2, atol=25)
    assert "broken.jpg" in caplog.text


def test_weights_commands_find_and_verify_the_packaged_weights() -> None:
    assert "hih-small" in run.invoke(app, ["weights", "list"]).stdout
    assert "verified" in run.invoke(app, ["weights", "verify"]).stdout
    path = Path(run.invoke(app, ["weights", "path", "hih-small"]).stdout.strip())
    assert path.suffix == ".safetensors"
    assert path.is_file()


def commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        if hasattr(command, "commands"):
            yield from commands(command)
        else:
            yield command


def test_every_output_has_a_short_option() -> None:
    outputs = [
        parameter.opts
        for command in commands(get_command(app))
        for parameter in command.params
        if "--out" in parameter.opts
    ]
    assert len(outputs) > 8
    assert all("-o" in names for names in outputs)


def test_version_is_printed() -> None:
    assert run.invoke(app, ["--version"]).stdout == f"hihlandmark {__version__}\n"


def test_shell_completes_names() -> None:
    command: Any = get_command(app)
    predict = command.commands["predict"]
    context = predict.make_context("predict", ["x.png"])
    given = {"face_detector": "cen", "layout": "WFLW", "model": "hih-s", "runtime": "onnx"}
    expected = ["centerface", "WFLW98", "hih-small", "onnxruntime"]
    offered = [
        parameter.shell_complete(context, given[parameter.name])[0].value
        for name in given
        for parameter in predict.params
        if parameter.name == name
    ]
    assert offered == expected


def test_choices_are_the_rows_of_the_tables() -> None:
    assert set(options.RUNTIME_NAMES) == {"auto", *RUNTIMES}
    assert set(get_args(options.FaceDetectorName)) == set(FACE_DETECTORS)
    assert set(get_args(options.DataFormat)) == {"auto", *DATASET_FORMATS}
    assert set(get_args(ExportFormat)) == set(export_formats())


def test_constants_of_the_commands_are_those_of_the_package() -> None:
    assert (options.MAX_PIXELS, options.MAX_BYTES) == (MAX_PIXELS, MAX_BYTES)
    assert MIN_RELIABILITY_OF_PREDICT == MIN_RELIABILITY


def test_an_unknown_runtime_is_an_error_that_lists_them() -> None:
    result = run.invoke(app, ["predict", "x.png", "--runtime", "tensorrt"])
    assert isinstance(result.exception, ConfigurationError)
    assert "onnxruntime" in str(result.exception)


def test_numbers_have_the_right_form_of_their_noun() -> None:
    forms = [options.counted(count, "face") for count in (0, 1, 2)]
    assert forms == ["0 faces", "1 face", "2 faces"]


@pytest.mark.parametrize(
    "command", [["predict", "x.png"], ["demo"], ["data", "label", "x.png", "--out", "x"]]
)
def test_options_of_the_face_detector_reach_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def stop(*arguments: Any, **options: Any) -> None:
        given.update(options)
        raise Exit

    for module in ("options", "data"):
        monkeypatch.setattr(f"hihlandmark.cli.{module}.make_detector", stop)
    expected = {"face_detector": "centerface", "min_face": 30}
    expected |= {"min_box_score": 0.5, "detection_size": 320}
    limits = [
        text
        for name, value in expected.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    assert run.invoke(app, [*command, *limits]).exit_code == 0
    assert given.items() >= expected.items()


@pytest.fixture
def loaded(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take a detector that is loaded already, whatever their options."""
    monkeypatch.setattr("hihlandmark.cli.options.make_detector", lambda *_, **__: detector)


@pytest.mark.usefixtures("loaded")
def test_failures_are_listed_and_reported_by_every_run(images: Path, tmp_path: Path) -> None:
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    out = tmp_path / "out"
    command = ["predict", str(images), "-o", str(out), "--format", "csv"]
    first = run.invoke(app, command)
    assert first.exit_code == 1
    assert "without a face: 1" in first.stderr
    assert re.search(r"[\d.]+ images per second, time: 0:0\d:\d\d;", first.stderr)
    again = run.invoke(app, command)
    assert again.exit_code == 1
    assert "done before: 4 (1 of them failed)" in again.stderr
    for result in (first, again):
        assert f"failures in {out / '_failed.txt'}" in result.stderr
    (listed,) = (out / "_failed.txt").read_text().splitlines()
    assert "broken.jpg" in listed
    assert len(list(out.glob("part-*.csv"))) == 1


@pytest.mark.usefixtures("loaded")
def test_file_of_another_program_is_kept_where_failures_would_be_listed(
    images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", str(images / "nobody.png"), "-o", str(out)]
    assert run.invoke(app, command).exit_code == 0
    assert not (out / "_failed.txt").exists()
    (out / "_failed.txt").write_text("mine")
    result = run.invoke(app, [*command, "nowhere.png"])
    assert result.exit_code == 1
    assert "failures in" not in result.stderr
    assert (out / "_failed.txt").read_text() == "mine"


@pytest.mark.parametrize("paths", [["x.png", "--format", "parquet"], ["x.png", "y.parquet"]])
def test_missing_pyarrow_is_found_before_the_work(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "out"
    result = run.invoke(app, ["predict", *paths, "--out", str(out)])
    assert isinstance(result.exception, ConfigurationError)
    assert "folders" in str(result.exception)
    assert not out.exists()


@pytest.mark.usefixtures("loaded")
def test_drawings_can_have_boxes_numbers_and_enlarged_faces(images: Path, tmp_path: Path) -> None:
    command = ["predict", str(images / "face.png"), "--out"]
    sums = []
    for name in ("--draw", "--draw-boxes", "--draw-numbers", "--draw-enlarged"):
        assert run.invoke(app, [*command, str(tmp_path / name), name]).exit_code == 0
        with Image.open(tmp_path / name / "face.png.landmarks.png") as drawn:
            sums.append((drawn.height, int(np.array(drawn).sum())))
    assert len(set(sums)) == 4
    assert [height > 512 for height, _ in sums] == [False, False, False, True]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_closed_output_is_no_error(images: Path) -> None:
    command = f"'{sys.executable}' -m hihlandmark predict '{images}/face.png' >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "images: 1, faces: 1" in done.stderr


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images", True),
        ("images/*.jpg", True),
        ("1.PNG", True),
        ("images/*", False),
        ("images.zip", False),
        ("s3://bucket/*.jpg", False),
        ("@list", False),
        ("table.parquet", False),
    ],
)
def test_what_may_lead_to_archives_is_not_counted_ahead(path: str, expected: bool) -> None:
    assert _is_quick_to_count(path) == expected


@pytest.mark.slow
def test_interrupt_says_what_is_done_and_the_same_command_continues(
    images: Path, tmp_path: Path, astronaut: NDArray[np.uint8]
) -> None:
    for number in range(40):
        Image.fromarray(astronaut).save(images / f"{number}.jpg")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hihlandmark", "predict", str(images), "-o", str(out)]
    command += ["--part-size", "1", "--refine", "0", "--no-flip-test"]
    # A job in the background of a shell inherits that the signal is ignored.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = re.search(r"stopped, (\d+) of 43 done, the same command continues", messages)
    assert stopped, messages
    done = len(list(out.rglob("*.json")))
    assert int(stopped[1]) == done < 43
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert f"images: {43 - done}, " in again.stderr
    assert f"done before: {done}" in again.stderr


@pytest.mark.parametrize("url", ["s3://bucket/out", "gs://bucket/out", "https://host/out"])
def test_results_are_not_written_to_a_folder_named_like_a_url(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for command in (["predict", str(images)], ["demo"], ["data", "label", str(images)]):
        result = CliRunner().invoke(app, [*command, "--out", url])
        assert isinstance(result.exception, ConfigurationError)
        assert "is a URL" in str(result.exception)
    with pytest.raises(ConfigurationError, match="is a URL"):
        ResultFolder(url, "json", {})
    assert sorted(tmp_path.iterdir()) == before


def test_very_large_images_are_drawn_as_they_are_read(
    tmp_path: Path, astronaut: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.png"
    Image.fromarray(astronaut.repeat(2, axis=0).repeat(2, axis=1)).save(large)
    monkeypatch.setattr("hihlandmark.image.LARGE_PIXELS", 300_000)
    for command in (["predict", "--draw"], ["demo"]):
        out = tmp_path / command[0]
        result = CliRunner().invoke(app, [*command, str(large), "--out", str(out)])
        assert result.exit_code == 0, result.output
        (record,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
        assert (record["width"], record["height"]) == (1024, 1024)
        left, _, right, _ = record["faces"][0]["box"]
        assert 340 < left < 370 < 530 < right < 560, "in pixels of the file"
        (drawing,) = out.glob("*.png")
        with Image.open(drawing) as drawn:
            assert drawn.size == (512, 512)
            marked = np.abs(np.asarray(drawn.convert("RGB")).astype(int) - astronaut).max(axis=2)
        rows, columns = np.nonzero(marked > 40)
        assert 170 < columns.min() < columns.max() < 280
        assert 60 < rows.min() < rows.max() < 190
