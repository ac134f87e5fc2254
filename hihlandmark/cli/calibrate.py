"""`hihlandmark calibrate`: fit scores and covariances on a validation split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hihlandmark.cli.options import (
    AnnotatedOption,
    DataFormatOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    WeightsOption,
    make_detector,
    progress_bar,
)
from hihlandmark.errors import ConfigurationError, missing_extra
from hihlandmark.writing import check_local

if TYPE_CHECKING:
    from hihlandmark.datasets.faces import AnnotatedFaces

SHOWN = 5
"""The number of left-out faces that the footnotes name."""

AREAS = {"auroc": "AUROC", "auroc_same_landmark": "among points of the same landmark"}
"""The comparisons of `CalibrationReport.hidden_points` in the footnotes."""


_WORSE = 1.2
"""Factor of the Brier score from which on a calibration is named as worse."""


def calibrate(
    data: Annotated[Path, typer.Option("--data", help="Folder of a data set.")],
    split: Annotated[
        list[str],
        typer.Option("--split", help="Faces that the model was not trained on; may be repeated."),
    ],
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="Layout to calibrate; default: the annotated one."),
    ] = None,
    data_format: DataFormatOption = "auto",
    annotated: AnnotatedOption = None,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out",
            metavar="N",
            min=0,
            help="Use only the N faces that held_out = N of a training configuration leaves out.",
        ),
    ] = 0,
    method: Annotated[
        Literal["logistic", "isotonic"],
        typer.Option("--method", help="isotonic adds a rising table to logistic."),
    ] = "logistic",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=check_local,
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
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Fit scores and covariances to the errors on a split, and report how well they fit."""
    import json

    from hihlandmark.calibration.fit import measure_points
    from hihlandmark.calibration.report import (
        METRIC,
        card_to_write,
        draw_reliability,
        report_calibration,
        store_calibration,
    )
    from hihlandmark.evaluation.protocol import refuse_ambiguous
    from hihlandmark.layouts import get_layout
    from hihlandmark.weights import DEFAULT_MODEL, find_weights, register_layouts
    from hihlandmark.weights.card import Figure
    from hihlandmark.writing import refuse_existing

    if held_out and len(set(split)) > 1:
        raise ConfigurationError("--held-out chooses faces of one split: give --split once")
    if dry_run and out is not None:
        raise ConfigurationError("--dry-run writes no card: omit --out or --dry-run")
    # Fail before the network runs.
    refuse_existing(diagram)
    files = find_weights(weights, model=model)
    register_layouts(files.card)  # for the reader of the faces
    target = None if dry_run else card_to_write(files, out)
    splits = list(dict.fromkeys(split))  # no face is in two folds
    faces = _read_splits(data, splits, data_format, annotated)
    if annotated is None:
        refuse_ambiguous(faces, files.card, data, data_format)
    if held_out:
        _, faces = faces.split(held_out)
    detector = make_detector(
        layout or faces.layout, model, weights=weights, device=device, precision=precision
    )
    calibrated = detector.landmarker.layout  # of the network: others are converted from it
    if diagram is None and target is not None:
        diagram = target.with_name(f"{target.stem}-{calibrated.size}-reliability.png")
    if diagram is not None:
        with missing_extra("train"):
            import matplotlib  # noqa: F401

    with progress_bar("faces") as progress:
        statistics = measure_points(detector, faces, progress)
    report = report_calibration(statistics, detector.pipeline.calibration, method)
    summary = {
        "model": detector.card.name,
        "weights": detector.card.sha256,
        "split": f"{data.resolve().name} {'+'.join(splits)}",
        "layout": calibrated.name,
        "left_out": list(faces.skipped),
        **report.summary(),
        "card": str(target) if target else None,
        "diagram": str(diagram) if diagram else None,
    }
    if target is not None:
        options = [f"--data DATA/{data.resolve().name}", *(f"--split {name}" for name in splits)]
        options += [f"--held-out {held_out}"] if held_out else []
        is_first = get_layout(calibrated.size) is calibrated
        options += [f"--layout {calibrated.size if is_first else calibrated.name}"]
        options += [f"--method {method}"]
        options += [f"--precision {precision}"] if precision != "auto" else []
        options += [f"--format {data_format}"] if data_format != "auto" else []
        options += [f"--annotated {annotated}"] if annotated is not None else []
        options += [f"--model {model}"] if model != DEFAULT_MODEL else []
        figure = Figure(
            split=summary["split"],
            points=calibrated.size,
            metric=METRIC,
            value=summary["figures"]["after, other faces"]["calibration_error"],
            command=f"hihlandmark calibrate {' '.join(options)}",
            **{"faces": summary["faces"]},
        )
        store_calibration(files, target, calibrated, report.after, figure)
    before, other = (summary["figures"][s]["brier"] for s in ("before", "after, other faces"))
    if other > _WORSE * before:
        print(
            f"warning: on faces left out of the fit, scores became worse (Brier score {other:.3f} "
            f"instead of {before:.3f}): calibrate with more faces",
            file=sys.stderr,
        )
    if diagram is not None:
        draw_reliability(report, diagram, f"{summary['model']}, {summary['split']}")
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print_table(summary, dry_run)


def _read_splits(
    data: Path, splits: list[str], data_format: str, annotated: str | None
) -> AnnotatedFaces:
    """The faces of all splits together."""
    from dataclasses import replace

    from hihlandmark.datasets import read_faces

    parts = [read_faces(data, split, format=data_format, layout=annotated) for split in splits]
    # A split and a subset of it have faces in common.
    faces = list({(each.name, each.split, each.source): each for p in parts for each in p}.values())
    skipped = [message for part in parts for message in part.skipped]
    return replace(parts[0], faces=faces, skipped=skipped)


def _print_table(summary: dict[str, Any], dry_run: bool) -> None:
    from hihlandmark.tables import Table

    title = (
        f"{summary['model']}, {summary['split']}: {summary['faces']} faces, "
        f"{summary['points']} points, {summary['near']} % near"
    )
    headers = ("", "ECE %", "Brier", "in 50 % ellipse", "in 90 % ellipse")
    rows = [(stage, *figures.values()) for stage, figures in summary["figures"].items()]
    Table(title, headers, rows).print()
    for line in _footnotes(summary):
        print(line)
    after = summary["calibration"]["after"]
    names = ("bias", "spread", "mass", "covariance_scale")
    print("calibration: " + ", ".join(f"{name} {after[name]:.3f}" for name in names))
    if after["point_bias"]:
        low, high = min(after["point_bias"]), max(after["point_bias"])
        print(f"  biases of the parts of the face: {low:.2f} to {high:.2f}")
    for name in ("diagram", "card"):
        if summary[name]:
            print(f"{name}: {summary[name]}")
    if not summary["card"] and not dry_run:
        print("no card was changed: packaged and cached weights stay as they are, use --out FOLDER")


def _footnotes(summary: dict[str, Any]) -> list[str]:
    """Lines on hidden points and on left-out faces."""
    lines = []
    for stage, found in summary.get("hidden_points", {}).items():
        areas = ", ".join(
            f"{comparison} {found[name]} (95 % {' to '.join(map(str, found[f'{name}_interval']))})"
            for name, comparison in AREAS.items()
        )
        counts = f"{found['hidden']} hidden, {found['visible']} visible points"
        how = "low visibilities" if stage == "by visibility" else f"low scores, {stage},"
        lines.append(f"{how} detect hidden points: {areas}; {counts}")
    left_out = [*summary["left_out"], *summary["skipped"]]
    lines += [f"left out: {message}" for message in left_out[:SHOWN]]
    if len(left_out) > SHOWN:
        lines.append(f"left out: {len(left_out) - SHOWN} more, see --json")
    return lines
