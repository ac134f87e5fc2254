"""An `Evaluation` as a report: a dictionary for JSON, tables for terminal, Markdown and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.evaluation import figures
from hihlandmark.evaluation.corruptions import FAILING, Robustness, RobustnessCurve
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
            "part": part_of[index],
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


def notes(report: Report) -> list[str]:
    """The lines below the tables: calibration, remarks and skipped samples."""
    lines = [f"expected calibration error of the scores: {_text(report['calibration_error'])} %"]
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


def write_report(
    folder: Path,
    report: Report,
    evaluation: Evaluation,
    faces: AnnotatedFaces,
    settings: Mapping[str, Any],
    curves: Sequence[JitterCurve] = (),
    robustness: Robustness | None = None,
) -> list[Path]:
    """Write a report of `summarize`, and its images and tables, into a folder that is created.

    Other arguments are those of `summarize`, and the evaluated faces for the gallery of failures.
    Returns the paths of the files. Raises `ConfigurationError` when matplotlib is missing.
    """
    contents: dict[str, bytes | str] = {
        "report.json": json.dumps(report, indent=2) + "\n",
        "report.md": to_markdown(report, settings),
        "ced.csv": _ced_csv(evaluation),
        "ced.png": figures.ced_figure(evaluation),
        "points.csv": _csv(report["points"]),
        "faces.csv": _faces_csv(evaluation),
        "failures.png": figures.failure_gallery(evaluation, faces),
    }
    if curves:
        rows = [
            {"refine": curve["refine"], "shift": 0, "scale": 1, **_flat(point)}
            for curve in report["jitter"]
            for point in (*curve["shifts"], *curve["scales"])
        ]
        contents["jitter.csv"] = _csv(rows)
        contents["jitter.png"] = figures.jitter_figure(curves, evaluation.normalization)
    if robustness is not None:
        measured = report["robustness"]
        rows = [{"corruption": "", **_flat(measured["uncorrupted"]), "severity": ""}]
        rows += [
            {"corruption": name, **_flat(point)}
            for name, curve in measured["curves"].items()
            for point in curve["points"]
        ]
        contents["robustness.csv"] = _csv(rows)
        contents["robustness.png"] = figures.robustness_figure(robustness, evaluation.normalization)
    for name, content in contents.items():
        data = content.encode("utf-8") if isinstance(content, str) else content
        write_atomically(folder / name, data)
    return [folder / name for name in contents]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    return Table("", list(rows[0]), [list(row.values()) for row in rows]).csv()


def _flat(point: Report) -> Report:
    """A point of a curve with the interval as two values."""
    low, high = point["nme_interval"]
    first = {key: value for key, value in point.items() if key not in ("nme_interval", "fr10")}
    return {**first, "nme_low": low, "nme_high": high, "fr10": point["fr10"]}


def _ced_csv(evaluation: Evaluation) -> str:
    errors_by_subset = figures.errors_by_subset(evaluation)
    curves = {name: cumulative_errors(errors) for name, errors in errors_by_subset}
    columns = [[f"{error:.4f}" for error in curves["all"][:, 0]]]
    columns += [[f"{share:.6f}" for share in curve[:, 1]] for curve in curves.values()]
    return Table("", ["error", *curves], zip(*columns, strict=True)).csv()


def _faces_csv(evaluation: Evaluation) -> str:
    errors = [_per_cent(error, 3) for error in evaluation.face_errors.tolist()]
    rows = zip(evaluation.names, errors, evaluation.missed.astype(int), strict=True)
    return Table("", ("name", "nme", "missed"), rows).csv()
