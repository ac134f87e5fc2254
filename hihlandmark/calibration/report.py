"""Scores and covariances before and after a fit: figures, a reliability diagram, the model card."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.calibration import metrics
from hihlandmark.calibration.fit import (
    CalibratedPoints,
    Method,
    PointStatistics,
    calibrated,
    cross_validated,
    fit,
)
from hihlandmark.errors import ConfigurationError, WeightsError, missing_extra
from hihlandmark.layouts import Layout
from hihlandmark.weights import WeightFiles, find_weights, verify_weights
from hihlandmark.weights.card import Calibration, Figure, ModelCard
from hihlandmark.writing import write_atomically

LEVELS = (0.5, 0.9)
"""The ellipses whose coverage is reported."""
_LEFT_OUT = {"correlation", "reliability", "visibility"}  # of summaries: it stays, or is long
MIN_POINTS = 50
"""Bins of fewer points are drawn hollow: the standard deviation of their share is up to 0.07."""
DRAWN = {
    "before": ("before", "tab:orange"),
    "after, other faces": ("after (cross-validated)", "tab:blue"),
}
"""The stages in the diagram: label and color."""
METRIC = "expected calibration error, per cent, cross-validated over faces"
"""Metric of the figure that `store_calibration` adds."""


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """A fit and its effect on the points that it was fitted on.

    ``stages`` holds scores and distances "before", "after, same faces", and "after, other faces",
    where each face has a calibration fitted on other faces.
    """

    statistics: PointStatistics
    method: Method
    before: Calibration
    after: Calibration
    stages: dict[str, CalibratedPoints]

    def figures(self, stage: str) -> dict[str, float]:
        """Figures of a stage: calibration error and coverage in per cent, Brier score in 0..1."""
        known = self.statistics.known
        near = self.statistics.near[known]
        scores, distances = (values[known] for values in self.stages[stage])
        return {
            "calibration_error": round(100 * metrics.expected_calibration_error(scores, near), 2),
            "brier": round(metrics.brier_score(scores, near), 4),
            **{
                f"coverage_{100 * level:.0f}": round(
                    100 * metrics.ellipse_coverage(distances, level), 2
                )
                for level in LEVELS
            },
        }

    def hidden_points(self, stage: str) -> dict[str, Any] | None:
        """`metrics.hidden_point_figures` of the scores of a stage."""
        return metrics.hidden_point_figures(self.stages[stage].scores, self.statistics.hidden)

    def summary(self) -> dict[str, Any]:
        """All figures, as plain values for JSON."""
        known = self.statistics.known
        hidden = {stage: self.hidden_points(stage) for stage in self.stages}
        if self.statistics.visibility is not None and hidden["before"]:
            hidden["by visibility"] = metrics.hidden_point_figures(
                self.statistics.visibility, self.statistics.hidden
            )
        return {
            "faces": self.statistics.faces,
            "points": int(known.sum()),
            "near": round(100 * float(self.statistics.near[known].mean()), 2),
            "skipped": list(self.statistics.skipped),
            "method": self.method,
            "calibration": {
                "before": self.before.model_dump(exclude=_LEFT_OUT),
                "after": self.after.model_dump(exclude=_LEFT_OUT),
            },
            "figures": {stage: self.figures(stage) for stage in self.stages},
            **({"hidden_points": hidden} if hidden["before"] else {}),
        }


def report_calibration(
    statistics: PointStatistics, before: Calibration, method: Method = "logistic"
) -> CalibrationReport:
    """Fit a calibration and compare it with the one before, whose reliability and visibility stay.

    Raises as `cross_validated`.
    """
    kept = {"reliability": before.reliability, "visibility": before.visibility}
    after = fit(statistics, method).model_copy(update=kept)
    stages = {
        "before": calibrated(before, statistics),
        "after, same faces": calibrated(after, statistics),
        "after, other faces": cross_validated(statistics, method),
    }
    return CalibrationReport(statistics, method, before, after, stages)


def draw_reliability(report: CalibrationReport, path: str | Path, title: str = "") -> None:
    """Draw scores against outcomes, their histogram, and the coverage of ellipses, as a PNG.

    Raises `ConfigurationError` if matplotlib is missing, or the file cannot be written.
    """
    path = Path(path)
    with missing_extra("train"):
        from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(10, 5.6), layout="constrained")
    grid = drawing.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram, coverage = drawing.add_subplot(grid[0, 0]), drawing.add_subplot(grid[:, 1])
    histogram = drawing.add_subplot(grid[1, 0], sharex=diagram)
    drawing.suptitle(title)
    for axes in (diagram, coverage):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="ideal")
    known = report.statistics.known
    for stage, (label, color) in DRAWN.items():
        scores, distances = (values[known] for values in report.stages[stage])
        bins = metrics.reliability_bins(scores, report.statistics.near[known])
        filled, firm = bins.counts > 0, bins.counts >= MIN_POINTS
        error = f"{label}: ECE {report.figures(stage)['calibration_error']:.2f} %"
        diagram.plot(bins.scores[filled], bins.shares[filled], color=color, label=error)
        for chosen, inside in ((filled & ~firm, "white"), (firm, color)):
            places = bins.scores[chosen], bins.shares[chosen]
            diagram.plot(*places, "o", markersize=5, color=color, markerfacecolor=inside)
        edges = np.linspace(0, 1, len(bins.counts) + 1)
        histogram.stairs(bins.counts, edges, color=color, linewidth=1.5)
        levels = np.linspace(0.02, 0.98, 49)
        shares = [metrics.ellipse_coverage(distances, level) for level in levels]
        coverage.plot(levels, shares, color=color, label=label)
    diagram.text(0.98, 0.03, f"hollow: fewer than {MIN_POINTS} points", ha="right", color="0.4")
    diagram.set(ylabel="share of points within 5 %")
    histogram.set(xlabel="score", ylabel="points")
    coverage.set(xlabel="nominal share in the ellipse", ylabel="share of true points in it")
    for axes in (diagram, coverage):
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=120)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}") from error


# The model card


def card_to_write(files: WeightFiles, folder: Path | None) -> Path | None:
    """The path of the card that a calibration of these weights is written to.

    Without a folder for a copy it is the card beside the weights, or None when that must not be
    changed: those of the installed package and of the Hugging Face cache. Raises
    `ConfigurationError` if the folder is no folder, or holds other weights of that name.
    """
    found = Path(files.source)  # a card only where the weights were given as a path
    if folder is None:
        package = Path(__file__).resolve().parents[1]
        # A link leads into a shared store, as in the Hugging Face cache.
        own = found.is_file() and not found.is_symlink() and package not in found.resolve().parents
        return found if own else None
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder: choose another --out")
    target = folder / (found.name if found.is_file() else f"{files.card.name}.json")
    _current_card(target, files)
    return target


def store_calibration(
    files: WeightFiles, target: Path, layout: Layout, calibration: Calibration, figure: Figure
) -> None:
    """Write the calibration of one layout into the card ``target``, with the weights beside it.

    An existing card keeps its other content, including the calibrations of other layouts. The card
    is replaced in one step, after the weights were verified. ``target`` is from `card_to_write`.
    ``figure`` is the calibration error: older ones of the same number of points are removed,
    because they no longer hold.

    Raises:
        ConfigurationError: as `card_to_write`.
        WeightsError: a file is damaged, or cannot be read or written.
    """
    content = verify_weights(files)
    card = _current_card(target, files)
    figures = [
        each
        if each.points != layout.size
        else Figure(**each.model_dump(exclude={"calibration_error"}))
        for each in card.figures
        if (each.points, each.metric) != (layout.size, METRIC)
    ]
    calibrations = {**card.calibration, layout.name: calibration}
    card = card.model_copy(update={"calibration": calibrations, "figures": (*figures, figure)})
    try:
        copy = target.with_name(files.path.name)
        if not copy.exists():
            write_atomically(copy, content)
        write_atomically(target, card.to_json().encode())
    except OSError as error:
        raise WeightsError(f"{target} cannot be written and is unchanged: {error}") from error
    verify_weights(find_weights(target))


def _current_card(target: Path, files: WeightFiles) -> ModelCard:
    """The card to change: the existing one, which may hold other calibrations, or the weights'."""
    card = find_weights(target).card if target.exists() else files.card
    copy = target.with_name(files.path.name)
    same = not copy.exists() or copy.read_bytes() == files.path.read_bytes()
    if card.sha256 != files.card.sha256 or not same:
        raise ConfigurationError(
            f"{target.parent} has other weights named {files.card.name}: choose another --out"
        )
    return card
