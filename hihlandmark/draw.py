"""Landmarks drawn onto an image: free functions over images and points."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from hihlandmark.arrays import BoolArray, FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, square_around, transform_points
from hihlandmark.errors import ConfigurationError, is_number
from hihlandmark.image import ChannelAxis, ColorOrder, ImageInput, load_image

SUB_PIXEL_BITS = 4  # OpenCV draws with fixed-point coordinates in units of 1/16 pixel
LOW, HIGH = np.array([235, 70, 50]), np.array([60, 225, 90])  # RGB of scores 0 and 1
CONTOUR = (90, 190, 255)
BOX = (255, 205, 60)
NUMBER = (255, 255, 255)
ENLARGED_SIDE = 480
"""The side in pixels of an enlarged face."""
# For faces with a side of 1 pixel; the least size in pixels keeps small faces visible.
_RADIUS, _LEAST_RADIUS = 1 / 130, 0.45
_THICKNESS, _LEAST_THICKNESS = 1 / 260, 0.3
# In pixels; on the finest grid below OpenCV's limit of 32767. The largest faces get half of it.
_LARGEST = 500
_FAR = 1e5  # in pixels from the image: nothing is visible, but OpenCV's arithmetic would overflow
_FINE_SIDE = 260  # smaller faces are drawn on a finer grid: lines get thinner than a pixel
_FINEST = 8
_MARGIN = 1.4  # side of an enlarged face, in longer sides of the points' box

Color = tuple[int, int, int]
"""RGB, 0..255 each."""


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


@dataclass(frozen=True)
class _Style:
    """The arguments of `draw_faces` that say how a face is drawn."""

    contours: bool
    boxes: bool
    numbers: bool
    point_color: Color | None
    line_color: Color
    thickness: float | None
    point_size: float | None


def draw_faces(
    image: ImageInput,
    faces: Iterable[_DrawableFace],
    *,
    contours: bool = True,
    boxes: bool = False,
    numbers: bool = False,
    enlarged: bool = False,
    point_color: Color | None = None,
    line_color: Color = CONTOUR,
    thickness: float | None = None,
    point_size: float | None = None,
    color: ColorOrder = "rgb",
    channels: ChannelAxis = "last",
    white: float | None = None,
) -> Image:
    """Draw faces onto a copy of an image: points from red to green by score, scaled with the face.

    Hidden points (`Face.hidden`) are drawn as rings. NaN points are left out.

    Args:
        image: what `Detector.predict` takes, with ``color``, ``channels`` and ``white``.
        faces: faces with points in pixels of the image.
        contours: draw the lines of the layout.
        boxes: draw the bounding boxes, with the track number of a face in a video.
        numbers: write the index of each point beside it.
        enlarged: add the faces, enlarged, below the image; several faces are numbered from 0.
        point_color: RGB of all points; None: by score.
        line_color: RGB of the contours.
        thickness: of the lines, in pixels, up to 500; None: scaled with the face.
        point_size: diameter of the points, in pixels, up to 500; None: scaled with the face.
        color: the channel order of an array, also of the one returned.
        channels: "first" for arrays of shape (C, H, W).
        white: the value of full brightness, see `load_image`.

    Returns:
        (H, W, 3) uint8, RGB unless ``color`` is "bgr".

    Raises:
        ImageError: the image cannot be read.
        ConfigurationError: ``faces`` is no list, or a color or size is out of range.
    """
    if not isinstance(faces, Iterable):
        raise ConfigurationError(f"faces is of type {type(faces).__name__}: pass a list, [face]")
    for name, size in (("thickness", thickness), ("point_size", point_size)):
        if size is not None and not (is_number(size) and 0 < size <= _LARGEST):
            raise ConfigurationError(
                f"{name} must be a number above 0, up to {_LARGEST} pixels, not {size!r}"
            )
    if point_color is not None:
        point_color = _rgb("point_color", point_color)
    line_color = _rgb("line_color", line_color)
    style = _Style(contours, boxes, numbers, point_color, line_color, thickness, point_size)
    loaded = load_image(image, color=color, channels=channels, white=white)
    faces = list(faces)
    canvas = loaded.copy()
    for face in faces:
        _draw_face(canvas, face, face.points, style)
    if enlarged and faces:
        tiles = [_enlarge(loaded, face, style) for face in faces]
        if len(faces) > 1:
            for number, (face, tile) in enumerate(zip(faces, tiles, strict=True)):
                known = face.points[is_drawable(face.points)]
                corner = known.min(axis=0, initial=np.inf)
                _write(canvas, str(number), corner, BOX, 0.5)
                _write(tile, str(number), np.array([8.0, 32.0]), BOX, 1.0)
        canvas = _with_tiles_below(canvas, tiles)
    return np.ascontiguousarray(canvas[..., ::-1]) if color == "bgr" else canvas


def _rgb(name: str, color: Any) -> Color:
    """A color given as a list, tuple or array. Raises `ConfigurationError` for others."""
    values = list(color) if isinstance(color, Iterable) else []
    if len(values) != 3 or not all(is_number(value) and 0 <= value <= 255 for value in values):
        raise ConfigurationError(f"{name} must be RGB, three numbers in 0..255, not {color!r}")
    red, green, blue = map(round, values)
    return red, green, blue


def is_drawable(points: FloatArray) -> BoolArray:
    """(P,) bool: which of the points (P, 2) are neither NaN nor far outside of the image."""
    return np.asarray((np.abs(points) <= _FAR).all(axis=1))


def _draw_face(
    canvas: Image, face: _DrawableFace, points: FloatArray, style: _Style, box: bool = True
) -> None:
    """Draw a face into ``canvas``, which shows its points at ``points`` (P, 2)."""
    known = points[is_drawable(points)]
    if not len(known):
        return
    size = max(float(np.max(np.ptp(known, axis=0))), 1e-6)
    thickness = style.thickness or np.clip(size * _THICKNESS, _LEAST_THICKNESS, _LARGEST)
    diameter = style.point_size or np.clip(2 * size * _RADIUS, 2 * _LEAST_RADIUS, _LARGEST)
    if style.boxes and box and np.isfinite(face.box).all():
        (x0, y0), (x1, y1) = _fixed_point(face.box.reshape(2, 2)).tolist()
        width = max(1, round(thickness))
        cv2.rectangle(canvas, (x0, y0), (x1, y1), BOX, width, cv2.LINE_AA, SUB_PIXEL_BITS)
        if face.track_id is not None:
            _write(canvas, str(face.track_id), face.box[:2], BOX, max(0.4, size / 300))
    part = _part_around(canvas, known, margin=2 + max(thickness, diameter))
    if part is not None:
        left, top, right, bottom = part
        # A face of 40 pixels is drawn on a grid 7 times as fine, and averaged.
        fine = int(np.clip(np.ceil(_FINE_SIDE / size), 1, _FINEST))
        region = canvas[top:bottom, left:right]
        large = np.ascontiguousarray(region.repeat(fine, axis=0).repeat(fine, axis=1))
        moved = (points - (left, top) + 0.5) * fine - 0.5
        if style.contours:
            width = max(1, round(thickness * fine))
            for indices, closed in face.layout.contours:
                line = moved[list(indices)]
                is_known = is_drawable(line)
                is_whole = bool(is_known.all())
                ends = [*range(len(line)), *([0] if closed else [])]
                known_ends = [[a, b] for a, b in pairwise(ends) if is_known[a] and is_known[b]]
                lines = [line] if is_whole else [line[pair] for pair in known_ends]
                drawn = (style.line_color, width, cv2.LINE_AA, SUB_PIXEL_BITS)
                cv2.polylines(large, [*map(_fixed_point, lines)], closed and is_whole, *drawn)
        hidden = getattr(face, "hidden", None)
        draw_points(large, moved, face.scores, diameter * fine / 2, style.point_color, hidden)
        region[:] = cv2.resize(large, region.shape[1::-1], interpolation=cv2.INTER_AREA)
    if style.numbers:
        for index, point in enumerate(points):
            _write(canvas, str(index), point, NUMBER, max(0.25, size / 900))


def _part_around(
    canvas: Image, points: FloatArray, margin: float
) -> tuple[int, int, int, int] | None:
    """The part (left, top, right, bottom) of the canvas with the points; None if there is none."""
    height, width = canvas.shape[:2]
    low = np.floor(points.min(axis=0) - margin).clip(0, (width, height))
    high = np.ceil(points.max(axis=0) + margin + 1).clip(0, (width, height))
    if not (low < high).all():
        return None
    left, top, right, bottom = (int(value) for value in (*low, *high))
    return left, top, right, bottom


def _enlarge(image: Image, face: _DrawableFace, style: _Style) -> Image:
    """The square (S, S, 3) of an image around a face, with the face drawn; black if unknown."""
    known = face.points[is_drawable(face.points)]
    if not len(known):
        return np.zeros((ENLARGED_SIDE, ENLARGED_SIDE, 3), np.uint8)
    square = square_around(known, _MARGIN)
    tile = cut_crop(image, square, ENLARGED_SIDE)
    points = transform_points(crop_matrix(square, ENLARGED_SIDE), face.points)
    _draw_face(tile, face, points, style, box=False)
    return tile


def _with_tiles_below(image: Image, tiles: Sequence[Image]) -> Image:
    """The image above rows of square tiles, as many in a row as fit below it, on black."""
    side = tiles[0].shape[0]
    columns = max(1, image.shape[1] // side)
    rows = -(-len(tiles) // columns)
    height, width = image.shape[:2]
    sheet = np.zeros((height + rows * side, max(width, side), 3), np.uint8)
    sheet[:height, :width] = image
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = height + row * side, column * side
        sheet[top : top + side, left : left + side] = tile
    return sheet


def encode_png(image: Image) -> bytes:
    """An RGB image (H, W, 3) uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def draw_points(
    canvas: Image,
    points: FloatArray,
    scores: FloatArray,
    radius: float,
    color: Color | None = None,
    hidden: BoolArray | None = None,
) -> None:
    """Fill a disc at each of the points (P, 2) into ``canvas``, colored by score (P,) or alike.

    Points that are ``hidden`` (P,) get a ring. NaN points are left out.
    """
    colors = LOW + (HIGH - LOW) * np.clip(scores, 0, 1)[:, None]
    if color is not None:
        colors[:] = color
    fixed_radius = round(radius * 2**SUB_PIXEL_BITS)
    ring = max(1, round(radius / 3))
    widths = np.where(np.zeros(len(points), bool) if hidden is None else hidden, ring, -1)
    known = is_drawable(points)
    drawn = _fixed_point(points[known]), colors[known], widths[known].tolist()
    for center, each, width in zip(*drawn, strict=True):
        x, y = map(int, center)
        cv2.circle(canvas, (x, y), fixed_radius, each.tolist(), width, cv2.LINE_AA, SUB_PIXEL_BITS)


def _fixed_point(points: FloatArray) -> NDArray[np.int32]:
    return np.round(np.clip(points, -_FAR, _FAR) * 2**SUB_PIXEL_BITS).astype(np.int32)


def _write(
    canvas: Image, text: str, point: FloatArray, color: tuple[int, int, int], scale: float
) -> None:
    """Write text to the upper right of a point (2,), if it is known."""
    if not np.isfinite(point).all():
        return
    x, y = np.clip(point, -_FAR, _FAR)
    origin = (round(float(x)) + 2, round(float(y)) - 2)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
