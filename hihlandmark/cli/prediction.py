"""`hihlandmark predict` and `demo`: landmarks of images, written or printed."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.cli.options import (
    AnyRotationOption,
    DeviceOption,
    FaceDetectorOption,
    LayoutName,
    LayoutOption,
    MirrorOption,
    ModelOption,
    RefineOption,
    RuntimeOption,
    ShapePriorOption,
    WeightsOption,
    astronaut,
    make_detector,
)
from hihlandmark.errors import ImageError

if TYPE_CHECKING:
    from hihlandmark.detector import Detector
    from hihlandmark.face import Face
    from hihlandmark.folder import Source


class OutputFormat(str, Enum):
    """Keys of `folder.FORMATS`."""

    JSON = "json"
    CSV = "csv"
    PTS = "pts"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(help="Image files, folders, globs or http(s) URLs.", metavar="PATH..."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the results, one file an image; default: JSON lines on stdout.",
        ),
    ] = None,
    layout: LayoutOption = LayoutName.WFLW98,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="What to write.")
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
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Faces a batch.")] = 32,
    mirror: MirrorOption = True,
    shape_prior: ShapePriorOption = True,
    any_rotation: AnyRotationOption = False,
) -> None:
    """Find the landmarks of every face in images, folders, globs and URLs."""
    if draw and out is None:
        raise typer.BadParameter("--draw needs --out DIR to write the pictures to")
    if output_format is not OutputFormat.JSON and out is None:
        raise typer.BadParameter(f"--format {output_format.value} needs --out DIR to write to")
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
        mirror=mirror,
        shape_prior=shape_prior,
        any_rotation=any_rotation,
    )
    images, faces, failures = 0, 0, 0
    for source, result in _predict_sources(detector, paths):
        if source is None or isinstance(result, ImageError):
            failures += 1
            print(f"failed: {result}", file=sys.stderr)
            continue
        images, faces = images + 1, faces + len(result)
        _write(source, result, out, output_format, draw)
    counts = (
        f"{images} image{'s' * (images != 1)}, {faces} face{'s' * (faces != 1)}, {failures} failed"
    )
    print(counts + (f"; results in {out}" if out and images else ""), file=sys.stderr)
    raise typer.Exit(1 if failures else 0)


def _predict_sources(
    detector: Detector, paths: list[str]
) -> Iterator[tuple[Source | None, list[Face] | ImageError]]:
    """Each image with its faces or its error, in order; what is no image at all has no source."""
    from hihlandmark.folder import find_images

    waiting: deque[Source | ImageError] = deque()

    def readable() -> Iterator[str]:
        for item in find_images(paths):
            waiting.append(item)
            if not isinstance(item, ImageError):
                yield item.path

    for result in detector.predict_many(readable(), on_error="yield"):
        while isinstance(item := waiting.popleft(), ImageError):
            yield None, item
        yield item, result
    for item in waiting:
        assert isinstance(item, ImageError)  # every source has got its result
        yield None, item


def _write(
    source: Source, faces: list[Face], out: Path | None, output_format: OutputFormat, draw: bool
) -> None:
    from hihlandmark.folder import FORMATS
    from hihlandmark.writing import write_atomically

    texts = FORMATS[output_format.value](faces, source)
    if out is None:
        print(*texts.values(), sep="", end="", flush=True)
        return
    target = out / source.name
    for suffix, text in texts.items():
        write_atomically(target.with_name(target.name + suffix), text.encode())
    if draw:
        picture = _png(source.path, faces)
        write_atomically(target.with_name(target.name + ".landmarks.png"), picture)


def _png(path: Any, faces: list[Face]) -> bytes:
    import io

    from PIL import Image

    from hihlandmark.draw import draw_faces
    from hihlandmark.image import load_image

    buffer = io.BytesIO()
    Image.fromarray(draw_faces(load_image(path), faces)).save(buffer, "PNG")
    return buffer.getvalue()


def demo(
    image: Annotated[
        str | None,
        typer.Argument(help="A photo of your own; default: the astronaut of scikit-image."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the picture and the JSON.")] = Path(
        "demo"
    ),
    layout: LayoutOption = LayoutName.WFLW98,
    device: DeviceOption = "auto",
) -> None:
    """Run on a real photo; write the picture with landmarks and the JSON, and say where."""
    from hihlandmark.folder import FORMATS, Source
    from hihlandmark.writing import write_atomically

    photo, name = (image, Path(image).stem) if image else (astronaut(), "astronaut")
    faces = make_detector(layout, "hih-small", device=device).predict(photo)
    picture, record = out / f"{name}.landmarks.png", out / f"{name}.json"
    write_atomically(picture, _png(photo, faces))
    source = Source(image or "skimage.data.astronaut()", name)
    write_atomically(record, FORMATS["json"](faces, source)[".json"].encode())
    print(f"{len(faces)} face{'s' * (len(faces) != 1)} found")
    for face in faces:
        print(f"  {face!r}")
    print(f"picture: {picture}\nlandmarks: {record}")
