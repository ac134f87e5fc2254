import errno
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from hihlandmark.crop import crop_matrix, invert, transform_points
from hihlandmark.datasets import AnnotatedFace, AnnotatedFaces, dataset_splits, read_faces
from hihlandmark.datasets import packed as packed_format
from hihlandmark.datasets.packed import TABLE, open_table, pack
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.layouts import COFW29, W300_68, Layout


@dataclass(frozen=True)
class SmoothImage:
    """An image (H, W, 3) that JPEG keeps well, another one for each seed."""

    seed: int
    width: int = 300
    height: int = 200

    def __call__(self) -> np.ndarray:
        coarse = np.random.default_rng(self.seed).integers(40, 216, (5, 7, 3), dtype=np.uint8)
        return cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)


def unreadable() -> np.ndarray:
    raise ImageError("file 'broken.jpg' is truncated")


def face(seed: int, layout: Layout = W300_68, **changes) -> AnnotatedFace:
    rng = np.random.default_rng(seed)
    points = rng.uniform((100.3, 60.7), (160.9, 140.2), (layout.size, 2))
    values = {
        "name": f"{seed}.jpg",
        "load_image": SmoothImage(seed),
        "points": points,
        "split": "train",
        "source": f"list.txt, line {seed}",
    }
    return AnnotatedFace(**{**values, **changes})


def faces_of(*faces: AnnotatedFace, layout: Layout = W300_68, name: str = "mine", **more):
    return AnnotatedFaces(name, layout.name, layout.mirror, faces, **more)


def squares(folder: Path) -> dict[str, np.ndarray]:
    """Name of each packed face -> its crop square."""
    rows = open_table(folder / TABLE).remove_columns("image")
    return {row["name"]: np.array(row["square"]) for row in rows}


def test_packed_faces_come_back_as_they_were(tmp_path: Path) -> None:
    visible = np.arange(68) % 3 > 0
    one = face(1, visible=visible, subsets=frozenset({"pose", "blur"}))
    two = face(2, rectangle=np.array([90.0, 50.0, 170.0, 150.0]))
    report = pack([faces_of(one, two)], tmp_path / "out")
    read = read_faces(tmp_path / "out", "train")
    assert (read.name, read.layout, report.faces, report.skipped) == ("mine", "W300_68", 2, ())
    np.testing.assert_array_equal(read.mirror, W300_68.mirror)
    by_name = {packed.name: packed for packed in read}
    for original in (one, two):
        packed, square = by_name[original.name], squares(tmp_path / "out")[original.name]
        crop = packed.load_image()
        to_image = invert(crop_matrix(square, len(crop)))
        back = transform_points(to_image, packed.points)
        np.testing.assert_allclose(back, original.points, atol=1e-3)
        corner = square[:2] - (square[2] - 1) / 2
        np.testing.assert_array_equal(corner % 1, 0)  # whole pixels: nothing is interpolated
        left, top = corner.astype(int)
        image = original.load_image()[top : top + len(crop), left : left + len(crop)]
        inside = crop[: len(image), : image.shape[1]].astype(int)
        assert np.abs(inside - image).mean() < 2
        assert packed.source == original.source
    assert by_name["1.jpg"].subsets == {"pose", "blur"}
    np.testing.assert_array_equal(by_name["1.jpg"].visible, visible)
    assert by_name["2.jpg"].visible is None
    corners = transform_points(to_image, by_name["2.jpg"].rectangle.reshape(2, 2))
    np.testing.assert_allclose(corners.ravel(), two.rectangle)
    assert by_name["1.jpg"].rectangle is None


def test_a_crop_is_side_times_the_box_and_black_outside_of_the_image(tmp_path: Path) -> None:
    points = np.full((68, 2), (20.0, 30.0))
    points[1] = (100.0, 90.0)
    points[2:] = np.nan  # not annotated: no part of the box
    pack([faces_of(face(1, points=points))], tmp_path / "out", side=3)
    packed = read_faces(tmp_path / "out", "train")[0]
    crop = packed.load_image()
    assert crop.shape == (240, 240, 3)
    np.testing.assert_allclose(packed.points[:2].mean(axis=0), (119.5, 119.5), atol=0.51)
    np.testing.assert_allclose(packed.points[1] - packed.points[0], (80, 60), atol=1e-4)
    assert np.isnan(packed.points[2:]).all()
    assert crop[:50].max() < 12
    assert crop[100:140, 100:140].min() > 20


def test_large_faces_are_shrunk_and_small_ones_never_enlarged(tmp_path: Path) -> None:
    large, small = face(1), face(2)
    large = replace(large, points=large.points * 8, load_image=SmoothImage(1, 2400, 1600))
    pack([faces_of(large, small)], tmp_path / "out", max_side=160)
    by_name = {packed.name: packed for packed in read_faces(tmp_path / "out", "train")}
    crop = by_name["1.jpg"].load_image()
    assert crop.shape == (160, 160, 3)
    square = squares(tmp_path / "out")["1.jpg"]
    assert square[2] == np.ceil(2 * np.ptp(large.points, axis=0).max())
    back = transform_points(invert(crop_matrix(square, 160)), by_name["1.jpg"].points)
    np.testing.assert_allclose(back, large.points, atol=1e-3)
    (x, y), (u, v) = (np.rint(p[0]).astype(int) for p in (by_name["1.jpg"].points, large.points))
    assert np.abs(crop[y, x].astype(int) - large.load_image()[v, u]).max() < 10
    assert len(by_name["2.jpg"].load_image()) == squares(tmp_path / "out")["2.jpg"][2] < 160


def test_the_order_is_shuffled_by_the_seed_and_progress_counts_faces(tmp_path: Path) -> None:
    faces = faces_of(*(face(i) for i in range(20)))
    orders = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        calls: list[tuple[int, int]] = []
        progress = lambda *call: calls.append(call)  # noqa: B023, E731
        pack([faces], tmp_path / name, seed=seed, max_side=16, progress=progress)
        assert calls == [(done, 20) for done in range(1, 21)]
        orders.append([packed.name for packed in read_faces(tmp_path / name, "train")])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(f.name for f in faces)


def test_sets_of_several_layouts_and_splits_share_a_pack(tmp_path: Path) -> None:
    report = pack(
        [
            faces_of(face(1), face(2), name="W300"),
            faces_of(face(3), name="YTF"),
            faces_of(face(4, COFW29), layout=COFW29, name="COFW"),
            faces_of(face(5, split="val"), name="W300"),
        ],
        tmp_path / "out",
    )
    assert [(s.name, s.split, s.packed) for s in report.sets][1:3] == [
        ("YTF", "train", 1),
        ("COFW", "train", 1),
    ]
    assert dataset_splits(tmp_path / "out") == ("packed", ["train", "val"])
    with pytest.raises(ConfigurationError, match="COFW29"):
        read_faces(tmp_path / "out", "train")
    train = read_faces(tmp_path / "out", "train", layout="300w")
    assert sorted(packed.name for packed in train) == ["1.jpg", "2.jpg", "3.jpg"]
    assert train.name == "W300 + YTF"
    only = read_faces(tmp_path / "out", "train/ytf", layout="W300_68")
    assert [packed.name for packed in only] == ["3.jpg"]
    assert len(read_faces(tmp_path / "out", "train", layout="cofw")[0].points) == 29
    assert [packed.name for packed in read_faces(tmp_path / "out", "val")] == ["5.jpg"]
    with pytest.raises(ConfigurationError, match="WFLW98"):
        read_faces(tmp_path / "out", "train", layout="wflw")
    with pytest.raises(ConfigurationError, match="'test'"):
        read_faces(tmp_path / "out", "test")


def test_what_cannot_be_packed_is_left_out_and_reported(tmp_path: Path) -> None:
    broken = face(2, load_image=unreadable)
    point = face(3, points=np.full((68, 2), 7.0))
    wild = face(4, points=np.linspace((0, 0), (1e9, 1e9), 68))
    unknown = face(5, points=np.full((68, 2), np.nan))
    outside = face(6, points=face(6).points + 500)
    bad = (broken, point, wild, unknown, outside)
    faces = faces_of(face(1), *bad, skipped=["list.txt, line 9: NaN"])
    report = pack([faces], tmp_path / "out")
    assert (report.faces, report.sets[0].skipped, len(report.skipped)) == (1, 6, 6)
    assert "1 packed  6 skipped" in str(report)
    lines = [message.partition(":")[0] for message in report.skipped]
    assert sorted(lines) == [f"list.txt, line {number}" for number in (2, 3, 4, 5, 6, 9)]
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    with pytest.raises(DataError, match="broken"):
        pack([faces_of(broken)], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_crops_are_read_by_worker_processes(tmp_path: Path) -> None:
    pack([faces_of(*(face(i) for i in range(6)))], tmp_path / "out", max_side=32)
    faces = read_faces(tmp_path / "out", "train")
    faces[0].load_image()  # the workers inherit an opened table
    loader = DataLoader(
        Crops(faces), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for packed, crop in zip(faces, loader, strict=True):
        np.testing.assert_array_equal(packed.load_image(), crop)
    assert len(pickle.dumps(faces[0])) < 3000


class Crops:
    """A map-style data set of the images of faces."""

    def __init__(self, faces: AnnotatedFaces) -> None:
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> np.ndarray:
        if index >= len(self):
            raise IndexError(index)
        return self.faces[index].load_image()


def test_a_pack_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack([faces_of(face(1))], out)
    old = read_faces(out, "train")
    with pytest.raises(ConfigurationError, match="overwrite"):
        pack([faces_of(face(2))], out)
    pack([faces_of(face(2))], out, overwrite=True)
    assert [packed.name for packed in read_faces(out, "train")] == ["2.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ImageError, match="replaced"):
        old[0].load_image()


def test_a_pack_beside_other_files_is_not_replaced(tmp_path: Path) -> None:
    pack([faces_of(face(1))], tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("x")
    with pytest.raises(ConfigurationError, match=r"also holds notes\.txt"):
        pack([faces_of(face(2))], tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "x"


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="not a packed data set"):
        pack([faces_of(face(1))], tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").is_file()


def fail_with(error: BaseException, after: int, done: int, total: int) -> None:
    if done > after:
        raise error


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DataError, "No space"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_an_interrupted_packing_leaves_the_old_pack_and_nothing_else(
    tmp_path: Path, error: BaseException, raised: type[BaseException], message: str
) -> None:
    pack([faces_of(face(1))], tmp_path / "out")
    faces = faces_of(*(face(i) for i in range(9)))
    with pytest.raises(raised, match=message):
        pack([faces], tmp_path / "out", overwrite=True, progress=partial(fail_with, error, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [packed.name for packed in read_faces(tmp_path / "out", "train")] == ["1.jpg"]


def test_the_memory_holds_few_crops_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_format, "ROWS_IN_MEMORY", 4)
    sizes: list[int] = []

    def watch(done: int, total: int) -> None:
        sizes.extend(path.stat().st_size for path in tmp_path.glob(".out.*/new/faces.arrow"))

    pack([faces_of(*(face(i) for i in range(40)))], tmp_path / "out", progress=watch)
    assert 0 < sizes[15] < sizes[25] < sizes[39]


@pytest.mark.parametrize(
    "arguments", [{"side": 0.5}, {"max_side": 4}, {"quality": 0}, {"quality": 101}]
)
def test_invalid_arguments_are_named(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        pack([faces_of(face(1))], tmp_path / "out", **arguments)


def test_sets_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    other = AnnotatedFaces("other", "W300_68", np.arange(68), [face(2)])
    with pytest.raises(ConfigurationError, match="mirror tables"):
        pack([faces_of(face(1)), other], tmp_path / "out")
    with pytest.raises(ConfigurationError, match="2 splits"):
        pack([faces_of(face(1), face(2, split="val"))], tmp_path / "out")
    with pytest.raises(ConfigurationError, match="set"):
        pack([], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "change", "keyword"),
    [
        ("pack.json", lambda text: text.replace(b'"version": 1', b'"version": 99'), "version 99"),
        ("pack.json", lambda text: text.replace(b'"version": 1,', b""), r"pack\.json"),
        (TABLE, lambda content: content[:300], r"faces\.arrow"),
        (TABLE, None, r"faces\.arrow"),
    ],
)
def test_a_damaged_pack_is_named(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, keyword: str
) -> None:
    pack([faces_of(face(1))], tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    with pytest.raises(DataError, match=keyword):
        read_faces(tmp_path, "train")
