"""Landmarks drawn onto an image: free functions over plain arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark.arrays import Image
from hihlandmark.crop import tight_boxes, transform_points
from hihlandmark.face import Face

SUB_PIXEL_BITS = 4
"""OpenCV draws with fixed-point coordinates of this many fractional bits: 1/16 pixel."""

LOW, HIGH = np.array([235, 70, 50]), np.array([60, 225, 90])
"""RGB of a point with score 0 and with score 1."""
CONTOUR = (90, 190, 255)
BOX = (255, 205, 60)


def draw_faces(
    image: Image,
    faces: Sequence[Face],
    *,
    contours: bool = True,
    boxes: bool = False,
    numbers: bool = False,
) -> Image:
    """A copy of an RGB image (H, W, 3) uint8 with faces drawn, points red to green by score.

    ``numbers`` writes each point's index beside it; ``boxes`` come with the number that a face has
    in a video. Lines and points scale with the face.
    """
    canvas = np.ascontiguousarray(image).copy()
    for face in faces:
        size = float(np.max(np.ptp(face.points, axis=0)))
        thickness = max(1, round(size / 260))
        if boxes:
            _draw_box(canvas, face.box, thickness)
            if face.track_id is not None:
                _write(canvas, str(face.track_id), face.box[:2], BOX, max(0.4, size / 300))
        if contours:
            for indices, closed in face.layout.contours:
                line = _fixed_point(face.points[list(indices)])
                cv2.polylines(
                    canvas, [line], closed, CONTOUR, thickness, cv2.LINE_AA, SUB_PIXEL_BITS
                )
        draw_points(canvas, face.points, face.scores, radius=max(0.8, size / 130))
        if numbers:
            _draw_numbers(canvas, face.points, size)
    return canvas


def transform_face(face: Face, matrix: NDArray[np.floating]) -> Face:
    """The face where a transform (2, 3) takes it, to be drawn onto an image transformed likewise.

    Its upright box holds the corners of the one before; the covariances stay as they are.
    """
    corners = transform_points(matrix, face.box[[[0, 1], [2, 1], [0, 3], [2, 3]]])
    points = transform_points(matrix, face.points)
    return replace(face, points=points, box=tight_boxes(corners))


def encode_png(picture: Image) -> bytes:
    """An RGB image (H, W, 3) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    PillowImage.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def draw_points(
    canvas: Image, points: NDArray[np.float32], scores: NDArray[np.float32], radius: float
) -> None:
    """Fills a disc at each of the points (P, 2), colored by score (P,), into ``canvas``."""
    colors = LOW + (HIGH - LOW) * np.clip(scores, 0, 1)[:, None]
    fixed_radius = round(radius * 2**SUB_PIXEL_BITS)
    for center, color in zip(_fixed_point(points), colors, strict=True):
        x, y = map(int, center)
        cv2.circle(canvas, (x, y), fixed_radius, color.tolist(), -1, cv2.LINE_AA, SUB_PIXEL_BITS)


def _fixed_point(points: NDArray[np.float32]) -> NDArray[np.int32]:
    # Far outside of the image nothing is seen, but OpenCV's arithmetic would overflow.
    return np.round(np.clip(points, -1e5, 1e5) * 2**SUB_PIXEL_BITS).astype(np.int32)


def _draw_box(canvas: Image, box: NDArray[np.float32], thickness: int) -> None:
    (x0, y0), (x1, y1) = _fixed_point(box.reshape(2, 2)).tolist()
    cv2.rectangle(canvas, (x0, y0), (x1, y1), BOX, thickness, cv2.LINE_AA, SUB_PIXEL_BITS)


def _draw_numbers(canvas: Image, points: NDArray[np.float32], size: float) -> None:
    for index, point in enumerate(points):
        _write(canvas, str(index), point, (255, 255, 255), scale=max(0.25, size / 900))


def _write(
    canvas: Image,
    text: str,
    point: NDArray[np.float32],
    color: tuple[int, int, int],
    scale: float,
) -> None:
    """Writes to the right of a point (2,), above it."""
    x, y = np.clip(point, -1e5, 1e5)
    place = (round(float(x)) + 2, round(float(y)) - 2)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
