"""`hihlandmark eval`: errors on annotated faces."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.cli.options import (
    BatchSizeOption,
    DeviceOption,
    FaceDetectorOption,
    FlipTestOption,
    LayoutName,
    ModelOption,
    RuntimeOption,
    ShapePriorOption,
    WeightsOption,
    make_detector,
)

if TYPE_CHECKING:
    from hihlandmark.crop import BoxMap
    from hihlandmark.detector import Detector


class BoxOrigin(str, Enum):
    """Where the boxes of an evaluation come from; see `evaluation.protocol.evaluate`."""

    LABELS = "labels"
    OFFICIAL = "official"
    DETECTED = "detected"


class Unit(str, Enum):
    """Keys of `evaluation.metrics.NORMALIZATIONS`."""

    INTEROCULAR = "interocular"
    INTERPUPIL = "interpupil"
    BOX = "box"
    DIAGONAL = "diagonal"


def evaluate_split(
    data: Annotated[
        Path, typer.Option("--data", help="Folder of the data set, as its authors publish it.")
    ],
    split: Annotated[str, typer.Option("--split", help="Name of the split.")],
    data_format: Annotated[
        str, typer.Option("--format", help="Format of the data set; auto: by what is there.")
    ] = "auto",
    layout: Annotated[
        LayoutName | None,
        typer.Option("--layout", help="Points to predict; default: those annotated."),
    ] = None,
    annotated: Annotated[
        str | None,
        typer.Option("--annotated", help="Layout of the labels, where the data set has several."),
    ] = None,
    boxes: Annotated[
        BoxOrigin,
        typer.Option(
            "--boxes", help="Crop around true points, the data set's rectangles or detected faces."
        ),
    ] = BoxOrigin.LABELS,
    normalize: Annotated[
        Unit, typer.Option("--normalize", help="The unit of errors.")
    ] = Unit.INTEROCULAR,
    jitter: Annotated[
        bool,
        typer.Option(
            "--jitter",
            help="Measure with boxes moved and scaled, too, with and without refinement: takes "
            "some thirty times as long.",
        ),
    ] = False,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Measure on blurred, compressed, small, turned and gray photos, too: takes some "
            "thirty times as long.",
        ),
    ] = False,
    every: Annotated[
        int,
        typer.Option(
            "--every",
            min=1,
            metavar="K",
            help="Take every K-th face alone for --jitter and --robustness.",
        ),
    ] = 1,
    refine: Annotated[
        int | None,
        typer.Option("--refine", min=0, help="Default: 1 with detected faces, else 0."),
    ] = None,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    face_detector: FaceDetectorOption = "mtcnn",
    batch_size: BatchSizeOption = None,
    flip_test: FlipTestOption = True,
    shape_prior: ShapePriorOption = True,
    decoder: Annotated[
        str | None,
        typer.Option(
            "--decoder",
            help="argmax, expectation, quarter_shift or mean; default: the model card's.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report, its curves and the worst faces."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON alone instead of tables.")
    ] = False,
) -> None:
    """Measure NME, FR and AUC on a split of a data set."""
    import json
    from dataclasses import replace

    from rich.console import Console

    from hihlandmark.cli.progress import progress_bar
    from hihlandmark.datasets import read_faces
    from hihlandmark.evaluation.corruptions import measure_robustness
    from hihlandmark.evaluation.figures import new_figure
    from hihlandmark.evaluation.protocol import annotated_layout, evaluate, jitter_curve
    from hihlandmark.evaluation.report import print_report, summarize, write_report

    if every > 1 and not (jitter or robustness):
        raise typer.BadParameter("--every goes with --jitter or --robustness")
    if jitter and boxes is BoxOrigin.DETECTED:
        raise typer.BadParameter("--jitter goes with --boxes labels or official")
    if out is not None:
        # What is missing, or cannot be written, is better known now than after the work.
        new_figure(1, 1)
        out.mkdir(parents=True, exist_ok=True)
    faces = read_faces(data, split, format=data_format, layout=annotated)
    refine = refine if refine is not None else int(boxes is BoxOrigin.DETECTED)
    detector = make_detector(
        layout or annotated_layout(faces).name,
        model,
        weights=weights,
        device=device,
        runtime=runtime,
        face_detector=face_detector,
        refine=refine,
        batch_size=batch_size,
        decoder=decoder,
        flip_test=flip_test,
        shape_prior=shape_prior,
    )
    options: dict[str, Any] = {"boxes": boxes.value}
    if boxes is BoxOrigin.OFFICIAL:
        options["official_map"] = _official_map(detector, data, data_format, annotated)
    with progress_bar("faces") as progress:
        evaluation = evaluate(detector, faces, **options, progress=progress)
    evaluation = evaluation.normalized(normalize.value)
    some = replace(faces, faces=faces.faces[::every])
    curves, corrupted = [], None
    for crops_after_the_first in sorted({0, 1, refine}) if jitter else ():
        with progress_bar(f"jitter, refine {crops_after_the_first}") as progress:
            curves.append(
                jitter_curve(
                    detector,
                    some,
                    **options,
                    refine=crops_after_the_first,
                    normalization=normalize.value,
                    progress=progress,
                )
            )
    if robustness:
        with progress_bar("robustness") as progress:
            corrupted = measure_robustness(
                detector, some, **options, normalization=normalize.value, progress=progress
            )
    settings = {
        "data": str(data),
        "split": split,
        "model": detector.card.name,
        "weights": detector.card.files,
        "boxes": boxes.value,
        "refine": refine,
        "decoder": detector.decoder,
        "runtime": detector.runtime.name,
        "flip_test": detector.flip_test,
        "shape_prior": detector.shape_prior is not None,
    }
    if boxes is BoxOrigin.DETECTED:
        settings["face_detector"] = detector.face_detector.name
    if every > 1:
        settings["every"] = every
    report = summarize(evaluation, settings, curves, corrupted)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, Console())
    if out is not None:
        write_report(out, report, evaluation, faces, settings, curves, corrupted)
        Console(stderr=True).print(f"report: {out / 'report.md'}", highlight=False, markup=False)


def _official_map(
    detector: Detector, data: Path, data_format: str, annotated: str | None
) -> BoxMap:
    """From the data set's rectangles to the crop, fitted on its training split."""
    from hihlandmark.datasets import read_faces
    from hihlandmark.evaluation.protocol import fit_official_map

    return fit_official_map(
        detector, read_faces(data, "train", format=data_format, layout=annotated)
    )
