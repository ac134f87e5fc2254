"""Results match the published JSON schema; wide tables; what COCO leaves out."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from hihlandmark.face import Face
from hihlandmark.io import FORMATS, Result, Source, to_record
from hihlandmark.io.formats import RECORD_SCHEMA, write_csv_wide
from hihlandmark.layouts import FIVE, WFLW98
from hihlandmark.measures import eye_openness, head_pose

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
SCHEMA = json.loads((REFERENCE / f"result-{RECORD_SCHEMA}.schema.json").read_text())
FACE = Face(
    100 * WFLW98.mean_shape + 200,
    np.full(98, 0.5),
    np.tile(np.eye(2), (98, 1, 1)),
    np.array([100, 100, 300, 300]),
    0.9,
    WFLW98,
)
MODEL = {"model": "hih-small", "weights": "1" * 64}
RESULTS = {
    "faces": Result(Source("a.jpg", "a.jpg"), [FACE, FACE], (640, 480), model=MODEL),
    "none": Result(Source("b.jpg", "b.jpg"), [], (640, 480), model=MODEL, layout=WFLW98),
    "error": Result(Source("c.jpg", "c.jpg"), error="broken", model=MODEL),
    "converted": Result(Source("d.jpg", "d.jpg"), [FACE.to_layout(68)]),
    "tracked": Result(Source("e.jpg", "e.jpg"), [replace(FACE, track_id=3, filled=True)]),
}


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


@pytest.mark.parametrize("name", RESULTS)
def test_record_matches_the_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    record = json.loads(json.dumps(to_record(RESULTS[name])))
    jsonschema.validate(record, SCHEMA)
    described = {*SCHEMA["properties"], *SCHEMA["$defs"]["face"]["properties"]}
    written = {*record, *(key for face in record.get("faces", ()) for key in face)}
    assert written <= described


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"faces": [{}]}, {"error": "broken"}, {"weights": "abc"}]
)
def test_schema_rejects_other_records(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(to_record(RESULTS["faces"]) | change, SCHEMA)


def test_wide_table_has_a_row_per_face() -> None:
    rows = read(write_csv_wide(RESULTS[name] for name in ("faces", "none", "error")))
    assert [row["face"] for row in rows] == ["0", "1", "", ""]
    assert [row["error"] for row in rows] == ["", "", "", "broken"]
    first = rows[0]
    assert (first["layout"], first["width"], first["x1"]) == ("WFLW98", "640", "300.0")
    for index, name in enumerate(WFLW98.point_names):
        written = [float(first[f"{name}_{key}"]) for key in ("x", "y", "score")]
        assert written == pytest.approx([*FACE.points[index], 0.5], abs=1e-3)


def test_parts_of_a_wide_table_have_the_same_columns() -> None:
    parts = [write_csv_wide([RESULTS[name]]).splitlines()[0] for name in ("none", "faces")]
    assert parts[0] == parts[1]


def test_measures_are_columns_on_request() -> None:
    of_many = FORMATS["csv-wide-measures"].of_many
    assert of_many is not None
    row = read(of_many([RESULTS["faces"]]))[0]
    pose, (left, _) = head_pose(FACE), eye_openness(FACE)
    expected = {"yaw": pose.yaw, "pitch": pose.pitch, "left_eye_open": left}
    for name, (value, std) in expected.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3)
        assert float(row[f"{name}_std"]) == pytest.approx(std, abs=1e-3)
    five = replace(RESULTS["faces"], faces=[FACE.to_layout(FIVE)])
    assert read(of_many([five]))[0]["yaw"] == ""
    assert "yaw" not in read(write_csv_wide([RESULTS["faces"]]))[0]


def test_coco_leaves_out_images_that_could_not_be_read() -> None:
    of_many = FORMATS["coco"].of_many
    assert of_many is not None
    record = json.loads(of_many(RESULTS[name] for name in ("faces", "error", "none")))
    assert [image["file_name"] for image in record["images"]] == ["a.jpg", "b.jpg"]
    assert not any("error" in image for image in record["images"])
