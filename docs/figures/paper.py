"""What the scripts of this folder share: the image, the face in it, colors, and saving a figure.

The image is scikit-image's astronaut (public domain), the only face in this repository.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut

from hihlandmark import Detector, Face
from hihlandmark.crop import crop_matrix, cut_crop, square_around, transform_points

FOLDER = Path(__file__).parent
BLUE, ORANGE, GREEN, GRAY = "#1f6bb0", "#d9660f", "#2e8b57", "#666666"
DOTS_AN_INCH = 110
LARGEST = 290_000
"""Bytes of an image in all its colors; one that needs more gets 256 of them."""


def photo() -> NDArray[np.uint8]:
    """The astronaut, (512, 512, 3)."""
    return np.asarray(astronaut())


@cache
def detector(layout: int = 98) -> Detector:
    """With the packaged weights, in PyTorch, so that figures do not depend on what is installed."""
    return Detector(layout, device="cpu", runtime="torch")


@cache
def face(layout: int = 98) -> Face:
    """The astronaut's face."""
    (found,) = detector(layout).predict(photo())
    return found


def portrait(side: int, margin: float = 1.5) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """A square image around the face, of ``side`` pixels, and the matrix (2, 3) that leads there.

    ``margin``: its side in longer sides of the box tight around the 98 points.
    """
    square = square_around(face().points, margin)
    return np.asarray(cut_crop(photo(), square, side)), crop_matrix(square, side)


def moved(points: NDArray[Any], matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Points (P, 2) of the image in an image that a matrix leads to."""
    return transform_points(matrix, np.asarray(points, np.float64))


def paled(picture: NDArray[np.uint8], share: float = 0.55) -> NDArray[np.uint8]:
    """The image in pale gray, to draw on."""
    gray = picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    return np.asarray(255 * share + gray * (1 - share), np.uint8)


def save(figure: Any, name: str) -> None:
    """Writes a matplotlib figure as a PNG beside this file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS_AN_INCH, bbox_inches="tight", pad_inches=0.08)
    save_picture(np.asarray(Image.open(buffer).convert("RGB")), name)


def save_picture(picture: NDArray[np.uint8], name: str) -> None:
    """Writes an image (H, W, 3) as a PNG beside this file."""
    path, image = FOLDER / name, Image.fromarray(picture)
    image.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        image.quantize(256, kmeans=20, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{name}: {path.stat().st_size / 1000:.0f} kB")
