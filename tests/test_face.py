import copy
import gc
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.crop import transform_points
from hihlandmark.face import (
    BACKGROUND,
    CLOSE_UP_SIDE,
    LONGEST_SIDE,
    Faces,
    ImageReference,
    transform_face,
)
from hihlandmark.layouts import COFW29, W300_68, WFLW98, Layout, get_conversion
from hihlandmark.uncertainty import ErrorCorrelation


def face_of(
    layout: Layout, scale: float = 100.0, center: tuple[float, float] = (150, 150), seed: int = 0
) -> Face:
    rng = np.random.default_rng(seed)
    points = layout.mean_shape * scale + np.array(center)
    covariance = np.eye(2) * rng.random((layout.size, 1, 1))
    box = np.array([100, 90, 200, 210])
    return Face(points, rng.random(layout.size), covariance, box, 0.97, layout)


def test_arrays_are_read_only_float32_copies_of_the_right_shape() -> None:
    points = np.zeros((29, 2))
    face = Face(points, np.zeros(29), np.zeros((29, 2, 2)), np.zeros(4), 1.0, COFW29)
    points[0] = 7
    for array in (face.points, face.scores, face.covariance, face.box):
        assert array.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert face.points[0].tolist() == [0, 0]
    with pytest.raises(ConfigurationError, match="points"):
        replace(face, points=np.zeros((98, 2)))
    for name in ("visibility", "approximate"):
        with pytest.raises(ConfigurationError, match=f"{name} of a COFW29 face"):
            replace(face, **{name: np.zeros(3)})


def test_to_layout_keeps_shared_points_and_marks_interpolated_ones() -> None:
    face = face_of(WFLW98)
    converted = face.to_layout(68)
    assert converted.layout is W300_68
    assert np.allclose(converted.points[36], face.points[60])
    assert converted.scores[36] == face.scores[60]
    assert converted.approximate[36:38].tolist() == [False, True]
    assert converted.to_layout(5).approximate[[0, 3]].tolist() == [True, False]
    assert face.to_layout(98) is face
    (shown,) = Faces.of([face], np.zeros((9, 9, 3), np.uint8), "rgb")
    assert shown.to_layout(68).image is shown.image
    with pytest.raises(ConfigurationError, match="WFLW98"):
        face_of(COFW29).to_layout(98)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([WFLW98, W300_68, COFW29]), st.integers(0, 99))
def test_json_round_trip(layout: Layout, seed: int) -> None:
    face = face_of(layout, seed=seed)
    again = Face.from_dict(json.loads(face.to_json()))
    assert np.allclose(again.points, face.points, atol=1e-3)
    assert np.allclose(again.covariance, face.covariance, atol=1e-4)
    assert again.layout is layout
    assert again.box_score == face.box_score
    values = face.to_dict()
    del values["scores"]
    with pytest.raises(ConfigurationError, match="scores"):
        Face.from_dict(values)


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        *(("approximate", bad) for bad in ([200], [-1], [0.5], [[1]], [True, False], None, 5)),
        *(("points", bad) for bad in ([[1, 2], [3]], None, "x", 10**400)),
        *(("visibility", bad) for bad in (5, "x", [0.5])),
        *((key, bad) for key in ("reliability", "box_score") for bad in ("x", [1, 2])),
        ("box_score", None),
        ("scores", {}),
        ("box", [1, 2, 3, "x"]),
    ],
)
def test_an_invalid_field_of_a_dictionary_is_named(key: str, bad: object) -> None:
    with pytest.raises(ConfigurationError, match=key):
        Face.from_dict({**face_of(COFW29).to_dict(), key: bad})


@pytest.mark.parametrize("values", [None, [], "{}"])
def test_a_face_is_read_from_a_dictionary(values: Any) -> None:
    with pytest.raises(ConfigurationError, match="dictionary"):
        Face.from_dict(values)


def test_none_is_an_unknown_reliability_or_visibility() -> None:
    values = face_of(COFW29).to_dict()
    face = Face.from_dict({**values, "reliability": None, "visibility": None})
    assert np.isnan([face.reliability, *face.visibility]).all()
    assert face.to_dict() == values
    marked = Face.from_dict({**values, "approximate": [3, 28]})
    assert np.flatnonzero(marked.approximate).tolist() == [3, 28]


@pytest.mark.parametrize("count", [-1, 1.5, "x"])
def test_a_number_of_samples_is_checked(count: Any) -> None:
    assert face_of(COFW29).sample(0).shape == (0, 29, 2)
    with pytest.raises(ConfigurationError, match="count"):
        face_of(COFW29).sample(count)


def test_pts_counts_pixels_from_one_and_rows_name_every_point() -> None:
    face = face_of(W300_68)
    lines = face.to_pts().splitlines()
    assert (lines[:3], lines[-1]) == (["version: 1", "n_points: 68", "{"], "}")
    points = [[float(number) for number in line.split()] for line in lines[3:-1]]
    assert np.allclose(points, face.points + 1, atol=1e-3)
    rows = face.to_rows()
    assert [row["name"] for row in rows] == list(W300_68.point_names)
    assert tuple(rows[0]) == Face.ROW_FIELDS


def test_parts_points_and_interocular_distance() -> None:
    face = face_of(WFLW98, scale=200)
    assert np.array_equal(face["left_eye"], face.points[60:68])
    assert np.array_equal(face[WFLW98.point_names[16]], face.points[16])
    assert np.array_equal(face["left_pupil"], face.points[96]), "a point, though it is a part too"
    for name in ("third_eye", 3, slice(3), np.arange(3)):
        with pytest.raises(KeyError, match="left_eye"):
            face[name]  # type: ignore[index]
    assert face.interocular == pytest.approx(np.linalg.norm(face.points[60] - face.points[72]))
    two = WFLW98.interocular(np.stack([face.points, 2 * face.points])[None])
    np.testing.assert_allclose(two, [[face.interocular, 2 * face.interocular]], rtol=1e-6)


def test_transform_face_moves_points_and_encloses_the_box() -> None:
    face, quarter = face_of(COFW29), np.array([[0.0, -1, 300], [1, 0, 5]])
    found = transform_face(face, quarter)
    assert np.allclose(found.points, transform_points(quarter, face.points))
    assert found.box.tolist() == [90, 105, 210, 205]
    assert np.array_equal(found.covariance, face.covariance), "equal along both axes"
    wide = transform_face(face, np.array([[3.0, 0, 0], [0, 1, 0]]))
    np.testing.assert_allclose(wide.covariance, face.covariance * [[9, 3], [3, 1]], rtol=1e-6)


# ------------------------------------------------------------------------------------- Jupyter

RED = np.array([220, 30, 40], np.uint8)
SMALL = face_of(COFW29, 60, (100, 80))


def shown(faces: Face | Faces) -> NDArray[np.uint8]:
    png = faces._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as drawing:
        assert drawing.format == "PNG"
        return np.asarray(drawing.convert("RGB"))


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """200 x 160 pixels of one color, so that what is drawn on it stands out."""
    return np.broadcast_to(RED, (160, 200, 3)).copy()


def test_faces_are_drawn_on_the_image(image: NDArray[np.uint8]) -> None:
    faces = Faces.of([face_of(COFW29, 60, (60, 50)), face_of(COFW29, 60, (150, 100))], image, "rgb")
    drawing = shown(faces)
    assert drawing.shape == image.shape
    for face in faces:
        for x, y in face.points:
            assert np.any(drawing[round(float(y)), round(float(x))] != RED)
    assert np.all(drawing[150, 10] == RED)


def test_one_face_is_shown_large(image: NDArray[np.uint8]) -> None:
    (face,) = Faces.of([SMALL], image, "rgb")
    drawing = shown(face)
    assert drawing.shape == (CLOSE_UP_SIDE, CLOSE_UP_SIDE, 3)
    rows, columns = np.nonzero(np.any(drawing != RED, axis=-1))
    assert 0.7 < np.ptp(rows) / CLOSE_UP_SIDE < 0.85
    assert abs(columns.mean() - CLOSE_UP_SIDE / 2) < 15


def test_a_face_is_shown_without_its_unknown_points(image: NDArray[np.uint8]) -> None:
    points = SMALL.points.copy()
    points[5] = np.nan
    (face,) = Faces.of([replace(SMALL, points=points)], image, "rgb")
    changed = np.any(shown(face) != RED, axis=-1)
    assert 0.01 < changed.mean() < 0.2
    assert shown(replace(face, points=points * np.nan)).shape == (CLOSE_UP_SIDE, CLOSE_UP_SIDE, 3)


def test_large_image_is_downscaled_with_its_points() -> None:
    image = np.full((1000, 2000, 3), 90, np.uint8)
    faces = Faces.of([face_of(COFW29, 400, (1500, 300))], image, "rgb")
    drawing = shown(faces)
    assert drawing.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)
    rows, columns = np.nonzero(np.any(drawing != 90, axis=-1))
    scale = LONGEST_SIDE / 2000
    low, high = faces[0].points.min(0) * scale, faces[0].points.max(0) * scale
    assert abs(columns.min() - low[0]) < 4
    assert abs(rows.max() - high[1]) < 4


def test_color_order_of_arrays_is_kept(image: NDArray[np.uint8]) -> None:
    blue_first = np.ascontiguousarray(image[..., ::-1])
    drawing = shown(Faces.of([SMALL], blue_first, "bgr"))
    assert np.all(drawing[150, 10] == RED)


def test_image_is_read_again_from_its_path(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    faces = Faces.of([SMALL], path, "rgb")
    copies = pickle.loads(pickle.dumps(faces)), copy.deepcopy(faces)
    for each in (faces, *copies):
        assert np.all(shown(each)[150, 10] == RED)
    path.write_bytes(b"no longer an image")
    assert np.all(shown(faces)[0, 0] == BACKGROUND)


def test_faces_do_not_keep_the_image_and_are_shown_on_gray_when_it_is_gone() -> None:
    image = np.full((160, 200, 3), 90, np.uint8)
    faces = Faces.of([SMALL], image, "rgb")
    assert faces[0].image is not None
    assert faces[0].image.load() is image
    del image
    gc.collect()
    assert faces[0].image.load() is None
    for each in (faces, faces[0], pickle.loads(pickle.dumps(faces)), Faces([SMALL])):
        drawing = shown(each)
        assert np.all(drawing[0, 0] == BACKGROUND)
        assert np.any(drawing != BACKGROUND)


def test_arrays_are_shown_as_they_were_given() -> None:
    image = np.full((160, 200, 3), 2048, np.uint16)
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    faces = Faces.of([SMALL], planes, "rgb", "first", 4096)
    assert faces[0].image is not None
    loaded = faces[0].image.load()
    assert loaded is not None
    assert loaded.shape == (160, 200, 3)
    assert abs(loaded.mean() - 127.5) < 1


@pytest.mark.parametrize("image", [b"some bytes", io.BytesIO(b"some bytes"), None])
def test_image_reference_of_bytes_and_files_loads_none(image: object) -> None:
    assert ImageReference(image).load() is None  # type: ignore[arg-type]


def test_empty_faces_are_shown_as_text() -> None:
    assert Faces()._repr_png_() is None
    assert Faces()._repr_html_() == "No face was found."
    assert Faces([SMALL])._repr_html_() is None


def test_predict_returns_faces_with_a_reference_to_the_image(
    detector: Detector, astronaut: NDArray[np.uint8]
) -> None:
    faces = detector.predict(astronaut)
    assert isinstance(faces, Faces)
    np.testing.assert_array_equal(faces[0].image.load(), astronaut)
    (many,) = detector.predict_many([astronaut])
    assert isinstance(many, Faces)
    assert many[0].image is None


def test_converted_faces_share_their_correlation() -> None:
    correlation = ErrorCorrelation.independent(98)
    one, other = (
        replace(face_of(WFLW98, seed=seed), correlation=correlation).to_layout(68)
        for seed in (0, 1)
    )
    assert one.correlation is other.correlation
    assert one.correlation is not None
    assert one.correlation.std.shape == (68, 2)


def test_unknown_points_are_null_in_json() -> None:
    face = face_of(COFW29)
    points = face.points.copy()
    points[3] = np.nan
    face = replace(face, points=points)
    values = json.loads(face.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert values["points"][3] == [None, None]
    np.testing.assert_array_equal(np.isnan(Face.from_dict(values).points), np.isnan(points))


def test_an_unknown_point_makes_only_what_follows_from_it_unknown() -> None:
    face = face_of(WFLW98)
    points, scores, covariance = face.points.copy(), face.scores.copy(), face.covariance.copy()
    unused, used = 5, 4
    for array in (points, scores, covariance):
        array[[unused, used]] = np.nan
    unknown = replace(face, points=points, scores=scores, covariance=covariance)
    expected = get_conversion(WFLW98, W300_68).matrix[:, used] != 0
    converted, usual = unknown.to_layout(68), face.to_layout(68)
    for name in ("points", "scores", "covariance"):
        values = getattr(converted, name)
        np.testing.assert_array_equal(np.isnan(values).reshape(68, -1).any(axis=1), expected)
        np.testing.assert_array_equal(values[~expected], getattr(usual, name)[~expected])
    assert 0 < expected.sum() < 3


def test_fields_of_other_packages_are_ready_for_json() -> None:
    visibility = np.full(29, 0.5)
    visibility[3] = np.nan
    face = replace(face_of(COFW29), track_id=np.int64(3), filled=np.True_, visibility=visibility)
    again = Face.from_dict(json.loads(face.to_json()))
    assert (again.track_id, again.filled) == (3, True)
    np.testing.assert_array_equal(again.visibility, face.visibility)
    assert replace(face, layout="COFW29").layout is COFW29


@pytest.mark.parametrize(
    ("field", "bad"),
    [("track_id", "3"), ("track_id", 1.5), ("filled", "no"), ("box_score", np.nan)],
)
def test_an_invalid_field_is_named(field: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=field):
        replace(face_of(COFW29), **{field: bad})
