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
from hihlandmark.heatmap import NestedTargets, encode_nested
from hihlandmark.models.base import DECIMAL_BINS, DECIMAL_EXTENT, DECIMAL_MARGIN
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.weights import load_model

POINT = "left_eye_outer_corner"
STRIDE, CELLS = 8, 24
MARK, CROSS = "#0077ff", "#4fc3f7"


class Prediction(NamedTuple):
    """A crop (S, S, 3), a point (2,) in it, and what the network predicts of it.

    ``integer``: (98, `CELLS`, `CELLS`) of all points. ``cells``: (K, 2) as (x, y), the best cells
    of the point. ``decimal``: (K, `DECIMAL_EXTENT`, `DECIMAL_EXTENT`), at these cells.
    """

    crop: Image
    point: FloatArray
    integer: FloatArray
    cells: FloatArray
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
    index = finder.layout.point_names.index(POINT)
    integer = raw.integer[0].flatten(1).softmax(dim=-1).unflatten(1, (CELLS, CELLS))
    cells = torch.stack([raw.cells[0, index] % CELLS, raw.cells[0, index] // CELLS], dim=-1)
    columns, rows = raw.decimal[0, index].softmax(dim=-1).unbind(dim=1)
    decimal = rows[:, :, None] * columns[:, None, :]
    return Prediction(crop, place[index], integer.numpy(), cells.numpy(), decimal.numpy())


def target(u: FloatArray, cell: FloatArray) -> NestedTargets:
    """The targets of a point at ``u`` (2,), in cells, with decimals at a cell (2,)."""
    x, y = (int(each) for each in cell)
    points = torch.from_numpy(np.asarray(u) * STRIDE - 0.5)[None]
    return encode_nested(points, torch.tensor([[y * CELLS + x]]), CELLS, stride=STRIDE)


def around(point: FloatArray, cells: int) -> tuple[int, int]:
    """The first cell, as (x, y), of a window of ``cells`` cells around a point."""
    x, y = np.floor((point + 0.5) / STRIDE).astype(int) - cells // 2
    return int(x), int(y)


def draw_cells(seen: Prediction) -> Any:
    """The crop around a point, with pixels and cells, and one cell with its bins."""
    x0, y0 = around(seen.point, 5)
    pale = np.asarray(120 + 0.53 * seen.crop, np.uint8)  # as a background
    u = (seen.point + 0.5) / STRIDE
    cell = np.floor(u)
    figure = new_figure(9.6, 4.9)
    left, right = figure.subplots(1, 2)
    left.imshow(pale, extent=(0, CELLS, CELLS, 0), interpolation="nearest")
    for number in range(6):
        left.axvline(x0 + number, color="white", linewidth=1.2)
        left.axhline(y0 + number, color="white", linewidth=1.2)
    left.add_patch(rectangle(cell, 1, MARK))
    left.plot(*u, "o", color=MARK, markersize=7, markeredgecolor="white")
    left.set(xlim=(x0, x0 + 5), ylim=(y0 + 5, y0))
    left.set_title(f"cells of 8 x 8 pixels: the point is in cell ({cell[0]:g}, {cell[1]:g})")
    # In bins, counted from the corner of the cell.
    ends = [(np.array([0, CELLS]) - each) * DECIMAL_BINS for each in cell]
    extent = (*ends[0], *ends[1][::-1])
    right.imshow(pale, extent=extent, interpolation="nearest")
    reach = (-DECIMAL_MARGIN, DECIMAL_BINS + DECIMAL_MARGIN)
    for number in range(reach[0], reach[1] + 1):
        right.axvline(number, color="white", linewidth=0.7)
        right.axhline(number, color="white", linewidth=0.7)
    right.add_patch(rectangle(np.zeros(2), DECIMAL_BINS, MARK))
    fraction = u - cell
    place = np.floor(fraction * DECIMAL_BINS)
    right.add_patch(rectangle(place, 1, MARK))
    right.plot(*(fraction * DECIMAL_BINS), "o", color=MARK, markersize=7, markeredgecolor="white")
    right.set(xlim=reach, ylim=reach[::-1])
    right.set_title(
        f"that cell in 8 x 8 bins, and a margin of 4: fraction ({fraction[0]:.2f}, "
        f"{fraction[1]:.2f})"
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
    u = (seen.point + 0.5) / STRIDE
    wanted_map = target(u, np.floor(u)).integer[0].numpy()
    x0, y0 = around(seen.point, 9)
    figure = new_figure(11, 4)
    whole, wanted, found = figure.subplots(1, 3)
    whole.imshow(seen.crop, extent=(0, CELLS, CELLS, 0))
    peaks = seen.integer / seen.integer.max(axis=(-2, -1), keepdims=True)
    whole.imshow(peaks.max(axis=0), cmap="magma", alpha=0.55, extent=(0, CELLS, CELLS, 0))
    whole.plot([x0, x0 + 9, x0 + 9, x0, x0], [y0, y0, y0 + 9, y0 + 9, y0], color="white")
    whole.set_title("integer heatmaps of all 98 points", fontsize=10)
    whole.axis("off")
    for axis, maps, title in (
        (wanted, wanted_map, "target: sigma 0.7 cells"),
        (found, seen.integer[index], "prediction: a probability for each cell"),
    ):
        axis.imshow(maps, cmap="magma", extent=(0, CELLS, CELLS, 0))
        axis.set(xlim=(x0, x0 + 9), ylim=(y0 + 9, y0))
        axis.plot(*u, "+", color=CROSS, markersize=12)
        axis.set_title(title, fontsize=10)
        axis.xaxis.tick_bottom()
        axis.tick_params(length=0, labelsize=8)
    return figure


def draw_decimal(seen: Prediction) -> Any:
    """Targets and predictions of the decimal heatmap of a point at its two best cells."""
    index = detector().layout.point_names.index(POINT)
    u = (seen.point + 0.5) / STRIDE
    figure = new_figure(11, 3.2)
    axes = iter(figure.subplots(1, 4))
    reach = (-DECIMAL_MARGIN, DECIMAL_BINS + DECIMAL_MARGIN)
    for number, title in enumerate(("best cell", "second best cell")):
        columns, rows = target(u, seen.cells[number]).decimal[0, 0].numpy()
        decimal = seen.decimal[number]
        for what, maps in (("target", np.outer(rows, columns)), ("prediction", decimal)):
            axis = next(axes)
            axis.imshow(maps, cmap="magma", vmin=0, extent=(*reach, *reach[::-1]))
            axis.add_patch(rectangle(np.zeros(2), DECIMAL_BINS, "white"))
            place = (u - seen.cells[number]) * DECIMAL_BINS
            axis.plot(*place, "+", color=CROSS, markersize=12)
            axis.set(xlim=reach, ylim=reach[::-1])
            axis.set_title(f"{title}: {what}", fontsize=10)
            axis.set_xticks(range(reach[0], reach[1] + 1, 4))
            axis.set_yticks(range(reach[0], reach[1] + 1, 4))
            axis.tick_params(length=0, labelsize=8)
        entropy = -(decimal * np.log(decimal.clip(1e-12))).sum()
        x, y = seen.cells[number]
        print(
            f"{title}: probability {seen.integer[index, y, x]:.2f}; decimal heatmap: highest "
            f"probability {decimal.max():.3f} (uniform {1 / DECIMAL_EXTENT**2:.3f}), entropy "
            f"{entropy:.2f} nats (uniform {2 * np.log(DECIMAL_EXTENT):.2f})"
        )
    return figure


def main() -> None:
    """Draw all figures."""
    seen = predict()
    save(draw_cells(seen), "cells.png")
    save(draw_integer(seen), "integer.png")
    save(draw_decimal(seen), "decimal.png")


if __name__ == "__main__":
    main()
