"""An `Evaluation` as something to read: a dictionary for JSON, tables for terminal and Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.evaluation.corruptions import FAILING, Robustness, RobustnessCurve
from hihlandmark.evaluation.metrics import (
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
from hihlandmark.evaluation.result import Evaluation
from hihlandmark.writing import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from hihlandmark.datasets.faces import AnnotatedFaces

Report = dict[str, Any]

THRESHOLDS = (0.08, 0.10)
"""Errors from which on a face is a failure, and up to which the area under the curve goes."""
WORST_POINTS = 10
"""Points in the table of the worst."""
UNITS: Mapping[str, str] = {
    "interocular": "distance of the outer eye corners",
    "interpupil": "distance of the pupils",
    "box": "square root of the tight box's area",
    "diagonal": "diagonal of the tight box",
}


# ------------------------------------------------------------------------------------- dictionary


def summarize(
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    curves: Sequence[JitterCurve] = (),
    robustness: Robustness | None = None,
) -> Report:
    """All figures of an evaluation as plain values for JSON; errors and shares in per cent.

    ``settings`` says how it was measured (model, weights, boxes, ...). None stands for what cannot
    be said, such as the NME when no face was found.
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
        report["jitter"] = [_jitter_figures(curve) for curve in curves]
    if robustness is not None:
        report["robustness"] = {
            "uncorrupted": _curve_figures([robustness.uncorrupted], "severity")[0],
            "failing_fr10": 100 * FAILING,
            "curves": {
                name: _robustness_figures(curve) for name, curve in robustness.curves.items()
            },
        }
    return report


def face_figures(errors: FloatArray) -> Report:
    """Counts, NME, FR and AUC of face errors (N,), in per cent, with 95 % intervals."""
    found = np.where(np.isinf(errors), np.nan, errors)
    figures: Report = {
        "faces": len(errors),
        "missed": int(np.isinf(errors).sum()),
        "unjudged": int(np.isnan(errors).sum()),
        "nme": _per_cent(mean_error(errors), 3),
        "nme_interval": _interval(found, 3),
    }
    for threshold in THRESHOLDS:
        key = round(100 * threshold)
        figures[f"fr{key}"] = _per_cent(failure_rate(errors, threshold))
        figures[f"fr{key}_interval"] = _interval(failures(errors, threshold))
    for threshold in THRESHOLDS:
        key = round(100 * threshold)
        figures[f"auc{key}"] = _per_cent(area_under_curve(errors, threshold))
        figures[f"auc{key}_interval"] = _interval(areas(errors, threshold))
        figures[f"auc{key}_exact"] = _per_cent(exact_area_under_curve(errors, threshold))
    return figures


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


def _jitter_figures(curve: JitterCurve) -> Report:
    return {
        "refine": curve.refine,
        "shifts": _curve_figures(curve.shifts, "shift"),
        "scales": _curve_figures(curve.scales, "scale"),
    }


def _robustness_figures(curve: RobustnessCurve) -> Report:
    return {
        "title": curve.corruption.title,
        "unit": curve.corruption.unit,
        "points": _curve_figures(curve.points, "severity"),
        "fails_from": curve.fails_from,
        "remarks": list(curve.remarks),
    }


def _curve_figures(points: Sequence[CurvePoint], what: str) -> list[Report]:
    """``what``: the name of the severity."""
    return [
        {
            what: point.severity,
            "faces": point.faces,
            "missed": point.missed,
            "nme": _per_cent(point.nme, 3),
            "nme_interval": [_per_cent(bound, 3) for bound in point.interval],
            "fr10": _per_cent(point.failure_rate),
        }
        for point in points
    ]


def _per_cent(share: float, digits: int = 2) -> float | None:
    # JSON has no NaN.
    return round(100 * share, digits) if math.isfinite(share) else None


def _interval(values: FloatArray, digits: int = 2) -> list[float | None]:
    return [_per_cent(bound, digits) for bound in confidence_interval(values)]


# ------------------------------------------------------------------------------------------ tables


class Sheet(NamedTuple):
    """A table, on its way to the terminal or to Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


_FACE_COLUMNS = ("faces", "missed", "NME", "95 %", "FR8", "FR10", "AUC8", "AUC10")
_CURVE_COLUMNS = ("faces", "missed", "NME", "95 %", "FR10")


def sheets(report: Report) -> list[Sheet]:
    """The tables of a report: all faces, subsets, parts, worst points, jitter, robustness."""
    unit = UNITS[report["normalization"]]
    rows = {"all": report, **report["subsets"]}
    worst = sorted(
        (point for point in report["points"] if point["nme"] is not None),
        key=lambda point: -point["nme"],
    )
    return [
        Sheet(
            f"Errors, % of the {unit}",
            ("", *_FACE_COLUMNS),
            [(name, *_face_cells(figures)) for name, figures in rows.items()],
        ),
        Sheet(
            "FR and AUC, all faces",
            ("", "value", "95 %", "without grid"),
            [
                (
                    key.upper(),
                    _text(report[key]),
                    _interval_text(report[f"{key}_interval"]),
                    _text(report.get(f"{key}_exact")),
                )
                for key in ("fr8", "fr10", "auc8", "auc10")
            ],
        ),
        Sheet(
            "NME by unit",
            ("unit", "NME"),
            [(UNITS[name], _text(value)) for name, value in report["nme_by"].items()],
        ),
        Sheet(
            "Parts",
            ("part", "NME"),
            [(name, _text(value)) for name, value in report["parts"].items() if value is not None],
        ),
        Sheet(
            "Worst points",
            ("point", "name", "NME"),
            [
                (str(point["index"]), point["name"], _text(point["nme"]))
                for point in worst[:WORST_POINTS]
            ],
        ),
        *(sheet for curve in report.get("jitter", ()) for sheet in _jitter_sheets(curve)),
        *(_robustness_sheets(report["robustness"]) if "robustness" in report else ()),
    ]


def _jitter_sheets(curve: Report) -> Iterable[Sheet]:
    for key, what, title in (
        ("shifts", "shift", "Boxes moved, in longer sides"),
        ("scales", "scale", "Boxes scaled"),
    ):
        yield Sheet(
            f"{title}; refine {curve['refine']}",
            (what, *_CURVE_COLUMNS),
            [(f"{point[what]:g}", *_curve_cells(point)) for point in curve[key]],
        )


def _robustness_sheets(robustness: Report) -> Iterable[Sheet]:
    uncorrupted = ("none", *_curve_cells(robustness["uncorrupted"]))
    for curve in robustness["curves"].values():
        rows = [(f"{point['severity']:g}", *_curve_cells(point)) for point in curve["points"]]
        yield Sheet(curve["title"], (curve["unit"], *_CURVE_COLUMNS), [uncorrupted, *rows])
    yield Sheet(
        f"From where on it fails: FR10 above {robustness['failing_fr10']:g} %",
        ("", "fails from", "unit"),
        [
            (
                name,
                "nowhere" if curve["fails_from"] is None else f"{curve['fails_from']:g}",
                curve["unit"],
            )
            for name, curve in robustness["curves"].items()
        ],
    )


def _curve_cells(point: Report) -> tuple[str, ...]:
    return (
        str(point["faces"]),
        str(point["missed"]),
        _text(point["nme"]),
        _interval_text(point["nme_interval"]),
        _text(point["fr10"]),
    )


def _face_cells(figures: Report) -> tuple[str, ...]:
    return (
        str(figures["faces"]),
        str(figures["missed"]),
        _text(figures["nme"]),
        _interval_text(figures["nme_interval"]),
        *(_text(figures[key]) for key in ("fr8", "fr10", "auc8", "auc10")),
    )


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval_text(bounds: Sequence[float | None]) -> str:
    return "" if None in bounds else "–".join(map(_text, bounds))


def notes(report: Report) -> list[str]:
    """What stands below the tables: calibration, remarks and skipped samples."""
    lines = [f"expected calibration error of the scores: {_text(report['calibration_error'])} %"]
    if report["unjudged"]:
        lines.append(f"{report['unjudged']} faces lack the points that make the unit: left out")
    lines += report["remarks"]
    for curve in report.get("robustness", {"curves": {}})["curves"].values():
        lines += curve["remarks"]
    if report["skipped"]:
        lines.append(f"{len(report['skipped'])} samples skipped:")
        lines += [f"  {message}" for message in report["skipped"]]
    return lines


def print_report(report: Report, console: Console) -> None:
    """Prints the tables of a report to a rich console."""
    from rich.box import SIMPLE
    from rich.table import Table

    for sheet in sheets(report):
        table = Table(
            title=sheet.title,
            title_justify="left",
            box=SIMPLE,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for place, column in enumerate(sheet.columns):
            table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    for line in notes(report):
        console.print(line, markup=False, highlight=False)


def to_markdown(report: Report, settings: Mapping[str, Any]) -> str:
    """A report as Markdown: the settings, the tables, the notes."""
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {_setting(value)}" for name, value in settings.items()]
    for sheet in sheets(report):
        lines += ["", f"## {sheet.title}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (sheet.columns,)]
        lines += ["|" + "---|" * len(sheet.columns)]
        lines += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in sheet.rows
        ]
    return "\n".join(
        [*lines, "", "## Notes", "", *(f"- {note.strip()}" for note in notes(report)), ""]
    )


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} ({entry})" for name, entry in value.items())
    return str(value)


# ------------------------------------------------------------------------------------------- files


def write_report(
    folder: Path,
    report: Report,
    evaluation: Evaluation,
    faces: AnnotatedFaces,
    settings: Mapping[str, Any],
    curves: Sequence[JitterCurve] = (),
    robustness: Robustness | None = None,
) -> list[Path]:
    """Writes a report (`summarize`) with images and tables into a folder, returns the paths.

    Raises `ConfigurationError` when matplotlib is missing.
    """
    from hihlandmark.evaluation import figures

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
        contents["jitter.csv"] = _jitter_csv(report["jitter"])
        contents["jitter.png"] = figures.jitter_figure(curves, evaluation.normalization)
    if robustness is not None:
        contents["robustness.csv"] = _robustness_csv(report["robustness"])
        contents["robustness.png"] = figures.robustness_figure(robustness, evaluation.normalization)
    for name, content in contents.items():
        write_atomically(
            folder / name, content if isinstance(content, bytes) else content.encode("utf-8")
        )
    return [folder / name for name in contents]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _ced_csv(evaluation: Evaluation) -> str:
    errors = evaluation.face_errors
    chosen = {"all": errors}
    chosen |= {name: errors[evaluation.subset(name)] for name in evaluation.subset_names}
    curves = {name: cumulative_errors(some) for name, some in chosen.items()}
    grid = curves["all"][:, 0]
    return _csv(
        [
            {
                "error": f"{error:.4f}",
                **{name: f"{curve[i, 1]:.6f}" for name, curve in curves.items()},
            }
            for i, error in enumerate(grid)
        ]
    )


def _faces_csv(evaluation: Evaluation) -> str:
    rows = zip(evaluation.names, evaluation.face_errors, evaluation.missed, strict=True)
    return _csv(
        [
            {"name": name, "nme": _per_cent(float(error), 3), "missed": int(missed)}
            for name, error, missed in rows
        ]
    )


def _jitter_csv(curves: Sequence[Report]) -> str:
    return _csv(
        [
            {
                "refine": curve["refine"],
                "shift": point.get("shift", 0),
                "scale": point.get("scale", 1),
                **_curve_columns(point),
            }
            for curve in curves
            for point in (*curve["shifts"], *curve["scales"])
        ]
    )


def _robustness_csv(robustness: Report) -> str:
    rows = [{"corruption": "", "severity": "", **_curve_columns(robustness["uncorrupted"])}]
    rows += [
        {"corruption": name, "severity": point["severity"], **_curve_columns(point)}
        for name, curve in robustness["curves"].items()
        for point in curve["points"]
    ]
    return _csv(rows)


def _curve_columns(point: Report) -> Report:
    low, high = point["nme_interval"]
    return {
        "faces": point["faces"],
        "missed": point["missed"],
        "nme": point["nme"],
        "nme_low": low,
        "nme_high": high,
        "fr10": point["fr10"],
    }
