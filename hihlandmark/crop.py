"""Where a crop lies in an image: squares around faces, and the way there and back.

The one owner of coordinates. Positions are in pixels with the center of the top-left pixel at
(0, 0), in images and in crops alike. A `CropSquare` is (cx, cy, side, angle): center and side in
image pixels, angle in radians by which the crop's x axis is turned clockwise on the screen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray, Image


def crop_matrix(square: FloatArray, size: int) -> FloatArray:
    """Similarity from image to crop pixels.

    ``square``: (..., 4) as (cx, cy, side, angle); ``size``: side of the crop in pixels. Returns
    (..., 2, 3) float64 matrices, to be applied with `transform_points`.
    """
    cx, cy, side, angle = np.moveaxis(np.asarray(square, np.float64), -1, 0)
    cos, sin = np.cos(angle) * size / side, np.sin(angle) * size / side
    middle = (size - 1) / 2
    rows = [
        [cos, sin, middle - cos * cx - sin * cy],
        [-sin, cos, middle + sin * cx - cos * cy],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def invert(matrix: FloatArray) -> FloatArray:
    """The inverse of affine matrices (..., 2, 3)."""
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def transform_points(matrix: FloatArray, points: FloatArray) -> FloatArray:
    """Points (..., P, 2) mapped by affine matrices (..., 2, 3)."""
    return points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def similarities(
    points: FloatArray, target: FloatArray, known: NDArray[np.bool_] | None = None
) -> FloatArray:
    """Least-squares similarities (N, 2, 3) from points (N, P, 2) to ``target`` (P, 2).

    ``known`` (N, P): the points that count; None: all. Where they fell together, or are none or
    NaN, only their center is moved.
    """
    known = np.ones(points.shape[:-1], bool) if known is None else known
    share = known / np.maximum(known.sum(axis=1, keepdims=True), 1)
    center, target_center = share[:, None] @ points, share[:, None] @ target
    p, t = points - center, target - target_center
    size = np.einsum("np,npi,npi->n", share, p, p)
    along = np.einsum("np,npi,npi->n", share, p, t)
    across = np.einsum("np,np->n", share, p[..., 0] * t[..., 1] - p[..., 1] * t[..., 0])
    # Of points that fell together, or are none, any similarity is as good that has an inverse.
    apart = size > 1e-24 * (center**2).sum(axis=(1, 2))  # by more than the rounding of their center
    fits = apart & (np.hypot(along, across) > 1e-9 * size)
    cos = np.where(fits, along / np.where(fits, size, 1), 1)
    sin = np.where(fits, across / np.where(fits, size, 1), 0)
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=-2)
    shift = target_center - center @ np.swapaxes(linear, -1, -2)
    return np.concatenate([linear, np.swapaxes(shift, -1, -2)], axis=-1)


@dataclass(frozen=True)
class BoxMap:
    """From the boxes of one detector to the canonical crop square, as fitted once on data.

    ``shift``: from the box's center to the square's, in longer sides of the box; ``scale``: the
    square's side in longer sides of the box.
    """

    shift: tuple[float, float]
    scale: float

    def squares(self, boxes: FloatArray, angles: FloatArray | None = None) -> FloatArray:
        """Boxes (F, 4) xyxy -> crop squares (F, 4), upright or turned by ``angles`` (F,).

        The shift turns with the square: it leads from the box to the same part of the face. Boxes
        stay as they are, so at every angle they must be as large as those of the upright face.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        low, high = boxes[:, :2], boxes[:, 2:]
        longer = (high - low).max(axis=1, keepdims=True)
        angles = np.zeros(len(boxes)) if angles is None else np.asarray(angles, np.float64)
        shift = turn(np.array([self.shift]), angles)[:, 0]
        center = (low + high) / 2 + shift * longer
        return np.concatenate([center, longer * self.scale, angles[:, None]], axis=1)

    def squares_around(self, points: FloatArray, angles: FloatArray) -> FloatArray:
        """Points (F, P, 2) of faces turned by angles (F,) -> crop squares (F, 4) turned likewise.

        For boxes of kind "landmarks": where the face stands upright, its tight box and its square
        are those of the same face in an image that was turned back by the angle.
        """
        squares = self.squares(tight_boxes(turn(points, -angles)))
        center = turn(squares[:, None, :2], angles)[:, 0]
        return np.concatenate([center, squares[:, 2:3], angles[:, None]], axis=1)


def turn(points: FloatArray, angles: FloatArray) -> FloatArray:
    """Points (F, P, 2) turned about (0, 0) by angles (F,) in radians, clockwise on the screen."""
    cos, sin = np.cos(angles), np.sin(angles)
    matrices = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), -1, 0)
    return points @ np.swapaxes(matrices, -1, -2)


def rolls(points: FloatArray, upright: FloatArray) -> FloatArray:
    """How far faces are turned in the image plane: (F,) radians in -pi..pi, clockwise.

    ``points``: (F, P, 2); ``upright``: (P, 2), the same points of an upright face of any size, such
    as `Layout.mean_shape`. The rotation of the similarity that fits best, in least squares, on all
    points: a single point that is far off, or a side of the face that is hidden, moves it little.
    """
    to_upright = similarities(points, upright)
    return np.arctan2(to_upright[:, 0, 1], to_upright[:, 0, 0])


UPRIGHT_WITHIN = 20
"""Degrees: faces turned by no more are cropped as they stand.

Turned upright, second crops of `hih-small` have an NME that is lower by 0.0 at 15 degrees, 0.1 at
20, 0.25 at 25, 0.5 at 30 and 1 at 40 (58 faces of 68 and 98 points; the packaged weights have seen
rotations with a standard deviation of 18 degrees). So it begins where it helps for sure.
"""


def crop_angles(points: FloatArray, upright: FloatArray) -> FloatArray:
    """The angles (F,) at which faces with these points are to be cropped, see `rolls`.

    0 up to `UPRIGHT_WITHIN`; beyond it the roll, to whole degrees.
    """
    degrees = np.round(np.rad2deg(rolls(points, upright)))
    return np.deg2rad(np.where(np.abs(degrees) > UPRIGHT_WITHIN, degrees, 0))


KEPT_WITHIN = 0.05
"""A crop is not cut anew to be moved, or made larger or smaller, by less: in sides of the crop.

So half of the crops from MTCNN's boxes are kept. NME of `hih-small`, when all are cut anew and with
this: 3.573 and 3.573 % (scenes), 3.513 and 3.512 (helen_test), 6.418 and 6.424 (wflw98 val); within
0.08 it begins to cost, 3.593, 3.521 and 6.443 %.
"""


def nearly_same(squares: FloatArray, others: FloatArray) -> NDArray[np.bool_]:
    """Which (F,) of the crop squares (F, 4) are within `KEPT_WITHIN` of others, at one angle."""
    side, other_side = squares[:, 2], others[:, 2]
    moved = np.abs(others[:, :2] - squares[:, :2]).max(axis=1) / side
    scaled = np.abs(other_side / side - 1)
    at_one_angle = squares[:, 3] == others[:, 3]
    return (np.maximum(moved, scaled) < KEPT_WITHIN) & at_one_angle


CANONICAL_SCALE = 1.4
"""Side of the canonical crop, in longer sides of the tight box of a face's 98 or 68 points."""

CANONICAL_CROP: dict[str, BoxMap] = {
    "landmarks:WFLW98": BoxMap((0.0, 0.0), CANONICAL_SCALE),
    "landmarks:W300_68": BoxMap((0.0, 0.0), CANONICAL_SCALE),
    "landmarks:COFW29": BoxMap((0.0, 0.0), 1.4707),
    "mtcnn": BoxMap((0.0095, 0.1361), 1.1103),
    "centerface": BoxMap((-0.0081, 0.1233), 1.0888),
}
"""From each kind of box to the one crop that our networks are trained on.

The crop's center is that of the tight box of a face's 98 or 68 points, its side `CANONICAL_SCALE`
times the longer side of that box. ``hihlandmark.datasets.box_maps`` fits the other maps.
"""


def canonical_crop(scale: float = CANONICAL_SCALE) -> dict[str, BoxMap]:
    """`CANONICAL_CROP` for a tighter or wider crop, given in the unit of `CANONICAL_SCALE`."""
    ratio = scale / CANONICAL_SCALE
    return {
        kind: replace(box_map, scale=box_map.scale * ratio)
        for kind, box_map in CANONICAL_CROP.items()
    }


def tight_boxes(points: FloatArray) -> FloatArray:
    """The boxes (..., 4) xyxy that just hold points (..., P, 2): boxes of kind "landmarks"."""
    return np.concatenate([points.min(axis=-2), points.max(axis=-2)], axis=-1)


def square_around(points: FloatArray, margin: float) -> FloatArray:
    """The upright square (4,) around points (P, 2): ``margin`` times their box's longer side.

    Of points that fell together, ``margin`` pixels.
    """
    square = BoxMap((0.0, 0.0), margin).squares(tight_boxes(points))[0]
    square[2] = max(square[2], margin)
    return square


def resize_matrix(size: tuple[int, int], new_size: tuple[int, int]) -> FloatArray:
    """From pixels of an image of a size (width, height) to those of the image resized: (2, 3)."""
    x, y = np.divide(new_size, size)
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


def cut_crop(image: Image, square: FloatArray, size: int) -> Image:
    """The crop (size, size, 3) of a square of an image (H, W, 3); black outside of the image.

    A face much larger than the crop is first shrunk by area averaging, so that nothing aliases.
    """
    matrix = crop_matrix(square, size)
    scale = size / float(square[2])
    if scale < 0.5:
        image, matrix = _shrink_around(image, matrix, size, int(1 / scale))
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)


def _shrink_around(
    image: Image, matrix: FloatArray, size: int, factor: int
) -> tuple[Image, FloatArray]:
    """The part of the image that the crop shows, shrunk by a factor, and the matrix from it."""
    edge = np.array([[-1, -1], [size, -1], [-1, size], [size, size]], np.float64)
    corners = transform_points(invert(matrix), edge)
    height, width = image.shape[:2]
    left, top = np.clip(np.floor(corners.min(axis=0)) - factor, 0, (width - 1, height - 1)).astype(
        int
    )
    right, bottom = np.clip(
        np.ceil(corners.max(axis=0)) + factor, (left + 1, top + 1), (width, height)
    ).astype(int)
    part = image[top:bottom, left:right]
    # Whole blocks only, so that the factor is exact; the last rows are repeated to fill a block.
    pad_y, pad_x = -part.shape[0] % factor, -part.shape[1] % factor
    part = cv2.copyMakeBorder(part, 0, pad_y, 0, pad_x, cv2.BORDER_REPLICATE)
    small = cv2.resize(
        part, (part.shape[1] // factor, part.shape[0] // factor), interpolation=cv2.INTER_AREA
    )
    # small -> image: x = factor (x' + 0.5) - 0.5 + left
    offset = (factor - 1) / 2
    to_image = np.array([[factor, 0, left + offset], [0, factor, top + offset], [0, 0, 1.0]])
    return small, matrix @ to_image
