"""Draws the figures of docs/concepts/layouts.md: the points of the layouts with their numbers.

python docs/figures/layouts.py

Writes ``layout-98.png``, ``layout-68.png``, ``layout-29.png`` and ``conversion.png`` beside this
file. Needs matplotlib and scikit-image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from paper import ORANGE, face, paled, portrait, save, transform

from hihlandmark import Layout
from hihlandmark.evaluation.report import new_figure

SIDE = 800
PARTS = {
    "jaw": "#3b6fb6",
    "eyebrow": "#8a5a2b",
    "nose": "#2e8b57",
    "eye": "#b3356f",
    "pupil": "#d9660f",
    "lips": "#c23b22",
}


def color_of(part: str) -> str:
    """Left and right, outer and inner share a color; "eyebrow" is matched before "eye"."""
    return next(color for name, color in PARTS.items() if name in part)


def outward(layout: Layout, points: Any) -> Any:
    """Unit vectors (P, 2) from the center of each point's part, towards free space for numbers."""
    directions = np.zeros_like(points)
    for part, indices in layout.parts.items():
        middle = points[list(indices)].mean(axis=0)
        if part == "jaw":
            middle = points.mean(axis=0)
        for index in indices:
            directions[index] = points[index] - middle
        if part.startswith("nose_bridge"):
            directions[list(indices)] = (1, 0)
        if part.startswith("inner_lips"):
            directions[list(indices)] *= -1
    if "nose_base" in layout.parts:
        directions[list(layout.parts["nose_base"])] = (0, 1)
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.where(length > 1e-6, directions / np.maximum(length, 1e-6), (0.0, 1.0))


def draw_layout(size: int) -> Any:
    """The face with the numbered points of a layout, colored by part."""
    image, matrix = portrait(SIDE, margin=1.22)
    found = face(size)
    layout, points = found.layout, transform(found.points, matrix)
    figure = new_figure(8, 8)
    axis = figure.subplots()
    axis.imshow(paled(image))
    axis.axis("off")
    for indices, closed in layout.contours:
        line = points[[*indices, indices[0]] if closed else list(indices)]
        axis.plot(*line.T, color="#ffffff", linewidth=2.4)
        axis.plot(*line.T, color="#99a4b0", linewidth=1.0)
    directions = outward(layout, points)
    halo = [withStroke(linewidth=2, foreground="white")]
    for part, indices in layout.parts.items():
        for index in indices:
            x, y = points[index]
            axis.plot(x, y, "o", color=color_of(part), markersize=4.2)
            step = directions[index] * (13 if size == 98 else 15)
            axis.text(
                x + step[0],
                y + step[1],
                str(index),
                color=color_of(part),
                ha="center",
                va="center",
                fontsize=7.5 if size == 98 else 9.5,
                path_effects=halo,
            )
    return figure


def draw_conversion() -> Any:
    """The 98 points, and the 68 converted from them: exact and interpolated ones."""
    image, matrix = portrait(480, margin=1.22)
    target = face(98).to_layout(68)
    figure = new_figure(9.6, 4.9)
    for axis, found in zip(figure.subplots(1, 2), (face(98), target), strict=True):
        axis.imshow(paled(image))
        axis.axis("off")
        points = transform(found.points, matrix)
        exact = ~found.approximate
        axis.plot(*points[exact].T, "o", color=PARTS["jaw"], markersize=4)
        axis.plot(*points[~exact].T, "o", color=ORANGE, markersize=5, markerfacecolor="white")
        title = f"{found.layout.size} points"
        if found is target:
            title += f": {exact.sum()} exact, {(~exact).sum()} interpolated (open)"
        axis.set_title(title, fontsize=11)
    return figure


def main() -> None:
    """Draw all."""
    for size in (98, 68, 29):
        save(draw_layout(size), f"layout-{size}.png")
    save(draw_conversion(), "conversion.png")


if __name__ == "__main__":
    main()
