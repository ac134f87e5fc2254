"""What other packages get of faces."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hihlandmark import ConfigurationError
from hihlandmark.face import Face
from hihlandmark.io import Result, Source
from hihlandmark.io.connectors import (
    to_cvat,
    to_fiftyone,
    to_key_points,
    to_label_studio,
    to_pandas,
    to_polars,
)
from hihlandmark.layouts import COFW29


def face() -> Face:
    rng = np.random.default_rng(0)
    return Face(
        points=rng.uniform(10, 90, (29, 2)),
        scores=rng.uniform(0, 1, 29),
        covariance=np.tile(np.eye(2), (29, 1, 1)),
        box=np.array([5, 6, 95, 96]),
        box_score=0.9,
        layout=COFW29,
    )


def test_a_face_is_key_points_of_one_object() -> None:
    one = face()
    np.testing.assert_array_equal(one.to_supervision().xy, one.points[None])
    assert len(to_key_points([one, one])) == 2


@pytest.mark.parametrize("convert", [to_pandas, to_polars])
def test_data_frames_have_a_row_a_point(convert: Any) -> None:
    one = face()
    frame = convert([[one, one], [], [one]])
    assert frame.shape == (3 * 29, 2 + len(Face.ROW_FIELDS))
    assert sorted(set(frame["image"].to_list())) == [0, 2]
    np.testing.assert_allclose(frame["x"].to_list()[29:58], one.points[:, 0], atol=1e-3)
    assert convert([[], []]).shape == (0, 2 + len(Face.ROW_FIELDS))


def test_label_studio_gets_a_task_with_points_in_per_cent() -> None:
    one = face()
    task = to_label_studio([one], (200, 100), "https://example.org/a.jpg")
    assert task["data"] == {"image": "https://example.org/a.jpg"}
    (prediction,) = task["predictions"]
    assert len(prediction["result"]) == 29
    first = prediction["result"][0]
    assert first["value"]["keypointlabels"] == [COFW29.point_names[0]]
    # Half a pixel from the corner to the center of the first pixel.
    assert first["value"]["x"] == pytest.approx((one.points[0, 0] + 0.5) / 200 * 100)
    assert first["value"]["y"] == pytest.approx((one.points[0, 1] + 0.5) / 100 * 100)
    assert len({result["id"] for result in prediction["result"]}) == 29
    assert to_label_studio([], (2, 1), "a")["predictions"][0]["result"] == []


def test_cvat_gets_a_skeleton_a_face() -> None:
    one = face()
    results = [
        Result(Source("/d/a.jpg", "a.jpg"), [one, one], size=(200, 100)),
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
    assert (x, y) == pytest.approx(one.points[3] + 0.5, abs=0.01)


def test_fiftyone_gets_points_in_parts_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # FiftyOne brings a database server: its two labels are plain records of what they are given.
    record = SimpleNamespace(Keypoint=SimpleNamespace, Keypoints=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "fiftyone", record)  # type: ignore[arg-type]
    one = face()
    (point,) = to_fiftyone([one], (200, 100)).keypoints
    assert point.label == "COFW29"
    np.testing.assert_allclose(point.points, (one.points + 0.5) / (200, 100))
    assert point.confidence == one.scores.astype(float).tolist()


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ConfigurationError, match="pip install fiftyone"):
        to_fiftyone([face()], (2, 2))
