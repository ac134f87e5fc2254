"""Shared by the scripts of this folder: the image with its face, colors, and saving a figure.

The image is scikit-image's astronaut (public domain), the only face in this repository.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from skimage.data import astronaut

from hihlandmark import Detector, Face
from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, square_around, transform_points

FOLDER = Path(__file__).parent
BLUE, ORANGE, GREEN, GRAY = "#1f6bb0", "#d9660f", "#2e8b57", "#666666"
DOTS_AN_INCH = 110
LARGEST = 290_000
"""Largest file in bytes with full color; larger ones are reduced to 256 colors."""


def astronaut_image() -> Image:
    """The astronaut, (512, 512, 3)."""
    return np.asarray(astronaut())


@cache
def detector(layout: int = 98) -> Detector:
    """The packaged weights in PyTorch: figures do not depend on the installed runtimes."""
    return Detector(layout, device="cpu", runtime="torch")


@cache
def face(layout: int = 98) -> Face:
    """The astronaut's face."""
    (found,) = detector(layout).predict(astronaut_image())
    return found


def portrait(side: int, margin: float = 1.5) -> tuple[Image, FloatArray]:
    """A square around the face.

    Args:
        side: in pixels.
        margin: side of the square over the longer side of the tight box of the 98 points.

    Returns:
        The image (side, side, 3), and the matrix (2, 3) from the whole image to it.
    """
    square = square_around(face().points, margin)
    return np.asarray(cut_crop(astronaut_image(), square, side)), crop_matrix(square, side)


def transform(points: FloatArray, matrix: FloatArray) -> FloatArray:
    """Points (P, 2) transformed by a matrix (2, 3)."""
    return transform_points(matrix, np.asarray(points, np.float64))


def paled(pixels: Image, share: float = 0.55) -> Image:
    """The image in pale gray, as a background."""
    gray = pixels.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    return np.asarray(255 * share + gray * (1 - share), np.uint8)


def save(figure: Any, name: str) -> None:
    """Write a matplotlib figure as a PNG to this folder."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DOTS_AN_INCH, bbox_inches="tight", pad_inches=0.08)
    save_image(np.asarray(PillowImage.open(buffer).convert("RGB")), name)


def save_image(pixels: Image, name: str) -> None:
    """Write an image (H, W, 3) as a PNG to this folder."""
    path, image = FOLDER / name, PillowImage.fromarray(pixels)
    image.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        image.quantize(256, kmeans=20, dither=PillowImage.Dither.NONE).save(path, optimize=True)
    print(f"{name}: {path.stat().st_size / 1000:.0f} kB")
