"""Faces at any angle in the image plane, by a face detector that knows upright ones."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import invert, tight_boxes, transform_points, turn
from hihlandmark.face_detection.base import Detections, FaceDetector, check_image

TURNS = np.arange(8) * (np.pi / 4)
# A face is found in several turns, at times only a part of it or upside down: in boxes that share
# more than this of the smaller one. Those of neighbors in a crowd share less.
_SAME_FACE = 0.5
# An image that is larger across is shrunk before it is turned, for the memory's sake: turned by 45
# degrees, a strip of 20,000 x 10 pixels fills a square of 14,000 x 14,000.
_LARGEST_DIAGONAL = 4096
_BORDER_GRAY = (127, 127, 127)


class AnyRotationFaceDetector:
    """Looks with a face detector at each image in eight turns, 45 degrees apart.

    A turn every 90 degrees is too few for MTCNN: of 14 portraits at 45 degrees it found 2 in none
    of the four. Images turned by 45 degrees come with gray corners, so the search takes
    seven to nine times as long as that of the upright image alone.
    """

    def __init__(self, face_detector: FaceDetector) -> None:
        self.face_detector = face_detector
        self.name = face_detector.name  # the boxes are its own, and so is their map to the crop

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """RGB images (H, W, 3) uint8 -> the `Detections` of each with ``angles``, best first.

        Boxes may reach beyond the image. Raises `ImageError` for what is not such an image.
        """
        for image in images:
            check_image(image)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        turns = []
        for angle in TURNS:
            picture, to_image = turned_picture(image, angle)
            turns.append(turned_back(self.face_detector.detect([picture])[0], to_image, angle))
        return best_of_overlapping(_joined(turns))


def turned_picture(image: Image, angle: float) -> tuple[Image, FloatArray]:
    """The whole image turned counter-clockwise by radians, and the matrix (2, 3) from it back.

    Very large images are shrunk. The image itself comes back for an angle of 0.
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
    left, top, right, bottom = tight_boxes(turn(corners, np.array([-angle])))[0]
    across, down = turn(np.eye(2), np.array([-angle]))[0]  # where the image's axes point
    turned = np.stack([across, down, (-left, -top)], axis=1)
    canvas = (round(right - left) + 1, round(bottom - top) + 1)
    picture = cv2.warpAffine(
        image, turned, canvas, flags=cv2.INTER_LINEAR, borderValue=_BORDER_GRAY
    )
    to_image = invert(turned)
    to_image[:, 2] += 0.5
    to_image = to_image / scale[:, None]
    to_image[:, 2] -= 0.5
    return np.asarray(picture, np.uint8), to_image


def turned_back(found: Detections, to_image: FloatArray, angle: float) -> Detections:
    """What was found in a turned image, in pixels of the image that the matrix (2, 3) leads to.

    A box becomes the tight box of the ellipse in it, which at quarter turns is the box itself and
    between them does not grow as the box of its corners would: a face has none.
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


def _joined(turns: Sequence[Detections]) -> Detections:
    points = [found.five_points for found in turns if found.five_points is not None]
    angles = [found.angles for found in turns if found.angles is not None]
    return Detections(
        np.concatenate([found.boxes for found in turns]),
        np.concatenate([found.scores for found in turns]),
        np.concatenate(points) if len(points) == len(turns) else None,
        np.concatenate(angles),
    )


def best_of_overlapping(found: Detections) -> Detections:
    """The detections, best first, without those that overlap with a better one."""
    kept: list[int] = []
    for index in np.argsort(-found.scores, kind="stable"):
        if not (_shared(found.boxes[kept], found.boxes[index]) > _SAME_FACE).any():
            kept.append(int(index))
    return found[kept]


def _shared(boxes: FloatArray, box: FloatArray) -> FloatArray:
    """How much of the smaller one boxes (F, 4) share with a box (4,): (F,) in 0..1."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    smaller = np.minimum(areas, (box[2:] - box[:2]).prod())
    return np.maximum(sides, 0).prod(axis=1) / np.maximum(smaller, 1e-9)
