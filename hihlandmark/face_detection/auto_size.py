"""A second search, larger or with a border, of images in which no face is found."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.face_detection.base import Detections, FaceDetector, check_image

_LARGER = 2
"""Factor from the first search to the second."""
_BORDER = 0.25
"""Width of the border, in longer sides of the image: faces that fill the image are then found."""


def with_search_options(face_detector: FaceDetector, **options: Any) -> FaceDetector:
    """A copy with other ``detection_size``, ``min_face`` or ``min_score``, sharing its networks.

    What it has no attribute for, or one that cannot be set, is left out.
    """
    other = copy.copy(face_detector)
    for name, value in options.items():
        if hasattr(other, name):
            with suppress(AttributeError):
                setattr(other, name, value)
    return other


class AutoSizeFaceDetector:
    """Searches once more where nothing is found: ``detection_size="auto"``.

    An image that was downscaled is searched at twice the size, others with a border.
    """

    def __init__(self, face_detector: FaceDetector) -> None:
        self.face_detector = face_detector
        self.name = face_detector.name

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `FaceDetector.detect`. Boxes may reach beyond the image."""
        found = self.face_detector.detect(images)
        return [
            detections if len(detections) else search_again(self.face_detector, image)[1]
            for detections, image in zip(found, images, strict=True)
        ]


def search_again(face_detector: FaceDetector, image: Image) -> tuple[str, Detections]:
    """Search an image (H, W, 3) larger than before, or with a border; also says how."""
    check_image(image)
    size = getattr(face_detector, "detection_size", None)
    if size is not None and max(image.shape[:2]) > size:
        larger = with_search_options(face_detector, detection_size=_LARGER * size)
        if getattr(larger, "detection_size", size) != size:
            return f"detection_size={_LARGER * size}", larger.detect([image])[0]
    width = round(_BORDER * max(image.shape[:2]))
    padded = cv2.copyMakeBorder(image, width, width, width, width, cv2.BORDER_REPLICATE)
    (found,) = face_detector.detect([np.asarray(padded, np.uint8)])
    points = None if found.five_points is None else found.five_points - width
    return "a border", Detections(found.boxes - width, found.scores, points, found.angles)
