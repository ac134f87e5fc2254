"""Landmarks drawn onto an image: free functions over plain arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark.arrays import FloatArray, Image

SUB_PIXEL_BITS = 4  # OpenCV draws with fixed-point coordinates in units of 1/16 pixel
LOW, HIGH = np.array([235, 70, 50]), np.array([60, 225, 90])  # RGB of scores 0 and 1
CONTOUR = (90, 190, 255)
BOX = (255, 205, 60)


class _HasContours(Protocol):
    @property
    def contours(self) -> Iterable[tuple[Sequence[int], bool]]: ...


class _DrawableFace(Protocol):
    @property
    def points(self) -> FloatArray: ...
    @property
    def scores(self) -> FloatArray: ...
    @property
    def box(self) -> FloatArray: ...
    @property
    def track_id(self) -> int | None: ...
    @property
    def layout(self) -> _HasContours: ...


def draw_faces(
    image: Image,
    faces: Iterable[_DrawableFace],
    *,
    contours: bool = True,
    boxes: bool = False,
    numbers: bool = False,
) -> Image:
    """Draw faces onto a copy of an image: points from red to green by score, scaled with the face.

    Args:
        image: (H, W, 3) uint8 RGB.
        faces: faces with points in pixels of the image.
        contours: draw the lines of the layout.
        boxes: draw the bounding boxes, with the track number of a face in a video.
        numbers: write the index of each point beside it.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    for face in faces:
        size = float(np.max(np.ptp(face.points, axis=0)))
        thickness = max(1, round(size / 260))
        if boxes:
            (x0, y0), (x1, y1) = _fixed_point(face.box.reshape(2, 2)).tolist()
            cv2.rectangle(canvas, (x0, y0), (x1, y1), BOX, thickness, cv2.LINE_AA, SUB_PIXEL_BITS)
            if face.track_id is not None:
                _write(canvas, str(face.track_id), face.box[:2], BOX, max(0.4, size / 300))
        if contours:
            for indices, closed in face.layout.contours:
                line = _fixed_point(face.points[list(indices)])
                style = (CONTOUR, thickness, cv2.LINE_AA, SUB_PIXEL_BITS)
                cv2.polylines(canvas, [line], closed, *style)
        draw_points(canvas, face.points, face.scores, radius=max(0.8, size / 130))
        if numbers:
            for index, point in enumerate(face.points):
                _write(canvas, str(index), point, (255, 255, 255), max(0.25, size / 900))
    return canvas


def encode_png(image: Image) -> bytes:
    """An RGB image (H, W, 3) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def draw_points(canvas: Image, points: FloatArray, scores: FloatArray, radius: float) -> None:
    """Fill a disc at each of the points (P, 2), colored by score (P,), into ``canvas``."""
    colors = LOW + (HIGH - LOW) * np.clip(scores, 0, 1)[:, None]
    fixed_radius = round(radius * 2**SUB_PIXEL_BITS)
    for center, color in zip(_fixed_point(points), colors, strict=True):
        x, y = map(int, center)
        cv2.circle(canvas, (x, y), fixed_radius, color.tolist(), -1, cv2.LINE_AA, SUB_PIXEL_BITS)


def _fixed_point(points: FloatArray) -> NDArray[np.int32]:
    # Far outside of the image nothing is visible, but OpenCV's arithmetic would overflow.
    return np.round(np.clip(points, -1e5, 1e5) * 2**SUB_PIXEL_BITS).astype(np.int32)


def _write(
    canvas: Image, text: str, point: FloatArray, color: tuple[int, int, int], scale: float
) -> None:
    """Write text to the upper right of a point (2,)."""
    x, y = np.clip(point, -1e5, 1e5)
    origin = (round(float(x)) + 2, round(float(y)) - 2)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
