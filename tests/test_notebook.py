import copy
import gc
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hihlandmark import Detector, Face, Layout
from hihlandmark.layouts import COFW29, WFLW98
from hihlandmark.notebook import FACE_SIDE, GROUND, LONGEST_SIDE, Faces, ImageReference

RED = np.array([220, 30, 40], np.uint8)


def make_face(
    center: tuple[float, float] = (100, 80), size: float = 60, layout: Layout = COFW29
) -> Face:
    points = layout.mean_shape * size + np.array(center)
    return Face(
        points=points,
        scores=np.ones(layout.size),
        covariance=np.zeros((layout.size, 2, 2)),
        box=np.array([*points.min(0), *points.max(0)]),
        box_score=1,
        layout=layout,
    )


def picture_of(faces: Face | Faces) -> NDArray[np.uint8]:
    png = faces._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    """200 x 160 pixels of one color, so that what is drawn on it stands out."""
    return np.broadcast_to(RED, (160, 200, 3)).copy()


def test_faces_are_drawn_on_the_photo(photo: NDArray[np.uint8]) -> None:
    faces = Faces.of([make_face((60, 50)), make_face((150, 100))], photo, "rgb")
    picture = picture_of(faces)
    assert picture.shape == photo.shape
    for face in faces:
        for x, y in face.points:
            assert np.any(picture[round(float(y)), round(float(x))] != RED)
    assert np.all(picture[150, 10] == RED)


def test_one_face_is_shown_large(photo: NDArray[np.uint8]) -> None:
    (face,) = Faces.of([make_face()], photo, "rgb")
    picture = picture_of(face)
    assert picture.shape == (FACE_SIDE, FACE_SIDE, 3)
    drawn = np.any(picture != RED, axis=-1)
    rows, columns = np.nonzero(drawn)
    assert 0.7 < np.ptp(rows) / FACE_SIDE < 0.85, "the face fills the picture but for its room"
    assert abs(columns.mean() - FACE_SIDE / 2) < 15


def test_large_photo_is_shrunk_and_points_keep_their_place() -> None:
    photo = np.full((1000, 2000, 3), 90, np.uint8)
    faces = Faces.of([make_face((1500, 300), 400)], photo, "rgb")
    picture = picture_of(faces)
    assert picture.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)
    rows, columns = np.nonzero(np.any(picture != 90, axis=-1))
    scale = LONGEST_SIDE / 2000
    low, high = faces[0].points.min(0) * scale, faces[0].points.max(0) * scale
    assert abs(columns.min() - low[0]) < 4
    assert abs(rows.max() - high[1]) < 4


def test_color_order_of_arrays_is_kept(photo: NDArray[np.uint8]) -> None:
    blue_first = np.ascontiguousarray(photo[..., ::-1])
    picture = picture_of(Faces.of([make_face()], blue_first, "bgr"))
    assert np.all(picture[150, 10] == RED)


def test_photo_is_read_again_from_its_path(tmp_path: Path, photo: NDArray[np.uint8]) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    faces = Faces.of([make_face()], path, "rgb")
    copies = pickle.loads(pickle.dumps(faces)), copy.deepcopy(faces)
    for each in (faces, *copies):
        assert np.all(picture_of(each)[150, 10] == RED)
    path.write_bytes(b"no longer a photo")
    assert np.all(picture_of(faces)[0, 0] == GROUND)


def test_faces_hold_no_photo_and_show_on_plain_ground_when_it_is_gone() -> None:
    photo = np.full((160, 200, 3), 90, np.uint8)
    faces = Faces.of([make_face()], photo, "rgb")
    assert faces[0].image is not None
    assert faces[0].image.load() is photo
    del photo
    gc.collect()
    assert faces[0].image.load() is None
    for each in (faces, faces[0], pickle.loads(pickle.dumps(faces)), Faces([make_face()])):
        picture = picture_of(each)
        assert np.all(picture[0, 0] == GROUND)
        assert np.any(picture != GROUND)


@pytest.mark.parametrize("image", [b"some bytes", io.BytesIO(b"some bytes"), None])
def test_what_cannot_be_remembered_is_no_error(image: object) -> None:
    assert ImageReference(image).load() is None  # type: ignore[arg-type]


def test_another_layout_of_a_face_knows_its_photo(photo: NDArray[np.uint8]) -> None:
    (face,) = Faces.of([make_face(layout=WFLW98)], photo, "rgb")
    assert face.to_layout(68).image is face.image


def test_no_face_is_said_in_words() -> None:
    assert Faces()._repr_png_() is None
    assert Faces()._repr_html_() == "No face was found."
    assert Faces([make_face()])._repr_html_() is None, "the picture would be hidden by it"


def test_points_far_outside_of_the_photo_are_no_error(photo: NDArray[np.uint8]) -> None:
    faces = Faces.of([make_face((1e7, -1e7), 1e6), make_face()], photo, "rgb")
    assert picture_of(faces).shape == photo.shape
    assert picture_of(faces[0]).shape == (FACE_SIDE, FACE_SIDE, 3)


def test_predict_returns_faces_that_know_their_photo(
    detector: Detector, astronaut: NDArray[np.uint8]
) -> None:
    faces = detector.predict(astronaut)
    assert isinstance(faces, Faces)
    assert faces[0].image is not None
    np.testing.assert_array_equal(faces[0].image.load(), astronaut)
    (many,) = detector.predict_many([astronaut])
    assert isinstance(many, Faces)
    assert many[0].image is None
