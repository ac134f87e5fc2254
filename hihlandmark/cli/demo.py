"""`hihlandmark demo`: landmarks of one image as files; with --web, a page for the browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from hihlandmark.cli import options
from hihlandmark.writing import check_local

if TYPE_CHECKING:
    from hihlandmark.detector import Detector

_OUT = Path("demo")
_HOST = "With --web: the address to listen on; 0.0.0.0: all."


def demo(
    image: options.ImageArgument = None,
    out: Annotated[
        Path, Option("--out", "-o", callback=check_local, help="Folder for the image and the JSON.")
    ] = _OUT,
    layout: options.DefaultLayoutOption = None,
    model: options.ModelOption = "hih-small",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    face_detector: options.FaceDetectorOption = "mtcnn",
    min_face: options.MinFaceOption = None,
    min_box_score: options.MinBoxScoreOption = None,
    detection_size: options.DetectionSizeOption = None,
    max_pixels: options.MaxPixelsOption = options.MAX_PIXELS,
    max_bytes: options.MaxBytesOption = options.MAX_BYTES,
    web: Annotated[bool, Option("--web", help="Serve a page for the browser instead.")] = False,
    host: Annotated[str, Option(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="With --web: 0 for any free port.")] = 7860,
    max_megabytes: Annotated[int, Option(min=1, help="With --web: the largest file.")] = 20,
    max_megapixels: Annotated[int, Option(min=1, help="With --web: the largest image.")] = 50,
    queue: Annotated[int, Option(min=1, help="With --web: requests that may wait.")] = 8,
) -> None:
    """Run on a real image; write the image with landmarks and the JSON, and print their paths.

    With --web, serve a page that does this with the images of a browser.
    """
    chosen: dict[str, Any] = {
        "device": device, "precision": precision, "face_detector": face_detector,
        "min_face": min_face, "min_box_score": min_box_score, "detection_size": detection_size,
    }  # fmt: skip
    if not web:
        detector = options.make_detector(
            layout, model, **chosen, max_pixels=max_pixels, max_bytes=max_bytes
        )
        _write(image, out, detector)
        return
    if image is not None or out != _OUT:
        raise BadParameter("--web takes its images from the page and writes no files")
    if (max_pixels, max_bytes) != (options.MAX_PIXELS, options.MAX_BYTES):
        raise BadParameter("--web is limited by --max-megapixels and --max-megabytes")
    from hihlandmark.demo import serve
    from hihlandmark.layouts import get_layout

    def make(layout: int, model: str) -> Detector:
        return options.make_detector(layout, model, **chosen)

    # Packaged weights define no layout of their own.
    serve(
        make, layout=get_layout(layout or 98).size, model=model, host=host, port=port,
        max_megabytes=max_megabytes, max_megapixels=max_megapixels, queue=queue,
    )  # fmt: skip


def _is_of(record: Path, image: str) -> bool:
    """Whether a file holds the landmarks of an image."""
    try:
        return bool(json.loads(record.read_bytes())["image"] == image)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _write(image: str | None, out: Path, detector: Detector) -> None:
    from hihlandmark.download import download, is_url
    from hihlandmark.draw import encode_png
    from hihlandmark.face import draw_reduced
    from hihlandmark.image import URL_TIMEOUT
    from hihlandmark.io import Result, Source
    from hihlandmark.io.formats import write_jsonl
    from hihlandmark.writing import refuse_existing, write_atomically

    name = Path(image).stem if image else "astronaut"
    named = Source(image or "skimage.data.astronaut()", name)
    drawn, record = out / f"{name}.landmarks.png", out / f"{name}.landmarks.json"
    if not _is_of(record, named.path):  # of an earlier call
        refuse_existing(record)
        refuse_existing(drawn)
    source: Any = image or options.astronaut()
    if isinstance(source, str) and is_url(source):  # once: it may be another image the next time
        source = download(source, URL_TIMEOUT, detector.limits["max_bytes"])
    faces, loaded = detector.predict(source), detector.load_image(source)
    model = {"model": detector.card.name, "weights": detector.card.sha256}
    result = Result(named, faces, loaded.size, model=model)
    write_atomically(record, write_jsonl([result]))
    write_atomically(drawn, encode_png(draw_reduced(loaded, faces)))
    print(f"{options.counted(len(faces), 'face')} found")
    for face in faces:
        print(f"  {face!r}")
    print(f"image: {drawn}\nlandmarks: {record}")
