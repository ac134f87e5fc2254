"""Files of results in each format."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet

from hihlandmark.cli.predict import OutputFormat
from hihlandmark.face import Face
from hihlandmark.io import FORMATS, Result, ResultFolder, Shard, Source
from hihlandmark.io.formats import write_pts
from hihlandmark.layouts import get_layout

POINTS = np.random.default_rng(0).uniform(0, 50, (29, 2))
BOX, COVARIANCE = np.array([0, 0, 50, 50]), np.tile(np.eye(2), (29, 1, 1))
FACE = Face(POINTS, np.full(29, 0.5), COVARIANCE, BOX, 0.9, get_layout(29))
MODEL = {"model": "hih-small", "weights": "1" * 64}
TWO = Result(Source("two", "two"), [FACE, FACE], (640, 480), model=MODEL)
NONE = Result(Source("none", "none"), [], (640, 480), model=MODEL)
BAD = Result(Source("bad", "bad"), error="broken", model=MODEL)


def written(name: str) -> bytes:
    of_many = FORMATS[name].of_many
    assert of_many is not None
    return of_many([TWO, NONE, BAD])


def rows(name: str) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(io.BytesIO(written(name))).to_pylist()


def test_command_line_offers_all_formats() -> None:
    assert set(get_args(OutputFormat)) == set(FORMATS)


def test_parquet_has_a_row_per_face() -> None:
    table = rows("parquet")
    assert [(row["image"], row["face"], row["error"]) for row in table] == [
        ("two", 0, None),
        ("two", 1, None),
        ("none", None, None),
        ("bad", None, "broken"),
    ]
    np.testing.assert_allclose(table[1]["points"], FACE.points, atol=1e-5)
    shown = table[0]["width"], table[0]["model"], table[0]["layout"]
    assert shown == (640, "hih-small", "COFW29")
    assert np.shape(table[0]["covariance"]) == (29, 4)


def test_covariances_can_be_left_out() -> None:
    whole, slim = rows("parquet")[0], rows("parquet-points")[0]
    assert whole.keys() - slim.keys() == {"covariance"}
    assert slim["points"] == whole["points"]


def test_coco_has_what_its_tools_read() -> None:
    record = json.loads(written("coco"))
    two, none = record["images"]
    assert (two["file_name"], two["width"], two["height"]) == ("two", 640, 480)
    assert [image["id"] for image in (two, none)] == [1, 2]
    first, second = record["annotations"]
    assert (first["id"], second["id"]) == (1, 2)
    assert first["image_id"] == second["image_id"] == two["id"]
    assert first["bbox"] == [0, 0, 50, 50]
    points = np.reshape(first["keypoints"], (29, 3))
    np.testing.assert_allclose(points[:, :2], FACE.points, atol=1e-3)
    assert (points[:, 2] == 2).all()
    (category,) = record["categories"]
    assert category["id"] == first["category_id"]
    assert category["keypoints"] == list(get_layout(29).point_names)
    assert np.array(category["skeleton"]).min() == 1
    assert np.array(category["skeleton"]).max() <= 29


def coco_ids(folder: Path) -> tuple[list[int], list[int]]:
    """The ids of all images and faces of a folder; every face belongs to an image of its part."""
    images: list[int] = []
    faces: list[int] = []
    for part in sorted(folder.glob("*.coco.json")):
        record = json.loads(part.read_text())
        here = [image["id"] for image in record["images"]]
        assert {face["image_id"] for face in record["annotations"]} <= set(here)
        images, faces = images + here, faces + [face["id"] for face in record["annotations"]]
    return images, faces


def add_to(folder: Path, names: str, shard: Shard = Shard()) -> None:  # noqa: B008 - immutable
    with ResultFolder(folder, "coco", {"layout": "29"}, shard=shard, part_size=2) as results:
        for name in names:
            results.add(replace(TWO, source=Source(name, name)))


def test_coco_ids_count_up_in_a_folder(tmp_path: Path) -> None:
    add_to(tmp_path, "abc")
    add_to(tmp_path, "de")
    assert coco_ids(tmp_path) == ([1, 2, 3, 4, 5], list(range(1, 11)))
    (tmp_path / "part-000003.coco.json").unlink()
    add_to(tmp_path, "de")  # made again, with new ids
    assert coco_ids(tmp_path) == ([1, 2, 3, 6, 7], [*range(1, 7), *range(11, 15)])


def test_coco_ids_of_shards_do_not_collide(tmp_path: Path) -> None:
    add_to(tmp_path, "abc", Shard(1, 2))
    add_to(tmp_path, "de", Shard(2, 2))
    images, faces = coco_ids(tmp_path)
    assert sorted(images) == [1, 2, 3, 4, 5]
    assert len({*faces}) == 10
    assert max(faces) == 11


def test_csv_has_a_row_per_point_and_one_for_an_image_without_a_face() -> None:
    lines = written("csv").decode().splitlines()
    assert len(lines) == 1 + 2 * 29 + 1 + 1


def test_pts_files_are_numbered_by_face() -> None:
    files = write_pts(TWO)
    assert list(files) == [".0.pts", ".1.pts"]
    assert files[".0.pts"].startswith(b"version: 1\nn_points: 29\n")
