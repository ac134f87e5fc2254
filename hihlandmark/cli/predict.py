"""`hihlandmark predict`: landmarks of images, printed or written to a folder."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Exit, Option

from hihlandmark.cli import options
from hihlandmark.errors import ImageError

OutputFormat = Literal["json", "pts", "jsonl", "csv", "coco", "parquet", "parquet-points"]
"""The keys of `io.FORMATS`."""
_PATHS = (
    "Image files, folders, globs, tar and zip archives, Parquet files, URLs (http, s3 and others), "
    "or @list.txt with one of these per line."
)
_FORMAT = (
    "json, pts: files per image; jsonl, csv, coco, parquet: files for many images; "
    "parquet-points: parquet without covariances."
)
_WORKERS = "Threads that read images and find faces; default: one per core, at most eight."
_SHARD = "2/8: do the second eighth; seven other processes the rest."


def predict(
    paths: Annotated[list[str], Argument(metavar="PATH...", help=_PATHS)],
    out: Annotated[
        Path | None, Option(help="Folder for the results; default: JSON lines on stdout.")
    ] = None,
    layout: options.LayoutOption = "98",
    output_format: Annotated[OutputFormat, Option("--format", help=_FORMAT)] = "json",
    draw: Annotated[
        bool, Option("--draw", help="Also write a PNG with the landmarks. Needs --out.")
    ] = False,
    model: options.ModelOption = "hih-small",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = "auto",
    runtime: options.RuntimeOption = "auto",
    face_detector: options.FaceDetectorOption = "mtcnn",
    refine: options.RefineOption = 1,
    min_face: Annotated[
        int | None, Option(min=1, help="Side in pixels of the smallest face to find.")
    ] = None,
    batch_size: options.BatchSizeOption = None,
    flip_test: options.FlipTestOption = True,
    shape_prior: options.ShapePriorOption = True,
    any_rotation: options.AnyRotationOption = False,
    part_size: Annotated[
        int, Option(min=1, help="Images per part; a kill costs one part at most.")
    ] = 200,
    shard: Annotated[str | None, Option(help=_SHARD)] = None,
    by_content: Annotated[
        bool, Option("--by-content", help="Recognize changed images by bytes, not size and time.")
    ] = False,
    workers: Annotated[int | None, Option(min=1, help=_WORKERS)] = None,
    fail_fast: Annotated[
        bool, Option("--fail-fast", help="Stop at the first image that cannot be read.")
    ] = False,
) -> None:
    """Find the landmarks of every face in images, folders, archives, tables and URLs.

    With --out the command can be stopped or killed at any time. Run it again to continue with the
    images that have no result yet.
    """
    from hihlandmark.draw import draw_faces, encode_png
    from hihlandmark.io import ResultFolder, Shard, find_images, predict_sources, to_record
    from hihlandmark.writing import write_atomically

    if out is None:
        needs_out = {"--draw": draw, "--format": output_format != "json", "--shard": shard}
        if given := [name for name, is_given in needs_out.items() if is_given]:
            raise BadParameter(f"{' and '.join(given)}: give a folder to write to by --out")
    chosen = {"refine": refine, "min_face": min_face, "any_rotation": any_rotation}
    detector = options.make_detector(
        layout, model, weights=weights, device=device, runtime=runtime,
        face_detector=face_detector, batch_size=batch_size, flip_test=flip_test,
        shape_prior=shape_prior, **chosen,
    )  # fmt: skip
    sources = find_images(paths)
    if by_content:
        sources = (source.stamped_by_content() for source in sources)
    images = faces = failed = 0
    with ExitStack() as stack:
        folder = None
        if out is not None:
            settings = chosen | {
                "layout": detector.layout.name,
                "weights": detector.card.sha256,
                "face_detector": detector.face_detector.name,
                "flip_test": detector.landmarker.flip_test,
                "shape_prior": detector.landmarker.shape_prior is not None,
                "by_content": by_content,
            }
            part_of = Shard.parse(shard) if shard else Shard()
            folder = stack.enter_context(
                ResultFolder(out, output_format, settings, shard=part_of, part_size=part_size)
            )
            sources = folder.pending(sources)
            bar = stack.enter_context(options.progress_bar("images"))
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
                    drawn = encode_png(draw_faces(result.source.load(), result.faces))
                    name = f"{result.source.name}.landmarks.png"
                    write_atomically(folder.folder / name, drawn)
            if folder is not None:
                done = images + failed + folder.done_before + folder.repeated
                bar(done, total.get("images"), f"{faces} faces, {failed} failed")
    summary = f"images: {images}, faces: {faces}, failed: {failed}"
    if folder is not None:
        summary += f", done before: {folder.done_before}; results in {folder.folder}"
    print(summary, file=sys.stderr)
    raise Exit(1 if failed else 0)


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
