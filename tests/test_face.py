import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hihlandmark import ConfigurationError, Face
from hihlandmark.io.connectors import to_key_points
from hihlandmark.layouts import COFW29, W300_68, WFLW98, Layout


def face_of(layout: Layout, scale: float = 100.0, seed: int = 0) -> Face:
    rng = np.random.default_rng(seed)
    size = layout.size
    return Face(
        points=layout.mean_shape * scale + 150,
        scores=rng.random(size),
        covariance=np.eye(2) * rng.random((size, 1, 1)),
        box=[100, 90, 200, 210],
        box_score=0.97,
        layout=layout,
    )


def test_arrays_are_float32_and_cannot_be_written() -> None:
    face = face_of(WFLW98)
    for array in (face.points, face.scores, face.covariance, face.box):
        assert array.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_callers_array_stays_writable_and_apart() -> None:
    points = np.zeros((29, 2), np.float32)
    face = Face(points, np.zeros(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, COFW29)
    points[0] = 7
    assert face.points[0].tolist() == [0, 0]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"points of a COFW29 face needs shape \(29, 2\)"):
        Face(np.zeros((98, 2)), np.zeros(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, COFW29)


def test_to_68_keeps_shared_points_and_marks_interpolated_ones() -> None:
    face = face_of(WFLW98)
    converted = face.to_layout(68)
    assert converted.layout is W300_68
    assert np.allclose(converted.points[36], face.points[60])
    assert not converted.approximate[36]
    assert converted.approximate[37]
    assert converted.scores[36] == face.scores[60]
    assert face.to_layout(98) is face


def test_to_an_unknown_pair_says_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="WFLW98 -> W300_68"):
        face_of(COFW29).to_layout(98)


def test_an_approximate_point_stays_approximate_through_a_second_conversion() -> None:
    five = face_of(WFLW98).to_layout(68).to_layout(5)
    assert five.approximate[0]
    assert not five.approximate[3]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([WFLW98, W300_68, COFW29]), st.integers(0, 99))
def test_dict_and_json_bring_the_face_back(layout: Layout, seed: int) -> None:
    face = face_of(layout, seed=seed)
    again = Face.from_dict(json.loads(face.to_json()))
    assert np.allclose(again.points, face.points, atol=1e-3)
    assert np.allclose(again.covariance, face.covariance, atol=1e-4)
    assert again.layout is layout
    assert again.box_score == face.box_score


def test_from_dict_names_a_missing_field() -> None:
    values = face_of(COFW29).to_dict()
    del values["scores"]
    with pytest.raises(ConfigurationError, match="scores"):
        Face.from_dict(values)


def test_pts_counts_pixels_from_one() -> None:
    face = face_of(W300_68)
    lines = face.to_pts().splitlines()
    assert lines[:3] == ["version: 1", "n_points: 68", "{"]
    assert lines[-1] == "}"
    x, y = map(float, lines[3].split())
    assert np.allclose([x, y], face.points[0] + 1, atol=1e-3)
    assert len(lines) == 68 + 4


def test_rows_name_every_point() -> None:
    rows = face_of(COFW29).to_rows()
    assert [row["point"] for row in rows] == list(range(29))
    assert tuple(rows[0]) == Face.ROW_FIELDS
    assert rows[20]["name"] == COFW29.point_names[20]


def test_parts_and_points_by_name() -> None:
    face = face_of(WFLW98)
    assert np.array_equal(face["left_eye"], face.points[60:68])
    assert np.array_equal(face[WFLW98.point_names[16]], face.points[16])
    with pytest.raises(KeyError, match="left_eye"):
        face["third_eye"]


def test_interocular_is_the_distance_of_the_outer_eye_corners() -> None:
    face = face_of(WFLW98, scale=200)
    expected = np.linalg.norm(face.points[60] - face.points[72])
    assert face.interocular == pytest.approx(expected)


def test_key_points_hold_all_faces() -> None:
    key_points = to_key_points([face_of(W300_68), face_of(W300_68, scale=50)])
    assert key_points.xy.shape == (2, 68, 2)
    assert len(to_key_points([])) == 0
    with pytest.raises(ConfigurationError, match="one layout"):
        to_key_points([face_of(W300_68), face_of(COFW29)])
