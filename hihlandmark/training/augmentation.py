"""Random changes of a training sample: geometry first, then the look of the crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]  # uint8; OpenCV does not say so


@dataclass(frozen=True)
class Augmentation:
    """How far a sample may be changed. Probabilities in 0..1."""

    rotation_degrees: float = 18.0
    """Standard deviation; cut at 2.5 of them."""
    scale: float = 0.10
    """Standard deviation of the logarithm of the crop's side; cut at 2.5."""
    shift: float = 0.04
    """Standard deviation of the crop's centre, in sides; cut at 2.5."""
    flip: float = 0.5
    colour: float = 0.7
    grey: float = 0.1
    blur: float = 0.15
    shrink: float = 0.15
    jpeg: float = 0.15
    occlusion: float = 0.4

    def square(self, square: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """A jittered crop square (cx, cy, side, angle)."""
        scale, dx, dy, turn = np.clip(rng.standard_normal(4), -2.5, 2.5)
        cx, cy, side, angle = square
        return np.array(
            [
                cx + dx * self.shift * side,
                cy + dy * self.shift * side,
                side * np.exp(scale * self.scale),
                angle + np.deg2rad(turn * self.rotation_degrees),
            ]
        )

    def look(self, crop: Image, rng: np.random.Generator) -> Image:
        """The crop (S, S, 3) with another look; points stay where they are."""
        size = crop.shape[0]
        if rng.random() < self.colour:
            crop = _colour(crop, rng)
        if rng.random() < self.grey:
            crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if rng.random() < self.shrink:
            small = int(size * rng.uniform(0.2, 0.7))
            crop = cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA)
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        if rng.random() < self.blur:
            crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.004, 0.015) * size)
        if rng.random() < self.jpeg:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 70))]
            crop = np.asarray(
                cv2.imdecode(cv2.imencode(".jpg", crop, quality)[1], cv2.IMREAD_COLOR)
            )
        if rng.random() < self.occlusion:
            crop = _occlude(crop, rng)
        return crop


def _colour(crop: Image, rng: np.random.Generator) -> Image:
    """Brightness, contrast, gamma and a cast, through one look-up table a channel."""
    ramp = np.linspace(0, 1, 256)[:, None]
    gamma = np.exp(rng.normal(0, 0.25))
    contrast, brightness = np.exp(rng.normal(0, 0.2)), rng.normal(0, 0.1)
    cast = np.exp(rng.normal(0, 0.06, size=3))
    table = ((ramp**gamma - 0.5) * contrast + 0.5 + brightness) * cast
    return cv2.LUT(crop, (table.clip(0, 1) * 255).round().astype(np.uint8)[None])


def _occlude(crop: Image, rng: np.random.Generator) -> Image:
    """A rectangle of noise or of one colour, an eighth to a half of the crop a side."""
    size = crop.shape[0]
    crop = crop.copy()
    height, width = (size * rng.uniform(0.12, 0.45, size=2)).astype(int)
    top, left = int(rng.integers(0, size - height)), int(rng.integers(0, size - width))
    fill = rng.integers(0, 256, size=3)
    if rng.random() < 0.3:
        fill = rng.integers(0, 256, size=(height, width, 3))
    crop[top : top + height, left : left + width] = fill
    return crop
