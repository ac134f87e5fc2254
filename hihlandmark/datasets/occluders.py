"""Covers faces with what covers them in images: hands, masks, glasses, hair, things, borders.

Shapes are drawn in the frame of the face: (0, 0) is between the eyes, (1, 0) is one distance of the
eyes to the right, (0, 1) as far down. A mouth is near (0, 1.1), a chin near (0, 1.9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from hihlandmark.arrays import FloatArray, Image

EYES = ((0.33, 0.4), (0.67, 0.4))
"""Where the eyes are in a canonical crop, in sides."""
SMALLEST_UNIT = 0.2
"""Distance of the eyes in sides of the crop, at least: in profile it is no measure of the face."""
MOST = 3
"""Occluders on one face."""
_SHIFT = 4  # OpenCV draws with fixed-point coordinates in units of 1/16 pixel


class Covered(NamedTuple):
    """A crop (S, S, 3) uint8, and (S, S) float32 in 0..1: how much of each pixel is covered."""

    image: Image
    alpha: FloatArray


class _Canvas:
    """A mask (S, S) uint8 to draw on, in the frame of the face."""

    def __init__(self, size: int, eyes: FloatArray) -> None:
        middle, across = eyes.mean(axis=0), eyes[1] - eyes[0]
        length = float(np.linalg.norm(across)) + 1e-6
        across = across / length * max(length, SMALLEST_UNIT * size)
        self.matrix = np.array([across, (-across[1], across[0])])
        self.unit, self.middle = float(np.linalg.norm(across)), middle
        self.mask = np.zeros((size, size), np.uint8)

    def to_pixels(self, points: ArrayLike) -> FloatArray:
        """Points (..., 2) of the frame in pixels of the crop."""
        return np.asarray(points, np.float64) @ self.matrix + self.middle

    def polygon(self, points: ArrayLike) -> None:
        """Fill a polygon (K, 2)."""
        fixed = np.round(self.to_pixels(points) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(self.mask, [fixed], 255, cv2.LINE_AA, _SHIFT)

    def blob(self, center: ArrayLike, radii: ArrayLike, angle: float, power: float = 2.0) -> None:
        """Fill a super-ellipse: round for a power of 2, nearly a rectangle for larger ones."""
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        ring = np.sign(ring) * np.abs(ring) ** (2 / power) * radii
        self.polygon(ring @ _rotation(angle) + center)

    def line(self, points: ArrayLike, width: float) -> None:
        """Draw a line (K, 2) with round ends."""
        fixed = np.round(self.to_pixels(points) * 2**_SHIFT).astype(np.int32)
        thick = max(1, round(width * self.unit))
        cv2.polylines(self.mask, [fixed], False, 255, thick, cv2.LINE_AA, _SHIFT)


def _rotation(angle: float) -> FloatArray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def _place(rng: np.random.Generator) -> FloatArray:
    """A place on a face."""
    return np.array([rng.normal(0, 0.7), rng.uniform(-0.8, 1.9)])


def _hand(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A palm with fingers, some of them bent."""
    scale, angle = rng.uniform(0.7, 1.2), rng.uniform(0, 2 * np.pi)
    side = rng.choice((-1, 1))
    center = _place(rng)

    def at(points: ArrayLike) -> FloatArray:
        return np.asarray(points) * (side * scale, scale) @ _rotation(angle) + center

    palm = np.array([(-0.42, -0.4), (0.42, -0.4), (0.4, 0.35), (0.25, 0.5), (-0.28, 0.5)])
    canvas.polygon(at(palm))
    canvas.line(at([*palm, palm[0]]), 0.12 * scale)
    spread = rng.uniform(0, 0.35)
    for number, x in enumerate((-0.33, -0.11, 0.11, 0.33)):
        length = (0.75, 0.95, 0.9, 0.65)[number] * (1 if rng.random() < 0.75 else rng.uniform(0, 1))
        tip = (x + spread * (number - 1.5) * length, -0.4 - length)
        bent = (x + spread * (number - 1.5) * length / 2, -0.4 - length / 2)
        canvas.line(at([(x, -0.3), bent, tip]), rng.uniform(0.17, 0.23) * scale)
    if rng.random() < 0.7:
        canvas.line(at([(0.3, 0.25), (0.62, -0.05), (0.75, -0.35)]), 0.22 * scale)
    if rng.random() < 0.6:  # the arm
        canvas.line(at([(0, 0.3), (rng.uniform(-0.5, 0.5), 3)]), 0.6 * scale)


def _mask(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A face mask or scarf, at times below the nose or the mouth."""
    top, wide = rng.choice((0.35, 0.5, 0.85, 1.3), p=(0.4, 0.3, 0.2, 0.1)), rng.uniform(0.9, 1.25)
    side = rng.uniform(0.3, 0.6) + max(0.0, top - 0.5)
    right = [(0.3, top + 0.08), (wide, side), (wide * 0.95, side + 0.7), (0.55, 1.85)]
    left = [(-x, y) for x, y in right[::-1]]
    shape = np.array([(0, top), *right, (0, rng.uniform(1.85, 2.2)), *left])
    canvas.polygon(shape + rng.normal(0, 0.05, shape.shape))
    if rng.random() < 0.5:
        for x in (-1, 1):
            canvas.line([(x * wide, side), (x * 1.6, side - 0.5)], 0.04)


def _sunglasses(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Two dark lenses with a bridge and temples."""
    radii, power = (rng.uniform(0.36, 0.5), rng.uniform(0.26, 0.44)), rng.uniform(2, 6)
    for x in (-0.5, 0.5):
        canvas.blob((x, rng.normal(0.04, 0.03)), radii, 0, power)
    _frame(canvas, rng)


def _frame(canvas: _Canvas, rng: np.random.Generator) -> None:
    width = rng.uniform(0.03, 0.1)
    canvas.line([(-0.2, -0.03), (0.2, -0.03)], width)
    for x in (-1, 1):
        canvas.line([(x * 0.85, -0.05), (x * rng.uniform(1.1, 1.5), -0.1)], width)


def _eyeglasses(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Frames alone: what is behind the lenses can be seen."""
    radii, power = np.array([rng.uniform(0.36, 0.48), rng.uniform(0.24, 0.4)]), rng.uniform(2, 6)
    width = rng.uniform(0.02, 0.07)
    for x in (-0.5, 0.5):
        canvas.blob((x, 0.04), radii + width, 0, power)
    frames = canvas.mask.copy()
    canvas.mask[:] = 0
    for x in (-0.5, 0.5):
        canvas.blob((x, 0.04), radii, 0, power)
    canvas.mask[:] = np.where(canvas.mask > 0, np.minimum(frames, 255 - canvas.mask), frames)
    _frame(canvas, rng)


def _fringe(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Hair over the forehead, down to brows or eyes."""
    x = np.linspace(-1.4, 1.4, 15)
    low = rng.uniform(-0.8, 0.25) + rng.normal(0, 0.12, len(x)) + rng.normal(0, 0.3) * x
    canvas.polygon([(-1.6, -3), *zip(x, low, strict=True), (1.6, -3)])


def _side_hair(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Hair over one side of the face."""
    side, inner = rng.choice((-1, 1)), rng.uniform(0.1, 1.0)
    y = np.linspace(-1.5, rng.uniform(0.5, 2.8), 12)
    x = inner + 0.5 * np.abs(y) * rng.uniform(-0.1, 0.5) + rng.normal(0, 0.05, len(y))
    canvas.polygon([(side * 3, -2), *zip(side * x, y, strict=True), (side * 3, y[-1])])


def _strands(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Strands of hair that hang over the face."""
    start = np.array([rng.normal(0, 0.7), -1.5])
    for _ in range(int(rng.integers(2, 14))):
        first = start + rng.normal(0, 0.15, 2)
        reach = rng.normal(0, 0.5), rng.uniform(1.0, 3.0)
        bend = first + np.array(reach) / 2 + rng.normal(0, 0.2, 2)
        t = np.linspace(0, 1, 10)[:, None]
        curve = (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * (first + reach)
        canvas.line(curve, rng.uniform(0.02, 0.14))


def _microphone(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A round head with a handle, such as a microphone, spoon or lollipop."""
    center = np.array([rng.normal(0, 0.35), rng.normal(1.2, 0.35)])
    radius, angle = rng.uniform(0.2, 0.5), rng.normal(0, 0.6)
    canvas.blob(center, (radius, radius * rng.uniform(0.8, 1.4)), angle)
    end = center + np.array([np.sin(angle), np.cos(angle)]) * 4
    canvas.line([center, end], radius * rng.uniform(0.6, 1.3))


def _thing(canvas: _Canvas, rng: np.random.Generator) -> None:
    """An ellipse, a rectangle or between, such as a cup, a phone or a book."""
    canvas.blob(
        _place(rng), rng.uniform(0.2, 1.1, 2), rng.uniform(0, np.pi), rng.choice((2.0, 4.0, 40.0))
    )


def _bar(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A long thing across the face, such as an arm, a stick or a shoulder strap."""
    angle = rng.uniform(0, np.pi)
    reach = 5 * np.array([np.cos(angle), np.sin(angle)])
    center = _place(rng)
    canvas.line([center - reach, center + reach], rng.uniform(0.1, 0.9))


def _irregular(canvas: _Canvas, rng: np.random.Generator) -> None:
    """An irregular outline, such as leaves, cloth or another person."""
    count = int(rng.integers(5, 14))
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = rng.uniform(0.3, 1.0) * rng.uniform(0.5, 1.4, count)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]
    canvas.polygon(ring * rng.uniform(0.5, 1.5, 2) + _place(rng))


def _border(canvas: _Canvas, rng: np.random.Generator) -> None:
    """The end of the image: upright, whatever the face."""
    size = len(canvas.mask)
    depth = round(size * rng.uniform(0.15, 0.5))
    canvas.mask[:depth] = 255
    canvas.mask[:] = np.rot90(canvas.mask, int(rng.integers(4)))


DrawShape = Callable[[_Canvas, np.random.Generator], None]
SHAPES: Mapping[str, DrawShape] = {
    "hand": _hand,
    "mask": _mask,
    "sunglasses": _sunglasses,
    "eyeglasses": _eyeglasses,
    "fringe": _fringe,
    "side hair": _side_hair,
    "strands": _strands,
    "microphone": _microphone,
    "thing": _thing,
    "bar": _bar,
    "irregular": _irregular,
    "border": _border,
}
"""The shapes, by name."""
_SHARES = np.array([4, 3, 2.5, 1.5, 2, 1.5, 2, 2, 2, 1, 2, 2])
_HAIR = ("fringe", "side hair", "strands")


def cover(
    crop: Image,
    other: Image | None,
    rng: np.random.Generator,
    eyes: FloatArray | None = None,
    shapes: tuple[str, ...] | None = None,
) -> Covered:
    """Cover a face with one to `MOST` occluders.

    Args:
        crop: (S, S, 3) uint8 of a face.
        other: (H, W, 3) uint8, usually a crop of another face: a source of skin and background.
        rng: of the sample.
        eyes: (2, 2), the left and the right one in pixels; None: as in a canonical crop.
        shapes: names of `SHAPES`, one occluder each; None: random ones.
    """
    size = len(crop)
    if eyes is None or not np.isfinite(eyes).all():
        eyes = np.array(EYES) * size
    if shapes is None:
        count = int(rng.choice(MOST, p=(0.6, 0.3, 0.1))) + 1
        shapes = tuple(rng.choice(list(SHAPES), count, p=_SHARES / _SHARES.sum()).tolist())
    seen = np.ones((size, size), np.float32)
    result = crop
    if rng.random() < 0.3:  # a shadow covers nothing
        canvas = _Canvas(size, eyes)
        list(SHAPES.values())[int(rng.integers(len(SHAPES) - 1))](canvas, rng)
        dark = cv2.GaussianBlur(canvas.mask, (0, 0), size * rng.uniform(0.005, 0.05)) / 255.0
        result = (result * (1 - rng.uniform(0.2, 0.7) * dark)[..., None]).astype(np.uint8)
    for name in shapes:
        canvas = _Canvas(size, eyes)
        SHAPES[name](canvas, rng)
        alpha: FloatArray = canvas.mask.astype(np.float32) / 255
        if name == "border":
            texture = _beyond(result, canvas.mask, rng)
        else:
            soft = rng.uniform(0.3, 1.5) * size / 192
            alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), soft))
            if name == "sunglasses":
                alpha = alpha * np.float32(rng.uniform(0.8, 1))
            texture = _texture(name, crop, other, canvas.mask, rng)
            shadow = cv2.GaussianBlur(alpha, (0, 0), size * rng.uniform(0.01, 0.04))
            result = result * (1 - rng.uniform(0, 0.5) * shadow)[..., None]
        result = result + (texture - result.astype(np.float32)) * alpha[..., None]
        result = result.clip(0, 255).astype(np.uint8)
        seen *= 1 - alpha
    return Covered(result, (1 - seen).clip(0, 1))


def covered_at(alpha: FloatArray, points: FloatArray) -> FloatArray:
    """How much (P,) in 0..1 of points (P, 2) is covered: 1 outside of the crop, NaN where unknown.

    The mean over 3 x 3 pixels: a point at the edge of an occluder is half covered.
    """
    size = len(alpha)
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((points >= -0.5) & (points < size - 0.5)).all(axis=-1))
    x, y = np.round(np.where(inside[:, None], points, 0)).astype(np.intp).clip(0, size - 1).T
    around = np.asarray(cv2.blur(alpha, (3, 3), borderType=cv2.BORDER_REPLICATE))
    found = np.where(inside, around[y, x], 1.0)
    return np.where(np.isfinite(points).all(axis=-1), found, np.nan)


def _texture(
    name: str, crop: Image, other: Image | None, mask: Image, rng: np.random.Generator
) -> FloatArray:
    """The surface (S, S, 3) of an occluder, float32 in 0..255, shaded."""
    size = len(crop)
    kind = rng.random()
    is_hair = name in _HAIR
    texture: FloatArray
    if name in ("sunglasses", "eyeglasses") and kind < 0.8:
        texture = np.full((size, size, 3), rng.uniform(0, 70, 3), np.float32)
    elif other is None or kind < 0.25:
        base = rng.uniform(0, 255, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 255))
        texture = np.full((size, size, 3), base, np.float32)
    else:
        # A hand is often that of the person; hair likewise.
        source = crop if rng.random() < (0.5 if name == "hand" or is_hair else 0.1) else other
        texture = _part(source, name, size, rng)
    if is_hair or rng.random() < 0.3:
        texture = texture + _grain(size, is_hair, rng)
    ends = rng.uniform(0.6, 1.3, 2)
    across = np.linspace(ends[0], ends[1], size, dtype=np.float32)
    texture = texture * (across[:, None, None] if rng.random() < 0.5 else across[None, :, None])
    if rng.random() < 0.7:  # round things are darker at their edges
        distance = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 3)
        reach = size * rng.uniform(0.01, 0.08)
        depth = rng.uniform(0.1, 0.6)
        texture = texture * (1 - depth * np.exp(-distance / reach))[..., None]
    return texture.astype(np.float32).clip(0, 255)


_SKIN = ((0.3, 0.45, 0.2), (0.5, 0.45, 0.2), (0.35, 0.12, 0.3))
"""Left, top and side of parts with skin in a canonical crop: cheeks and forehead."""
_TOP = ((0.2, 0.0, 0.2), (0.4, 0.0, 0.2), (0.6, 0.0, 0.2))
"""Parts that show hair more often than others."""


def _part(source: Image, name: str, size: int, rng: np.random.Generator) -> FloatArray:
    """A part of a crop, of skin for hands and of hair for hair, enlarged to (size, size, 3)."""
    draw = rng.random()
    if name == "hand" and draw < 0.8:
        left, top, side = _SKIN[int(rng.integers(len(_SKIN)))]
    elif name in _HAIR and draw < 0.7:
        left, top, side = _TOP[int(rng.integers(len(_TOP)))]
    else:
        side = rng.uniform(0.1, 1.0)
        left, top = rng.uniform(0, 1 - side, 2)
    count = min(source.shape[:2])
    x, y, length = (round(value * count) for value in (left, top, side))
    part = source[y : y + max(length, 2), x : x + max(length, 2)]
    flags = cv2.INTER_LINEAR
    texture = cv2.resize(part, (size, size), interpolation=flags).astype(np.float32)
    if rng.random() < 0.5:
        texture *= np.float32(np.exp(rng.normal(0, 0.25)))
    return texture


def _grain(size: int, along: bool, rng: np.random.Generator) -> FloatArray:
    """Noise (size, size, 1): fine, coarse, or drawn out to strands."""
    noise = rng.normal(0, 1, (size, size)).astype(np.float32)
    sigmas = (0.7, size / 12) if along else (size * rng.uniform(0.003, 0.04),) * 2
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), sigmaX=sigmas[0], sigmaY=sigmas[1]))
    scaled: FloatArray = smooth / (smooth.std() + 1e-6) * rng.uniform(4, 25)
    return scaled[..., None]


def _beyond(crop: Image, mask: Image, rng: np.random.Generator) -> FloatArray:
    """What is shown beyond the border of an image: black, one color, or its last pixels."""
    kind = rng.random()
    if kind < 0.6:
        return np.zeros(crop.shape, np.float32)
    if kind < 0.8:
        return np.full(crop.shape, rng.uniform(0, 255, 3), np.float32)
    rows, columns = (np.flatnonzero((mask == 0).any(axis=axis)) for axis in (1, 0))
    inner = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    edges = rows[0], len(crop) - rows[-1] - 1, columns[0], len(crop) - columns[-1] - 1
    return cv2.copyMakeBorder(inner, *edges, cv2.BORDER_REPLICATE).astype(np.float32)
