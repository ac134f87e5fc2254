"""Draw the figures of docs/concepts/heatmaps.md: integer and decimal heatmaps on a face.

    python docs/figures/integer_decimal.py

Writes ``cells.png``, ``integer.png`` and ``decimal.png`` to this folder. Needs matplotlib and
scikit-image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from paper import astronaut_image, detector, face, save

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, transform_points
from hihlandmark.evaluation.report import new_figure
from hihlandmark.heatmap import encode, to_distributions
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.weights import load_model

POINT = "left_eye_outer_corner"
STRIDE, CELLS, BINS = 4, 64, 8
MARK = "#0077ff"


class Prediction(NamedTuple):
    """A crop (S, S, 3), a point (2,) in it, and its heatmaps (P, 64, 64) and (P, 8, 8)."""

    crop: Image
    point: FloatArray
    integer: FloatArray
    decimal: FloatArray


@torch.inference_mode()
def predict() -> Prediction:
    """The heatmaps of the packaged network on the second crop of the astronaut."""
    finder, found = detector(), face()
    square = finder.box_map("landmarks").squares_around(
        found.points[None].astype(float), np.zeros(1)
    )[0]
    size = finder.landmarker.crop_size
    crop = np.asarray(cut_crop(astronaut_image(), square, size))
    place = transform_points(crop_matrix(square, size), found.points.astype(float))
    network, card, _ = load_model(model=finder.card.name)
    graph = CropGraph(network, [finder.layout.name], card.normalization, card.decoding)
    (raw,) = graph.heatmaps(torch.from_numpy(crop[None]))
    integer, decimal = to_distributions(*raw, card.decoding.activation)
    assert decimal is not None
    index = finder.layout.point_names.index(POINT)
    return Prediction(crop, place[index], integer[0].numpy(), decimal[0].numpy())


def around(point: FloatArray, cells: int) -> tuple[int, int]:
    """The first cell, as (x, y), of a window of ``cells`` cells around a point."""
    x, y = np.floor((point + 0.5) / STRIDE).astype(int) - cells // 2
    return int(x), int(y)


def draw_cells(seen: Prediction) -> Any:
    """The crop around a point, with pixels and cells, and one cell with its bins."""
    x0, y0 = around(seen.point, 5)
    pixels = seen.crop[y0 * STRIDE : (y0 + 5) * STRIDE, x0 * STRIDE : (x0 + 5) * STRIDE]
    pixels = np.asarray(120 + 0.53 * pixels, np.uint8)  # pale, as a background
    u = (seen.point + 0.5) / STRIDE
    cell = np.floor(u)
    figure = new_figure(9.6, 4.9)
    left, right = figure.subplots(1, 2)
    left.imshow(pixels, extent=(x0, x0 + 5, y0 + 5, y0), interpolation="nearest")
    for number in range(6):
        left.axvline(x0 + number, color="white", linewidth=1.2)
        left.axhline(y0 + number, color="white", linewidth=1.2)
    left.add_patch(rectangle(cell, 1, MARK))
    left.plot(*u, "o", color=MARK, markersize=7, markeredgecolor="white")
    left.set_title(f"cells of 4 x 4 pixels: the point is in cell ({cell[0]:g}, {cell[1]:g})")
    pixels = pixels[
        int(cell[1] - y0) * STRIDE : int(cell[1] - y0 + 1) * STRIDE,
        int(cell[0] - x0) * STRIDE : int(cell[0] - x0 + 1) * STRIDE,
    ]
    right.imshow(pixels, extent=(0, BINS, BINS, 0), interpolation="nearest")
    for number in range(BINS + 1):
        right.axvline(number, color="white", linewidth=0.7)
        right.axhline(number, color="white", linewidth=0.7)
    fraction = u - cell
    place = np.floor(fraction * BINS)
    right.add_patch(rectangle(place, 1, MARK))
    right.plot(*(fraction * BINS), "o", color=MARK, markersize=7, markeredgecolor="white")
    right.set_title(
        f"that cell, in 8 x 8 bins: fraction ({fraction[0]:.2f}, {fraction[1]:.2f}), "
        f"bin ({place[0]:g}, {place[1]:g})"
    )
    for axis in (left, right):
        axis.xaxis.tick_top()
        axis.tick_params(length=0, labelsize=8)
        axis.set_title(axis.get_title(), fontsize=10, pad=10)
    return figure


def rectangle(corner: FloatArray, side: float, color: str) -> Any:
    """The outline of a cell or a bin."""
    from matplotlib.patches import Rectangle

    return Rectangle(tuple(corner), side, side, fill=False, edgecolor=color, linewidth=2)


def draw_integer(seen: Prediction) -> Any:
    """All heatmaps over the crop, and one of them with its target."""
    index = detector().layout.point_names.index(POINT)
    target = encode(torch.from_numpy(seen.point)[None], CELLS, stride=STRIDE).integer[0].numpy()
    x0, y0 = around(seen.point, 15)
    figure = new_figure(11, 4)
    whole, wanted, found = figure.subplots(1, 3)
    whole.imshow(seen.crop, extent=(0, CELLS, CELLS, 0))
    peaks = seen.integer / seen.integer.max(axis=(-2, -1), keepdims=True)
    whole.imshow(peaks.max(axis=0), cmap="magma", alpha=0.55, extent=(0, CELLS, CELLS, 0))
    whole.plot([x0, x0 + 15, x0 + 15, x0, x0], [y0, y0, y0 + 15, y0 + 15, y0], color="white")
    whole.set_title("integer heatmaps of all 98 points", fontsize=10)
    whole.axis("off")
    for axis, maps, title in (
        (wanted, target, "target: sigma 1.5 cells"),
        (found, seen.integer[index], "prediction: a probability for each cell"),
    ):
        axis.imshow(maps, cmap="magma", extent=(0, CELLS, CELLS, 0))
        axis.set_xlim(x0, x0 + 15)
        axis.set_ylim(y0 + 15, y0)
        axis.plot(*((seen.point + 0.5) / STRIDE), "+", color="#4fc3f7", markersize=12)
        axis.set_title(title, fontsize=10)
        axis.xaxis.tick_bottom()
        axis.tick_params(length=0, labelsize=8)
    return figure


def draw_decimal(seen: Prediction) -> Any:
    """Targets of three points of one cell, and the prediction of the packaged network."""
    figure = new_figure(11, 3.2)
    axes = figure.subplots(1, 4)
    index = detector().layout.point_names.index(POINT)
    for axis, fraction in zip(axes, ((0.5, 0.5), (0.2, 0.7), (0.97, 0.1)), strict=False):
        place = torch.tensor([fraction]) * STRIDE + 30 * STRIDE - 0.5
        axis.imshow(
            encode(place, CELLS, stride=STRIDE).decimal[0].numpy(), cmap="magma", vmin=0, vmax=1
        )
        axis.plot(*(np.array(fraction) * BINS - 0.5), "+", color="#4fc3f7", markersize=12)
        axis.set_title(f"target at ({fraction[0]:g}, {fraction[1]:g})", fontsize=10)
    axes[3].imshow(seen.decimal[index], cmap="magma", vmin=0, vmax=seen.decimal[index].max())
    axes[3].set_title("hih-small: almost uniform", fontsize=10)
    for axis in axes:
        axis.set_xticks(range(BINS))
        axis.set_yticks(range(BINS))
        axis.tick_params(length=0, labelsize=8)
    print(f"highest decimal probability {seen.decimal[index].max():.4f}, uniform {1 / BINS**2:.4f}")
    return figure


def main() -> None:
    """Draw all figures."""
    seen = predict()
    save(draw_cells(seen), "cells.png")
    save(draw_integer(seen), "integer.png")
    save(draw_decimal(seen), "decimal.png")


if __name__ == "__main__":
    main()
