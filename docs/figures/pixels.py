"""Draws the figures of docs/concepts/pixels.md: pixel coordinates, before and after resizing.

python docs/figures/pixels.py

Writes ``pixels.png`` and ``resizing.png`` beside this file. Needs matplotlib and scikit-image.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from paper import BLUE, GRAY, ORANGE, astronaut_image, face, save

from hihlandmark.evaluation.report import new_figure

CORNER = "left_eye_outer_corner"


def grid(axis: Any, width: int, height: int, color: str = GRAY) -> None:
    """The edges of pixels, and their numbers at the centers."""
    for x in np.arange(width + 1) - 0.5:
        axis.axvline(x, color=color, linewidth=0.6)
    for y in np.arange(height + 1) - 0.5:
        axis.axhline(y, color=color, linewidth=0.6)
    axis.set_xticks(range(width))
    axis.set_yticks(range(height))
    axis.xaxis.tick_top()
    axis.tick_params(length=0, labelsize=8)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    for side in axis.spines.values():
        side.set_visible(False)


def draw_pixels() -> Any:
    """An eye corner of the image, pixel by pixel, with the point that was found."""
    point = face()[CORNER]
    left, top = (np.floor(point) - (5, 4)).astype(int)
    part = astronaut_image()[top : top + 9, left : left + 14]
    figure = new_figure(9.4, 4.6)
    axis = figure.subplots()
    axis.imshow(part, interpolation="nearest")
    grid(axis, 14, 9, "#ffffff80")
    axis.set_xticks(range(14), [str(left + i) for i in range(14)])
    axis.set_yticks(range(9), [str(top + i) for i in range(9)])
    x, y = point - (left, top)
    axis.plot(*np.round((x, y)), "s", markersize=26, markerfacecolor="none", color="white")
    axis.plot(x, y, "o", color=ORANGE, markersize=8, markeredgecolor="white")
    axis.annotate(
        f"{CORNER}\n({point[0]:.2f}, {point[1]:.2f})",
        (x, y),
        (x + 3.4, y - 2.4),
        color="white",
        fontsize=11,
        arrowprops={"arrowstyle": "-", "color": "white"},
        bbox={"facecolor": "#00000090", "edgecolor": "none"},
    )
    axis.set_title("A number stands at the center of its pixel", fontsize=11)
    return figure


def draw_resizing() -> Any:
    """Four by three pixels, the same enlarged by 2, and a point in both."""
    small = cv2.cvtColor(astronaut_image(), cv2.COLOR_RGB2GRAY)[100:103, 193:197]
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    point = np.array([2.0, 1.0])
    figure = new_figure(9.4, 4.2)
    axes = figure.subplots(1, 2)
    for axis, image, factor in zip(axes, (small, large), (1, 2), strict=True):
        height, width = image.shape
        axis.imshow(image, cmap="gray", vmin=-120, vmax=300)
        grid(axis, width, height, "white")
        x, y = np.meshgrid(range(width), range(height))
        axis.plot(x.ravel(), y.ravel(), ".", color=BLUE, markersize=5)
        x, y = (point + 0.5) * factor - 0.5
        axis.plot(x, y, "o", color=ORANGE, markersize=9, markeredgecolor="white")
        axis.annotate(
            f"({x:g}, {y:g})",
            (x, y),
            (0, 11),
            textcoords="offset points",
            ha="center",
            color="black",
            fontsize=11,
            bbox={"facecolor": "#ffffffb0", "edgecolor": "none"},
        )
    axes[0].set_title("four by three pixels", fontsize=11)
    axes[1].set_title("enlarged by k = 2: x' = (x + 0.5) k - 0.5", fontsize=11)
    return figure


def main() -> None:
    """Draw both."""
    save(draw_pixels(), "pixels.png")
    save(draw_resizing(), "resizing.png")


if __name__ == "__main__":
    main()
