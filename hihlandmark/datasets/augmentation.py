"""Augmentation of training samples: the position of the crop and its appearance.

All randomness comes from a generator that the caller passes, made by `generator` for one sample of
one epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image, IndexArray
from hihlandmark.crop import crop_matrix, cut_crop, transform_points
from hihlandmark.datasets.occluders import cover, covered_at
from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import mirror_points

Other = Image | Callable[[], Image] | None
"""An image (H, W, 3) uint8 that patches come from, or a function that reads it if needed."""

NORMAL_LIMIT = 2.5  # normal draws are clipped at this many standard deviations
MAX_TILT = 0.12  # of the corners of a crop in perspective, in sides
POINT_MARGIN = 8 / 256
"""Margin around the points of an enlarged crop, in sides. HIH pads its crops by 8 of 256 pixels."""


class AugmentedCrop(NamedTuple):
    """A crop (S, S, 3) uint8 and the points (P, 2) in its pixels, in the order of the layout."""

    image: Image
    points: FloatArray
    flipped: bool
    """The crop is a mirror image: other arrays of points have to be reordered by the mirror."""
    covered: FloatArray | None = None
    """(P,) in 0..1: how much each point is covered by ``occluders``, 1 outside of the crop, NaN
    where it is unknown. None: no occluder was drawn."""


@dataclass(frozen=True)
class Augmentation:
    """How often and how much a sample is changed.

    Fields without a unit are probabilities in 0..1. A "side" is the side of the crop.

    Raises:
        ConfigurationError: a value is out of range.
    """

    distribution: Literal["normal", "uniform"] = "normal"
    """Distribution of rotation, scale and shift: "normal" with the fields as standard deviations,
    clipped at 2.5 of them, or "uniform" between minus and plus the fields."""
    rotation_degrees: float = 18.0
    scale: float = 0.10
    """Spread of the logarithm of the side of the square."""
    shift: float = 0.04
    """Spread of the center of the square, along each axis, in sides."""
    rotation_probability: float = 1.0
    scale_probability: float = 1.0
    shift_probability: float = 1.0
    keep_points: bool = False
    """Enlarge a square with points outside until it contains all of them."""
    perspective: float = 0.0
    """Move the corners of the crop by up to 0.12 sides each, as a camera near by would."""
    border: float = 0.0
    """Fill what lies outside of the image by its mirror image, its last pixels, or another image,
    instead of with black: for images that are cut close to the face."""
    flip: float = 0.5
    """Mirror the crop and exchange left and right points."""
    color: float = 0.7
    """Brightness, contrast, gamma and color cast."""
    gray: float = 0.1
    shrink: float = 0.15
    """Downscale to 0.2 to 0.7 of the size and upscale again: a small or distant face."""
    blur: float = 0.15
    """Gaussian, out of focus."""
    blur_sigma: tuple[float, float] = (0.004, 0.015)
    """Smallest and largest standard deviation of the Gaussian blur, in sides."""
    motion_blur: float = 0.08
    """Along a line of any direction, 0.01 to 0.06 sides long."""
    noise: float = 0.0
    """Blend every pixel with a random color of up to half the weight, as ADNet does."""
    jpeg: float = 0.15
    """JPEG compression with a quality of 20 to 70."""
    patch: float = 0.15
    """Cover the face with a rectangle or ellipse of another image."""
    occlusion: float = 0.3
    """Cover the face with a rectangle of one color or of noise."""
    occlusion_side: tuple[float, float] = (0.12, 0.45)
    """Smallest and largest width and height of rectangles and patches, in sides."""
    occlusion_noise: float = 0.3
    """Fill an occluding rectangle with noise instead of one color."""
    occluders: float = 0.0
    """Cover the face with what covers faces in images, see `occluders`, before its appearance is
    changed."""

    def __post_init__(self) -> None:
        """Check the ranges of all fields."""
        spreads = ("rotation_degrees", "scale", "shift")
        for name, value in vars(self).items():
            if name == "distribution":
                fine, needed = value in ("normal", "uniform"), '"normal" or "uniform"'
            elif name in spreads:
                fine, needed = 0 <= value < np.inf, "0 or more"
            elif name in ("blur_sigma", "occlusion_side"):
                low, high = value
                fine, needed = 0 <= low <= high <= 1, "two numbers in 0..1, the smaller one first"
            else:
                fine, needed = 0 <= value <= 1, "in 0..1"
            if not fine:
                raise ConfigurationError(f"augmentation: {name} is {value!r}, not {needed}")

    def crop(
        self,
        image: Image,
        points: FloatArray,
        mirror: IndexArray,
        square: FloatArray,
        size: int,
        rng: np.random.Generator,
        other: Other = None,
        eyes: FloatArray | None = None,
    ) -> AugmentedCrop:
        """A face as a training sample: a jittered and possibly mirrored crop.

        Args:
            image: (H, W, 3) uint8.
            points: (P, 2) in its pixels, NaN where unknown.
            mirror: (P,), see `Layout.mirror`.
            square: (4,), the crop square without jitter, see `crop.py`.
            size: side S of the crop in pixels.
            rng: of this sample, see `generator`.
            other: the image that patches come from; without it there are no patches.
            eyes: (2, 2), the left and the right eye in pixels of the image, where occluders such as
                glasses are placed; None: as in a canonical crop.
        """
        square = self.square(square, rng, points)
        crop = self._cut(image, square, size, rng, other)
        points = transform_points(crop_matrix(square, size), points)
        if self.perspective and rng.random() < self.perspective:
            crop, points = _in_perspective(crop, points, rng)
        covered = None
        if self.occluders and rng.random() < self.occluders:
            source = other() if callable(other) else other
            if eyes is not None:
                eyes = transform_points(crop_matrix(square, size), eyes)
            crop, alpha = cover(crop, source, rng, eyes)
            covered = covered_at(alpha, points)
        flipped = bool(rng.random() < self.flip)
        if flipped:
            crop, points = mirror_face(crop, points, mirror)
            covered = None if covered is None else covered[mirror]
        return AugmentedCrop(self.look(crop, rng, other), points, flipped, covered)

    def square(
        self, square: FloatArray, rng: np.random.Generator, points: FloatArray | None = None
    ) -> FloatArray:
        """A jittered crop square (4,) of (cx, cy, side, angle), see `crop.py`.

        ``points`` (P, 2) of the face, NaN where unknown, are used by ``keep_points``.
        """
        if self.distribution == "uniform":
            draws = rng.uniform(-1, 1, size=4)
        else:
            draws = rng.standard_normal(4).clip(-NORMAL_LIMIT, NORMAL_LIMIT)
        shares = (self.scale_probability, self.shift_probability, self.rotation_probability)
        scale, dx, dy, rotation = draws * (rng.random(3) < shares)[[0, 1, 1, 2]]
        cx, cy, side, angle = square
        x, y = cx + dx * self.shift * side, cy + dy * self.shift * side
        angle += np.deg2rad(rotation * self.rotation_degrees)
        jittered = np.array([x, y, side * np.exp(scale * self.scale), angle])
        if self.keep_points and points is not None:
            jittered[2] *= _enlargement(jittered, points)
        return jittered

    def _cut(
        self, image: Image, square: FloatArray, size: int, rng: np.random.Generator, other: Other
    ) -> Image:
        """`cut_crop` with a border."""
        # Without a draw where it is off, as for noise.
        if not self.border or rng.random() >= self.border:
            return cut_crop(image, square, size)
        kind = rng.integers(3)
        if kind < 2 or other is None:
            border = cv2.BORDER_REFLECT_101 if kind else cv2.BORDER_REPLICATE
            return cut_crop(image, square, size, border)
        crop = cut_crop(image, square, size)
        inside = cut_crop(np.ones(image.shape[:2], np.uint8), square, size)
        source = other() if callable(other) else other
        quarter = cv2.resize(source[: len(source) // 2, : len(source) // 2], (size, size))
        return cv2.copyTo(crop, inside, quarter)

    def look(self, crop: Image, rng: np.random.Generator, other: Other = None) -> Image:
        """A crop (S, S, 3) uint8 with another appearance, points in place; itself if unchanged."""
        if rng.random() < self.color:
            crop = _color(crop, rng)
        if rng.random() < self.gray:
            crop = without_color(crop)
        if rng.random() < self.shrink:
            crop = _shrink(crop, rng)
        if rng.random() < self.blur and (sigma := rng.uniform(*self.blur_sigma)) > 0:
            crop = cv2.GaussianBlur(crop, (0, 0), sigma * len(crop))
        if rng.random() < self.motion_blur:
            crop = _motion_blur(crop, rng)
        # Without a draw where it is off, so that it leaves the draws of others as they are.
        if self.noise and rng.random() < self.noise:
            crop = _noisy(crop, rng)
        if rng.random() < self.jpeg:
            crop = compressed(crop, int(rng.integers(20, 71)))
        if rng.random() < self.patch and other is not None:
            source = other() if callable(other) else other
            crop = _patch(crop, source, self.occlusion_side, rng)
        if rng.random() < self.occlusion:
            crop = _occlude(crop, self.occlusion_side, self.occlusion_noise, rng)
        return crop


NO_AUGMENTATION = Augmentation(
    rotation_degrees=0,
    scale=0,
    shift=0,
    flip=0,
    color=0,
    gray=0,
    shrink=0,
    blur=0,
    motion_blur=0,
    jpeg=0,
    patch=0,
    occlusion=0,
)
"""Unchanged crops."""


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """A random generator of a seed and numbers, such as set, index and epoch of a sample.

    It depends on nothing else, so that runs can be resumed exactly.
    """
    # The count at the end, because NumPy treats (1, 2) and (1, 2, 0) as the same seed.
    return np.random.default_rng((seed, *numbers, len(numbers) + 1))


def mirror_face(image: Image, points: FloatArray, mirror: IndexArray) -> tuple[Image, FloatArray]:
    """Mirror an image (H, W, 3) and its points (P, 2), see `mirror_points`."""
    return cv2.flip(image, 1), mirror_points(points, mirror, image.shape[1])


def _enlargement(square: FloatArray, points: FloatArray) -> float:
    """The factor on a square's side that makes it contain the points (P, 2); 1 if it does."""
    unit = transform_points(crop_matrix(square, 2), points) - 0.5  # the edges are at -1 and 1
    reach = float(np.nanmax(np.abs(unit)))
    return reach / (1 - 2 * POINT_MARGIN) if reach > 1 else 1.0


def _in_perspective(
    crop: Image, points: FloatArray, rng: np.random.Generator
) -> tuple[Image, FloatArray]:
    """A crop and its points (P, 2), NaN where unknown, after its corners were moved."""
    size = len(crop)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * (size - 1)
    targets = corners + rng.uniform(-MAX_TILT, MAX_TILT, size=(4, 2)) * size
    matrix = cv2.getPerspectiveTransform(corners, targets.astype(np.float32))
    tilted = cv2.warpPerspective(crop, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    # Not by OpenCV, which gives (0, 0) for NaN.
    moved = np.pad(points, [(0, 0), (0, 1)], constant_values=1) @ matrix.T
    return tilted, moved[:, :2] / moved[:, 2:]


def _color(crop: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast, gamma and a color cast, by one look-up table per channel."""
    ramp = np.linspace(0, 1, 256)[:, None]
    gamma = np.exp(rng.normal(0, 0.25))
    contrast, brightness = np.exp(rng.normal(0, 0.2)), rng.normal(0, 0.1)
    cast = np.exp(rng.normal(0, 0.06, size=3))
    table = ((ramp**gamma - 0.5) * contrast + 0.5 + brightness) * cast
    return cv2.LUT(crop, (table.clip(0, 1) * 255).round().astype(np.uint8)[None])


def _shrink(crop: Image, rng: np.random.Generator) -> Image:
    size = len(crop)
    small = max(1, round(size * rng.uniform(0.2, 0.7)))
    crop = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)


def _motion_blur(crop: Image, rng: np.random.Generator) -> Image:
    """The mean along a line, centered so that points do not move."""
    half = len(crop) * rng.uniform(0.01, 0.06) / 2
    direction = np.array([np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)])
    # One cell per step along the longer axis, and no empty rows or columns: OpenCV's time grows
    # with the nonzero cells, and large kernels use a slower Fourier transform.
    reach = round(half * np.abs(direction).max())
    steps = np.arange(-reach, reach + 1)[:, None]
    cells = np.round(steps * direction / np.abs(direction).max()).astype(int)
    x, y = (cells - cells.min(axis=0)).T
    kernel = np.zeros((y.max() + 1, x.max() + 1), np.float32)
    kernel[y, x] = 1 / len(steps)
    return cv2.filter2D(crop, -1, kernel)


def _noisy(crop: Image, rng: np.random.Generator) -> Image:
    noise = rng.integers(0, 256, size=crop.shape, dtype=np.uint8)
    share = rng.uniform(0, 0.5)
    return cv2.addWeighted(crop, 1 - share, noise, share, 0)


def compressed(image: Image, quality: int) -> Image:
    """An RGB image (H, W, 3) uint8 after JPEG compression of a quality in 0..100."""
    # OpenCV compresses BGR. Channels matter: JPEG stores color at a lower resolution.
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def without_color(image: Image) -> Image:
    """An RGB image (H, W, 3) uint8 in gray, with three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _occlude(
    crop: Image, sides: tuple[float, float], noise: float, rng: np.random.Generator
) -> Image:
    (height, width), (top, left) = _rectangle(crop, sides, rng)
    fill = rng.integers(0, 256, size=3, dtype=np.uint8)
    if rng.random() < noise:
        fill = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    crop = crop.copy()
    crop[top : top + height, left : left + width] = fill
    return crop


def _patch(
    crop: Image, other: Image, sides: tuple[float, float], rng: np.random.Generator
) -> Image:
    """Cover the crop with a part of another image, scaled as if that image filled the crop."""
    (height, width), (top, left) = _rectangle(crop, sides, rng)
    if not height or not width:
        return crop
    scale = min(other.shape[:2]) / len(crop)
    source = (max(1, int(height * scale)), max(1, int(width * scale)))
    y = int(rng.integers(other.shape[0] - source[0] + 1))
    x = int(rng.integers(other.shape[1] - source[1] + 1))
    part = cv2.resize(other[y : y + source[0], x : x + source[1]], (width, height))
    inside = np.ones((height, width), np.uint8)
    if rng.random() < 0.5:
        across = (np.arange(width) + 0.5) / width * 2 - 1
        down = (np.arange(height) + 0.5) / height * 2 - 1
        inside = (across**2 + down[:, None] ** 2 <= 1).astype(np.uint8)
    crop = crop.copy()
    place = crop[top : top + height, left : left + width]
    place[:] = cv2.copyTo(part, inside, place.copy())
    return crop


def _rectangle(
    crop: Image, sides: tuple[float, float], rng: np.random.Generator
) -> tuple[IndexArray, IndexArray]:
    """Height and width, and top and left, in pixels, of a rectangle within the crop."""
    extent = (len(crop) * rng.uniform(*sides, size=2)).astype(np.intp)
    return extent, rng.integers(0, len(crop) - extent + 1)
