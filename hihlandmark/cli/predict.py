"""`hihlandmark predict`: landmarks of images, printed or written to a folder."""

from __future__ import annotations

import glob
import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Exit, Option

from hihlandmark.cli import options
from hihlandmark.errors import ImageError
from hihlandmark.writing import check_local

if TYPE_CHECKING:
    from hihlandmark.detector import Detector
    from hihlandmark.io import Result, ResultFolder, Source

OutputFormat = Literal[
    "json",
    "pts",
    "jsonl",
    "csv",
    "csv-wide",
    "csv-wide-measures",
    "coco",
    "parquet",
    "parquet-points",
]
"""The keys of `io.FORMATS`."""
_PATHS = (
    "Image files, folders, globs, tar and zip archives, Parquet files, URLs (http, s3 and others), "
    "or @list.txt with one of these per line."
)
_OUT = "Folder for the results; default: JSON lines on stdout."
_FORMAT = (
    "json, pts: files per image; jsonl, csv, coco, parquet: files for many images. csv has a row "
    "per point, csv-wide per face, csv-wide-measures also head pose and openness; "
    "parquet-points: parquet without covariances."
)
_WORKERS = "Threads that read images and find faces; default: one per core, at most eight."
_SHARD = "2/8: do the second eighth; seven other processes the rest."
_PART_SIZE = 200
_EXPLAIN = (
    "Print why faces of one image are found or dropped, and write no results; with --out as a "
    "drawing, explanation.png, as well."
)
_ALLOW_MIXED = "Continue in a folder with results of another model, runtime or other options."


def predict(
    paths: Annotated[list[str], Argument(metavar="PATH...", help=_PATHS)],
    out: Annotated[Path | None, Option("--out", "-o", callback=check_local, help=_OUT)] = None,
    layout: options.DefaultLayoutOption = None,
    output_format: Annotated[OutputFormat, Option("--format", help=_FORMAT)] = "json",
    draw: Annotated[
        bool, Option("--draw", help="Also write a PNG with the landmarks. Needs --out.")
    ] = False,
    draw_boxes: Annotated[bool, Option("--draw-boxes", help="--draw with the boxes.")] = False,
    draw_numbers: Annotated[
        bool, Option("--draw-numbers", help="--draw with the numbers of the points.")
    ] = False,
    draw_enlarged: Annotated[
        bool, Option("--draw-enlarged", help="--draw with the faces, enlarged, below the image.")
    ] = False,
    model: options.ModelOption = "hih-small",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = "auto",
    runtime: options.RuntimeOption = "auto",
    precision: options.PrecisionOption = "auto",
    face_detector: options.FaceDetectorOption = "mtcnn",
    refine: options.RefineOption = 0,
    min_face: options.MinFaceOption = None,
    min_box_score: options.MinBoxScoreOption = None,
    detection_size: options.DetectionSizeOption = None,
    min_reliability: options.MinReliabilityOption = 0.0,
    batch_size: options.BatchSizeOption = None,
    flip_test: options.FlipTestOption = None,
    shape_prior: options.ShapePriorOption = True,
    any_rotation: options.AnyRotationOption = False,
    max_pixels: options.MaxPixelsOption = options.MAX_PIXELS,
    max_bytes: options.MaxBytesOption = options.MAX_BYTES,
    part_size: Annotated[
        int, Option(min=1, help="Images per part; a kill costs one part at most.")
    ] = _PART_SIZE,
    shard: Annotated[str | None, Option(help=_SHARD)] = None,
    by_content: Annotated[
        bool, Option("--by-content", help="Recognize changed images by bytes, not size and time.")
    ] = False,
    workers: Annotated[int | None, Option(min=1, help=_WORKERS)] = None,
    fail_fast: Annotated[
        bool, Option("--fail-fast", help="Stop at the first image that cannot be read.")
    ] = False,
    allow_mixed: Annotated[bool, Option("--allow-mixed", help=_ALLOW_MIXED)] = False,
    explain: Annotated[bool, Option("--explain", help=_EXPLAIN)] = False,
) -> None:
    """Find the landmarks of every face in images, folders, archives, tables and URLs.

    With --out the command can be stopped or killed at any time. Run it again to continue with the
    images that have no result yet. Images that could not be read are listed in _failed.txt.
    """
    from hihlandmark.io import ResultFolder, Shard, find_images, predict_sources, settings_of
    from hihlandmark.io.sources import require_pyarrow
    from hihlandmark.writing import uninterrupted

    drawn = {"boxes": draw_boxes, "numbers": draw_numbers, "enlarged": draw_enlarged}
    draw = draw or any(drawn.values())
    of_results = {
        "--draw": draw,
        "--format": output_format != "json",
        "--shard": shard,
        "--part-size": part_size != _PART_SIZE,
        "--allow-mixed": allow_mixed,
    }
    if out is None and (given := options.given(of_results)):
        raise BadParameter(f"{given}: give a folder to write to by --out")
    if explain and (given := options.given(of_results | {"--fail-fast": fail_fast})):
        raise BadParameter(f"--explain writes no results: leave out {given}")
    # What is missing is an error before the work, not when its turn comes.
    if output_format.startswith("parquet") or any(path.endswith(".parquet") for path in paths):
        require_pyarrow()
    detector = options.make_detector(
        layout, model, weights=weights, device=device, runtime=runtime, precision=precision,
        face_detector=face_detector, batch_size=batch_size, flip_test=flip_test,
        shape_prior=shape_prior, refine=refine, min_face=min_face, min_box_score=min_box_score,
        detection_size=detection_size, any_rotation=any_rotation, max_pixels=max_pixels,
        max_bytes=max_bytes,
    )  # fmt: skip
    sources = find_images(paths, exclude=out, max_bytes=max_bytes)
    if explain:
        _explain(detector, sources, out, min_reliability)
        return
    if draw:
        sources = (_downloaded_once(source, max_bytes) for source in sources)
    if by_content:
        sources = (source.stamped_by_content() for source in sources)
    counts = _Counts()
    folder = None
    total: dict[str, int] = {}
    start = time.monotonic()
    try:
        with ExitStack() as stack:
            if out is not None:
                settings = settings_of(detector) | {"by_content": by_content}
                settings |= {"min_reliability": min_reliability} if min_reliability else {}
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
                if folder.shard.total == 1:  # others have a share of the images
                    total = _count_in_background(paths, out)
            for result in predict_sources(detector, sources, workers, min_reliability):
                drawing = None
                if draw and result.error is None:
                    result, drawing = _draw(detector, result, drawn)
                if folder is None and result.error is None:
                    _print_record(result)
                with uninterrupted():
                    if folder is not None:
                        folder.add(result, drawing)
                    counts.add(result)
                if result.error is not None:
                    is_skipped = result.source.is_skipped
                    if fail_fast and not is_skipped:
                        raise ImageError(result.error)
                    print(
                        f"{'skipped' if is_skipped else 'failed'}: {result.error}", file=sys.stderr
                    )
                if folder is not None:
                    done = counts.all + folder.done_before + folder.repeated
                    note = f"{options.counted(counts.faces, 'face')}, {counts.failed} failed"
                    bar(done, total.get("images"), note)
    except KeyboardInterrupt:
        print(_stopped(counts, folder, total.get("images")), file=sys.stderr)
        raise Exit(130) from None
    print(_summary(counts, folder, time.monotonic() - start), file=sys.stderr)
    if counts.unreliable:
        print(_unreliable(counts), file=sys.stderr)
    failed_before = folder.failed_before + folder.failed if folder else 0
    raise Exit(1 if counts.failed or failed_before else 0)


MIN_RELIABILITY = 0.5
"""As `reliability.MIN_RELIABILITY`; its import would take time."""
_NAMED = 5
"""Images with unreliable faces that the summary names."""


@dataclass
class _Counts:
    """Numbers of images and faces of this run."""

    images: int = 0
    without_face: int = 0
    faces: int = 0
    failed: int = 0
    skipped: int = 0
    unreliable: int = 0
    doubtful: list[str] = field(default_factory=list)

    @property
    def all(self) -> int:
        """The number of images, read or not."""
        return self.images + self.failed + self.skipped

    def add(self, result: Result) -> None:
        """Count a result."""
        if result.error is None:
            self.images += 1
            self.faces += len(result.faces)
            self.without_face += not result.faces
            low = sum(face.reliability < MIN_RELIABILITY for face in result.faces)
            self.unreliable += low
            if low and len(self.doubtful) <= _NAMED:
                self.doubtful.append(result.source.path)
        elif result.source.is_skipped:
            self.skipped += 1
        else:
            self.failed += 1


def _unreliable(counts: _Counts) -> str:
    """The line on faces of low reliability, which names the first images with any."""
    names = [*counts.doubtful[:_NAMED], *(["..."] if len(counts.doubtful) > _NAMED else [])]
    return (
        f"unreliable, below {MIN_RELIABILITY:g}: {options.counted(counts.unreliable, 'face')}, in "
        f"{', '.join(names)}; `hihlandmark data next` sorts images by reliability"
    )


def _explain(
    detector: Detector, sources: Iterable[Source], out: Path | None, min_reliability: float
) -> None:
    """Print the explanation of the one image."""
    from hihlandmark.draw import encode_png
    from hihlandmark.writing import write_atomically

    listed = list(islice(sources, 2))
    if len(listed) != 1:
        raise BadParameter("--explain: give one image")
    target = None if out is None else out / "explanation.png"
    if target is not None and target.exists():
        raise BadParameter(f"--explain: {target} exists already, choose another --out")
    # As `predict` reads it: reduced, if it is very large.
    image = listed[0].load_by(detector.load_image)
    explanation = detector.explain(image.pixels, min_reliability=min_reliability or MIN_RELIABILITY)
    if image.factor > 1:
        print(f"boxes are in pixels of the image reduced to 1/{image.factor} of its sides")
    if explanation.candidates:
        explanation.table().print()
    else:
        print("no candidate: the face detector finds nothing that resembles a face")
    if target is not None:
        write_atomically(target, encode_png(explanation.draw()))
        print(f"drawing: {target}")


def _stopped(counts: _Counts, folder: ResultFolder | None, total: int | None) -> str:
    """What Ctrl-C leaves behind."""
    if folder is None:
        return f"stopped, {options.counted(counts.all, 'image')} done"
    done = counts.all + folder.done_before + folder.repeated
    of_all = f" of {total}" if total and folder.shard.total == 1 else ""
    return f"stopped, {done}{of_all} done, the same command continues"


def _summary(counts: _Counts, folder: ResultFolder | None, seconds: float) -> str:
    """The last line of a run of so many seconds."""
    unwritten = folder.failed if folder else 0
    parts = [
        f"images: {counts.images - unwritten}, faces: {counts.faces}",
        f"failed: {counts.failed + unwritten}",
    ]
    if counts.skipped:
        parts.append(f"skipped: {counts.skipped}")
    if folder is not None:
        failed = f" ({folder.failed_before} of them failed)" if folder.failed_before else ""
        parts.append(f"done before: {folder.done_before}{failed}")
    parts.append(f"without a face: {counts.without_face}")
    if counts.images:
        parts.append(f"{counts.images / max(seconds, 1e-3):.1f} images per second")
        parts.append(f"time: {timedelta(seconds=round(seconds))}")
    text = ", ".join(parts)
    if folder is not None:
        text += f"; results in {folder.folder}"
        text += f"; failures in {folder.failures}" if folder.failures else ""
    return text


def _draw(
    detector: Detector, result: Result, drawn: Mapping[str, Any]
) -> tuple[Result, bytes | None]:
    """The result with the PNG of its landmarks, or with a problem if the image has vanished.

    Very large images are drawn reduced, as they were read.
    """
    from hihlandmark.download import is_url
    from hihlandmark.draw import encode_png
    from hihlandmark.face import draw_reduced

    source = result.source
    try:
        image = source.load_by(detector.load_image)
    except ImageError as error:
        source = replace(source, problem=str(error))
        return replace(result, source=source, error=str(error)), None
    if is_url(source.path):  # results are kept until a part is complete, downloads are not
        result = replace(result, source=replace(source, content=None))
    return result, encode_png(draw_reduced(image, result.faces, **drawn))


def _downloaded_once(source: Source, max_bytes: int) -> Source:
    """The same image; what a URL serves may be another one when it is to be drawn."""
    from hihlandmark.download import download, is_url
    from hihlandmark.image import URL_TIMEOUT

    if source.problem is not None or source.content is not None or not is_url(source.path):
        return source
    return replace(source, content=cache(partial(download, source.path, URL_TIMEOUT, max_bytes)))


def _print_record(result: Result) -> None:
    """Print a line of JSON, in ASCII where stdout has another encoding than UTF-8."""
    from hihlandmark.io import to_record

    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(to_record(result), ensure_ascii=not is_utf8), flush=True)


def _count_in_background(paths: list[str], out: Path | None) -> dict[str, int]:
    """A dictionary that gets the number of ``images``, unless archives or URLs must be read."""
    from hihlandmark.io import find_images

    total: dict[str, int] = {}

    def count() -> None:
        total["images"] = sum(1 for _ in find_images(paths, exclude=out))

    if all(map(_is_quick_to_count, paths)):
        threading.Thread(target=count, daemon=True).start()
    return total


def _is_quick_to_count(path: str) -> bool:
    from hihlandmark.io import IMAGE_SUFFIXES
    from hihlandmark.io.sources import split_archive

    suffix = Path(path).suffix.lower()
    # A pattern without a suffix, or a list, may lead to archives.
    if "://" in path or path.startswith("@") or (not suffix and glob.has_magic(path)):
        return False
    return suffix in ("", *IMAGE_SUFFIXES) and split_archive(path) is None
