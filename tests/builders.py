"""Small inputs that several test files build: annotated faces and splits of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hihlandmark import ImageError
from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.layouts import LAYOUTS

Array = NDArray[np.floating]


def annotated(
    image: NDArray[np.uint8] | ImageError, points: Array, name: str = "one", **more: Any
) -> AnnotatedFace:
    """A face of an image, or of one that cannot be read, with points (P, 2)."""

    def load_image() -> NDArray[np.uint8]:
        if isinstance(image, ImageError):
            raise image
        return image

    return AnnotatedFace(name, load_image, np.asarray(points, np.float64), "val", **more)


def split_of(*faces: AnnotatedFace) -> AnnotatedFaces:
    """A split in the layout with the faces' number of points, or in a scheme of its own."""
    count = len(faces[0].points)
    layout = next((each for each in LAYOUTS.values() if each.size == count), None)
    if layout is None:
        return AnnotatedFaces("faces/val", f"POINTS{count}", np.arange(count), faces)
    return AnnotatedFaces("faces/val", layout.name, layout.mirror, faces)
