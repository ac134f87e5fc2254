"""Images of an evaluation, as the bytes of PNG files: curves and the gallery of failures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, square_around, transform_points
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.datasets.inspection import Tile, contact_sheet
from hihlandmark.draw import encode_png
from hihlandmark.errors import missing_extra
from hihlandmark.evaluation.corruptions import FAILING, Robustness
from hihlandmark.evaluation.metrics import Evaluation, area_under_curve, cumulative_errors
from hihlandmark.evaluation.protocol import JitterCurve

CED_END = 0.10  # largest error of the curve, as in the papers
# Side of a gallery's faces in pixels, and in longer sides of their tight boxes; faces per row.
TILE, MARGIN, TILES_PER_ROW = 256, 1.6, 5
ANNOTATED, PREDICTED = (0, 200, 80), (255, 60, 40)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, size in inches. Raises `ConfigurationError` without matplotlib."""
    with missing_extra("train"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def errors_by_subset(evaluation: Evaluation) -> Iterator[tuple[str, FloatArray]]:
    """The face errors (N,) of "all" faces and of each subset."""
    errors = evaluation.face_errors
    yield "all", errors
    for name in evaluation.subset_names:
        yield name, errors[evaluation.subset(name)]


def ced_figure(evaluation: Evaluation) -> bytes:
    """The share of faces with at most an error, up to 10 %: all faces and each subset."""
    figure = new_figure(8.4, 4.4)
    axes = figure.subplots()
    for name, errors in errors_by_subset(evaluation):
        curve = 100 * cumulative_errors(errors, CED_END)
        label = f"{name}: AUC {100 * area_under_curve(errors, CED_END):.1f} %, {len(errors)} faces"
        axes.plot(curve[:, 0], curve[:, 1], label=label, linewidth=2.2 if name == "all" else 1.1)
    unit = f"NME (%, {evaluation.normalization})"
    axes.set(xlabel=unit, ylabel="faces (%)", xlim=(0, 100 * CED_END), ylim=(0, 101))
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    return _png(figure)


def jitter_figure(curves: Sequence[JitterCurve], normalization: str) -> bytes:
    """NME against shift and against scale of the boxes, one line per number of refinements."""
    figure = new_figure(9, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        for axes, points in zip(panels, (curve.shifts, curve.scales), strict=True):
            severities = [point.severity for point in points]
            low, high = 100 * np.array([point.interval for point in points]).T
            label = f"refine {curve.refine}"
            axes.plot(severities, [100 * point.nme for point in points], marker="o", label=label)
            axes.fill_between(severities, low, high, alpha=0.2)
    panels[0].set(xlabel="shift of the box (longer sides)", ylabel=f"NME (%, {normalization})")
    panels[1].set(xlabel="scale of the box")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return _png(figure)


def robustness_figure(robustness: Robustness, normalization: str) -> bytes:
    """NME with its 95 % interval, and FR10 below, against severity: one column per corruption.

    Images get worse to the right. Dashed lines are those of unchanged images.
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
    """The ``count`` worst of the faces, missed ones first, with their name and NME.

    Annotated points are green, predicted ones red; lines connect them.
    """
    errors = evaluation.face_errors
    order = [i for i in np.argsort(-errors, kind="stable") if not np.isnan(errors[i])][:count]
    load_image_of = {face.name: face.load_image for face in faces}
    tiles = []
    for i in order:
        name = evaluation.names[i]
        error = "missed" if np.isinf(errors[i]) else f"NME {100 * errors[i]:.2f} %"
        points = evaluation.truth[i], evaluation.predicted[i]
        tiles.append(_tile(load_image_of[name](), *points, f"{name} {error}"))
    nothing = Tile(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 2)), "no face has an error")
    return encode_png(contact_sheet(tiles or [nothing], TILES_PER_ROW, TILE))


def _tile(image: Image, truth: FloatArray, predicted: FloatArray, caption: str) -> Tile:
    """The crop of one face with true and predicted points (P, 2), of which some may be NaN."""
    known = np.isfinite(truth).all(axis=1)
    square = square_around(truth[known], MARGIN)
    crop = np.ascontiguousarray(cut_crop(image, square, TILE))
    true, guessed = (
        transform_points(crop_matrix(square, TILE), points[known]) for points in (truth, predicted)
    )
    if np.isfinite(guessed).all():
        ends = np.round(np.clip(np.stack([true, guessed], axis=1), -TILE, 2 * TILE))
        cv2.polylines(crop, list(ends.astype(np.int32)), False, (255, 255, 255), 1, cv2.LINE_AA)
    colors = np.repeat([PREDICTED, ANNOTATED], len(true), axis=0)
    return Tile(crop, np.concatenate([guessed, true]), caption, colors)
