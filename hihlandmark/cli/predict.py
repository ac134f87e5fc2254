"""`hihlandmark predict`: landmarks of images, written or printed."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hihlandmark.cli.options import (
    AnyRotationOption,
    BatchSizeOption,
    DeviceOption,
    FaceDetectorOption,
    FlipTestOption,
    LayoutName,
    LayoutOption,
    ModelOption,
    RefineOption,
    RuntimeOption,
    ShapePriorOption,
    WeightsOption,
    make_detector,
)
from hihlandmark.errors import ImageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hihlandmark.io import Result, ResultFolder, Source

    PredictAll = Callable[[Iterable[Source | ImageError]], Iterator[Result | ImageError]]


class OutputFormat(str, Enum):
    """Keys of `folder.FORMATS`."""

    JSON = "json"
    PTS = "pts"
    JSONL = "jsonl"
    CSV = "csv"
    COCO = "coco"
    PARQUET = "parquet"
    PARQUET_POINTS = "parquet-points"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, globs, tar and zip archives, Parquet files, http(s) and "
            "fsspec URLs, or @list.txt with such lines.",
            metavar="PATH...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the results; default: a line of JSON an image on stdout.",
        ),
    ] = None,
    layout: LayoutOption = LayoutName.WFLW98,
    output_format: Annotated[
        OutputFormat,
        typer.Option(
            "--format",
            help="json, pts: files for each image; jsonl, csv, coco, parquet: files for many; "
            "parquet-points: parquet without covariances.",
        ),
    ] = OutputFormat.JSON,
    draw: Annotated[
        bool, typer.Option("--draw", help="Write a PNG with the landmarks drawn, too. Needs --out.")
    ] = False,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    face_detector: FaceDetectorOption = "mtcnn",
    refine: RefineOption = 1,
    min_face: Annotated[
        int | None,
        typer.Option("--min-face", min=1, help="Side in pixels of the smallest face to look for."),
    ] = None,
    batch_size: BatchSizeOption = None,
    flip_test: FlipTestOption = True,
    shape_prior: ShapePriorOption = True,
    any_rotation: AnyRotationOption = False,
    part_size: Annotated[
        int,
        typer.Option("--part-size", min=1, help="Images a part: what a kill costs at most."),
    ] = 200,
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="2/8: do the second eighth, beside seven other processes."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Look again at images that could not be read.")
    ] = False,
    by_content: Annotated[
        bool,
        typer.Option("--by-content", help="Know images by their bytes, not by size and time."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Threads that read ahead; default: one per core, at most eight.",
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first image that cannot be read.")
    ] = False,
) -> None:
    """Find the landmarks of every face in images, folders, archives, tables and URLs.

    With --out the work can be stopped, or killed, at any time: the same command goes on with the
    images that have no result yet.
    """
    from hihlandmark.io import ResultFolder, Shard, predict_sources

    if out is None:
        for name, given in (
            ("--draw", draw),
            (f"--format {output_format.value}", output_format is not OutputFormat.JSON),
            ("--shard", shard is not None),
        ):
            if given:
                raise typer.BadParameter(f"{name} needs --out DIR to write to")
    detector = make_detector(
        layout.value,
        model,
        weights=weights,
        device=device,
        runtime=runtime,
        face_detector=face_detector,
        refine=refine,
        min_face=min_face,
        batch_size=batch_size,
        flip_test=flip_test,
        shape_prior=shape_prior,
        any_rotation=any_rotation,
    )
    predict_all: PredictAll = partial(predict_sources, detector, workers=workers)
    if out is None:
        failed = _print_all(predict_all, paths, fail_fast)
    else:
        settings = {
            "layout": layout.value,
            "weights": detector.card.files,
            "face_detector": detector.face_detector.name,
            "refine": refine,
            "min_face": min_face,
            "flip_test": detector.flip_test,
            "shape_prior": detector.shape_prior is not None,
            "any_rotation": any_rotation,
            "by_content": by_content,
        }
        failed = _write_all(
            predict_all,
            paths,
            ResultFolder(
                out,
                output_format.value,
                settings,
                shard=Shard.parse(shard) if shard else Shard(),
                part_size=part_size,
                retry_failed=retry_failed,
            ),
            by_content=by_content,
            draw=draw,
            fail_fast=fail_fast,
        )
    raise typer.Exit(1 if failed else 0)


def _print_all(predict_all: PredictAll, paths: list[str], fail_fast: bool) -> int:
    """A line of JSON an image on stdout; how many failed."""
    from hihlandmark.io import Result, find_images, to_record

    images = faces = failed = 0
    for result in predict_all(find_images(paths)):
        if isinstance(result, Result) and result.error is None:
            images, faces = images + 1, faces + len(result.faces)
            print(json.dumps(to_record(result), ensure_ascii=False), flush=True)
        else:
            failed += 1
            _report_failure(result, fail_fast)
    print(_counts(images, faces, failed), file=sys.stderr)
    return failed


def _write_all(
    predict_all: PredictAll,
    paths: list[str],
    folder: ResultFolder,
    *,
    by_content: bool,
    draw: bool,
    fail_fast: bool,
) -> int:
    """Results in a folder; how many failed, in this run."""
    from hihlandmark.draw import draw_faces, encode_png
    from hihlandmark.io import Result, find_images
    from hihlandmark.writing import write_atomically

    images = faces = failed = 0
    with folder, _progress() as progress:
        task = progress.add_task("images", total=None, faces=0, failed=0, rate="")
        _count_meanwhile(paths, progress, task)
        found = find_images(paths)
        if by_content:
            found = (x if isinstance(x, ImageError) else x.stamped_by_content() for x in found)
        for result in predict_all(folder.pending(found)):
            if isinstance(result, Result):
                folder.add(result)
            if isinstance(result, Result) and result.error is None:
                images, faces = images + 1, faces + len(result.faces)
                if draw:
                    target = folder.folder / f"{result.source.name}.landmarks.png"
                    picture = draw_faces(result.source.load(), result.faces)
                    write_atomically(target, encode_png(picture))
            else:
                failed += 1
                _report_failure(result, fail_fast)
            progress.update(
                task,
                completed=images + failed + folder.done_before + folder.repeated,
                faces=faces,
                failed=failed,
                rate=f"{(images + failed) / (progress.tasks[task].elapsed or 1):.1f} a second",
            )
    before = f", {folder.done_before} done before" * bool(folder.done_before)
    print(f"{_counts(images, faces, failed)}{before}; results in {folder.folder}", file=sys.stderr)
    return failed


def _report_failure(result: Result | ImageError, fail_fast: bool) -> None:
    """Names what failed; raises it where that is to end the work."""
    message = str(result) if isinstance(result, ImageError) else str(result.error)
    if fail_fast:
        raise ImageError(message)
    print(f"failed: {message}", file=sys.stderr)


def _counts(images: int, faces: int, failed: int) -> str:
    return f"{images} image{'s' * (images != 1)}, {faces} face{'s' * (faces != 1)}, {failed} failed"


def _count_meanwhile(paths: list[str], progress: Progress, task: TaskID) -> None:
    """Tells the bar how many images there are, once a thread has counted them.

    Not where that takes as long as reading them all: in archives and on other machines.
    """
    from hihlandmark.io import IMAGE_SUFFIXES, find_images

    def count() -> None:
        progress.update(task, total=sum(1 for _ in find_images(paths)))

    suffixes = ("", *IMAGE_SUFFIXES)
    plain = all("://" not in path and Path(path).suffix.lower() in suffixes for path in paths)
    if plain and not progress.disable:
        threading.Thread(target=count, daemon=True).start()


def _progress() -> Progress:
    """On a terminal, on stderr: how many, how fast, faces, failures and the time left."""
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images, {task.fields[rate]}"),
        progress.TextColumn("{task.fields[faces]} faces, {task.fields[failed]} failed"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
