"""`predict` returns faces for every kind of image, [] without a face, and an error otherwise."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark import Detector, Face, ImageError

Image = NDArray[np.uint8]


def encoded(image: PillowImage.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_file(image: Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(image).save(path)
    return path


def rotated_by_exif(image: Image, _: Path) -> bytes:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    return encoded(PillowImage.fromarray(np.rot90(image)), "JPEG", exif=exif)


WITH_A_FACE: dict[str, Callable[[Image, Path], Any]] = {
    "array": lambda image, _: image,
    "mirrored image": lambda image, _: image[:, ::-1],
    "gray": lambda image, _: image.mean(axis=2).astype(np.uint8),
    "RGBA": lambda image, _: np.dstack([image, np.full((512, 512), 255, np.uint8)]),
    "uint16": lambda image, _: image.astype(np.uint16) * 257,
    "float in 0..1": lambda image, _: image / 255,
    "torch tensor": lambda image, _: torch.tensor(image),
    "PIL palette": lambda image, _: PillowImage.fromarray(image).quantize(64),
    "CMYK JPEG": lambda image, _: encoded(PillowImage.fromarray(image).convert("CMYK"), "JPEG"),
    "rotated by EXIF": rotated_by_exif,
    "file object": lambda image, _: io.BytesIO(encoded(PillowImage.fromarray(image), "PNG")),
    "path as text": lambda image, folder: str(image_file(image, folder / "Ünï 写真" / "a b.png")),
}
WITHOUT_A_FACE: dict[str, Callable[[Image], Image]] = {
    "1 x 1": lambda image: image[:1, :1],
    "1 x 500": lambda image: image[:1, :500],
    "19 x 19": lambda image: image[60:79, 200:219],
    "20,000 x 10": lambda image: np.zeros((10, 20_000, 3), np.uint8),
    "10 x 20,000": lambda image: np.full((20_000, 10, 3), 128, np.uint8),
    "black": lambda image: np.zeros((400, 300, 3), np.uint8),
    "white": lambda image: np.full((400, 300, 3), 255, np.uint8),
}


@pytest.mark.parametrize("kind", WITH_A_FACE)
def test_face_is_found_in_every_kind_of_image(
    kind: str, astronaut: Image, tmp_path: Path, detector: Detector
) -> None:
    faces = detector.predict(WITH_A_FACE[kind](astronaut, tmp_path))
    assert [type(face) for face in faces] == [Face]
    assert np.isfinite(faces[0].points).all()


@pytest.mark.parametrize("kind", WITHOUT_A_FACE)
def test_image_without_a_face_gives_an_empty_list(
    kind: str, astronaut: Image, detector: Detector
) -> None:
    assert detector.predict(WITHOUT_A_FACE[kind](astronaut)) == []


@pytest.mark.parametrize("image", [None, b"", "nowhere.jpg", np.full((9, 9, 3), np.nan)], ids=repr)
def test_what_is_not_an_image_is_an_image_error(image: Any, detector: Detector) -> None:
    with pytest.raises(ImageError):
        detector.predict(image)


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
