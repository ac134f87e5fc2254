"""Where a crop lies in an image: crop squares around faces, and transforms between the two.

The one owner of coordinates. Positions are in pixels with the center of the top-left pixel at
(0, 0), in images and in crops. A crop square is (cx, cy, side, angle): center and side in image
pixels, and the angle in radians by which the crop's x axis is rotated clockwise on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import BoolArray, FloatArray, Image


def crop_matrix(square: FloatArray, size: int) -> FloatArray:
    """Similarities (..., 2, 3) from image to crop pixels, of squares (..., 4) and a crop's side."""
    square = np.asarray(square, np.float64)
    turn = np.exp(-1j * square[..., 3]) * (size / square[..., 2])
    return _matrices(turn, (size - 1) / 2 * (1 + 1j) - turn * _as_complex(square[..., :2]))


def invert(matrix: FloatArray) -> FloatArray:
    """The inverse of affine matrices (..., 2, 3)."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def transform_points(matrix: FloatArray, points: FloatArray) -> FloatArray:
    """Points (..., P, 2) mapped by affine matrices (..., 2, 3)."""
    return points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def similarities(
    points: FloatArray, target: FloatArray, known: BoolArray | None = None
) -> FloatArray:
    """Least-squares similarities (N, 2, 3) from points (N, P, 2) to a target shape (P, 2).

    Where the ``known`` points (N, P; None: all) coincide, are NaN or are missing, a translation of
    their center.
    """
    z, goal = _as_complex(points), _as_complex(target)
    origin = goal.mean()  # products with numbers far from it would be rounded
    goal = goal - origin
    if known is None:
        share = np.full(z.shape, 1 / max(z.shape[1], 1))
    else:
        share = known / np.maximum(known.sum(axis=1, keepdims=True), 1)
    center, goal_center = (share * z).sum(axis=1), share @ goal + origin
    z = z - center[:, None]
    shared = share * z.conj()  # their sum is 0, so the goal need not be centered exactly
    size = (shared * z).real.sum(axis=1)
    along = shared @ goal  # its angle is that of the rotation
    apart = size > 1e-24 * np.square(np.abs(center))  # by more than the rounding of their center
    fits = apart & (np.abs(along) > 1e-9 * size)
    turn = np.where(fits, along / np.where(fits, size, 1), 1)
    return _matrices(turn, goal_center - turn * center)


def _as_complex(points: FloatArray) -> NDArray[np.complex128]:
    """Points (..., 2) as numbers x + iy, which a product with one number turns and scales."""
    return np.ascontiguousarray(points, np.float64).view(np.complex128)[..., 0]


def _matrices(turn: NDArray[np.complex128], shift: NDArray[np.complex128]) -> FloatArray:
    """The similarities (..., 2, 3) that map numbers z to turn z + shift."""
    matrices = np.empty((*turn.shape, 2, 3))
    matrices[..., 0, 0] = matrices[..., 1, 1] = turn.real
    matrices[..., 1, 0], matrices[..., 0, 1] = turn.imag, -turn.imag
    matrices[..., 0, 2], matrices[..., 1, 2] = shift.real, shift.imag
    return matrices


@dataclass(frozen=True)
class BoxMap:
    """The map from the boxes of one face detector to crop squares, fitted once on data.

    Attributes:
        shift: (x, y) from the box's center to the square's, in longer sides of the box.
        scale: the square's side, in longer sides of the box.
    """

    shift: tuple[float, float]
    scale: float

    def squares(self, boxes: FloatArray, angles: FloatArray | None = None) -> FloatArray:
        """Crop squares (F, 4) of boxes (F, 4) xyxy.

        The shift is rotated with the square, so it leads to the same part of the face. The boxes
        are used as they are: at every angle they must be as large as those of the upright face.

        Args:
            boxes: (F, 4) xyxy.
            angles: (F,) rotation of the squares in radians, clockwise; None: upright.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        low, high = boxes[:, :2], boxes[:, 2:]
        longer = (high - low).max(axis=1, keepdims=True)
        angles = np.zeros(len(boxes)) if angles is None else np.asarray(angles, np.float64)
        shift = rotate_points(np.array([self.shift]), angles)[:, 0]
        center = (low + high) / 2 + shift * longer
        return np.concatenate([center, longer * self.scale, angles[:, None]], axis=1)

    def squares_around(self, points: FloatArray, angles: FloatArray) -> FloatArray:
        """Crop squares (F, 4) of points (F, P, 2) rotated by angles (F,), of kind "landmarks".

        The box is the tight box of the points after they were rotated upright.
        """
        squares = self.squares(tight_boxes(rotate_points(points, -angles)))
        center = rotate_points(squares[:, None, :2], angles)[:, 0]
        return np.concatenate([center, squares[:, 2:3], angles[:, None]], axis=1)

    def squares_of_five(self, five_points: FloatArray, upright: FloatArray) -> FloatArray:
        """Crop squares (F, 4) of five points (F, 5, 2), of kind "five_points".

        The box is that of the upright five points (5, 2) when they are placed over the face by a
        similarity. The crop is rotated by the angles of `crop_angles`.
        """
        to_upright = similarities(np.asarray(five_points, np.float64), upright)
        corners = tight_boxes(upright).reshape(2, 2)
        longer = (corners[1] - corners[0]).max()
        center = corners.mean(axis=0) + np.array(self.shift) * longer
        centers = transform_points(invert(to_upright), np.tile(center, (len(five_points), 1, 1)))
        sides = self.scale * longer / np.hypot(to_upright[:, 0, 0], to_upright[:, 0, 1])
        angles = crop_angles(five_points, upright)
        return np.column_stack([centers[:, 0], sides, angles])


def fit_box_map(boxes: FloatArray, squares: FloatArray) -> BoxMap:
    """The map from boxes (N, 4) xyxy to upright squares (N, 3) of the same faces, by medians."""
    low, high = boxes[:, :2], boxes[:, 2:]
    longer = (high - low).max(axis=1)
    shift = np.median((squares[:, :2] - (low + high) / 2) / longer[:, None], axis=0)
    scale = np.exp(np.median(np.log(squares[:, 2] / longer)))
    return BoxMap((float(shift[0]), float(shift[1])), float(scale))


def rotate_points(points: FloatArray, angles: FloatArray) -> FloatArray:
    """Rotate points (F, P, 2) about (0, 0) by angles (F,) in radians, clockwise on the screen."""
    turned = _as_complex(points) * np.exp(1j * np.asarray(angles))[:, None]
    return turned[..., None].view(np.float64)


def roll_angles(points: FloatArray, upright: FloatArray) -> FloatArray:
    """The rotation (F,) of faces in the image plane: radians in -pi..pi, clockwise.

    By least squares, so one wrong point or a hidden side of the face changes it little.

    Args:
        points: (F, P, 2).
        upright: (P, 2), an upright face of any size, such as `Layout.mean_shape`.
    """
    to_upright = similarities(points, upright)
    return np.arctan2(to_upright[:, 0, 1], to_upright[:, 0, 0])


# Degrees: faces rotated by no more than this are cropped without rotation. Rotating the second crop
# lowers the NME of `hih-small` by 0.0 at 15 degrees, 0.1 at 20, 0.25 at 25, 0.5 at 30 and 1 at 40.
UPRIGHT_WITHIN = 20


def crop_angles(points: FloatArray, upright: FloatArray) -> FloatArray:
    """`roll_angles`, rounded to degrees, at which faces are cropped: 0 up to `UPRIGHT_WITHIN`."""
    degrees = np.round(np.rad2deg(roll_angles(points, upright)))
    return np.deg2rad(np.where(np.abs(degrees) > UPRIGHT_WITHIN, degrees, 0))


# A crop is kept when the new one is shifted or scaled by less than this, in sides of the crop: half
# of those from MTCNN's boxes. The NME of `hih-small` rises by 0.006 %; with 0.08 by 0.025 %.
KEPT_WITHIN = 0.05


def nearly_same(squares: FloatArray, others: FloatArray) -> BoolArray:
    """Whether crop squares (F, 4) differ by less than `KEPT_WITHIN`, at the same angle: (F,)."""
    side, other_side = squares[:, 2], others[:, 2]
    moved = np.abs(others[:, :2] - squares[:, :2]).max(axis=1) / side
    scaled = np.abs(other_side / side - 1)
    same_angle = np.isclose(squares[:, 3], others[:, 3], rtol=0, atol=1e-6)  # one may be float32
    return (np.maximum(moved, scaled) < KEPT_WITHIN) & same_angle


# Side of the canonical crop, in longer sides of the tight box of a face's 98 or 68 points.
CANONICAL_SCALE = 1.4
CANONICAL_CROP: dict[str, BoxMap] = {
    "landmarks:WFLW98": BoxMap((0.0, 0.0), CANONICAL_SCALE),
    "landmarks:W300_68": BoxMap((0.0, 0.0), CANONICAL_SCALE),
    "landmarks:COFW29": BoxMap((0.0, 0.0), 1.4707),
    "landmarks:MESH478": BoxMap((0.0, 0.0761), 1.2294),
    "mtcnn": BoxMap((0.0095, 0.1361), 1.1103),
    "centerface": BoxMap((-0.0081, 0.1233), 1.0888),
    "blazeface": BoxMap((0.003, 0.1039), 1.2623),
    "dlib": BoxMap((0.0417, 0.0852), 1.3969),
    "mediapipe": BoxMap((0.0032, 0.1017), 1.2556),
    "five_points": BoxMap((0.0, 0.1703), 3.04),
}
"""Maps from each kind of box to the crop that our networks are trained on: the one table.

Its center is that of the tight box of a face's 98 or 68 points, its side `CANONICAL_SCALE` times
the longer side of that box. ``benchmarks/fit_box_maps.py`` fits the other maps on faces of
300-W train. Model cards state the maps of "landmarks" alone; `complete_box_maps` adds the others.
"""


def canonical_crop(scale: float = CANONICAL_SCALE) -> dict[str, BoxMap]:
    """`CANONICAL_CROP` for a tighter or wider crop, given in the unit of `CANONICAL_SCALE`."""
    ratio = scale / CANONICAL_SCALE
    return {kind: replace(each, scale=each.scale * ratio) for kind, each in CANONICAL_CROP.items()}


def complete_box_maps(own: Mapping[str, BoxMap]) -> dict[str, BoxMap]:
    """The maps of a model, and for the other kinds in `CANONICAL_CROP` those to the same crop.

    Args:
        own: maps by kind. The crop is known by the first "landmarks" map of a layout that the table
            has; without one, nothing is added.
    """
    known = next((k for k in own if k.startswith("landmarks:") and k in CANONICAL_CROP), None)
    if known is None:
        return dict(own)
    # Where the crop lies in the canonical square, whose place in every kind of box is known.
    square, canonical = own[known], CANONICAL_CROP[known]
    ratio = square.scale / canonical.scale
    offset = np.subtract(square.shift, canonical.shift) / canonical.scale
    maps = {}
    for kind, box_map in CANONICAL_CROP.items():
        x, y = np.round(box_map.shift + offset * box_map.scale, 4).tolist()
        maps[kind] = BoxMap((x, y), round(box_map.scale * ratio, 4))
    return maps | dict(own)


def known_points(points: FloatArray) -> FloatArray:
    """Those (K, 2) of points (P, 2) that are not NaN."""
    return points[np.isfinite(points).all(axis=-1)]


def tight_boxes(points: FloatArray) -> FloatArray:
    """The tight boxes (..., 4) xyxy of points (..., P, 2): boxes of kind "landmarks"."""
    return np.concatenate([points.min(axis=-2), points.max(axis=-2)], axis=-1)


def square_around(points: FloatArray, margin: float) -> FloatArray:
    """The upright square (4,) around points (P, 2): ``margin`` times as large as their box.

    Its side is at least ``margin`` pixels.
    """
    square = BoxMap((0.0, 0.0), margin).squares(tight_boxes(points))[0]
    square[2] = max(square[2], margin)
    return square


def resize_matrix(size: tuple[int, int], new_size: tuple[int, int]) -> FloatArray:
    """The matrix (2, 3) from pixels of an image to those of the resized image, (width, height)."""
    x, y = np.divide(new_size, size)
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


def halved(image: Image) -> Image:
    """An image (H, W, 3) of means of 2 x 2 pixels; an odd last row or column is left out.

    OpenCV is several times as fast at this as at other factors and incomplete blocks.
    """
    height, width = image.shape[0] // 2, image.shape[1] // 2
    blocks = image[: 2 * height, : 2 * width]
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_AREA)


def cut_crop(
    image: Image, square: FloatArray, size: int, border: int = cv2.BORDER_CONSTANT
) -> Image:
    """Cut a crop (size, size, 3) out of an image (H, W, 3) uint8.

    Outside of the image it is black, or as by ``border``, one of OpenCV's border types. A face at
    least twice as large as the crop is first halved by area averaging, to avoid aliasing.
    """
    matrix = crop_matrix(square, size)
    ratio = float(square[2]) / size
    needs_part = border == cv2.BORDER_CONSTANT or ratio >= 2 or max(image.shape[:2]) > _LONGEST
    if needs_part and np.isfinite(square).all():
        image, matrix = _part_around(image, square, matrix, size)
    # OpenCV takes half as long for four channels as for three.
    is_rgb = image.shape[2:] == (3,)
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if is_rgb else image
    crop = cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
    return cv2.cvtColor(crop, cv2.COLOR_RGBA2RGB) if is_rgb else crop


_LONGEST = 2**15 - 2
"""Side of the largest image that OpenCV 4 warps."""


def _part_around(
    image: Image, square: FloatArray, matrix: FloatArray, size: int
) -> tuple[Image, FloatArray]:
    """The part of the image inside the crop, halved as often as needed, and its matrix to that."""
    pixel, angle = float(square[2]) / size, float(square[3])
    height, width = image.shape[:2]
    times = int(math.log2(min(max(pixel, 1), height, width)))
    factor = 2**times
    # To the centers of the pixels around the crop.
    reach = (size + 1) / 2 * pixel * (abs(math.cos(angle)) + abs(math.sin(angle)))
    center, last = np.asarray(square[:2], np.float64), (width - 1, height - 1)
    left, top = (np.floor(center - reach) - factor).clip(0, last).astype(int)
    high = np.minimum(center + reach, last)
    # Whole blocks only, so that the factor is exact; the last rows are repeated to fill them.
    blocks = np.ceil((high - (left, top) + factor) / factor)
    right, bottom = (left, top) + blocks.clip(1).astype(int) * factor
    part = image[top:bottom, left:right]
    pad_y, pad_x = -part.shape[0] % factor, -part.shape[1] % factor
    if pad_y or pad_x:
        part = cv2.copyMakeBorder(part, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE)
    for _ in range(times):
        part = halved(part)
    # part -> image: x = factor (x' + 0.5) - 0.5 + left
    offset = (factor - 1) / 2
    to_image = np.array([[factor, 0, left + offset], [0, factor, top + offset], [0, 0, 1.0]])
    return part, matrix @ to_image
