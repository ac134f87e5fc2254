"""`hihlandmark eval`: errors on annotated faces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hihlandmark.cli.options import (
    AnnotatedOption,
    BatchSizeOption,
    DataFormatOption,
    DetectionSizeOption,
    DeviceOption,
    FaceDetectorName,
    FaceDetectorOption,
    FlipTestOption,
    JsonOption,
    MinBoxScoreOption,
    MinFaceOption,
    ModelOption,
    PrecisionOption,
    RefineOption,
    RuntimeOption,
    ShapePriorOption,
    WeightsOption,
    given,
    make_detector,
    progress_bar,
)
from hihlandmark.writing import check_local

_OF_RECALL = frozenset(
    (
        "data", "detector_name", "device", "runtime", "precision", "as_json", "min_face",
        "min_box_score", "detection_size",
    )
)  # fmt: skip
"""Parameters that have an effect with ``--detector``."""


def evaluate_split(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder of a data set.")],
    split: Annotated[
        str | None, typer.Option(help="Name of the split; required without --detector.")
    ] = None,
    detector_name: Annotated[
        FaceDetectorName | None,
        typer.Option(
            "--detector",
            help="Measure the recall of a face detector on the bounding boxes of WIDER FACE "
            "or of a boxes.jsonl instead.",
        ),
    ] = None,
    data_format: DataFormatOption = "auto",
    layout: Annotated[
        str | None, typer.Option(help="Points to predict; default: those annotated.")
    ] = None,
    annotated: AnnotatedOption = None,
    boxes: Annotated[
        Literal["labels", "official", "detected"],
        typer.Option(help="Crop around annotated points, published rectangles or detected faces."),
    ] = "labels",
    normalize: Annotated[
        Literal["interocular", "interpupil", "box", "diagonal"],
        typer.Option(help="The unit of errors."),
    ] = "interocular",
    jitter: Annotated[
        bool, typer.Option("--jitter", help="Also move and scale boxes: about 30 times slower.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also corrupt images: about 30 times slower.")
    ] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Also count points interpolated by a conversion.")
    ] = False,
    every: Annotated[
        int,
        typer.Option(min=1, metavar="K", help="Every K-th face only for --jitter, --robustness."),
    ] = 1,
    refine: RefineOption = 0,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "auto",
    face_detector: FaceDetectorOption = "mtcnn",
    min_face: MinFaceOption = None,
    min_box_score: MinBoxScoreOption = None,
    detection_size: DetectionSizeOption = None,
    batch_size: BatchSizeOption = None,
    flip_test: FlipTestOption = None,
    shape_prior: ShapePriorOption = True,
    decoder: Annotated[
        Literal["argmax", "soft", "local_soft_argmax", "quarter_shift", "mean"] | None,
        typer.Option(help="How heatmaps become points; default: the model card's."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=check_local,
            help="Folder for the report, its curves and the worst faces.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure NME, FR and AUC on a split of a data set, or the recall of a face detector."""
    if detector_name is not None:
        _refuse_options_of_landmarks(context)
        search = {
            "runtime": runtime,
            "precision": precision,
            "device": device,
            "min_face": min_face,
            "min_score": min_box_score,
            "detection_size": detection_size,
        }
        _evaluate_face_detector(data, detector_name, search, as_json)
        return
    if split is None:
        raise typer.BadParameter("--split or --detector is required")
    import json
    from dataclasses import replace

    import numpy as np
    from rich.console import Console

    from hihlandmark.datasets import read_faces
    from hihlandmark.errors import DataError
    from hihlandmark.evaluation import protocol
    from hihlandmark.evaluation.corruptions import measure_robustness
    from hihlandmark.evaluation.report import (
        new_figure,
        print_report,
        refuse_other_files,
        summarize,
        write_report,
    )
    from hihlandmark.weights import find_weights, register_layouts

    search = {
        "--face-detector": face_detector != "mtcnn",
        "--min-face": min_face,
        "--min-box-score": min_box_score is not None,
        "--detection-size": detection_size,
    }
    if boxes != "detected" and (unused := given(search)):
        raise typer.BadParameter(f"{unused} requires --boxes detected")
    if every > 1 and not (jitter or robustness):
        raise typer.BadParameter("--every requires --jitter or --robustness")
    if jitter and boxes == "detected":
        raise typer.BadParameter("--jitter requires --boxes labels or official")
    if out is not None:
        new_figure(1, 1)  # a missing package is an error before the work, not after it
        refuse_other_files(out)
        out.mkdir(parents=True, exist_ok=True)
    card = None if weights is None else find_weights(weights, model=model).card
    if card is not None:
        register_layouts(card)  # for the reader of the faces
    faces = read_faces(data, split, format=data_format, layout=annotated)
    if card is not None and annotated is None:
        protocol.refuse_ambiguous(faces, card, data, data_format)
    detector = make_detector(
        layout or protocol.annotated_layout(faces).name,
        model,
        weights=weights,
        device=device,
        runtime=runtime,
        precision=precision,
        face_detector=face_detector,
        min_face=min_face,
        min_box_score=min_box_score,
        detection_size=detection_size,
        refine=refine,
        batch_size=batch_size,
        decoder=decoder,
        flip_test=flip_test,
        shape_prior=shape_prior,
    )
    options: dict[str, Any] = {"boxes": boxes, "approximate": approximate}
    if boxes == "official":
        train = read_faces(data, "train", format=data_format, layout=annotated)
        options["official_map"] = protocol.fit_official_map(detector, train)
    with progress_bar("faces") as progress:
        evaluation = protocol.evaluate(detector, faces, **options, progress=progress)
    evaluation = evaluation.normalized(normalize)
    if np.isnan(evaluation.face_errors).all() and not evaluation.missed.any():
        raise DataError(
            f"no face has the annotated points that --normalize {normalize} needs: choose another"
        )
    sample = replace(faces, faces=faces.faces[::every])
    options["normalization"] = normalize
    curves, corrupted = [], None
    for count in sorted({0, 1, refine}) if jitter else ():
        with progress_bar(f"jitter, refine {count}") as progress:
            shared: dict[str, Any] = {**options, "progress": progress}
            curves.append(protocol.jitter_curve(detector, sample, refine=count, **shared))
    if robustness:
        with progress_bar("robustness") as progress:
            corrupted = measure_robustness(detector, sample, **options, progress=progress)
    settings = {
        "data": str(data),
        "split": split,
        "model": detector.card.name,
        "weights": detector.card.sha256,
        "boxes": boxes,
        "refine": refine,
        "decoder": decoder or detector.card.decoding.decoder,
        "runtime": detector.runtime.name,
        "precision": detector.runtime.precision,
        "flip_test": detector.landmarker.flip_test,
        "shape_prior": detector.landmarker.shape_prior is not None,
    }
    if approximate:
        settings["approximate"] = True
    if boxes == "detected":
        settings["face_detector"] = detector.face_detector.name
        limits = {
            "min_face": min_face,
            "min_box_score": min_box_score,
            "detection_size": detection_size,
        }
        settings |= {name: value for name, value in limits.items() if value is not None}
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


def _refuse_options_of_landmarks(context: typer.Context) -> None:
    """Raise `BadParameter` for options that have no effect with ``--detector``."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in _OF_RECALL
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"--detector measures recall alone: omit {', '.join(given)}")


def _evaluate_face_detector(data: Path, name: str, options: dict[str, Any], as_json: bool) -> None:
    """Print the recall of a face detector on a set of bounding boxes."""
    import json

    from hihlandmark.evaluation.detection import MIN_OVERLAP, evaluate_face_detector, read_boxes
    from hihlandmark.face_detection import make_face_detector

    images = read_boxes(data)
    face_detector = make_face_detector(name, **options)
    with progress_bar("images") as progress:
        measured = evaluate_face_detector(face_detector, images, progress=progress)
    report: dict[str, Any] = {
        "data": str(data),
        "face_detector": name,
        "min_overlap": MIN_OVERLAP,
    }
    searched = getattr(face_detector, "face_detector", face_detector)  # of detection_size "auto"
    for setting in ("runtime", "precision", "detection_size", "min_face", "min_score"):
        report[setting] = getattr(searched, setting, None)  # those of others may lack it
    if options["detection_size"] == "auto":
        report["detection_size"] = "auto"
    report |= measured.as_dict()
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for recall in measured.recalls:
        share = f" = {recall.found / recall.faces:.1%}" if recall.faces else ""
        print(f"faces of {recall.min_side} px or more: {recall.found}/{recall.faces}{share}")
    print(f"boxes per image: {measured.boxes_per_image:.2f} ({measured.images} images)")
    print(f"CPU-ms: {report['cpu_ms_median']:.1f} median, {report['cpu_ms_90']:.1f} at 90 %")
