"""`hihlandmark predict`: landmarks of images, printed or written to a folder."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, BadParameter, Exit, Option

from hihlandmark.cli import options
from hihlandmark.errors import ImageError

if TYPE_CHECKING:
    from hihlandmark.io import Result

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
_ALLOW_MIXED = "Continue in a folder with results of another model, runtime or other options."


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
    precision: options.PrecisionOption = "auto",
    face_detector: options.FaceDetectorOption = "mtcnn",
    refine: options.RefineOption = 1,
    min_face: Annotated[
        int | None, Option(min=1, help="Side in pixels of the smallest face to find.")
    ] = None,
    batch_size: options.BatchSizeOption = None,
    flip_test: options.FlipTestOption = True,
    shape_prior: options.ShapePriorOption = True,
    any_rotation: options.AnyRotationOption = False,
    max_pixels: options.MaxPixelsOption = options.MAX_PIXELS,
    max_bytes: options.MaxBytesOption = options.MAX_BYTES,
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
    allow_mixed: Annotated[bool, Option("--allow-mixed", help=_ALLOW_MIXED)] = False,
) -> None:
    """Find the landmarks of every face in images, folders, archives, tables and URLs.

    With --out the command can be stopped or killed at any time. Run it again to continue with the
    images that have no result yet.
    """
    from hihlandmark.io import ResultFolder, Shard, find_images, predict_sources, settings_of

    if out is None:
        needs_out = {"--draw": draw, "--format": output_format != "json", "--shard": shard}
        if given := [name for name, is_given in needs_out.items() if is_given]:
            raise BadParameter(f"{' and '.join(given)}: give a folder to write to by --out")
    detector = options.make_detector(
        layout, model, weights=weights, device=device, runtime=runtime, precision=precision,
        face_detector=face_detector, batch_size=batch_size, flip_test=flip_test,
        shape_prior=shape_prior, refine=refine, min_face=min_face, any_rotation=any_rotation,
        max_pixels=max_pixels, max_bytes=max_bytes,
    )  # fmt: skip
    sources = find_images(paths, exclude=out, max_bytes=max_bytes)
    if by_content:
        sources = (source.stamped_by_content() for source in sources)
    images = faces = failed = skipped = 0
    with ExitStack() as stack:
        folder = None
        if out is not None:
            settings = settings_of(detector) | {"min_face": min_face, "by_content": by_content}
            folder = stack.enter_context(
                ResultFolder(
                    out,
                    output_format,
                    settings,
                    shard=Shard.parse(shard) if shard else Shard(),
                    part_size=part_size,
                    drawings=draw,
                    allow_mixed=allow_mixed,
                )
            )
            sources = folder.pending(sources)
            bar = stack.enter_context(options.progress_bar("images"))
            total = _count_in_background(paths, out)
        for result in predict_sources(detector, sources, workers):
            drawing = None
            if draw and result.error is None:
                result, drawing = _draw(result, max_pixels, max_bytes)
            if folder is not None:
                folder.add(result, drawing)
            elif result.error is None:
                _print_record(result)
            if result.error is None:
                images, faces = images + 1, faces + len(result.faces)
            elif result.source.is_skipped:
                skipped += 1
                print(f"skipped: {result.error}", file=sys.stderr)
            else:
                failed += 1
                if fail_fast:
                    raise ImageError(result.error)
                print(f"failed: {result.error}", file=sys.stderr)
            if folder is not None:
                done = images + failed + skipped + folder.done_before + folder.repeated
                bar(done, total.get("images"), f"{faces} faces, {failed} failed")
    if folder is not None:
        images, failed = images - folder.failed, failed + folder.failed
    summary = f"images: {images}, faces: {faces}, failed: {failed}"
    summary += f", skipped: {skipped}" if skipped else ""
    if folder is not None:
        summary += f", done before: {folder.done_before}; results in {folder.folder}"
    print(summary, file=sys.stderr)
    raise Exit(1 if failed else 0)


def _draw(result: Result, max_pixels: int, max_bytes: int) -> tuple[Result, bytes | None]:
    """The result with the PNG of its landmarks, or with a problem if the image has vanished."""
    from hihlandmark.draw import draw_faces, encode_png

    try:
        image = result.source.load(max_pixels=max_pixels, max_bytes=max_bytes)
    except ImageError as error:
        source = replace(result.source, problem=str(error))
        return replace(result, source=source, error=str(error)), None
    return result, encode_png(draw_faces(image, result.faces))


def _print_record(result: Result) -> None:
    """Print a line of JSON, in ASCII where stdout has another encoding than UTF-8."""
    from hihlandmark.io import to_record

    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(to_record(result), ensure_ascii=not is_utf8), flush=True)


def _count_in_background(paths: list[str], out: Path | None) -> dict[str, int]:
    """A dictionary that gets the number of ``images``, unless archives or URLs must be read."""
    from hihlandmark.io import IMAGE_SUFFIXES, find_images

    total: dict[str, int] = {}

    def count() -> None:
        total["images"] = sum(1 for _ in find_images(paths, exclude=out))

    suffixes = ("", *IMAGE_SUFFIXES)
    is_quick = all("://" not in path and Path(path).suffix.lower() in suffixes for path in paths)
    if is_quick and sys.stderr.isatty():
        threading.Thread(target=count, daemon=True).start()
    return total
