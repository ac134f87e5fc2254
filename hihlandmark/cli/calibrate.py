"""`hihlandmark calibrate`: honest scores and covariances, fitted on a validation split."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.cli.options import (
    DeviceOption,
    LayoutName,
    ModelOption,
    WeightsOption,
    make_detector,
)
from hihlandmark.errors import ConfigurationError

if TYPE_CHECKING:
    from hihlandmark.calibration.report import CalibrationReport
    from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces


SHOWN = 5
"""How many faces that were left out the table's footnotes name."""

AREAS = {"auroc": "AUROC", "auroc_same_landmark": "among points of the same landmark"}
"""How the table's footnotes call what `CalibrationReport.hidden_points` compares."""


class MethodName(str, Enum):
    """How scores are fitted; see `training.calibrate.fit`."""

    LOGISTIC = "logistic"
    ISOTONIC = "isotonic"


def calibrate(
    data: Annotated[
        Path, typer.Option("--data", help="Folder of the data set, as its authors publish it.")
    ],
    split: Annotated[
        list[str],
        typer.Option("--split", help="Faces that the model was not trained on; may be repeated."),
    ],
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    layout: Annotated[
        LayoutName | None,
        typer.Option("--layout", help="Points to calibrate; default: those annotated."),
    ] = None,
    data_format: Annotated[
        str, typer.Option("--format", help="Format of the data set; auto: by what is there.")
    ] = "auto",
    annotated: Annotated[
        str | None,
        typer.Option("--annotated", help="Layout of the labels, where the data set has several."),
    ] = None,
    method: Annotated[
        MethodName, typer.Option("--method", help="isotonic adds a rising table to logistic.")
    ] = MethodName.LOGISTIC,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for a calibrated copy of the weights. Default: change the card beside "
            "--weights PATH; packaged and cached weights stay as they are.",
        ),
    ] = None,
    diagram: Annotated[
        Path | None,
        typer.Option("--diagram", help="Reliability diagram (PNG); default: beside the card."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report only: change no card.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Fit scores and covariances to the errors on a split, and say how honest they are."""
    import json

    from hihlandmark.calibration.fit import measure_points
    from hihlandmark.calibration.report import draw_reliability, report_calibration
    from hihlandmark.calibration.store import card_to_write, store_calibration
    from hihlandmark.evaluation.figures import new_figure
    from hihlandmark.weights import find_weights

    if dry_run and out is not None:
        raise ConfigurationError("--dry-run writes no card: leave --out or --dry-run away")
    # What can go wrong without a look at a face goes wrong before the network runs.
    files = find_weights(weights, model=model)
    target = None if dry_run else card_to_write(files, out)
    splits = list(dict.fromkeys(split))  # a face twice would be judged by itself
    faces = _read_splits(data, splits, data_format, annotated)
    detector = make_detector(layout or faces.layout, model, weights=weights, device=device)
    if diagram is None and target is not None:
        diagram = target.with_name(f"{target.stem}-{detector.layout.size}-reliability.png")
    if diagram is not None:
        new_figure(1, 1)  # a missing matplotlib is better known now than after the work

    statistics = measure_points(detector, faces, _progress)
    report = report_calibration(statistics, detector.calibration, method.value)
    summary = {
        "model": detector.card.name,
        "weights": detector.card.files,
        "split": f"{data.resolve().name} {'+'.join(splits)}",
        "layout": detector.layout.name,
        "left_out": list(faces.skipped),
        **report.summary(),
        "card": str(target) if target else None,
        "diagram": str(diagram) if diagram else None,
    }
    if target is not None:
        options = [f"--data DATA/{data.resolve().name}", *(f"--split {name}" for name in splits)]
        options += [f"--layout {detector.layout.size}", f"--method {method.value}"]
        figure = _card_figure(summary, detector.layout.size, " ".join(options))
        store_calibration(files, target, detector.layout, report.after, figure)
    if diagram is not None:
        draw_reliability(report, diagram, f"{summary['model']}, {summary['split']}")
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print_table(summary, report, dry_run)


def _read_splits(
    data: Path, splits: list[str], data_format: str, annotated: str | None
) -> AnnotatedFaces:
    """The faces of all splits together."""
    from dataclasses import replace

    from hihlandmark.datasets import read_faces

    parts = [read_faces(data, split, format=data_format, layout=annotated) for split in splits]
    faces = [face for part in parts for face in part]
    skipped = [message for part in parts for message in part.skipped]
    return replace(parts[0], faces=faces, skipped=skipped)


def _progress(faces: AnnotatedFaces) -> Iterable[AnnotatedFace]:
    from rich.console import Console
    from rich.progress import track

    return track(faces, "measuring", len(faces), console=Console(stderr=True), transient=True)


def _card_figure(summary: dict[str, Any], points: int, arguments: str) -> dict[str, Any]:
    """The calibration error on faces that were not fitted, as a card states it."""
    from hihlandmark.calibration.store import METRIC

    return {
        "split": summary["split"],
        "points": points,
        "metric": METRIC,
        "value": summary["figures"]["after, other faces"]["calibration_error"],
        "faces": summary["faces"],
        "command": f"hihlandmark calibrate {arguments}",
    }


def _print_table(summary: dict[str, Any], report: CalibrationReport, dry_run: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "",
        *("ECE %", "Brier", "in 50 % ellipse", "in 90 % ellipse"),
        title=f"{summary['model']}, {summary['split']}: {summary['faces']} faces, "
        f"{summary['points']} points, {summary['near']} % near",
    )
    for stage, figures in summary["figures"].items():
        table.add_row(stage, *(f"{value:g}" for value in figures.values()))
    Console().print(table)
    for line in _footnotes(summary):
        print(line)
    print(f"calibration: {report.after.to_dict()}")
    if summary["diagram"]:
        print(f"diagram: {summary['diagram']}")
    if summary["card"]:
        print(f"card: {summary['card']}")
    elif not dry_run:
        print("no card was changed: these weights are not yours to change, use --out FOLDER")


def _footnotes(summary: dict[str, Any]) -> list[str]:
    """Lines on hidden points and on faces that were left out."""
    lines = []
    for stage, found in summary.get("hidden_points", {}).items():
        areas = ", ".join(
            f"{comparison} {found[name]} (95 % {' to '.join(map(str, found[f'{name}_interval']))})"
            for name, comparison in AREAS.items()
        )
        counts = f"{found['hidden']} hidden, {found['visible']} visible points"
        lines.append(f"low scores find hidden points, {stage}: {areas}; {counts}")
    left_out = [*summary["left_out"], *summary["skipped"]]
    lines += [f"left out: {message}" for message in left_out[:SHOWN]]
    if len(left_out) > SHOWN:
        lines.append(f"left out: {len(left_out) - SHOWN} more, see --json")
    return lines
