"""Faces and results in the types and formats of other packages."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hihlandmark import ConfigurationError, Face, ImageError
from hihlandmark.io import Result, Source
from hihlandmark.io.connectors import (
    to_cvat,
    to_fiftyone,
    to_label_studio,
    to_pandas,
    to_polars,
    to_supervision,
)
from hihlandmark.layouts import COFW29

RNG = np.random.default_rng(0)
POINTS, SCORES = RNG.uniform(10, 90, (29, 2)), RNG.uniform(0, 1, 29)
FACE = Face(POINTS, SCORES, np.tile(np.eye(2), (29, 1, 1)), np.array([5, 6, 95, 96]), 0.9, COFW29)


def test_supervision_gets_one_object_per_face() -> None:
    key_points = to_supervision([FACE, FACE])
    np.testing.assert_array_equal(key_points.xy, np.stack([FACE.points] * 2))
    np.testing.assert_array_equal(key_points.keypoint_confidence[0], FACE.scores)
    assert len(to_supervision([])) == 0
    with pytest.raises(ConfigurationError, match="layouts"):
        to_supervision([FACE, FACE.to_layout(5)])


@pytest.mark.parametrize("convert", [to_pandas, to_polars])
def test_data_frames_have_a_row_per_point(convert: Any) -> None:
    frame = convert([[FACE, FACE], [], [FACE]])
    assert frame.shape == (3 * 29, 2 + len(Face.ROW_FIELDS))
    assert sorted(set(frame["image"].to_list())) == [0, 2]
    np.testing.assert_allclose(frame["x"].to_list()[29:58], FACE.points[:, 0], atol=1e-3)
    assert convert([[], []]).shape == (0, 2 + len(Face.ROW_FIELDS))


def test_label_studio_gets_a_task_with_points_in_percent() -> None:
    task = to_label_studio([FACE], (200, 100), "https://example.org/a.jpg")
    assert task["data"] == {"image": "https://example.org/a.jpg"}
    box, *results = task["predictions"][0]["result"]
    assert box["type"] == "rectanglelabels"
    corners = [box["value"][key] for key in ("x", "y", "width", "height")]
    assert corners == pytest.approx([2.75, 6.5, 45, 90])  # in percent of 200 x 100 pixels
    assert {result["parentID"] for result in results} == {box["id"]}
    assert len({result["id"] for result in results} - {box["id"]}) == 29
    assert results[0]["value"]["keypointlabels"] == [COFW29.point_names[0]]
    # Half a pixel from the corner to the center of the first pixel.
    expected = (FACE.points[0] + 0.5) / (200, 100) * 100
    assert [results[0]["value"][axis] for axis in "xy"] == pytest.approx(expected)
    assert to_label_studio([], (2, 1), "a")["predictions"][0]["result"] == []


def test_cvat_gets_a_skeleton_per_face() -> None:
    results = [
        Result(Source("/d/a.jpg", "a.jpg"), [FACE, FACE], size=(200, 100)),
        Result(Source("/d/b.jpg", "b.jpg"), error="broken"),
        Result(Source("/d/c <&.jpg", "c <&.jpg"), [], size=(20, 10)),
    ]
    root = ElementTree.fromstring(to_cvat(results))
    assert [image.get("name") for image in root.iter("image")] == ["a.jpg", "c <&.jpg"]
    skeletons = list(root.iter("skeleton"))
    assert len(skeletons) == 2
    points = skeletons[0].findall("points")
    assert [point.get("label") for point in points] == list(COFW29.point_names)
    x, y = map(float, str(points[3].get("points")).split(","))
    assert (x, y) == pytest.approx(FACE.points[3] + 0.5, abs=0.01)


def test_fiftyone_gets_points_relative_to_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # FiftyOne needs a database server: plain records stand for its two label classes.
    record = SimpleNamespace(Keypoint=SimpleNamespace, Keypoints=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "fiftyone", record)  # type: ignore[arg-type]
    (keypoint,) = to_fiftyone([FACE], (200, 100)).keypoints
    assert keypoint.label == "COFW29"
    np.testing.assert_allclose(keypoint.points, (FACE.points + 0.5) / (200, 100))
    assert keypoint.confidence == FACE.scores.astype(float).tolist()


@pytest.mark.parametrize(
    ("package", "convert"),
    [("fiftyone", lambda faces: to_fiftyone(faces, (2, 2))), ("supervision", to_supervision)],
)
def test_missing_packages_are_named(
    package: str, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=package):
        convert([FACE])


def test_errors_of_images_are_named() -> None:
    error: Any = ImageError("damaged")
    for convert in (lambda: to_pandas([[], error]), lambda: to_supervision(error)):
        with pytest.raises(ConfigurationError, match=r"an error \(damaged\): pass \[\]"):
            convert()


def test_points_without_coordinates_are_left_out() -> None:
    points, scores = POINTS.copy(), SCORES.copy()
    points[3], scores[3:5] = np.nan, np.nan
    partial = replace(FACE, points=points, scores=scores)
    nowhere = replace(FACE, box=np.full(4, np.nan), points=points * np.nan)
    task = to_label_studio([partial, nowhere], (200, 100), "a.jpg")
    json.dumps(task, allow_nan=False)
    (prediction,) = task["predictions"]
    assert len(prediction["result"]) == 1 + 28
    assert prediction["score"] == pytest.approx(np.nanmean(scores))
    xml = ElementTree.fromstring(to_cvat([Result(Source("a", "a"), [partial, nowhere], (9, 9))]))
    names = [point.get("label") for point in xml.iter("points")]
    assert names == [name for i, name in enumerate(COFW29.point_names) if i != 3]
    assert len(list(xml.iter("skeleton"))) == 1


def test_columns_may_begin_with_many_unknown_values() -> None:
    known = replace(FACE, visibility=np.full(29, 0.5))
    frame = to_polars([[FACE] * 5 + [known]])
    assert frame["visibility"].to_list()[-1] == 0.5
