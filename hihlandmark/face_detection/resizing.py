"""The image of bounded size that a face detector searches, and the way back to the image."""

from __future__ import annotations

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.errors import ConfigurationError
from hihlandmark.face_detection.base import Detections


def check_options(
    detection_size: int, min_face: float, min_score: float, smallest_size: float
) -> None:
    """Raises `ConfigurationError` for options of a face detector that are out of range."""
    if not detection_size >= smallest_size:
        raise ConfigurationError(
            f"detection_size must be {smallest_size:.0f} pixels or more, not {detection_size}"
        )
    if not min_face > 0:
        raise ConfigurationError(f"min_face must be more than 0 pixels, not {min_face}")
    if not 0 <= min_score <= 1:
        raise ConfigurationError(f"min_score must lie in 0..1, not {min_score}")


def shrunk(image: Image, longest: int, multiple: int = 1) -> tuple[Image, FloatArray]:
    """The image (H, W, 3) with sides of ``longest`` pixels at most, by area averaging.

    Sides are rounded to whole pixels, or up to multiples of ``multiple`` pixels, which may exceed
    ``longest``. With the factors (2,), x and y, from the image's size to that of the image; they
    differ a little, for whole pixels.
    """
    height, width = image.shape[:2]
    ratio = min(1.0, longest / max(height, width))
    sides = (max(1, round(side * ratio)) for side in (width, height))
    size = tuple(-(-side // multiple) * multiple for side in sides)
    picture = np.ascontiguousarray(image)
    if size != (width, height):
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return picture, np.array(size) / (width, height)


def in_image(
    boxes: FloatArray,
    scores: FloatArray,
    points: FloatArray,
    factors: FloatArray,
    image: Image,
    min_face: float,
) -> Detections:
    """What was found in an image, in pixels of the image that it was made of by ``factors``.

    Boxes (F, 4) are cut at the centers of the image's outermost pixels; those whose longer side is
    then shorter than ``min_face`` are left out. Best first.
    """
    height, width = image.shape[:2]
    boxes = (boxes.reshape(-1, 2, 2) + 0.5) / factors - 0.5
    boxes = boxes.clip(0, (width - 1, height - 1)).reshape(-1, 4)
    points = (points + 0.5) / factors - 0.5
    sides = boxes[:, 2:] - boxes[:, :2]
    wanted = (sides.min(axis=1) >= 1) & (sides.max(axis=1) >= min_face)
    order = np.argsort(-scores, kind="stable")
    return Detections(boxes, scores, points)[order[wanted[order]]]
