"""Faces turned in the image plane: found, cropped upright, and given back where they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import hihlandmark.crop
from hihlandmark import ConfigurationError, Detector, Face, ImageError
from hihlandmark.cli import app
from hihlandmark.crop import crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.face_detection import AnyRotationFaceDetector, Detections, MTCNNFaceDetector
from hihlandmark.face_detection.any_rotation import (
    TURNS,
    best_of_overlapping,
    turned_back,
    turned_picture,
)

Photo = NDArray[np.uint8]
DetectorOf = Callable[[int], Detector]

EYE, MOUTH = 255, 190


def drawn_face(angle: float, shape: tuple[int, int] = (120, 200)) -> Photo:
    """Two blots, eyes and mouth, 20 pixels apart: a face turned clockwise by radians."""
    picture = np.zeros((*shape, 3), np.uint8)
    right, down = -10 * np.sin(angle), 10 * np.cos(angle)
    for value, x, y in ((EYE, 130 - right, 50 - down), (MOUTH, 130 + right, 50 + down)):
        picture[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = value
    return picture


class FindsUprightDrawings:
    """A face detector for `drawn_face`: boxes of 20 x 24 pixels where eyes stand above a mouth."""

    name = "drawings"

    def detect(self, images: list[Photo]) -> list[Detections]:
        return [self._detect(image[..., 0].astype(float)) for image in images]

    def _detect(self, image: NDArray[np.float64]) -> Detections:
        eye, mouth = (
            np.argwhere(np.abs(image - value) < 20).mean(axis=0)[::-1] for value in (EYE, MOUTH)
        )
        straight = (mouth - eye)[1] / 20
        if straight < 0.9:
            return Detections.none(five_points=True)
        center, half = (eye + mouth) / 2, np.array([10, 12])
        box = np.concatenate([center - half, center + half])
        five = np.stack([eye, eye, center, mouth, mouth])
        return Detections(box[None], np.array([min(straight, 1)]), five[None])


@pytest.mark.parametrize("quarters", range(4))
def test_a_face_on_its_side_is_found_where_it_is(quarters: int) -> None:
    angle = quarters * np.pi / 2
    (found,) = AnyRotationFaceDetector(FindsUprightDrawings()).detect([drawn_face(angle)])
    half = (10, 12) if quarters % 2 == 0 else (12, 10)
    assert np.allclose(found.boxes, [[130 - half[0], 50 - half[1], 130 + half[0], 50 + half[1]]])
    assert np.allclose(found.angles, angle)
    eye, nose = found.five_points[0, 0], found.five_points[0, 2]
    assert np.allclose(nose, (130, 50))
    assert np.allclose(nose - eye, [-10 * np.sin(angle), 10 * np.cos(angle)], atol=1e-4)


def test_a_face_between_quarter_turns_is_found_once_at_the_nearest_angle() -> None:
    (found,) = AnyRotationFaceDetector(FindsUprightDrawings()).detect([drawn_face(np.deg2rad(130))])
    assert len(found) == 1
    assert np.allclose(found.angles, np.deg2rad(135))
    assert np.allclose((found.boxes[0, :2] + found.boxes[0, 2:]) / 2, (130, 50), atol=1)


def test_an_upright_face_is_found_as_without_turning() -> None:
    picture = drawn_face(0)
    (plain,) = FindsUprightDrawings().detect([picture])
    (found,) = AnyRotationFaceDetector(FindsUprightDrawings()).detect([picture])
    assert np.array_equal(found.boxes, plain.boxes)
    assert found.angles.tolist() == [0]


def test_what_is_no_image_is_an_error_before_it_is_turned() -> None:
    with pytest.raises(ImageError, match="H, W, 3"):
        AnyRotationFaceDetector(FindsUprightDrawings()).detect([np.zeros((9, 9), np.uint8)])


@pytest.mark.parametrize(
    ("angle", "shape"), [*((angle, (90, 160)) for angle in TURNS), (TURNS[3], (3000, 4000))]
)
def test_a_turned_picture_holds_the_image_and_leads_back(
    angle: float, shape: tuple[int, int]
) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    spots = [(1, 1), (shape[1] - 2, shape[0] - 2), (70, 40)]
    for x, y in spots:
        image[:] = 0
        reach = max(shape) // 200 + 1
        image[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = 255
        picture, to_image = turned_picture(image, angle)
        rows, columns = np.nonzero(picture[..., 0] > 200)
        back = transform_points(to_image, np.array([[columns.mean(), rows.mean()]]))[0]
        assert np.abs(back - (x, y)).max() < reach


def test_a_huge_strip_of_a_picture_is_turned_in_little_memory() -> None:
    picture, to_image = turned_picture(np.zeros((10, 40000, 3), np.uint8), np.pi / 4)
    assert max(picture.shape) < 4100
    assert to_image.shape == (2, 3)


def test_a_box_keeps_its_size_at_any_turn() -> None:
    found = Detections(np.array([[10, 10, 30, 30]]), np.array([1.0]))
    cos = np.sqrt(0.5)
    back = turned_back(found, np.array([[cos, -cos, 0], [cos, cos, 5]]), np.pi / 4)
    center = np.array([0, 5 + 20 / cos])
    assert np.allclose(back.boxes[0], [*(center - 10), *(center + 10)], atol=1e-5)


def test_of_overlapping_detections_the_best_stays() -> None:
    part = [4, 4, 7, 7]
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [9, 0, 19, 10], [1, 0, 11, 10], part])
    found = Detections(boxes, np.array([0.9, 0.99, 0.95, 0.91, 0.98]), angles=np.arange(5))
    assert best_of_overlapping(found).angles.tolist() == [1, 2]
    assert len(best_of_overlapping(Detections.none())) == 0


def test_detections_keep_their_angles_when_some_are_taken() -> None:
    found = Detections(np.ones((3, 4)), np.ones(3), angles=np.array([0, 1, 2]))
    assert found[[2, 0]].angles.tolist() == [2, 0]
    assert found[:1].five_points is None
    with pytest.raises(ConfigurationError, match=r"angles of 3 detections must have shape \(3,\)"):
        Detections(np.ones((3, 4)), np.ones(3), angles=np.zeros((3, 1)))


# ------------------------------------------------------------------------- with the real network


@pytest.fixture(scope="module")
def head(astronaut: Photo) -> Photo:
    """Head and shoulders of the astronaut, 200 x 240 pixels."""
    return np.ascontiguousarray(astronaut[:200, 100:340])


@pytest.fixture(scope="module")
def upright(head: Photo, detector_of: DetectorOf) -> Face:
    box = np.array([178, 62, 268, 172]) - (100, 0, 100, 0)
    (face,) = detector_of(68).predict(head, boxes=box)
    return face


@pytest.fixture(scope="module")
def any_rotation() -> Detector:
    return Detector(68, device="cpu", any_rotation=True, flip_test=False)


def error(face: Face, truth: NDArray[np.floating], upright: Face) -> float:
    """In parts of the inter-ocular distance."""
    return np.linalg.norm(face.points - truth, axis=1).mean() / upright.interocular


def turned_head(head: Photo, upright: Face, degrees: int) -> tuple[Photo, NDArray[np.floating]]:
    """The image turned clockwise, and where the points are then."""
    square = np.array([124, 117, 240, -np.deg2rad(degrees)])
    photo = cut_crop(head, square, 240)
    return photo, transform_points(crop_matrix(square, 240), upright.points)


def test_a_turned_face_is_cropped_upright_when_it_is_refined(
    head: Photo, upright: Face, detector_of: DetectorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, truth = turned_head(head, upright, 50)
    box = tight_boxes(truth)
    (face,) = detector_of(68).predict(photo, boxes=box, box_kind="landmarks")
    monkeypatch.setattr(hihlandmark.crop, "UPRIGHT_WITHIN", 180)
    (before,) = detector_of(68).predict(photo, boxes=box, box_kind="landmarks")
    assert error(face, truth, upright) < 0.03
    assert error(face, truth, upright) < 0.8 * error(before, truth, upright)
    assert np.allclose(face.box, box)


def test_a_face_that_is_hardly_turned_is_cropped_as_it_stands(
    head: Photo, upright: Face, detector_of: DetectorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, truth = turned_head(head, upright, 12)
    (face,) = detector_of(68).predict(photo, boxes=tight_boxes(truth), box_kind="landmarks")
    monkeypatch.setattr(hihlandmark.crop, "UPRIGHT_WITHIN", 180)
    (before,) = detector_of(68).predict(photo, boxes=tight_boxes(truth), box_kind="landmarks")
    assert np.array_equal(face.points, before.points)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_boxes_of_faces_at_any_angle_are_enough(
    quarters: int, head: Photo, upright: Face, any_rotation: Detector
) -> None:
    square = np.array([119.5, 99.5, 240, -quarters * np.pi / 2])
    truth = transform_points(crop_matrix(square, 240), upright.points)
    photo = cut_crop(head, square, 240)
    (face,) = any_rotation.predict(photo, boxes=tight_boxes(truth), box_kind="landmarks")
    assert error(face, truth, upright) < 0.03


def test_the_network_corrects_a_face_detector_that_saw_the_face_upside_down(
    head: Photo, upright: Face, any_rotation: Detector
) -> None:
    found = Detections(tight_boxes(upright.points)[None], np.ones(1), angles=np.array([np.pi]))
    (faces,) = any_rotation.find_landmarks([(head, found)], any_rotation.box_map("landmarks"))
    assert isinstance(faces, list)
    assert error(faces[0], upright.points, upright) < 0.03


def test_no_box_stays_no_face_at_any_angle(head: Photo, any_rotation: Detector) -> None:
    assert any_rotation.predict(head, boxes=[]) == []


def test_a_photo_upside_down_is_found_and_marked(
    head: Photo, upright: Face, any_rotation: Detector
) -> None:
    assert isinstance(any_rotation.face_detector, AnyRotationFaceDetector)
    (face,) = any_rotation.predict(np.ascontiguousarray(head[::-1, ::-1]))
    truth = (head.shape[1] - 1, head.shape[0] - 1) - upright.points
    assert error(face, truth, upright) < 0.04


def test_faces_are_upright_unless_any_rotation_is_asked_for(detector_of: DetectorOf) -> None:
    assert isinstance(detector_of(68).face_detector, MTCNNFaceDetector)


def test_the_command_finds_turned_faces_when_asked_to(tmp_path: Path, head: Photo) -> None:
    path = tmp_path / "upside_down.png"
    Image.fromarray(head[::-1, ::-1]).save(path)
    arguments = ["predict", str(path), "--device", "cpu", "--no-flip-test", "--layout", "29"]
    asked = CliRunner().invoke(app, [*arguments, "--any-rotation"])
    assert asked.exit_code == 0, asked.stderr
    assert "1 image, 1 face, 0 failed" in asked.stderr
