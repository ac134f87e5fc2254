"""Scores and covariances before and after a fit: figures and a reliability diagram."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.calibration.fit import (
    CalibratedPoints,
    Method,
    PointStatistics,
    calibrated,
    cross_validated,
    fit,
)
from hihlandmark.calibration.metrics import (
    area_under_roc,
    bootstrap_area_under_roc,
    brier_score,
    ellipse_coverage,
    expected_calibration_error,
    reliability_bins,
)
from hihlandmark.errors import ConfigurationError, missing_extra
from hihlandmark.weights.card import Calibration
from hihlandmark.writing import write_atomically

LEVELS = (0.5, 0.9)
"""The ellipses whose coverage is reported."""
MIN_POINTS = 50
"""Bins of fewer points are drawn hollow: the standard deviation of their share is up to 0.07."""
DRAWN = {
    "before": ("before", "tab:orange"),
    "after, other faces": ("after (cross-validated)", "tab:blue"),
}
"""The stages in the diagram: label and color."""


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """A fit and its effect on the points that it was fitted on.

    Attributes:
        statistics: of the points.
        method: of the fit.
        before: the calibration before.
        after: the fitted calibration.
        stages: scores and distances "before", "after, same faces", and "after, other faces", where
            each face has a calibration fitted on other faces.
    """

    statistics: PointStatistics
    method: Method
    before: Calibration
    after: Calibration
    stages: dict[str, CalibratedPoints]

    def figures(self, stage: str) -> dict[str, float]:
        """Figures of a stage: calibration error and coverage in per cent, Brier score in 0..1."""
        known, near = self.statistics.known, self.statistics.near
        scores, distances = (values[known] for values in self.stages[stage])
        coverage = {
            f"coverage_{level:.0%}".rstrip("%"): round(100 * ellipse_coverage(distances, level), 2)
            for level in LEVELS
        }
        error = expected_calibration_error(scores, near[known])
        return {
            "calibration_error": round(100 * error, 2),
            "brier": round(brier_score(scores, near[known]), 4),
            **coverage,
        }

    def hidden_points(self, stage: str) -> dict[str, Any] | None:
        """How well low scores of a stage detect hidden points; None where visibility is unknown.

        "auroc" compares all points, "auroc_same_landmark" only points of the same landmark, because
        some landmarks are both hidden more often and less exact. Both are in 0..1, 0.5 by chance,
        with their 95 % intervals over faces.
        """
        scores, hidden = self.stages[stage].scores, self.statistics.hidden
        stated = np.isfinite(hidden) & np.isfinite(scores)
        positive = hidden[stated] == 1
        if positive.all() or not positive.any():
            return None
        face, landmark = np.nonzero(stated)
        found: dict[str, Any] = {"hidden": int(positive.sum()), "visible": int((~positive).sum())}
        for name, strata in (("auroc", None), ("auroc_same_landmark", landmark)):
            area = area_under_roc(-scores[stated], positive, strata)
            interval = bootstrap_area_under_roc(-scores[stated], positive, face, strata)
            found[name] = _rounded(area)
            found[f"{name}_interval"] = [_rounded(value) for value in interval]
        return found

    def summary(self) -> dict[str, Any]:
        """All figures, as plain values for JSON."""
        known = self.statistics.known
        figures = {stage: self.figures(stage) for stage in self.stages}
        hidden = {stage: self.hidden_points(stage) for stage in self.stages}
        return {
            "faces": len(known),
            "points": int(known.sum()),
            "near": round(100 * float(self.statistics.near[known].mean()), 2),
            "skipped": list(self.statistics.skipped),
            "method": self.method,
            "calibration": {"before": self.before.model_dump(), "after": self.after.model_dump()},
            "figures": figures,
            **({"hidden_points": hidden} if hidden["before"] else {}),
        }


def _rounded(value: float) -> float | None:
    """Rounded for JSON, which has no NaN."""
    return round(value, 4) if np.isfinite(value) else None


def report_calibration(
    statistics: PointStatistics, before: Calibration, method: Method = "logistic"
) -> CalibrationReport:
    """Fit a calibration and compare it with the one before. Raises as `cross_validated`."""
    after = fit(statistics, method)
    stages = {
        "before": calibrated(before, statistics),
        "after, same faces": calibrated(after, statistics),
        "after, other faces": cross_validated(statistics, method),
    }
    return CalibrationReport(statistics, method, before, after, stages)


def draw_reliability(report: CalibrationReport, path: Path, title: str = "") -> None:
    """Draw scores against outcomes, their histogram, and the coverage of ellipses, as a PNG.

    Args:
        report: the stages "before" and "after, other faces" are drawn.
        path: of the PNG.
        title: of the diagram.

    Raises:
        ConfigurationError: matplotlib is missing, or the file cannot be written.
    """
    with missing_extra("train"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1))
    diagram, coverage = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    histogram = figure.add_subplot(grid[1, 0], sharex=diagram)
    figure.suptitle(title)
    for axes in (diagram, coverage):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="ideal")
    for stage, (label, color) in DRAWN.items():
        _plot_bins(diagram, histogram, report, stage, label, color)
        distances = report.stages[stage].distances[report.statistics.known]
        levels = np.linspace(0.02, 0.98, 49)
        shares = [ellipse_coverage(distances, level) for level in levels]
        coverage.plot(levels, shares, color=color, label=label)
    note = f"hollow: fewer than {MIN_POINTS} points"
    diagram.text(0.98, 0.03, note, ha="right", color="0.4")
    diagram.set(ylabel="share of points within 5 %")
    histogram.set(xlabel="score", ylabel="points")
    coverage.set(xlabel="nominal share in the ellipse", ylabel="share of true points in it")
    for axes in (diagram, coverage):
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error}; choose another --diagram"
        ) from error


def _plot_bins(
    diagram: Any, histogram: Any, report: CalibrationReport, stage: str, label: str, color: str
) -> None:
    known = report.statistics.known
    bins = reliability_bins(report.stages[stage].scores[known], report.statistics.near[known])
    filled, firm = bins.counts > 0, bins.counts >= MIN_POINTS
    label += f": ECE {report.figures(stage)['calibration_error']:.2f} %"
    diagram.plot(bins.scores[filled], bins.shares[filled], color=color, label=label)
    for chosen, inside in ((filled & ~firm, "white"), (firm, color)):
        places = bins.scores[chosen], bins.shares[chosen]
        diagram.plot(*places, "o", markersize=5, color=color, markerfacecolor=inside)
    edges = np.linspace(0, 1, len(bins.counts) + 1)
    histogram.stairs(bins.counts, edges, color=color, linewidth=1.5)
