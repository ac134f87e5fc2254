"""Draws the image of the front page: the astronaut with 98, 68 and 29 points.

python docs/figures/front.py

Writes ``front.png`` beside this file. Needs scikit-image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from paper import face, portrait, save_image, transform

from hihlandmark import draw_faces

SIDE = 330


def panel(layout: int) -> NDArray[np.uint8]:
    """The face with the points of a layout."""
    image, matrix = portrait(SIDE, margin=1.75)
    found = face(layout)
    return draw_faces(image, [replace(found, points=transform(found.points, matrix))])


def main() -> None:
    """Draw it."""
    gap = np.full((SIDE, 6, 3), 255, np.uint8)
    save_image(np.concatenate([panel(98), gap, panel(68), gap, panel(29)], axis=1), "front.png")


if __name__ == "__main__":
    main()
