"""`predict` finds no face where there is none, and each of many boxes in order."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark import Detector

Image = NDArray[np.uint8]


WITHOUT_A_FACE: dict[str, Callable[[Image], Image]] = {
    "1 x 1": lambda image: image[:1, :1],
    "1 x 500": lambda image: image[:1, :500],
    "19 x 19": lambda image: image[60:79, 200:219],
    "20,000 x 10": lambda image: np.zeros((10, 20_000, 3), np.uint8),
    "10 x 20,000": lambda image: np.full((20_000, 10, 3), 128, np.uint8),
    "white": lambda image: np.full((400, 300, 3), 255, np.uint8),
}


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
