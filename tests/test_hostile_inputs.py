"""`predict` returns faces for every kind of image, [] without a face, and an error otherwise."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark import Detector, Face

Image = NDArray[np.uint8]


def rotated_by_exif(image: Image) -> io.BytesIO:
    exif, file = PillowImage.Exif(), io.BytesIO()
    exif[0x0112] = 6
    PillowImage.fromarray(np.rot90(image)).save(file, "JPEG", exif=exif)
    return file


WITH_A_FACE: dict[str, Callable[[Image], Any]] = {
    "mirrored image": lambda image: image[:, ::-1],
    "gray": lambda image: image.mean(axis=2).astype(np.uint8),
    "uint16": lambda image: image.astype(np.uint16) * 257,
    "float in 0..1": lambda image: image / 255,
    "torch tensor": lambda image: torch.tensor(image),
    "PIL palette": lambda image: PillowImage.fromarray(image).quantize(64),
    "file rotated by EXIF": rotated_by_exif,
}
WITHOUT_A_FACE: dict[str, Callable[[Image], Image]] = {
    "1 x 1": lambda image: image[:1, :1],
    "1 x 500": lambda image: image[:1, :500],
    "19 x 19": lambda image: image[60:79, 200:219],
    "20,000 x 10": lambda image: np.zeros((10, 20_000, 3), np.uint8),
    "10 x 20,000": lambda image: np.full((20_000, 10, 3), 128, np.uint8),
    "white": lambda image: np.full((400, 300, 3), 255, np.uint8),
}


@pytest.mark.parametrize("kind", WITH_A_FACE)
def test_face_is_found_in_every_kind_of_image(
    kind: str, astronaut: Image, detector: Detector
) -> None:
    faces = detector.predict(WITH_A_FACE[kind](astronaut))
    assert [type(face) for face in faces] == [Face]
    assert np.isfinite(faces[0].points).all()


@pytest.mark.parametrize("kind", WITHOUT_A_FACE)
def test_image_without_a_face_gives_an_empty_list(
    kind: str, astronaut: Image, detector: Detector
) -> None:
    assert detector.predict(WITHOUT_A_FACE[kind](astronaut)) == []


def test_every_one_of_many_boxes_gives_its_face_in_order(
    astronaut: Image, detector: Detector
) -> None:
    tile = np.array(PillowImage.fromarray(astronaut[40:200, 150:310]).resize((40, 40)))
    collage = np.tile(tile, (4, 6, 1))
    corners = np.stack(np.meshgrid(np.arange(6), np.arange(4)), axis=-1).reshape(-1, 2) * 40
    boxes = np.concatenate([corners + 8, corners + np.array([30, 34])], axis=1)
    faces = detector.predict(collage, boxes=boxes)
    centers = np.array([face.points.mean(axis=0) for face in faces])
    assert np.abs(centers - corners - 20).max() < 15
