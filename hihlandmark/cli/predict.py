"""`hihlandmark predict`: landmarks of images, printed or written to a folder."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hihlandmark.cli.options import (
    AnyRotationOption,
    BatchSizeOption,
    DeviceOption,
    FaceDetectorOption,
    FlipTestOption,
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
    from hihlandmark.io import Result

OutputFormat = Literal["json", "pts", "jsonl", "csv", "coco", "parquet", "parquet-points"]
"""The keys of `io.FORMATS`."""


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, globs, tar and zip archives, Parquet files, URLs (http, "
            "s3 and others), or @list.txt with one of these per line.",
            metavar="PATH...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the results; default: JSON lines on stdout."),
    ] = None,
    layout: LayoutOption = "98",
    output_format: Annotated[
        OutputFormat,
        typer.Option(
            "--format",
            help="json, pts: files per image; jsonl, csv, coco, parquet: files for many images; "
            "parquet-points: parquet without covariances.",
        ),
    ] = "json",
    draw: Annotated[
        bool, typer.Option("--draw", help="Also write a PNG with the landmarks. Needs --out.")
    ] = False,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    face_detector: FaceDetectorOption = "mtcnn",
    refine: RefineOption = 1,
    min_face: Annotated[
        int | None,
        typer.Option("--min-face", min=1, help="Side in pixels of the smallest face to find."),
    ] = None,
    batch_size: BatchSizeOption = None,
    flip_test: FlipTestOption = True,
    shape_prior: ShapePriorOption = True,
    any_rotation: AnyRotationOption = False,
    part_size: Annotated[
        int,
        typer.Option("--part-size", min=1, help="Images per part; a kill costs one part at most."),
    ] = 200,
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="2/8: do the second eighth; seven other processes the rest."),
    ] = None,
    by_content: Annotated[
        bool,
        typer.Option(
            "--by-content", help="Recognize changed images by their bytes, not by size and time."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Threads that read images and find faces; default: one per core, at most eight.",
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first image that cannot be read.")
    ] = False,
) -> None:
    """Find the landmarks of every face in images, folders, archives, tables and URLs.

    With --out the command can be stopped or killed at any time. Run it again to continue with the
    images that have no result yet.
    """
    from hihlandmark.cli.progress import progress_bar
    from hihlandmark.io import ResultFolder, Shard, find_images, predict_sources, to_record

    if out is None:
        needs_out = {"--draw": draw, "--format": output_format != "json", "--shard": shard}
        if given := [name for name, is_given in needs_out.items() if is_given]:
            raise typer.BadParameter(f"{' and '.join(given)}: give a folder to write to by --out")
    detector = make_detector(
        layout,
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
    sources = find_images(paths)
    if by_content:
        sources = (source.stamped_by_content() for source in sources)
    images = faces = failed = 0
    with ExitStack() as stack:
        folder = None
        if out is not None:
            settings = {
                "layout": detector.layout.name,
                "weights": detector.card.sha256,
                "face_detector": detector.face_detector.name,
                "refine": refine,
                "min_face": min_face,
                "flip_test": detector.landmarker.flip_test,
                "shape_prior": detector.landmarker.shape_prior is not None,
                "any_rotation": any_rotation,
                "by_content": by_content,
            }
            part_of = Shard.parse(shard) if shard else Shard()
            folder = stack.enter_context(
                ResultFolder(out, output_format, settings, shard=part_of, part_size=part_size)
            )
            sources = folder.pending(sources)
            bar = stack.enter_context(progress_bar("images"))
            total = _count_in_background(paths)
        for result in predict_sources(detector, sources, workers):
            if folder is not None:
                folder.add(result)
            if result.error is not None:
                failed += 1
                if fail_fast:
                    raise ImageError(result.error)
                print(f"failed: {result.error}", file=sys.stderr)
            else:
                images, faces = images + 1, faces + len(result.faces)
                if folder is None:
                    print(json.dumps(to_record(result), ensure_ascii=False), flush=True)
                elif draw:
                    _draw(folder.folder, result)
            if folder is not None:
                done = images + failed + folder.done_before + folder.repeated
                bar(done, total.get("images"), f"{faces} faces, {failed} failed")
    summary = f"images: {images}, faces: {faces}, failed: {failed}"
    if folder is not None:
        summary += f", done before: {folder.done_before}; results in {folder.folder}"
    print(summary, file=sys.stderr)
    raise typer.Exit(1 if failed else 0)


def _draw(folder: Path, result: Result) -> None:
    from hihlandmark.draw import draw_faces, encode_png
    from hihlandmark.writing import write_atomically

    drawn = draw_faces(result.source.load(), result.faces)
    write_atomically(folder / f"{result.source.name}.landmarks.png", encode_png(drawn))


def _count_in_background(paths: list[str]) -> dict[str, int]:
    """A dictionary that gets the number of ``images``, unless archives or URLs must be read."""
    from hihlandmark.io import IMAGE_SUFFIXES, find_images

    total: dict[str, int] = {}

    def count() -> None:
        total["images"] = sum(1 for _ in find_images(paths))

    suffixes = ("", *IMAGE_SUFFIXES)
    is_quick = all("://" not in path and Path(path).suffix.lower() in suffixes for path in paths)
    if is_quick and sys.stderr.isatty():
        threading.Thread(target=count, daemon=True).start()
    return total
