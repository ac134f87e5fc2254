import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from hihlandmark import ConfigurationError, Detector
from hihlandmark.cli.data import app
from hihlandmark.datasets import read_faces
from hihlandmark.datasets.augmentation import NO_AUGMENTATION, Augmentation
from hihlandmark.datasets.contact_sheet import (
    BACKGROUND,
    CAPTION_HEIGHT,
    HIDDEN,
    LEFT,
    MIDDLE,
    RIGHT,
    Tile,
    before_and_after,
    contact_sheet,
)
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.errors import DataError
from hihlandmark.layouts import COFW29, FIVE

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
    (folder / "unreadable.png").write_bytes(b"no picture")
    return folder


def test_info_counts_what_is_there_and_names_what_is_not(data: Path) -> None:
    result = run("info", data)
    assert result.exit_code == 0, result.output
    assert "format project, splits train, val" in result.stdout
    train, val = result.stdout.split("\nval: ")
    for text in (
        "train: 4 faces of 29 points, COFW29",
        "subsets: blur 1, pose 2",
        "annotated as hidden: 2",
        "outside of the picture: 4",
        "1 samples left out",
        "annotations.jsonl, line 5",
        "1 samples with unreadable pictures",
        "unreadable.png",
    ):
        assert text in train
    assert val.startswith("1 faces of 29 points")


def test_info_without_pictures_opens_none(data: Path) -> None:
    result = run("info", data, "--no-pictures")
    assert result.exit_code == 0
    assert "unreadable" not in result.stdout
    assert "outside" not in result.stdout


def test_info_shortens_long_lists_unless_asked_not_to(tmp_path: Path) -> None:
    rows = [row("a.png")] + [row(f"{i}.png", SHAPE[:5]) for i in range(13)]
    # Most faces have the most points: the shorter ones are the bad ones.
    rows += [row("b" * i + ".png") for i in range(1, 15)]
    folder = write(tmp_path / "set", rows)
    short, long = run("info", folder).stdout, run("info", folder, "--all").stdout
    assert "13 samples left out" in short
    assert short.count("annotations.jsonl, line") == 10
    assert "and 3 more" in short
    assert long.count("annotations.jsonl, line") == 13


def test_info_goes_on_after_a_split_that_cannot_be_used(tmp_path: Path) -> None:
    nothing = [[None, None]] * 29
    folder = write(tmp_path / "set", [row("a.png", nothing), row("v.png", split="val")])
    result = run("info", folder)
    assert result.exit_code == 1
    assert "train" in result.stderr
    assert "val: 1 faces" in result.stdout


def test_a_folder_that_is_no_data_set_is_an_error(tmp_path: Path) -> None:
    for arguments in (("info",), ("show", "--out", "x.png"), ("prepare", "--out", "x")):
        result = run(arguments[0], tmp_path, *arguments[1:])
        assert isinstance(result.exception, DataError)
        assert str(tmp_path) in str(result.exception)


def test_show_draws_a_row_a_face_and_a_column_a_crop(data: Path, tmp_path: Path) -> None:
    (data / "unreadable.png").write_bytes((data / "a.png").read_bytes())
    out = tmp_path / "new" / "sheet.png"
    result = run("show", data, "--out", out, "--faces", 3, "--crop-size", 64)
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    assert "1 samples left out" in result.stdout
    with Image.open(out) as sheet:
        assert sheet.size == (7 * 64, 3 * (64 + CAPTION_HEIGHT))


def test_show_without_augmentation_and_with_fewer_faces_than_asked(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.JPG"
    arguments = ("--split", "val", "--no-augment", "--crop-size", 64)
    assert run("show", data, "--out", out, *arguments).exit_code == 0
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 64, 64 + CAPTION_HEIGHT)
        assert sheet.format == "JPEG"


def test_show_repeats_itself_with_a_seed(data: Path, tmp_path: Path) -> None:
    (data / "unreadable.png").write_bytes((data / "a.png").read_bytes())

    def sheet(seed: int) -> bytes:
        out = tmp_path / "sheet.png"
        assert run("show", data, "--out", out, "--crop-size", 64, "--seed", seed).exit_code == 0
        return out.read_bytes()

    assert sheet(1) == sheet(1) != sheet(2)


def test_show_takes_the_augmentation_of_a_configuration(data: Path, tmp_path: Path) -> None:
    settings = "\n".join(
        f"{name} = 0.0"
        for name in ("rotation_degrees", "scale", "shift", "flip", "color", "gray", "shrink")
    )
    settings += "\nblur = 0\nmotion_blur = 0\njpeg = 0\npatch = 0\nocclusion = 0"
    config = tmp_path / "run.toml"
    run_of_tight_crops = 'name = "x"\nmodel = "hih-small"\ncanonical_scale = 0.7\n'
    stages = "[[sets]]\n[[stages]]\nsteps = 1\n"
    config.write_text(run_of_tight_crops + stages + "[augmentation]\n" + settings)
    out = tmp_path / "sheet.png"
    arguments = ("--split", "val", "--crop-size", 64, "--config", config)
    assert run("show", data, "--out", out, *arguments).exit_code == 0
    with Image.open(out) as picture:
        tiles = np.split(np.asarray(picture)[:64], 7, axis=1)
    for augmented in tiles[2:]:
        assert np.array_equal(augmented, tiles[1])
    edges = np.concatenate([tiles[1][:2], tiles[1][-2:]])
    assert (np.abs(edges - np.array(HIDDEN)).max(axis=-1) < 60).any()  # points are outside


def test_show_refuses_what_it_cannot_write(data: Path, tmp_path: Path) -> None:
    result = run("show", data, "--out", tmp_path / "sheet.gif2")
    assert isinstance(result.exception, ConfigurationError)
    assert ".png" in str(result.exception)


def test_prepare_packs_the_splits_of_several_sets(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    other = write(tmp_path / "five", [row("f.png", FIVE.mean_shape * 40 + 40)])
    out = tmp_path / "pack"
    result = run("prepare", data, other, "--out", out)
    assert result.exit_code == 0, result.output
    assert "4 faces" in result.stdout  # three of the first set, one of the second
    assert "unreadable.png" in result.stdout
    info = run("info", out)
    assert info.exit_code == 0, info.output
    assert "format packed" in info.stdout
    assert "3 faces of 29 points, COFW29" in info.stdout
    assert "1 faces of 5 points, FIVE5" in info.stdout
    again = run("prepare", data, "--out", out)
    assert isinstance(again.exception, ConfigurationError)
    assert str(out) in str(again.exception)
    replaced = run(
        *("prepare", data, "--out", out, "--overwrite", "--split", "val", "--max-side", 32)
    )
    assert replaced.exit_code == 0, replaced.output
    assert "1 faces" in replaced.stdout


def five_points(visible: NDArray[np.bool_] | None = None) -> AnnotatedFaces:
    points = np.array([[20.0, 25.0], [60.0, 25.0], [40.0, 40.0], [25.0, 60.0], [55.0, 60.0]])
    face = AnnotatedFace(
        "face", lambda: np.zeros((80, 80, 3), np.uint8), points, "train", visible=visible
    )
    return AnnotatedFaces("set", "FIVE5", FIVE.mirror, [face])


def colors_at(tile: NDArray[np.uint8], points: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """The color that a pixel shows, unmixed from what is around its point."""
    pixels = [tile[round(y), round(x)].astype(float) for x, y in points]
    known = np.array([LEFT, MIDDLE, RIGHT, HIDDEN])
    nearest = [np.abs(known / 255 - pixel / pixel.max()).sum(axis=1).argmin() for pixel in pixels]
    return [tuple(known[index].tolist()) for index in nearest]


def test_a_flipped_face_keeps_left_points_on_the_left_and_hidden_ones_hidden() -> None:
    """The face is symmetric about the crop's middle, so that flipping moves no place."""
    visible = np.array([True, False, True, True, True])
    flip = Augmentation(**{**vars(NO_AUGMENTATION), "flip": 1.0})
    sheet = before_and_after(five_points(visible), [0], flip, crop_size=80, variants=1)
    stored, crop, flipped = np.split(sheet[:80], 3, axis=1)
    points = five_points()[0].points
    assert colors_at(stored, points) == [LEFT, HIDDEN, MIDDLE, LEFT, RIGHT]
    places = (points - (40, 42.5)) * 80 / 56 + 39.5
    assert colors_at(crop, places) == [LEFT, HIDDEN, MIDDLE, LEFT, RIGHT]
    assert colors_at(flipped, places) == [HIDDEN, RIGHT, MIDDLE, LEFT, RIGHT]


def test_points_outside_are_marked_at_the_edge_and_unknown_ones_not() -> None:
    points = np.array([[10.0, 90.0], [30.0, 30.0], [np.nan, np.nan]])
    tile = contact_sheet([Tile(np.zeros((60, 60, 3), np.uint8), points)], 1, 60)[:60]
    assert colors_at(tile, np.array([[10, 59], [30, 30]])) == [HIDDEN, MIDDLE]
    tile[57:, 8:13] = tile[28:33, 28:33] = 0
    assert tile.max() == 0


def test_tiles_of_any_shape_are_fitted_and_filled_row_by_row() -> None:
    shapes = [(30, 60), (100, 50), (1, 1)]
    tiles = [
        Tile(np.full((*shape, 3), 50 * (i + 1), np.uint8), np.zeros((0, 2)), "a long name" * 9)
        for i, shape in enumerate(shapes)
    ]
    sheet = contact_sheet(tiles, columns=2, tile_size=40)
    height = 40 + CAPTION_HEIGHT
    assert sheet.shape == (2 * height, 80, 3)
    assert (sheet[10:30, :40] == 50).all()
    assert (sheet[:10, :40] == BACKGROUND).all()
    assert (sheet[:40, 50:70] == 100).all()
    assert (sheet[height : height + 40, :40] == 150).all()
    assert (sheet[height:, 40:] == BACKGROUND).all()


def test_an_empty_or_impossible_sheet_is_an_error() -> None:
    tile = Tile(np.zeros((9, 9, 3), np.uint8), np.zeros((0, 2)))
    for tiles, columns, size in (([], 1, 64), ([tile], 0, 64), ([tile], 1, 2)):
        with pytest.raises(ConfigurationError):
            contact_sheet(tiles, columns, size)


def test_label_makes_a_data_set_of_photos(tmp_path: Path, astronaut: np.ndarray) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(astronaut).save(photos / "a.png")
    Image.new("RGB", (60, 60)).save(photos / "nobody.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    arguments = ["label", str(photos), "--layout", "68", "--out", str(tmp_path / "set")]
    result = run(*arguments)
    assert result.exit_code == 1, "one photo is broken"
    assert "1 faces in 2 images, 1 without a face, 1 failed" in result.stdout
    assert "broken.jpg" in result.stderr
    faces = read_faces(tmp_path / "set", "train")
    (face,) = faces
    assert (faces.layout, face.load_image().shape) == ("W300_68", astronaut.shape)
    again = run(*arguments)
    assert isinstance(again.exception, DataError)
    assert "is there already" in str(again.exception)


def test_label_takes_crops_whose_face_is_known_to_be_in_the_middle(
    tmp_path: Path, astronaut: np.ndarray
) -> None:
    left, top, side = 112, 5, 222  # twice MTCNN's box, and no face at the place of a smaller one
    crop = astronaut[top : top + side, left : left + side]
    Image.fromarray(crop).save(tmp_path / "crop.png")
    out = tmp_path / "set"
    result = run("label", str(tmp_path / "crop.png"), "--out", str(out), "--cut", "2", "--refine=0")
    assert result.exit_code == 0
    (face,) = read_faces(out, "train")
    (expected,) = Detector(98, refine=0).predict(crop, boxes=[[55, 55, 166, 166]], box_kind="mtcnn")
    assert face.points == pytest.approx(expected.points, abs=0.6)
