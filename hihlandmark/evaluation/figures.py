"""Images of an evaluation, as the bytes of PNG files: curves and the gallery of failures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, tight_boxes, transform_points
from hihlandmark.draw import draw_points
from hihlandmark.errors import ConfigurationError
from hihlandmark.evaluation.corruptions import FAILING, Robustness
from hihlandmark.evaluation.metrics import area_under_curve, cumulative_errors
from hihlandmark.evaluation.protocol import JitterCurve
from hihlandmark.evaluation.result import Evaluation

if TYPE_CHECKING:
    from hihlandmark.datasets.faces import AnnotatedFaces


CED_END = 0.10
"""Where the curve ends, as in the papers."""
TILE, CAPTION, TILES_A_ROW = 256, 40, 5
"""Pixels of a face and of the text below it in the gallery, and faces beside one another."""
MARGIN = 1.6
"""Side of a face's square in the gallery, in longer sides of the box tight around it."""


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of a size in inches. Raises `ConfigurationError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "the curves of a report are drawn with matplotlib: pip install 'hihlandmark[train]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def ced_figure(evaluation: Evaluation) -> bytes:
    """The share of faces with at most an error, up to 10 %: all faces and each subset."""
    figure = new_figure(8.4, 4.4)
    axes = figure.subplots()
    errors = evaluation.face_errors
    chosen = {"all": errors}
    chosen |= {name: errors[evaluation.subset(name)] for name in evaluation.subset_names}
    for name, some in chosen.items():
        curve = 100 * cumulative_errors(some, CED_END)
        label = f"{name}: AUC {100 * area_under_curve(some, CED_END):.1f} %, {len(some)} faces"
        axes.plot(curve[:, 0], curve[:, 1], label=label, linewidth=2.2 if name == "all" else 1.1)
    axes.set(
        xlabel=f"NME (% of {evaluation.normalization} distance)"
        if evaluation.normalization.startswith("inter")
        else f"NME (% of {evaluation.normalization})",
        ylabel="faces (%)",
        xlim=(0, 100 * CED_END),
        ylim=(0, 101),
    )
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    return _png(figure)


def jitter_figure(curves: Sequence[JitterCurve], normalization: str) -> bytes:
    """NME against shift and against scale of the boxes, a line for each number of refinements."""
    figure = new_figure(9, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        for axes, points in zip(panels, (curve.shifts, curve.scales), strict=True):
            places = [point.severity for point in points]
            low, high = 100 * np.array([point.interval for point in points]).T
            label = f"refine {curve.refine}"
            axes.plot(places, [100 * point.nme for point in points], marker="o", label=label)
            axes.fill_between(places, low, high, alpha=0.2)
    panels[0].set(xlabel="shift of the box (longer sides)", ylabel=f"NME (%, {normalization})")
    panels[1].set(xlabel="scale of the box")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return _png(figure)


def robustness_figure(robustness: Robustness, normalization: str) -> bytes:
    """NME with its 95 % interval, and FR10 below, against severity: a column a corruption.

    Images get worse to the right. Broken lines are those of images as they are.
    """
    curves, uncorrupted = robustness.curves, robustness.uncorrupted
    widths = [1 + len(curve.points) for curve in curves.values()]
    figure = new_figure(2 + 0.4 * sum(widths), 5.4)
    panels = figure.subplots(2, len(curves), sharex="col", squeeze=False, width_ratios=widths)
    for (name, curve), (above, below) in zip(curves.items(), panels.T, strict=True):
        severities = [point.severity for point in curve.points]
        nme = 100 * np.array([point.nme for point in curve.points])
        reach = np.abs(100 * np.array([point.interval for point in curve.points]).T - nme)
        above.errorbar(severities, nme, reach, marker="o", markersize=4, capsize=3)
        above.axhline(100 * uncorrupted.nme, color="gray", linestyle="--", linewidth=1)
        failing = [100 * point.failure_rate for point in curve.points]
        below.plot(severities, failing, marker="o", markersize=4)
        rate, fails = 100 * uncorrupted.failure_rate, 100 * FAILING
        below.axhline(rate, color="gray", linestyle="--", linewidth=1, label="uncorrupted")
        below.axhline(fails, color="tab:red", linestyle=":", linewidth=1, label="fails above")
        above.set(title=name, ylim=(0, None))
        below.set(xlabel=curve.corruption.unit, ylim=(-4, 104))
        below.set_xticks(severities, [f"{severity:g}" for severity in severities], fontsize=8)
        if severities[0] > severities[-1]:
            above.invert_xaxis()
        for axes in (above, below):
            axes.grid(alpha=0.3)
    panels[1, 0].legend(fontsize=8)
    panels[0, 0].set_ylabel(f"NME (%, {normalization})")
    panels[1, 0].set_ylabel("FR10 (%)")
    return _png(figure)


def failure_gallery(evaluation: Evaluation, faces: AnnotatedFaces, count: int = 40) -> bytes:
    """The worst faces, missed ones first: true points green, predicted ones red, joined by lines.

    Below each its NME and its name. ``faces`` has the images of the evaluation's faces.
    """
    errors = evaluation.face_errors
    order = [i for i in np.argsort(-errors, kind="stable") if not np.isnan(errors[i])][:count]
    photos = {face.name: face.load_image for face in faces}
    columns, rows = min(TILES_A_ROW, max(len(order), 1)), -(-len(order) // TILES_A_ROW)
    sheet = np.full((CAPTION // 2 + rows * (TILE + CAPTION), columns * TILE, 3), 255, np.uint8)
    places = [divmod(k, TILES_A_ROW) for k in range(len(order))]
    for i, (row, column) in zip(order, places, strict=True):
        top, left = CAPTION // 2 + row * (TILE + CAPTION), column * TILE
        sheet[top : top + TILE, left : left + TILE] = _tile(
            photos[evaluation.names[i]](), evaluation.truth[i], evaluation.predicted[i]
        )
    canvas = PillowImage.fromarray(sheet)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    pen.text((4, 3), "green: annotated   red: predicted", (0, 0, 0), font)
    for i, (row, column) in zip(order, places, strict=True):
        at = (column * TILE + 4, CAPTION // 2 + row * (TILE + CAPTION) + TILE + 3)
        error = "missed" if np.isinf(errors[i]) else f"NME {100 * errors[i]:.2f} %"
        pen.text(at, f"{error}\n{_shortened(evaluation.names[i])}", (0, 0, 0), font)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _tile(image: Image, truth: FloatArray, predicted: FloatArray) -> Image:
    """The square of one face with true and predicted points (P, 2), of which some may be NaN."""
    known = np.isfinite(truth).all(axis=1)
    box = tight_boxes(truth[known])
    center, side = (box[:2] + box[2:]) / 2, MARGIN * max(float((box[2:] - box[:2]).max()), 1)
    square = np.array([*center, side, 0])
    tile = np.ascontiguousarray(cut_crop(image, square, TILE))
    matrix = crop_matrix(square, TILE)
    true = transform_points(matrix, truth[known]).astype(np.float32)
    if np.isfinite(predicted).all():
        guessed = transform_points(matrix, predicted[known]).astype(np.float32)
        for start, end in zip(true, guessed, strict=True):
            ends = np.round(np.clip([start, end], -TILE, 2 * TILE)).astype(np.int32)
            cv2.polylines(tile, [ends], False, (255, 255, 255), 1, cv2.LINE_AA)
        draw_points(tile, guessed, np.zeros(len(guessed), np.float32), radius=1.8)
    draw_points(tile, true, np.ones(len(true), np.float32), radius=1.8)
    return tile


def _shortened(name: str, length: int = 38) -> str:
    """The end of a name, which tells faces apart."""
    return name if len(name) <= length else "..." + name[3 - length :]
