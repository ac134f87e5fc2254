import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import PLAIN
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from hihlandmark import ConfigurationError, Detector, Face, ImageError
from hihlandmark.cli.data import app
from hihlandmark.datasets import project, read_faces
from hihlandmark.datasets.augmentation import NO_AUGMENTATION, Augmentation
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.datasets.inspection import (
    CAPTION_HEIGHT,
    HIDDEN,
    LEFT,
    MIDDLE,
    RIGHT,
    Tile,
    before_and_after,
    contact_sheet,
)
from hihlandmark.errors import DataError
from hihlandmark.io import ResultFolder, Source, job
from hihlandmark.io.results import read_results, worst_faces
from hihlandmark.layouts import COFW29, FIVE
from hihlandmark.weights import find_weights

SHAPE = COFW29.mean_shape * 50 + 40


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def row(image: str, points: Any = SHAPE, split: str = "train", **more: Any) -> dict[str, Any]:
    return {"image": image, "points": np.asarray(points).tolist(), "split": split, **more}


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    for each in rows:
        noise = np.random.default_rng(len(each["image"])).integers(0, 99, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / each["image"])
    lines = "\n".join(json.dumps(each) for each in rows)
    (folder / "annotations.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good faces, and one of each kind of trouble."""
    beyond = SHAPE.copy()
    beyond[:4] -= 100
    visible = [3, 0, 0, 2] + [0] * 25
    rows = [
        row("a.png", attributes={"pose": 1, "blur": 0}),
        row("bb.png", attributes={"pose": 1, "blur": 1}, visible=visible),
        row("ccc.png", beyond),
        row("unreadable.png"),
        row("short.png", SHAPE[:20]),
        row("v.png", split="val"),
    ]
    folder = write(tmp_path / "set", rows)
    (folder / "unreadable.png").write_bytes(b"no image")
    return folder


def test_info_counts_faces_and_names_unusable_ones(data: Path) -> None:
    result = run("info", data)
    assert result.exit_code == 0, result.output
    train, val = result.stdout.split("\nval: ")
    for text in (
        "format project, splits train, val",
        "train: 4 faces of 29 points, COFW29",
        "subsets: blur 1, pose 2",
        "annotated as hidden: 2",
        "outside of the image: 4",
        "annotations.jsonl, line 5",
        "unreadable.png",
    ):
        assert text in train
    assert val.startswith("1 face of 29 points")
    quick = run("info", data, "--no-images")
    assert quick.exit_code == 0
    assert "unreadable" not in quick.stdout
    assert "outside" not in quick.stdout


def test_info_goes_on_after_a_split_that_cannot_be_used(tmp_path: Path) -> None:
    nothing = [[None, None]] * 29
    folder = write(tmp_path / "set", [row("a.png", nothing), row("v.png", split="val")])
    result = run("info", folder)
    assert result.exit_code == 1
    assert "train" in result.stderr
    assert "val: 1 face " in result.stdout


def test_info_names_the_bad_lines_of_a_set_without_a_good_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", [row("a.png", split="a/b"), row("bb.png", split=" ")])
    result = run("info", folder)
    assert result.exit_code == 1
    assert "line 1: its 'split' is 'a/b'" in result.stderr
    assert "line 2" in result.stderr


@pytest.mark.parametrize(
    ("command", "options"),
    [("info", []), ("show", ["--out", "x.png"]), ("prepare", ["--out", "x"])],
)
def test_a_folder_that_is_no_data_set_is_an_error(
    tmp_path: Path, command: str, options: list[str]
) -> None:
    assert isinstance(run(command, tmp_path, *options).exception, DataError)


def test_show_draws_one_row_per_face(data: Path, tmp_path: Path) -> None:
    (data / "unreadable.png").write_bytes((data / "a.png").read_bytes())
    out = tmp_path / "new" / "sheet.png"
    result = run("show", data, "--out", out, "--faces", 3, "--crop-size", 64)
    assert result.exit_code == 0, result.output
    with Image.open(out) as sheet:
        assert sheet.size == (7 * 64, 3 * (64 + CAPTION_HEIGHT))
    # Without augmentation, and with fewer faces than given:
    out = tmp_path / "sheet.JPG"
    arguments = ("--split", "val", "--no-augment", "--crop-size", 64)
    assert run("show", data, "--out", out, *arguments).exit_code == 0
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 64, 64 + CAPTION_HEIGHT)
        assert sheet.format == "JPEG"


def test_show_leaves_out_and_names_unreadable_images(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = run("show", data, "--out", out, "--crop-size", 64)
    assert result.exit_code == 0, result.output
    assert "unreadable.png" in result.stderr
    assert "3 of 4 faces" in result.stdout
    with Image.open(out) as sheet:
        assert sheet.height == 3 * (64 + CAPTION_HEIGHT)
    (data / "v.png").write_bytes(b"no image")
    result = run("show", data, "--out", tmp_path / "none.png", "--split", "val")
    assert isinstance(result.exception, ImageError)
    assert "v.png" in result.stderr
    assert not (tmp_path / "none.png").exists()


def test_show_takes_the_augmentation_of_a_configuration(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    augmentation = "".join(f"{name} = 0\n" for name in PLAIN)
    config.write_text(
        'name = "x"\nmodel = "hih-small-v1"\ncanonical_scale = 0.7\n[[sets]]\n'
        f"[[stages]]\nsteps = 1\n[augmentation]\n{augmentation}"
    )
    out = tmp_path / "sheet.png"
    arguments = ("--split", "val", "--crop-size", 64, "--config", config)
    assert run("show", data, "--out", out, *arguments).exit_code == 0
    with Image.open(out) as image:
        tiles = np.split(np.asarray(image)[:64], 7, axis=1)
    for augmented in tiles[2:]:
        assert np.array_equal(augmented, tiles[1])
    edges = np.concatenate([tiles[1][:2], tiles[1][-2:]])
    assert (np.abs(edges - np.array(HIDDEN)).max(axis=-1) < 60).any()  # points are outside


def test_show_writes_known_image_formats_only(data: Path, tmp_path: Path) -> None:
    result = run("show", data, "--out", tmp_path / "sheet.gif2")
    assert isinstance(result.exception, ConfigurationError)


def test_prepare_packs_the_splits_of_several_sets(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    other = write(tmp_path / "five", [row("f.png", FIVE.mean_shape * 40 + 40)])
    out = tmp_path / "pack"
    result = run("prepare", data, other, "--out", out)
    assert result.exit_code == 0, result.output
    assert "4 faces" in result.stdout  # three of the first set, one of the second
    assert "unreadable.png" in result.stdout
    assert f"{data} also has val: pack them by --split NAME" in result.stdout
    assert f"{other} also has" not in result.stdout
    info = run("info", out)
    assert info.exit_code == 0, info.output
    assert "format packed" in info.stdout
    assert "3 faces of 29 points, COFW29" in info.stdout
    assert "1 face of 5 points, FIVE5" in info.stdout
    again = run("prepare", data, "--out", out)
    assert isinstance(again.exception, ConfigurationError)
    assert "--overwrite" in str(again.exception)
    options = ["--overwrite", "--split", "val", "--max-side", 32]
    replaced = run("prepare", data, "--out", out, *options)
    assert replaced.exit_code == 0, replaced.output
    assert "1 faces" in replaced.stdout
    assert "also has" not in replaced.stdout, "the split was chosen"


@pytest.mark.usefixtures("own_layouts")
def test_points_of_a_layout_file_are_counted_drawn_and_packed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    names = ["left_brow", "left_eye", "right_brow", "right_eye"]
    points = np.array([[20.0, 25.0], [22.0, 35.0], [60.0, 25.0], [58.0, 35.0]])
    folder = tmp_path / "set"
    for path in (folder / "train" / "1.pts", folder / "val" / "2.pts"):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (80, 80)).save(path.with_suffix(".png"))
        lines = [f"{x} {y}" for x, y in points + 1]
        path.write_text("\n".join(["n_points: 4", "{", *lines, "}"]))
    layout = tmp_path / "own.json"
    layout.write_text(json.dumps({"name": "BROWS4", "points": names}))
    without = run("info", folder)
    assert without.exit_code == 1
    assert "--layout" in without.stderr
    info = run("info", folder, "--layout", layout)
    assert info.exit_code == 0, info.output
    assert info.stdout.count("1 face of 4 points, BROWS4") == 2
    assert info.stdout.count("mirror pairs") == 1, "guessed ones are to be checked"
    sheet = tmp_path / "sheet.png"
    options = ["--layout", layout, "--no-augment", "--crop-size", 80]
    assert run("show", folder, "--out", sheet, *options).exit_code == 0
    with Image.open(sheet) as image:
        colors = colors_at(np.asarray(image)[:80, :80], points)
    assert colors == [LEFT, LEFT, RIGHT, RIGHT]
    packed = run("prepare", folder, "--out", tmp_path / "pack", "--layout", layout)
    assert packed.exit_code == 0, packed.output
    assert "1 face of 4 points, BROWS4" in run("info", tmp_path / "pack").stdout
    other = write(tmp_path / "five", [row("f.png", FIVE.mean_shape * 40 + 40)])
    assert "5" in str(run("show", other, "--out", tmp_path / "x.png", *options).exception)


def five_points(visible: NDArray[np.bool_] | None = None) -> AnnotatedFaces:
    points = np.array([[20.0, 25.0], [60.0, 25.0], [40.0, 40.0], [25.0, 60.0], [55.0, 60.0]])
    face = AnnotatedFace(
        "face", lambda: np.zeros((80, 80, 3), np.uint8), points, "train", visible=visible
    )
    return AnnotatedFaces("set", "FIVE5", FIVE.mirror, [face])


def colors_at(tile: NDArray[np.uint8], points: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """The color of each point, from the mixed color of its pixel."""
    pixels = [tile[round(y), round(x)].astype(float) for x, y in points]
    known = np.array([LEFT, MIDDLE, RIGHT, HIDDEN])
    nearest = [np.abs(known / 255 - pixel / pixel.max()).sum(axis=1).argmin() for pixel in pixels]
    return [tuple(known[index].tolist()) for index in nearest]


def test_a_flipped_face_keeps_left_points_on_the_left_and_hidden_ones_hidden() -> None:
    """The face is symmetric about the center of the crop, so that flipping moves no position."""
    visible = np.array([True, False, True, True, True])
    flip = Augmentation(**{**vars(NO_AUGMENTATION), "flip": 1.0})
    sheet = before_and_after(five_points(visible), [0], flip, crop_size=80, variants=1)
    stored, crop, flipped = np.split(sheet[:80], 3, axis=1)
    points = five_points()[0].points
    assert colors_at(stored, points) == [LEFT, HIDDEN, MIDDLE, LEFT, RIGHT]
    places = (points - (40, 42.5)) * 80 / 56 + 39.5
    assert colors_at(crop, places) == [LEFT, HIDDEN, MIDDLE, LEFT, RIGHT]
    assert colors_at(flipped, places) == [HIDDEN, RIGHT, MIDDLE, LEFT, RIGHT]


def test_points_outside_are_drawn_at_the_edge_and_unknown_ones_are_not() -> None:
    points = np.array([[10.0, 90.0], [30.0, 30.0], [np.nan, np.nan]])
    tile = contact_sheet([Tile(np.zeros((60, 60, 3), np.uint8), points)], 1, 60)[:60]
    assert colors_at(tile, np.array([[10, 59], [30, 30]])) == [HIDDEN, MIDDLE]
    tile[57:, 8:13] = tile[28:33, 28:33] = 0
    assert tile.max() == 0


def test_label_makes_a_data_set_of_images(tmp_path: Path, astronaut: np.ndarray) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(astronaut).save(images / "a.png")
    Image.new("RGB", (60, 60)).save(images / "nobody.png")
    (images / "broken.jpg").write_bytes(b"no image")
    arguments = ["label", images, "--layout", "68", "--out", tmp_path / "set"]
    result = run(*arguments)
    assert result.exit_code == 1, "one image is broken"
    assert "1 face in 2 images, 1 without a face, 1 failed" in result.stdout
    assert "broken.jpg" in result.stderr
    faces = read_faces(tmp_path / "set", "train")
    (face,) = faces
    assert (faces.layout, face.load_image().shape) == ("W300_68", astronaut.shape)
    assert isinstance(run(*arguments).exception, DataError)  # it exists already


def test_label_names_why_there_is_nothing_to_label(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in ("1.png", "2.png"):
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    url = "http://localhost:1/a.png"
    inputs = [tmp_path / name for name in ("images.tar", "empty", "broken.png")]
    result = run("label", *inputs, url, "--out", tmp_path / "set")
    assert isinstance(result.exception, DataError)
    message = str(result.exception)
    assert "5 failed" in message
    for text in ("1.png: not an image file on disk", "no image in this folder", "broken.png", url):
        assert text in message
    assert not (tmp_path / "set" / "annotations.jsonl").exists()


def test_label_continues_where_it_was_stopped(
    tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in "abc":
        Image.fromarray(astronaut).save(images / f"{name}.png")
    arguments = ["label", images, "--layout", "29", "--out", tmp_path / "set"]
    read: list[str] = []

    def stopping(detector: Detector, sources: Any) -> Iterator[job.Result]:
        for number, result in enumerate(job.predict_sources(detector, sources)):
            if number == 2:
                raise KeyboardInterrupt
            read.append(result.source.name)
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(project, "predict_sources", stopping)
        stopped = run(*arguments)
    assert (stopped.exit_code, stopped.stderr) == (130, "stopped; the same command continues\n")
    other = run(*arguments, "--flip-test")
    assert "another detector" in str(other.exception)
    part = tmp_path / "set" / ".annotations.jsonl.part"
    begun = part.read_text()
    card = find_weights("hih-small").card
    calibrated = card.model_copy(update={"calibration": {}}).digest
    part.write_text(begun.replace(card.digest, calibrated))
    assert "another detector" in str(run(*arguments).exception)
    part.write_text(begun + '["../images/c.png", [{"image')  # cut by a kill
    assert run(*arguments).exit_code == 0
    assert [Path(name).name for name in read] == ["a.png", "b.png"]
    assert len(read_faces(tmp_path / "set", "train")) == 3
    assert not part.exists()


def test_label_uses_centered_faces_of_crops_without_detection(
    tmp_path: Path, astronaut: np.ndarray
) -> None:
    left, top, side = 112, 5, 222  # twice the box of MTCNN
    crop = astronaut[top : top + side, left : left + side]
    Image.fromarray(crop).save(tmp_path / "crop.png")
    out = tmp_path / "set"
    result = run("label", str(tmp_path / "crop.png"), "--out", str(out), "--cut", "2", "--refine=0")
    assert result.exit_code == 0
    (face,) = read_faces(out, "train")
    (expected,) = Detector(98, refine=0).predict(crop, boxes=[[55, 55, 166, 166]], box_kind="mtcnn")
    assert face.points == pytest.approx(expected.points, abs=0.6)
    limited = run("label", "crop.png", "--out", "set", "--cut", "2", "--min-face", "40")
    assert limited.exit_code == 2
    assert "--cut searches no faces" in limited.stderr


@pytest.mark.parametrize("output_format", ["json", "jsonl", "csv", "csv-wide", "parquet-points"])
def test_sheet_of_a_result_folder_shows_the_lowest_scores_first(
    tmp_path: Path, output_format: str
) -> None:
    with ResultFolder(tmp_path / "out", output_format, {"layout": "29"}) as results:
        for name, score in (("a", 0.9), ("b", 0.2), ("c", 0.5)):
            path = tmp_path / f"{name}.png"
            Image.new("RGB", (90, 90), (200, 30, 30)).save(path)
            face = Face(
                SHAPE, np.full(29, score), np.zeros((29, 2, 2)), np.array([9, 9, 80, 80]), 1, COFW29
            )
            source = Source(str(path), path.name)
            results.add(job.Result(source, [face], (90, 90), model={"model": "m", "weights": "w"}))
    (tmp_path / "c.png").unlink()
    worst = worst_faces(tmp_path / "out", 2, 64)
    assert [each.caption for each in worst] == ["0.20 b.png", "0.50 c.png (image not read)"]
    assert worst[0].image[0, 0, 0] > 150
    assert np.ptp(worst[1].image[0, 0]) == 0
    result = run(
        "show", tmp_path / "out", "--out", tmp_path / "sheet.png", "--crop-size", 64, "--faces", 2
    )
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 64, 64 + CAPTION_HEIGHT)


@pytest.mark.parametrize("output_format", ["json", "csv", "csv-wide", "parquet-points"])
def test_results_are_read_back_with_visibility_and_without_unknown_scores(
    tmp_path: Path, output_format: str
) -> None:
    scores, visibility = np.full(29, 0.5), np.linspace(0, 1, 29)
    scores[3] = np.nan
    box = np.array([9, 9, 80, 80])
    covariance = np.zeros((29, 2, 2))
    face = Face(SHAPE, scores, covariance, box, 1, COFW29, visibility=visibility)
    with ResultFolder(tmp_path / "out", output_format, {"layout": "29"}) as results:
        results.add(job.Result(Source("a.png", "a.png"), [face], (90, 90), model={"model": "m"}))
    (found,) = read_results(tmp_path / "out")
    assert found.score == pytest.approx(0.5)
    read = found.to_face()
    np.testing.assert_allclose(read.visibility, visibility, atol=1e-3)
    np.testing.assert_allclose(read.scores, scores, atol=1e-3)


def test_results_without_points_are_named(tmp_path: Path) -> None:
    with ResultFolder(tmp_path, "csv", {"layout": "29"}):
        pass
    assert "json" in str(run("show", tmp_path, "--out", tmp_path / "sheet.png").exception)
