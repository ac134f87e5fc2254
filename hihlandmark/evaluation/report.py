"""An `Evaluation` as a report: a dictionary for JSON, tables and figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import crop_matrix, cut_crop, square_around, transform_points
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.datasets.inspection import Tile, contact_sheet
from hihlandmark.draw import encode_png
from hihlandmark.errors import ConfigurationError, missing_extra
from hihlandmark.evaluation.corruptions import FAILING, Robustness, RobustnessCurve
from hihlandmark.evaluation.eyes import eye_figures
from hihlandmark.evaluation.metrics import (
    Evaluation,
    area_under_curve,
    areas,
    confidence_interval,
    cumulative_errors,
    exact_area_under_curve,
    failure_rate,
    failures,
    mean_error,
    mean_of_found,
)
from hihlandmark.evaluation.protocol import CurvePoint, JitterCurve
from hihlandmark.tables import Table
from hihlandmark.writing import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

Report = dict[str, Any]

THRESHOLDS = {8: 0.08, 10: 0.10}
"""Per cent -> error above which a face is a failure, and up to which the AUC extends."""
WORST_POINTS = 10  # in their table
UNITS: Mapping[str, str] = {
    "interocular": "distance of the outer eye corners",
    "interpupil": "distance of the pupils",
    "box": "square root of the tight box's area",
    "diagonal": "diagonal of the tight box",
}


def summarize(
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    curves: Sequence[JitterCurve] = (),
    robustness: Robustness | None = None,
) -> Report:
    """All figures of an evaluation as plain values for JSON; errors and shares in per cent.

    ``settings`` (model, weights, boxes, ...) become a part of the report. None stands for an
    undefined value, such as the NME when no face was found.
    """
    layout, errors = evaluation.layout, evaluation.errors
    report = {
        "layout": layout.name,
        **face_figures(evaluation.face_errors),
        "normalization": evaluation.normalization,
        "calibration_error": _per_cent(evaluation.calibration_error),
        "calibration_error_interval": [
            _per_cent(bound) for bound in evaluation.calibration_error_interval
        ],
        **({"hidden_points": hidden} if (hidden := evaluation.hidden_points) else {}),
        "nme_by": {
            name: _per_cent(mean_error(evaluation.normalized(name).face_errors), 3)
            for name in evaluation.units
        },
        "subsets": {
            name: face_figures(evaluation.face_errors[evaluation.subset(name)])
            for name in evaluation.subset_names
        },
        "parts": {
            part: _per_cent(float(mean_of_found(errors[:, list(indices)])), 3)
            for part, indices in layout.parts.items()
        },
        "eyes": {
            name: {"value": each.value, "interval": list(each.interval), "eyes": each.eyes}
            for name, each in eye_figures(evaluation).items()
            if np.isfinite([each.value, *each.interval]).all()  # JSON has no NaN
        },
        "points": point_figures(evaluation),
        "skipped": list(evaluation.skipped),
        "remarks": list(evaluation.remarks),
        **settings,
    }
    if curves:
        report["jitter"] = [
            {
                "refine": curve.refine,
                "shifts": [_curve_figures("shift", point) for point in curve.shifts],
                "scales": [_curve_figures("scale", point) for point in curve.scales],
            }
            for curve in curves
        ]
    if robustness is not None:
        report["robustness"] = {
            "uncorrupted": _curve_figures("severity", robustness.uncorrupted),
            "failing_fr10": 100 * FAILING,
            "curves": {name: _robustness_figures(c) for name, c in robustness.curves.items()},
        }
    return report


def face_figures(errors: FloatArray) -> Report:
    """Counts, NME, FR and AUC of face errors (N,), in per cent, with 95 % intervals."""
    found = np.where(np.isinf(errors), np.nan, errors)
    report: Report = {
        "faces": len(errors),
        "missed": int(np.isinf(errors).sum()),
        "unjudged": int(np.isnan(errors).sum()),
        "nme": _per_cent(mean_error(errors), 3),
        "nme_interval": _interval(found, 3),
    }
    for key, threshold in THRESHOLDS.items():
        report[f"fr{key}"] = _per_cent(failure_rate(errors, threshold))
        report[f"fr{key}_interval"] = _interval(failures(errors, threshold))
    for key, threshold in THRESHOLDS.items():
        report[f"auc{key}"] = _per_cent(area_under_curve(errors, threshold))
        report[f"auc{key}_interval"] = _interval(areas(errors, threshold))
        report[f"auc{key}_exact"] = _per_cent(exact_area_under_curve(errors, threshold))
    return report


def point_figures(evaluation: Evaluation) -> list[Report]:
    """Index, name, part, NME in per cent and number of faces of each point."""
    layout, errors = evaluation.layout, evaluation.errors
    part_of = {index: part for part, indices in layout.parts.items() for index in indices}
    means, known = mean_of_found(errors, axis=0), np.isfinite(errors).sum(axis=0)
    return [
        {
            "index": index,
            "name": name,
            "part": part_of.get(index, ""),
            "nme": _per_cent(float(means[index]), 3),
            "faces": int(known[index]),
        }
        for index, name in enumerate(layout.point_names)
    ]


def _robustness_figures(curve: RobustnessCurve) -> Report:
    return {
        "title": curve.corruption.title,
        "unit": curve.corruption.unit,
        "points": [_curve_figures("severity", point) for point in curve.points],
        "fails_from": curve.fails_from,
        "remarks": list(curve.remarks),
    }


def _curve_figures(severity_name: str, point: CurvePoint) -> Report:
    return {
        severity_name: point.severity,
        "faces": point.faces,
        "missed": point.missed,
        "nme": _per_cent(point.nme, 3),
        "nme_interval": [_per_cent(bound, 3) for bound in point.interval],
        "fr10": _per_cent(point.failure_rate),
    }


def _per_cent(share: float, digits: int = 2) -> float | None:
    # JSON has no NaN.
    return round(100 * share, digits) if math.isfinite(share) else None


def _interval(values: FloatArray, digits: int = 2) -> list[float | None]:
    return [_per_cent(bound, digits) for bound in confidence_interval(values)]


_RATES = ("fr8", "fr10", "auc8", "auc10")
_FACE_HEADERS = ("faces", "missed", "NME", "95 %", *(rate.upper() for rate in _RATES))
_CURVE_HEADERS = ("faces", "missed", "NME", "95 %", "FR10")


def tables(report: Report) -> list[Table]:
    """The tables of a report: all faces, subsets, parts, worst points, jitter, robustness."""
    known = [point for point in report["points"] if point["nme"] is not None]
    worst = sorted(known, key=lambda point: -point["nme"])[:WORST_POINTS]
    points = [(point["index"], point["name"], _text(point["nme"])) for point in worst]
    units = [(UNITS[name], _text(nme)) for name, nme in report["nme_by"].items()]
    parts = [(name, _text(nme)) for name, nme in report["parts"].items() if nme is not None]
    rows = {"all": report, **report["subsets"]}

    def rate_cells(key: str) -> tuple[str, str, str]:
        interval = _interval_text(report[f"{key}_interval"])
        return _text(report[key]), interval, _text(report.get(f"{key}_exact"))

    result = [
        Table(
            f"Errors, % of the {UNITS[report['normalization']]}",
            ("", *_FACE_HEADERS),
            [(name, *_cells(row, *_RATES)) for name, row in rows.items()],
        ),
        Table(
            "FR and AUC, all faces",
            ("", "value", "95 %", "without grid"),
            [(key.upper(), *rate_cells(key)) for key in _RATES],
        ),
        Table("NME by unit", ("unit", "NME"), units),
        Table("Parts", ("part", "NME"), parts),
        Table("Worst points", ("point", "name", "NME"), points),
    ]
    if report["eyes"]:
        figures = [
            (name, f"{each['value']:.3f}", _range_text(each["interval"]), each["eyes"])
            for name, each in report["eyes"].items()
        ]
        result.append(Table("Eyes", ("", "value", "95 %", "eyes"), figures))
    for curve in report.get("jitter", ()):
        refine = f"refine {curve['refine']}"
        result += [
            _curve_table(f"Boxes moved, in longer sides; {refine}", "shift", curve["shifts"]),
            _curve_table(f"Boxes scaled; {refine}", "scale", curve["scales"]),
        ]
    return [*result, *_robustness_tables(report)]


def _curve_table(title: str, severity_name: str, points: Sequence[Report]) -> Table:
    rows = [(f"{point[severity_name]:g}", *_cells(point, "fr10")) for point in points]
    return Table(title, (severity_name, *_CURVE_HEADERS), rows)


def _robustness_tables(report: Report) -> Iterator[Table]:
    if "robustness" not in report:
        return
    robustness, summary = report["robustness"], []
    for name, curve in robustness["curves"].items():
        rows = [("none", *_cells(robustness["uncorrupted"], "fr10"))]
        rows += [(f"{point['severity']:g}", *_cells(point, "fr10")) for point in curve["points"]]
        yield Table(curve["title"], (curve["unit"], *_CURVE_HEADERS), rows)
        fails_from = curve["fails_from"]
        summary.append((name, "nowhere" if fails_from is None else fails_from, curve["unit"]))
    title = f"Severity from which on it fails: FR10 above {robustness['failing_fr10']:g} %"
    yield Table(title, ("", "fails from", "unit"), summary)


def _cells(row: Report, *rates: str) -> tuple[str, ...]:
    counts = (str(row["faces"]), str(row["missed"]))
    interval = _interval_text(row["nme_interval"])
    return (*counts, _text(row["nme"]), interval, *(_text(row[rate]) for rate in rates))


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval_text(bounds: Sequence[float | None]) -> str:
    return "" if None in bounds else "–".join(map(_text, bounds))


def _range_text(bounds: Sequence[float]) -> str:
    return "–".join(f"{bound:.3f}" for bound in bounds)


def notes(report: Report) -> list[str]:
    """The lines below the tables: calibration, remarks and skipped samples."""
    lines = [f"expected calibration error of the scores: {_text(report['calibration_error'])} %"]
    if interval := _interval_text(report["calibration_error_interval"]):
        lines[0] += f" (95 % of resampled faces: {interval})"
    if hidden := report.get("hidden_points"):
        lines.append(
            f"low visibility detects hidden points: AUROC {hidden['auroc']}, among points of the "
            f"same landmark {hidden['auroc_same_landmark']} ({hidden['hidden']} hidden, "
            f"{hidden['visible']} visible points)"
        )
    if report["unjudged"]:
        lines.append(f"{report['unjudged']} faces lack the points of the unit: left out")
    lines += report["remarks"]
    for curve in report.get("robustness", {"curves": {}})["curves"].values():
        lines += curve["remarks"]
    if report["skipped"]:
        lines.append(f"{len(report['skipped'])} samples skipped:")
        lines += [f"  {message}" for message in report["skipped"]]
    return lines


def print_report(report: Report, console: Console) -> None:
    """Print the tables and notes of a report to a rich console."""
    for table in tables(report):
        table.print(console)
    for line in notes(report):
        console.print(line, markup=False, highlight=False)


def to_markdown(report: Report, settings: Mapping[str, Any]) -> str:
    """A report as Markdown: the settings, the tables, the notes."""
    parts = ["# Evaluation", "\n".join(f"- {name}: {value}" for name, value in settings.items())]
    for table in tables(report):
        parts += [f"## {table.title}", table.markdown()]
    parts += ["## Notes", "\n".join(f"- {note.strip()}" for note in notes(report))]
    return "\n\n".join(parts) + "\n"


REPORT_FILES = {
    "report.json",
    "report.md",
    "ced.csv",
    "ced.png",
    "points.csv",
    "faces.csv",
    "failures.png",
    "jitter.csv",
    "jitter.png",
    "robustness.csv",
    "robustness.png",
}
"""What a report may consist of."""


def _is_report(path: Path) -> bool:
    """Whether `write_report` wrote a report.json."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"layout", "nme_by", "calibration_error"} <= content.keys()


def refuse_other_files(folder: Path) -> None:
    """Raise `ConfigurationError` if a report would replace files that are not of a report."""
    if _is_report(folder / "report.json"):
        return
    if found := sorted(path.name for path in folder.glob("*") if path.name in REPORT_FILES):
        raise ConfigurationError(
            f"{folder / found[0]} is not of a report: choose another --out, or move it away"
        )


def write_report(
    folder: str | Path,
    report: Report,
    evaluation: Evaluation,
    faces: AnnotatedFaces,
    settings: Mapping[str, Any],
    curves: Sequence[JitterCurve] = (),
    robustness: Robustness | None = None,
) -> list[Path]:
    """Write a report of `summarize`, and its images and tables, into a folder that is created.

    Other arguments are those of `summarize`, and the evaluated faces for the gallery of failures.
    Files of an earlier report that this one lacks are removed. Returns the paths of the files.
    Raises `ConfigurationError` when matplotlib is missing.
    """
    folder = Path(folder)
    contents: dict[str, bytes | str] = {
        "report.json": json.dumps(report, indent=2) + "\n",
        "report.md": to_markdown(report, settings),
        "ced.csv": _ced_csv(evaluation),
        "ced.png": ced_figure(evaluation),
        "points.csv": _csv(report["points"]),
        "faces.csv": _faces_csv(evaluation),
        "failures.png": failure_gallery(evaluation, faces),
    }
    if curves:
        rows = [
            {"refine": curve["refine"], "shift": 0, "scale": 1, **_flat(point)}
            for curve in report["jitter"]
            for point in (*curve["shifts"], *curve["scales"])
        ]
        contents["jitter.csv"] = _csv(rows)
        contents["jitter.png"] = jitter_figure(curves, evaluation.normalization)
    if robustness is not None:
        measured = report["robustness"]
        rows = [{"corruption": "", **_flat(measured["uncorrupted"]), "severity": ""}]
        rows += [
            {"corruption": name, **_flat(point)}
            for name, curve in measured["curves"].items()
            for point in curve["points"]
        ]
        contents["robustness.csv"] = _csv(rows)
        contents["robustness.png"] = robustness_figure(robustness, evaluation.normalization)
    for name, content in contents.items():
        data = content.encode("utf-8") if isinstance(content, str) else content
        write_atomically(folder / name, data)
    for name in REPORT_FILES - contents.keys():
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in contents]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    return Table("", list(rows[0]), [list(row.values()) for row in rows]).csv()


def _flat(point: Report) -> Report:
    """A point of a curve with the interval as two values."""
    low, high = point["nme_interval"]
    first = {key: value for key, value in point.items() if key not in ("nme_interval", "fr10")}
    return {**first, "nme_low": low, "nme_high": high, "fr10": point["fr10"]}


def _ced_csv(evaluation: Evaluation) -> str:
    by_subset = errors_by_subset(evaluation)
    curves = {name: cumulative_errors(errors) for name, errors in by_subset}
    columns = [[f"{error:.4f}" for error in curves["all"][:, 0]]]
    columns += [[f"{share:.6f}" for share in curve[:, 1]] for curve in curves.values()]
    return Table("", ["error", *curves], zip(*columns, strict=True)).csv()


def _faces_csv(evaluation: Evaluation) -> str:
    errors = [_per_cent(error, 3) for error in evaluation.face_errors.tolist()]
    rows = zip(evaluation.names, errors, evaluation.missed.astype(int), strict=True)
    return Table("", ("name", "nme", "missed"), rows).csv()


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
    """The `comparison_tile` of the ``count`` worst faces, missed ones first."""
    errors = evaluation.face_errors
    order = [i for i in np.argsort(-errors, kind="stable") if not np.isnan(errors[i])][:count]
    load_image_of = {face.name: face.load_image for face in faces}
    tiles = []
    for i in order:
        name = evaluation.names[i]
        error = "missed" if np.isinf(errors[i]) else f"NME {100 * errors[i]:.2f} %"
        points = evaluation.truth[i], evaluation.predicted[i]
        tiles.append(comparison_tile(load_image_of[name](), *points, f"{name} {error}"))
    nothing = Tile(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 2)), "no face has an error")
    return encode_png(contact_sheet(tiles or [nothing], TILES_PER_ROW, TILE))


def comparison_tile(
    image: Image, truth: FloatArray, predicted: FloatArray, caption: str, size: int = TILE
) -> Tile:
    """The crop (size, size, 3) of one face with true and predicted points (P, 2), NaN if unknown.

    Annotated points are green, predicted ones red; lines connect them.
    """
    known = np.isfinite(truth).all(axis=1)
    square = square_around(truth[known], MARGIN)
    crop = np.ascontiguousarray(cut_crop(image, square, size))
    true, guessed = (
        transform_points(crop_matrix(square, size), points[known]) for points in (truth, predicted)
    )
    if np.isfinite(guessed).all():
        ends = np.round(np.clip(np.stack([true, guessed], axis=1), -size, 2 * size))
        cv2.polylines(crop, list(ends.astype(np.int32)), False, (255, 255, 255), 1, cv2.LINE_AA)
    colors = np.repeat([PREDICTED, ANNOTATED], len(true), axis=0)
    return Tile(crop, np.concatenate([guessed, true]), caption, colors)
