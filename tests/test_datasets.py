"""Miniature data sets in the exact formats of their authors, good and bad."""

import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import (
    HEADERS,
    SOCCER,
    WFLW_TEST,
    WFLW_TRAIN,
    cofw_file,
    pts,
    shape,
    text_file,
    text_of,
    wflw_line,
    write_image,
)
from PIL import Image

from hihlandmark.calibration.fit import hidden_points
from hihlandmark.datasets import dataset_splits, read_faces
from hihlandmark.datasets.faces import Samples, StoredImage, numbered_lines
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.layouts import COFW29, W300_68, WFLW98, get_conversion


def assert_second_is_bad(folder: Path, split: str, count: int, source: str, keyword: str) -> None:
    """The bad sample is skipped and named, or raised."""
    faces = read_faces(folder, split)
    assert len(faces) == count
    assert len(faces.skipped) == 1
    assert faces.skipped[0].startswith(f"{source}: ")
    assert keyword in faces.skipped[0]
    with pytest.raises(DataError, match=source):
        read_faces(folder, split, on_bad_sample="raise")


# ---------------------------------------------------------------------------------------- WFLW


@pytest.fixture
def wflw(tmp_path: Path) -> Path:
    write_image(tmp_path / "WFLW_images" / SOCCER)
    text_file(tmp_path / WFLW_TRAIN, wflw_line())
    lines = [wflw_line(1, "1 0 0 1 0 0"), wflw_line(2, "0 0 0 0 0 1"), wflw_line(3)]
    text_file(tmp_path / WFLW_TEST, *lines)
    return tmp_path


def test_wflw_is_read_as_published(wflw: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, test = read_faces(wflw, "train"), read_faces(wflw, "test")
    assert (train.name, train.layout, len(train), len(test)) == ("WFLW", "WFLW98", 1, 3)
    np.testing.assert_allclose(test[0].points, shape(98, 1), atol=1e-5)
    np.testing.assert_array_equal(test[0].rectangle, [4, 7, 51, 31])
    np.testing.assert_array_equal(test.mirror, WFLW98.mirror)
    assert [sorted(face.subsets) for face in test] == [["makeup", "pose"], ["blur"], []]
    assert [face.name for face in test] == [SOCCER, f"{SOCCER}#2", f"{SOCCER}#3"]
    assert test[1].source == "list_98pt_rect_attr_test.txt, line 2"
    assert test[0].load_image().shape == (40, 60, 3)
    assert test.published == 2500
    assert "2500" in caplog.text


def test_a_subset_is_read_by_its_name(wflw: Path) -> None:
    assert [face.name for face in read_faces(wflw, "test/blur")] == [f"{SOCCER}#2"]
    assert "test/illumination" in dataset_splits(wflw)[1]
    with pytest.raises(ConfigurationError, match="blur, makeup, pose"):
        read_faces(wflw, "test/blurred")


def test_wflw_test_list_without_flags_uses_the_subset_lists(wflw: Path) -> None:
    (wflw / WFLW_TEST).unlink()
    lines = [f"{text_of(shape(98, offset))} {SOCCER}" for offset in (1, 2, 3)]
    lists = wflw / "WFLW_annotations" / "list_98pt_test"
    text_file(lists / "list_98pt_test.txt", *lines)
    text_file(lists / "list_98pt_test_largepose.txt", lines[0], lines[2])
    text_file(lists / "list_98pt_test_blur.txt", lines[2])
    test = read_faces(wflw, "test")
    assert [sorted(face.subsets) for face in test] == [["pose"], [], ["blur", "pose"]]
    assert test[0].rectangle is None


@pytest.mark.parametrize(
    ("line", "keyword"),
    [
        (wflw_line().replace("50.000000", "nan"), "'nan' in column 195"),
        (wflw_line().replace("50.000000", "5O.0"), "'5O.0' in column 195"),
        (wflw_line()[10:], "206 columns"),
        (wflw_line(image="gone.jpg"), "WFLW_images/gone.jpg"),
        (wflw_line(flags="0 0 2 0 0 0"), "0 or 1"),
    ],
    ids=["NaN", "text", "a column less", "no image", "a flag of 2"],
)
def test_a_bad_line_of_wflw_is_skipped_or_raised(wflw: Path, line: str, keyword: str) -> None:
    text_file(wflw / WFLW_TRAIN, wflw_line(1), line, wflw_line(2))
    assert_second_is_bad(wflw, "train", 2, "list_98pt_rect_attr_train.txt, line 2", keyword)


def test_an_error_quotes_some_messages_when_all_samples_are_skipped(wflw: Path) -> None:
    text_file(wflw / WFLW_TRAIN, *["1 2 x.jpg"] * 7)
    with pytest.raises(DataError, match=r"all 7 samples(.|\n)*line 1: (.|\n)*2 more"):
        read_faces(wflw, "train")


def test_missing_parts_of_wflw_are_named(wflw: Path) -> None:
    (wflw / WFLW_TRAIN).unlink()
    assert dataset_splits(wflw)[1][0] == "test"
    with pytest.raises(DataError, match=r"list_98pt_rect_attr_train\.txt"):
        read_faces(wflw, "train")
    (wflw / "WFLW_images").rename(wflw / "images")
    with pytest.raises(DataError, match="WFLW_images"):
        read_faces(wflw, "test")
    with pytest.raises(ConfigurationError, match="'val'"):
        read_faces(wflw, "val")
    with pytest.raises(ConfigurationError, match="W300_68"):
        read_faces(wflw, "test", layout="300w")


# --------------------------------------------------------------------------------------- 300-W


@pytest.fixture
def w300(tmp_path: Path) -> Path:
    pts(tmp_path / "afw" / "134212_1.pts")
    for part in ("trainset", "testset"):
        pts(tmp_path / "helen" / part / "296814969_3.pts")
        pts(tmp_path / "lfpw" / part / "image_0001.pts", suffix=".png")
    pts(tmp_path / "ibug" / "image_092 _01.pts")
    return tmp_path


def test_the_parts_of_300w_make_up_the_splits_of_the_papers(w300: Path) -> None:
    pts(w300 / "helen" / "testset" / "296814969_3_mirror.pts")  # of some redistributions
    assert dataset_splits(w300) == ("w300", ["train", "common", "challenge", "full"])
    assert [face.name for face in read_faces(w300, "train")] == [
        "afw/134212_1.jpg",
        "helen/trainset/296814969_3.jpg",
        "lfpw/trainset/image_0001.png",
    ]
    full, common = read_faces(w300, "full"), read_faces(w300, "common")
    assert [sorted(face.subsets) for face in full] == [["common"], ["common"], ["challenge"]]
    assert full[2].name == "ibug/image_092 _01.jpg"
    assert (len(common), common.skipped, len(read_faces(w300, "challenge"))) == (2, [], 1)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("header", HEADERS)
def test_pts_files_of_every_header_count_from_one(w300: Path, header: str, newline: str) -> None:
    points = pts(w300 / "ibug" / "a.pts", 3, HEADERS[header], newline=newline)
    face = read_faces(w300, "challenge")[0]
    assert face.name == "ibug/a.jpg"
    np.testing.assert_allclose(face.points, points - 1, atol=1e-5)
    assert len(face.points) == W300_68.size


@pytest.mark.parametrize("root", ["", "300W"])
def test_the_private_test_set_of_300w_is_read(tmp_path: Path, root: str) -> None:
    pts(tmp_path / root / "01_Indoor" / "indoor_001.pts", suffix=".png")
    pts(tmp_path / root / "02_Outdoor" / "outdoor_001.pts", suffix=".png")
    assert dataset_splits(tmp_path) == ("w300", ["test", "test/indoor", "test/outdoor"])
    subsets = [sorted(face.subsets) for face in read_faces(tmp_path, "test")]
    assert subsets == [["indoor"], ["outdoor"]]


@pytest.mark.parametrize(
    ("options", "keyword"),
    [
        ({"count": 67}, "134 coordinates"),
        ({"edit": lambda t: t.replace(": 68", ": 51")}, "51 points"),
        ({"edit": lambda t: t.replace("5.000000", "NaN")}, "line 4: 'NaN' in column 1"),
        ({"edit": lambda t: t.replace("8.000000", "x")}, "line 71: 'x' in column 2"),
        ({"edit": lambda t: t[:200]}, "truncated"),
        ({"edit": lambda t: ""}, "no coordinates"),
    ],
    ids=["a point less", "another scheme", "NaN", "text", "truncated", "empty"],
)
def test_a_bad_pts_file_is_skipped_or_raised(w300: Path, options: dict, keyword: str) -> None:
    pts(w300 / "ibug" / "bad.pts", **options)
    assert_second_is_bad(w300, "challenge", 1, "ibug/bad.pts", keyword)


def test_images_and_pts_files_without_the_other_are_skipped(w300: Path) -> None:
    pts(w300 / "ibug" / "a.pts")
    pts(w300 / "ibug" / "b.pts")
    (w300 / "ibug" / "a.jpg").unlink()
    (w300 / "ibug" / "b.pts").unlink()
    skipped = read_faces(w300, "challenge").skipped
    assert [message.partition(":")[0] for message in skipped] == ["ibug/a.pts", "ibug/b.pts"]


def test_a_missing_part_of_300w_is_named(w300: Path) -> None:
    (w300 / "helen" / "testset").rename(w300 / "helen" / "elsewhere")
    with pytest.raises(DataError, match="lacks helen/testset"):
        read_faces(w300, "full")
    assert len(read_faces(w300, "challenge")) == 1


# ---------------------------------------------------------------------------------------- COFW


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((40, 60, 3), (50, 70))]


def test_cofw_is_read_as_published(tmp_path: Path, images: list[np.ndarray]) -> None:
    cofw_file(tmp_path / "COFW_train_color.mat", images)
    shapes = cofw_file(tmp_path / "COFW_test_color.mat", images)
    assert dataset_splits(tmp_path) == ("cofw", ["train", "test"])
    test = read_faces(tmp_path, "test")
    assert (test.name, test.layout, len(test)) == ("COFW", "COFW29", 2)
    np.testing.assert_array_equal(test.mirror, COFW29.mirror)
    x, y = shapes[1, :29], shapes[1, 29:58]
    np.testing.assert_array_equal(test[1].points, np.stack([x - 1, y - 1], axis=-1))
    np.testing.assert_array_equal(test[1].rectangle, [9, 11, 39, 31])
    assert test[1].visible is not None
    assert test[1].visible.tolist() == [True] * 28 + [False]
    np.testing.assert_array_equal(test[0].load_image(), images[0])
    np.testing.assert_array_equal(test[1].load_image(), np.stack([images[1]] * 3, axis=-1))
    assert len(read_faces(tmp_path, "train")) == 2


def test_cofw_images_are_read_in_worker_processes(tmp_path: Path, images: list[np.ndarray]) -> None:
    cofw_file(tmp_path / "COFW_test_color.mat", images)
    faces = read_faces(tmp_path, "test")
    copy = pickle.loads(pickle.dumps(faces))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        loaded = pool.map(_load, list(copy) * 4)
    for i, image in enumerate(loaded):
        np.testing.assert_array_equal(image, faces[i % 2].load_image())


def _load(face) -> np.ndarray:
    return face.load_image()


def test_a_bad_face_of_cofw_is_skipped(tmp_path: Path, images: list[np.ndarray]) -> None:
    def with_nan(shapes: np.ndarray) -> np.ndarray:
        shapes[1, 3] = np.nan
        return shapes

    cofw_file(tmp_path / "COFW_test_color.mat", images, shapes=with_nan)
    assert_second_is_bad(tmp_path, "test", 1, "COFW_test_color.mat, face 2", "NaN")


@pytest.mark.parametrize(
    ("changes", "keyword"),
    [({"key": "phisX"}, "no phisT"), ({"shapes": lambda s: s[:, :58]}, r"\(2, 58\)")],
)
def test_wrong_arrays_of_cofw_are_named(
    tmp_path: Path, images: list[np.ndarray], changes: dict, keyword: str
) -> None:
    cofw_file(tmp_path / "COFW_test_color.mat", images, **changes)
    with pytest.raises(DataError, match=keyword):
        read_faces(tmp_path, "test")


def test_missing_files_and_old_formats_of_cofw_are_named(tmp_path: Path) -> None:
    (tmp_path / "COFW_test_color.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(600))
    with pytest.raises(DataError, match=r"v7\.3"):
        read_faces(tmp_path, "test")
    with pytest.raises(DataError, match=r"COFW_train_color\.mat"):
        read_faces(tmp_path, "train")


# --------------------------------------------------------------------------------------- lists


def test_hih_lists_name_crops_in_the_folder_of_their_split(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a_0.png", width=256, height=256)
    write_image(tmp_path / "test_blur" / "b_0.png", width=128, height=256)
    text_file(tmp_path / "train.txt", f"a_0.png {text_of(shape(98) / 100)}")
    text_file(tmp_path / "test_blur.txt", f"b_0.png {text_of(shape(68) / 100)}")
    assert dataset_splits(tmp_path) == ("lists", ["test_blur", "train"])
    train, blur = read_faces(tmp_path, "train"), read_faces(tmp_path, "test_blur")
    assert (train.layout, blur.layout) == ("WFLW98", "W300_68")
    np.testing.assert_allclose(train[0].points, shape(98) * 2.56, atol=1e-3)
    np.testing.assert_allclose(blur[0].points, shape(68) * (1.28, 2.56), atol=1e-3)
    assert blur[0].load_image().shape == (256, 128, 3)


def test_pfld_lists_contain_flags_and_paths_of_another_machine(tmp_path: Path) -> None:
    write_image(tmp_path / "test_data" / "imgs" / "0_a_0.png", width=112, height=112)
    coordinates = text_of(shape(98) / 100)
    text_file(
        tmp_path / "test_data" / "list.txt",
        f"/home/x/data/test_data/imgs/0_a_0.png {coordinates} 1 0 0 0 0 1 -3.5 20.1 0.3",
        f"imgs/0_a_0.png {coordinates} 0 0 1 0 0 0 -3.5 20.1 0.3",
        f"{coordinates} 0 0 0 0 0 0 imgs/0_a_0.png",
    )
    test = read_faces(tmp_path, "test")
    assert [sorted(face.subsets) for face in test] == [["blur", "pose"], ["illumination"], []]
    np.testing.assert_allclose(test[2].points, shape(98) * 1.12, atol=1e-3)


@pytest.mark.parametrize(
    ("line", "keyword"),
    [
        (f"gone.png {text_of(shape(68) / 100)}", "gone.png"),
        (f"a.png {text_of(shape(68))}", "pixels"),
        (f"a.png {text_of(shape(67) / 100)}", "134 numbers"),
        (f"a.png {text_of(shape(68) / 100)} x", "'x' in column 138"),
        (f"a.png {text_of(shape(68) * np.nan)}", "'nan' in column 2"),
        (f"broken.png {text_of(shape(68) / 100)}", "not a readable image"),
    ],
)
def test_a_bad_line_of_a_list_is_skipped(tmp_path: Path, line: str, keyword: str) -> None:
    write_image(tmp_path / "val" / "a.png")
    text_file(tmp_path / "val" / "broken.png", "hello")
    good = f"a.png {text_of(shape(68) / 100)}"
    text_file(tmp_path / "val.txt", good, line, good)
    assert_second_is_bad(tmp_path, "val", 2, "val.txt, line 2", keyword)


def test_a_list_of_no_known_layout_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "val" / "a.png")
    text_file(tmp_path / "val.txt", f"a.png {text_of(shape(50) / 100)}")
    with pytest.raises(DataError, match="100 numbers"):
        read_faces(tmp_path, "val")


# ------------------------------------------------------------------------------------- project


def project_set(folder: Path, *rows: dict, count: int = 29) -> Path:
    write_image(folder / "images" / "a.png")
    defaults = {"image": "images/a.png", "points": shape(count).tolist(), "split": "train"}
    text_file(folder / "annotations.jsonl", *(json.dumps({**defaults, **row}) for row in rows))
    return folder


def test_the_project_format_is_read(tmp_path: Path) -> None:
    row = {
        "visible": [0, 1, 2, 3] + [0] * 25,
        "rect": [1, 2, 3, 4],
        "attributes": {"pose": 1, "blur": 0, "set": "london"},
    }
    unknown = {"points": [None, *shape(28).tolist()]}
    project_set(tmp_path, row, {"split": "val"}, {"split": "empty", "points": None}, unknown)
    assert dataset_splits(tmp_path) == ("project", ["train", "val"])
    train = read_faces(tmp_path, "train")
    assert (train.layout, len(train), train.skipped) == ("COFW29", 2, [])
    face = train[0]
    assert face.visible is not None
    assert face.visible.tolist() == [True] + [False] * 3 + [True] * 25
    assert face.subsets == {"pose", "set=london"}
    np.testing.assert_array_equal(face.rectangle, [1, 2, 3, 4])
    np.testing.assert_array_equal(face.points, shape(29))
    assert train[1].name == "images/a.png#2"
    assert train[1].visible is None
    assert np.isnan(train[1].points).any(axis=1).tolist() == [True] + [False] * 28


@pytest.mark.parametrize(
    ("row", "keyword"),
    [
        ({"points": [[float("nan"), 1], *shape(28).tolist()]}, "point 0 is [nan, 1]"),
        ({"points": shape(28).tolist()}, "28 points"),
        ({"points": [["x", 1], *shape(28).tolist()]}, "not all pairs"),
        ({"points": np.zeros((29, 3)).tolist()}, "not all pairs"),
        ({"image": "images/gone.png"}, "images/gone.png"),
        ({"visible": [0]}, "'visible' has 1 entries"),
        ({"rect": [1, 2, "x"]}, "four numbers"),
        ({"split": None}, "'split'"),
        ({"split": ""}, "'split'"),
        ({"split": "a/b"}, "'a/b'"),
    ],
    ids=[
        "NaN",
        "a point less",
        "texts",
        "triples",
        "no image",
        "visible",
        "rect",
        "no split",
        "empty split",
        "slash",
    ],
)
def test_a_bad_row_of_the_project_format_is_skipped(
    tmp_path: Path, row: dict, keyword: str
) -> None:
    project_set(tmp_path, {}, row, {})
    assert_second_is_bad(tmp_path, "train", 2, "annotations.jsonl, line 2", keyword)


def test_other_schemes_read_their_mirror_table_from_points_json(tmp_path: Path) -> None:
    folder = project_set(tmp_path / "mine", {}, count=4)
    with pytest.raises(DataError, match=r"points\.json"):
        read_faces(folder, "train")
    path = tmp_path / "points.json"
    path.write_text('{"4": {"flip": [1, 0, 2, 3]}}')
    faces = read_faces(folder, "train")
    assert (faces.layout, faces.mirror.tolist()) == ("POINTS4", [1, 0, 2, 3])
    assert read_faces(folder, "train", layout="MINE4").layout == "MINE4"
    for flip in ("[1, 2, 0, 3]", "[0, 0, 1, 2]", "[0, 1, 2]"):
        path.write_text(f'{{"4": {{"flip": {flip}}}}}')
        with pytest.raises(DataError, match="'flip'"):
            read_faces(folder, "train")


def test_a_layout_uses_the_first_points_of_a_scheme_that_starts_with_it(tmp_path: Path) -> None:
    folder = project_set(tmp_path, {"visible": [0] * 67 + [1, 0, 0]}, count=70)
    faces = read_faces(folder, "train", layout="W300_68")
    assert faces[0].points.shape == (68, 2)
    assert faces[0].visible is not None
    assert faces[0].visible.tolist() == [True] * 67 + [False]
    assert len(faces.mirror) == 68
    with pytest.raises(ConfigurationError, match="COFW29"):
        read_faces(folder, "train", layout="cofw")


# ------------------------------------------------------------------------------ all the formats


def write_rotated_image(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(path, exif=exif)


def test_exif_orientation_is_ignored_in_published_sets_and_applied_in_ours(
    tmp_path: Path, w300: Path
) -> None:
    write_rotated_image(w300 / "ibug" / "image_092 _01.jpg")
    assert read_faces(w300, "challenge")[0].load_image().shape == (40, 60, 3)
    project_set(tmp_path / "own", {"image": "images/b.jpg"})
    write_rotated_image(tmp_path / "own" / "images" / "b.jpg")
    assert read_faces(tmp_path / "own", "train")[0].load_image().shape == (60, 40, 3)
    folder = tmp_path / "pts"
    folder.mkdir()
    write_rotated_image(folder / "c.jpg")
    shutil.copy(w300 / "ibug" / "image_092 _01.pts", folder / "c.pts")
    assert read_faces(folder, "train")[0].load_image().shape == (60, 40, 3)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0cut", None, "half"])
def test_an_unreadable_image_is_an_image_error_that_names_the_file(tmp_path: Path, content) -> None:
    path = tmp_path / "a.jpg"
    if content == "half":
        write_image(path, width=300, height=300)
        content = path.read_bytes()[: path.stat().st_size // 2]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg"):
        StoredImage(path)()


def test_faces_of_every_reader_can_be_sent_to_other_processes(w300: Path, tmp_path: Path) -> None:
    project_set(tmp_path / "own", {})
    for faces in (read_faces(w300, "train"), read_faces(tmp_path / "own", "train")):
        copy = pickle.loads(pickle.dumps(faces))
        np.testing.assert_array_equal(copy[0].load_image(), faces[0].load_image())


@pytest.mark.parametrize(
    ("make", "keyword"),
    [
        (lambda path: path / "nowhere", "does not exist"),
        (lambda path: text_file(path / "file", "x"), "not a folder"),
        (lambda path: path, r"annotations\.jsonl"),
        (lambda path: project_set(path / "mine", {}).parent, "data sets in it: mine"),
    ],
)
def test_a_folder_that_is_no_data_set_is_an_error(
    tmp_path: Path, make: Callable[[Path], Path], keyword: str
) -> None:
    with pytest.raises(DataError, match=keyword):
        dataset_splits(make(tmp_path))


@pytest.mark.parametrize(
    ("split", "options", "keyword"),
    [
        ("train", {"format": "voc"}, "'voc'"),
        ("train", {"on_bad_sample": "ignore"}, "on_bad_sample"),
        ("test", {}, "'test'"),
    ],
)
def test_invalid_arguments_are_named(
    tmp_path: Path, split: str, options: dict, keyword: str
) -> None:
    with pytest.raises(ConfigurationError, match=keyword):
        read_faces(project_set(tmp_path, {}), split, **options)


# ------------------------------------------------------------------- labels that cannot be right

HUGE = "1" * 400
DEEP = "[" * 100_000
ENDLESS = "9" * 6000  # more digits than Python turns into an integer


def wflw_with(tmp_path: Path, value: str) -> tuple[Path, str]:
    write_image(tmp_path / "WFLW_images" / SOCCER)
    bad = wflw_line().replace("50.000000", value)
    text_file(tmp_path / WFLW_TEST, wflw_line(1), bad, wflw_line(2))
    text_file(tmp_path / "WFLW_annotations/list_98pt_test/list_98pt_test_blur.txt", bad)
    return tmp_path, "list_98pt_rect_attr_test.txt, line 2"


def w300_with(tmp_path: Path, value: str) -> tuple[Path, str]:
    for name in ("a", "c"):
        pts(tmp_path / "ibug" / f"{name}.pts")
    pts(tmp_path / "ibug" / "b.pts", edit=lambda text: text.replace("5.000000", value))
    return tmp_path, "ibug/b.pts"


def list_with(tmp_path: Path, value: str) -> tuple[Path, str]:
    write_image(tmp_path / "test" / "a.png")
    good = f"a.png {text_of(shape(68) / 100)}"
    text_file(tmp_path / "test.txt", good, good.replace("0.500000", value), good)
    return tmp_path, "test.txt, line 2"


def project_with(tmp_path: Path, value: str) -> tuple[Path, str]:
    project_set(tmp_path, {"split": "test"}, {"split": "test"}, {"split": "test"})
    path = tmp_path / "annotations.jsonl"
    first, second, third = path.read_text().splitlines()
    text_file(path, first, second.replace("50.0", value), third)
    return tmp_path, "annotations.jsonl, line 2"


def cofw_with(tmp_path: Path, value: str) -> tuple[Path, str]:
    def changed(shapes: np.ndarray) -> np.ndarray:
        shapes[1, 3] = float(value)
        return shapes

    tmp_path.mkdir(exist_ok=True)
    image = np.zeros((40, 60, 3), np.uint8)
    cofw_file(tmp_path / "COFW_test_color.mat", [image] * 3, shapes=changed)
    return tmp_path, "COFW_test_color.mat, face 2"


FORMATS = [wflw_with, w300_with, list_with, project_with, cofw_with]
SPLIT = {w300_with: "challenge"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", ["1e308", "-1e7", "NaN", "Infinity", HUGE, ENDLESS])
@pytest.mark.parametrize("write", FORMATS)
def test_a_number_that_is_no_coordinate_is_a_skipped_sample(
    tmp_path: Path, write: Callable[[Path, str], tuple[Path, str]], value: str
) -> None:
    folder, source = write(tmp_path, value)
    split = SPLIT.get(write, "test")
    faces = read_faces(folder, split)
    assert len(faces) == 2
    assert [message.partition(": ")[0] for message in faces.skipped] == [source]
    assert len(faces.skipped[0]) < 500
    with pytest.raises(DataError, match=source):
        read_faces(folder, split, on_bad_sample="raise")


@pytest.mark.parametrize("write", [wflw_with, w300_with, project_with, cofw_with])
def test_a_point_far_outside_of_its_image_is_an_image_error(
    tmp_path: Path, write: Callable[[Path, str], tuple[Path, str]]
) -> None:
    """Every user of a data set skips and names images that cannot be read."""
    near, _ = write(tmp_path / "near", "650")  # of an image of 60 x 40
    faces = read_faces(near, SPLIT.get(write, "test"))
    assert [face.load_image().shape for face in faces] == [(40, 60, 3)] * 3
    far, _ = write(tmp_path / "far", "-650")
    faces = read_faces(far, SPLIT.get(write, "test"))
    assert (len(faces), faces.skipped) == (3, [])
    copy = pickle.loads(pickle.dumps(faces))
    with pytest.raises(ImageError, match="10 sides outside"):
        copy[1].load_image()
    assert copy[0].load_image().shape == (40, 60, 3)


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "a.png", "poi',
        DEEP,
        json.dumps({"image": "images/a.png", "split": "train"})[:-1] + f', "points": {DEEP}',
        '{"image": "images/a.png", "split": "train", "points": ' + "[" * 500 + "]" * 500 + "}",
        '{"image": "images/a.png", "split": "train", "points": [[1, 2]], "rect": [1' + HUGE + "]}",
        '{"image": "a\\u0000/b.png", "split": "train", "points": [[1, 2]]}',
        '{"image": "\\ud800/b.png", "split": "train", "points": [[1, 2]]}',
        '{"image": "images/a.png", "split": "train", "points": {"x": 1}}',
    ],
    ids=["cut", "deep", "deep points", "500 deep", "huge rect", "NUL", "surrogate", "an object"],
)
def test_an_odd_line_of_json_is_a_skipped_sample(tmp_path: Path, line: str) -> None:
    project_set(tmp_path, {}, {})
    with (tmp_path / "annotations.jsonl").open("a") as file:
        file.write(line + "\n")
    assert_second_is_bad(tmp_path, "train", 2, "annotations.jsonl, line 3", "")


def test_a_deep_table_of_mirrored_points_is_an_error(tmp_path: Path) -> None:
    project_set(tmp_path, {}, count=4)
    for text in (DEEP, f'{{"4": {{"flip": [{HUGE}, 0, 2, 3]}}}}', '{"4": []}', "[]"):
        (tmp_path / "points.json").write_text(text)
        with pytest.raises(DataError, match="mirror table"):
            read_faces(tmp_path, "train")


def test_further_points_of_one_name_are_faces_where_images_may_show_several(
    tmp_path: Path,
) -> None:
    project_set(tmp_path, {}, {"points": shape(29, 1).tolist()})
    faces = read_faces(tmp_path, "train")
    assert [face.name for face in faces] == ["images/a.png", "images/a.png#2"]


def test_other_points_of_one_crop_are_skipped(tmp_path: Path) -> None:
    write_image(tmp_path / "val" / "a.png")
    lines = [f"a.png {text_of(shape(68, offset) / 100)}" for offset in (0, 1, 0)]
    text_file(tmp_path / "val.txt", *lines)
    assert_second_is_bad(tmp_path, "val", 2, "val.txt, line 2", "line 1 has other points")


def test_a_second_pts_file_of_one_image_is_skipped(w300: Path) -> None:
    text = (w300 / "ibug" / "image_092 _01.pts").read_text()
    second = w300 / "ibug" / "image_092 _01.PTS"
    if second.exists():
        pytest.skip("the file system ignores case")
    second.write_text(text)
    faces = read_faces(w300, "challenge")
    assert len(faces) == 1
    assert "points of the same image" in faces.skipped[0]


def test_a_second_image_of_one_name_is_skipped(w300: Path) -> None:
    write_image(w300 / "ibug" / "image_092 _01.png")
    faces = read_faces(w300, "challenge")
    assert len(faces) == 1
    assert "has the same name" in faces.skipped[0]


def test_lines_end_at_line_breaks_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("a\u2028b\u0085c\r\nd\n\ne".encode())
    assert list(numbered_lines(path)) == [(1, "a\u2028b\u0085c"), (2, "d"), (4, "e")]


def test_pts_files_beside_folders_of_splits_are_refused(tmp_path: Path) -> None:
    pts(tmp_path / "train" / "a.pts")
    pts(tmp_path / "stray.pts")
    with pytest.raises(DataError, match="train"):
        read_faces(tmp_path, "train")


def test_images_of_a_users_own_may_be_called_mirror(tmp_path: Path) -> None:
    pts(tmp_path / "wing_mirror.pts")
    assert [face.name for face in read_faces(tmp_path, "train")] == ["wing_mirror.jpg"]


def test_all_faces_of_a_named_image_are_held_out(tmp_path: Path) -> None:
    faces = read_faces(two_faces_in_a(tmp_path), "train")
    rest, held = faces.split(("a.png",))
    assert [face.name for face in held] == ["a.png", "a.png#2"]
    assert [face.name for face in rest] == ["b.png"]
    assert [face.name for face in faces.split(("a.png#2",))[1]] == ["a.png#2"]


def two_faces_in_a(folder: Path) -> Path:
    rows = []
    for name in ("a.png", "a.png", "b.png"):
        Image.new("RGB", (100, 100)).save(folder / name)
        points = np.random.default_rng(0).uniform(10, 90, (68, 2)).tolist()
        rows.append({"image": name, "split": "train", "points": points})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_names_of_faces_are_unique(tmp_path: Path) -> None:
    (face, *_) = read_faces(two_faces_in_a(tmp_path), "train")
    samples = Samples()
    for name in ("a.png", "a.png#2", "a.png", "a.png"):
        samples.add(replace(face, name=name))
    assert [each.name for each in samples.faces] == ["a.png", "a.png#2", "a.png#3", "a.png#4"]


def test_pts_files_without_a_number_of_points_are_counted(tmp_path: Path) -> None:
    pts(tmp_path / "a.pts")
    text = (tmp_path / "a.pts").read_text()
    (tmp_path / "a.pts").write_text(text[text.index("{") :])
    assert len(read_faces(tmp_path, "train")) == 1


@pytest.mark.parametrize("code", [None, 0, True])
def test_the_visibility_of_points_without_coordinates_is_unknown(
    tmp_path: Path, code: object
) -> None:
    row = json.loads((two_faces_in_a(tmp_path) / "annotations.jsonl").read_text().split("\n")[2])
    row["points"][:2] = [None, None]
    row["visible"] = [code, False, False, *[True] * 65]
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row))
    (face,) = read_faces(tmp_path, "train")
    hidden = hidden_points(face, get_conversion(W300_68, W300_68))
    np.testing.assert_equal(hidden[:4], [np.nan, 1, 1, 0])
