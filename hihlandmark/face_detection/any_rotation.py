"""Faces at any rotation in the image plane, with a face detector that finds upright ones."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import invert, rotate_points, tight_boxes, transform_points
from hihlandmark.face_detection.base import Detections, FaceDetector, check_image
from hihlandmark.face_detection.boxes import best_boxes

ROTATIONS = np.arange(8) * (np.pi / 4)
# A face is found at several rotations, at times only a part of it or upside down: in boxes that
# overlap by more than this share of the smaller one. Those of neighbors in a crowd overlap less.
_MAX_OVERLAP = 0.5
# Larger images are downscaled before they are rotated, to limit memory.
_LARGEST_DIAGONAL = 4096
_BORDER_GRAY = (127, 127, 127)


class AnyRotationFaceDetector:
    """Searches each image at eight rotations, 45 degrees apart, with a face detector.

    Four rotations are too few for MTCNN: of 14 portraits at 45 degrees it missed 2 at all four. The
    search takes seven to nine times as long as that of the upright image alone.
    """

    def __init__(self, face_detector: FaceDetector) -> None:
        self.face_detector = face_detector
        self.name = face_detector.name  # its boxes, so its map to the crop

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """See `FaceDetector.detect`. With ``angles``; boxes may reach beyond the image."""
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        found = []
        for angle in ROTATIONS:
            rotated, to_image = rotate_image(image, angle)
            (detections,) = self.face_detector.detect([rotated])
            found.append(transform_detections(detections, to_image, angle))
        boxes = np.concatenate([each.boxes for each in found])
        scores = np.concatenate([each.scores for each in found])
        points = [each.five_points for each in found if each.five_points is not None]
        every = Detections(
            boxes,
            scores,
            np.concatenate(points) if len(points) == len(found) else None,
            np.repeat(ROTATIONS, [len(each) for each in found]),
        )
        return every[best_boxes(every.boxes, every.scores, _MAX_OVERLAP, "smaller")]


def rotate_image(image: Image, angle: float) -> tuple[Image, FloatArray]:
    """Rotate a whole image (H, W, 3) counter-clockwise by radians, and downscale it if very large.

    Returns the image with gray corners, and the matrix (2, 3) from its pixels to those given.
    """
    if angle == 0:
        return image, np.eye(2, 3)
    height, width = image.shape[:2]
    factor = min(1, _LARGEST_DIAGONAL / np.hypot(height, width))
    size = np.array([max(1, round(width * factor)), max(1, round(height * factor))])
    if factor < 1:
        image = np.asarray(cv2.resize(image, size.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
    scale = size / (width, height)
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (size - 1)
    left, top, right, bottom = tight_boxes(rotate_points(corners, np.array([-angle])))[0]
    x_axis, y_axis = rotate_points(np.eye(2), np.array([-angle]))[0]
    matrix = np.stack([x_axis, y_axis, (-left, -top)], axis=1)
    canvas = (round(right - left) + 1, round(bottom - top) + 1)
    rotated = cv2.warpAffine(image, matrix, canvas, borderValue=_BORDER_GRAY)
    to_image = invert(matrix)
    to_image[:, 2] += 0.5
    to_image = to_image / scale[:, None]
    to_image[:, 2] -= 0.5
    return np.asarray(rotated, np.uint8), to_image


def transform_detections(found: Detections, to_image: FloatArray, angle: float) -> Detections:
    """What was found in an image from `rotate_image`, in pixels of the original image.

    A box becomes the tight box of its transformed ellipse. At multiples of 90 degrees that is the
    transformed box; in between it does not grow as the box of its corners would.
    """
    low, high = found.boxes[:, None, :2].astype(np.float64), found.boxes[:, None, 2:]
    center = transform_points(to_image, (low + high) / 2)[:, 0]
    half = np.sqrt(((high - low)[:, 0] / 2) ** 2 @ (to_image[:, :2] ** 2).T)
    return Detections(
        np.concatenate([center - half, center + half], axis=1),
        found.scores,
        None if found.five_points is None else transform_points(to_image, found.five_points),
        np.full(len(found), angle),
    )
