"""The page of `hihlandmark demo --web`: images of a browser in, their landmarks out.

Gradio lays out the page and serves it. Gradio is imported inside functions: it is optional.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image as PillowImage

from hihlandmark.arrays import Image
from hihlandmark.crop import (
    crop_matrix,
    cut_crop,
    resize_matrix,
    square_around,
    tight_boxes,
)
from hihlandmark.draw import draw_faces, encode_png
from hihlandmark.errors import ConfigurationError, HihlandmarkError, ImageError, missing_extra
from hihlandmark.face import Face, transform_face
from hihlandmark.image import load_image
from hihlandmark.io import Result, Source
from hihlandmark.io.formats import write_jsonl
from hihlandmark.measures import head_pose
from hihlandmark.weights import list_models

if TYPE_CHECKING:
    import gradio

    from hihlandmark.detector import Detector

LAYOUTS = {98: "WFLW", 68: "300-W", 29: "COFW"}  # numbers of points, and their data sets
# Of the image and of the enlarged face on the page: phones are narrow.
HEIGHT = "min(560px, 90vw)"
SWITCHES = ("contours", "numbers", "boxes")  # what can be drawn in addition to the points
# Sizes in pixels.
SCREEN_SIDE = 1280  # longer side of the image; small images are enlarged up to twice
FACE_SIDE = 900  # side of an enlarged face
NUMBERS_FROM = 300  # smallest face whose point numbers can be read
MAX_ENLARGED = 20  # number of faces; all are in the table and the downloads
DELETE_CACHE = (60, 600)  # seconds between deletions, and the age of deleted files

# What is cut out of the astronaut: a square as in `crop`, and the side of the image in pixels.
EXAMPLES: dict[str, tuple[tuple[float, ...], int]] = {
    "Astronaut": ((255.5, 255.5, 512, 0), 512),
    "Tilted": ((215, 160, 300, -0.44), 400),
    "Small": ((255.5, 255.5, 512, 0), 160),
    "Cropped": ((265, 125, 130, 0), 400),
}

NO_FACE = (
    "no face found. Try a larger or sharper image: a face must be at least 20 pixels wide, "
    "upright to within about 30 degrees, and show both eyes."
)
NOTES = (
    "Points are red at score 0 and green at score 1: the probability that a point lies within 5 % "
    "of the distance between the outer eye corners. Head pose: yaw above 0° turns to the right of "
    "the image, pitch above 0° looks up, roll above 0° is tilted clockwise; expect errors of 5°, "
    "in pitch of 15°. This machine deletes images after 10 minutes. All weights but hih-open are "
    "for research only, not for commercial use. Landmarks do not identify a person."
)
# Words of the table stay whole; it scrolls where it does not fit.
STYLE = """
#faces { overflow-x: auto }
#faces :is(th, td) { padding: 6px 5px; overflow-wrap: normal; word-break: normal }
"""
HEADINGS = ("Face", "Mean score", "Yaw", "Pitch", "Roll", "Lowest score")


@dataclass(frozen=True)
class Prediction:
    """The faces of an upload, its size (width, height), and name and SHA-256 of the weights."""

    path: Path
    size: tuple[int, int]
    faces: tuple[Face, ...]
    model: dict[str, str]

    def record(self) -> bytes:
        """The JSON line that `hihlandmark predict` writes."""
        source = Source(self.path.name, self.path.name)
        return write_jsonl([Result(source, self.faces, size=self.size, model=self.model)])

    def summary(self) -> str:
        """HTML: name, size and number of faces."""
        found = NO_FACE
        if self.faces:
            noun = "face" if len(self.faces) == 1 else "faces"
            found = f"{len(self.faces)} {noun} of {self.faces[0].layout.size} points."
        return note(f"{self.path.name}, {self.size[0]} × {self.size[1]} pixels: {found}")

    def table(self) -> list[list[str]]:
        """One row per face, as `HEADINGS`."""
        rows = []
        for number, face in enumerate(self.faces, 1):
            lowest = int(np.argmin(face.scores))
            name = face.layout.point_names[lowest].replace("_", " ")
            yaw, pitch, roll, _ = head_pose(face)
            # A whole number: -0.3 is 0, not -0.
            angles = [f"{round(each.value)}°" for each in (yaw, pitch, roll)]
            score = f"{face.scores[lowest]:.2f}: {name} (number {lowest})"
            rows.append([str(number), f"{face.scores.mean():.2f}", *angles, score])
        return rows

    def markdown(self) -> str:
        """The table for the page; empty without a face."""
        rows = [HEADINGS, ["---"] * len(HEADINGS), *self.table()] if self.faces else []
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def note(text: str) -> str:
    """A paragraph of escaped text that screen readers announce; long names are broken."""
    return f'<p role="status" style="overflow-wrap: anywhere">{escape(text)}</p>'


def find_clicked_face(shown: Prediction, x: float, y: float) -> int | None:
    """The index of the face at a point of the image on the screen, the smallest of several.

    The point is in pixels of `draw_for_screen`. None: no face is there.
    """
    factor = screen_scale(*shown.size)
    inside: dict[int, float] = {}
    for index, face in enumerate(shown.faces):
        x0, y0, x1, y1 = tight_boxes(np.vstack([face.points, face.box.reshape(2, 2)]))
        if x0 <= x / factor <= x1 and y0 <= y / factor <= y1:
            inside[index] = float((x1 - x0) * (y1 - y0))
    return min(inside, key=inside.__getitem__, default=None)


def draw_image(image: Image, faces: Sequence[Face], switches: Collection[str]) -> Image:
    """A copy of an image (H, W, 3) with its faces; boxes of several faces are numbered."""
    if len(faces) > 1:
        faces = [replace(face, track_id=number) for number, face in enumerate(faces, 1)]
    options: dict[str, Any] = {name: name in switches for name in SWITCHES}
    options["numbers"] &= all(np.ptp(face.points, axis=0).max() >= NUMBERS_FROM for face in faces)
    return draw_faces(image, faces, **options)


def screen_scale(width: int, height: int) -> float:
    """How much larger an image is drawn on the screen."""
    return min(SCREEN_SIDE / max(height, width), 2.0)


def draw_for_screen(image: Image, faces: Sequence[Face], switches: Collection[str]) -> Image:
    """The image (H, W, 3) at the size of the screen, with its faces."""
    height, width = image.shape[:2]
    scale = screen_scale(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = np.asarray(cv2.resize(image, size, interpolation=method))
    matrix = resize_matrix((width, height), size)
    return draw_image(resized, [transform_face(face, matrix) for face in faces], switches)


def example(name: str) -> Image:
    """scikit-image's astronaut as one of `EXAMPLES`."""
    from skimage.data import astronaut

    image = np.asarray(astronaut(), np.uint8)
    if name == "Astronaut":
        return image
    square, size = EXAMPLES[name]
    return cut_crop(image, np.array(square), size, cv2.BORDER_REFLECT_101)


def enlarge_face(image: Image, face: Face, switches: Collection[str]) -> Image:
    """One face of an image in a crop (FACE_SIDE, FACE_SIDE, 3)."""
    square = square_around(face.points, 1.5)
    moved = transform_face(face, crop_matrix(square, FACE_SIDE))
    return draw_image(cut_crop(image, square, FACE_SIDE), [moved], set(switches) - {"boxes"})


class Demo:
    """Detectors, created at first use, and the files of one server.

    Uploads and results lie in ``folder``; nothing outside of it is read. An image of more than
    ``max_pixels`` is refused before it is decoded.
    """

    def __init__(
        self, make_detector: Callable[[int, str], Detector], folder: Path, max_pixels: int
    ) -> None:
        self.models = [row.name for row in list_models() if row.problem is None]
        self.folder, self._max_pixels = folder.resolve(), max_pixels
        self._make_detector = make_detector
        self._detectors: dict[tuple[int, str], Detector] = {}

    def detector(self, layout: Any, model: Any) -> Detector:
        """A detector; raises `ConfigurationError` if the page does not offer it."""
        if layout not in list(LAYOUTS) or model not in self.models:
            raise ConfigurationError(
                f"the demo does not offer {layout} points with model {model!r}: choose from "
                f"{', '.join(map(str, LAYOUTS))} and {', '.join(self.models)}"
            )
        if (layout, model) not in self._detectors:
            self._detectors[layout, model] = self._make_detector(layout, model)
        return self._detectors[layout, model]

    def load(self, path: Path) -> Image:
        """An uploaded image (H, W, 3), or an `ImageError`."""
        # Gradio checks the path of a payload only if it is marked as a file.
        path = path.resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise ImageError("the image is no longer kept: upload it again")
        os.utime(path)  # kept for longer: deletion goes by the time of the last change
        return load_image(path.read_bytes(), max_pixels=self._max_pixels)

    def predict(self, payload: dict[str, Any], layout: Any, model: Any) -> Prediction:
        """Find the faces of an upload; arguments come from the browser and are not trusted."""
        path = Path(str(payload.get("path")))
        image, detector = self.load(path), self.detector(layout, model)
        about = {"model": detector.card.name, "weights": detector.card.sha256}
        size = image.shape[1], image.shape[0]
        return Prediction(path, size, tuple(detector.predict(image)), about)

    def write(self, name: str, content: bytes) -> str:
        """Path of a new file in a folder whose name cannot be guessed."""
        path = self.folder / secrets.token_urlsafe(16) / name
        path.parent.mkdir()
        path.write_bytes(content)
        return str(path)

    def write_jpeg(self, name: str, image: Image) -> str:
        """As `write`; colors are not sub-sampled, which would blur small points."""
        path = self.write(name, b"")
        PillowImage.fromarray(image).save(path, "JPEG", quality=90, subsampling=0)
        return path

    def draw(self, shown: Prediction, switches: Collection[str]) -> tuple[str, list[Any]]:
        """Paths of the image and of its enlarged faces, with their captions."""
        image = self.load(shown.path)
        whole = self.write_jpeg("image.jpg", draw_for_screen(image, shown.faces, switches))
        crops = [
            (self.write_jpeg(f"face-{n}.jpg", enlarge_face(image, face, switches)), f"Face {n}")
            for n, face in enumerate(shown.faces[:MAX_ENLARGED], 1)
        ]
        return whole, crops


def build_page(demo: Demo, layout: int, model: str, limits: str, queue: int) -> gradio.Blocks:
    """The page with a layout and a model preselected; ``limits``: a sentence about uploads."""
    import gradio as gr

    def predict(payload: Any, layout: Any, model: Any, switches: Any) -> list[Any]:
        nothing: list[Any] = [None, None, gr.Gallery([], visible=False), "", None]
        if payload is None:
            return [note("No image yet."), *nothing]
        try:
            shown = demo.predict(payload, layout, model)
            whole, crops = demo.draw(shown, switches)
        except HihlandmarkError as error:
            return [note(f"{Path(str(payload.get('path'))).name}: {error}"), *nothing]
        record = demo.write(f"{shown.path.stem}.landmarks.json", shown.record())
        gallery = gr.Gallery(crops, visible=bool(crops), selected_index=0 if crops else None)
        return [shown.summary(), shown, whole, gallery, shown.markdown(), record]

    def redraw(shown: Prediction | None, switches: Any) -> list[Any]:
        text = gr.skip()
        try:
            if shown is not None:
                return [text, *demo.draw(shown, switches)]
        except HihlandmarkError as error:
            text = note(str(error))
        return [text, gr.skip(), gr.skip()]

    def write_png(shown: Prediction | None, switches: Any) -> list[Any]:
        if shown is None:
            return [note("No image yet."), None]
        try:
            drawn = draw_image(demo.load(shown.path), shown.faces, switches)
        except HihlandmarkError as error:
            return [note(str(error)), None]
        return [gr.skip(), demo.write(f"{shown.path.stem}.landmarks.png", encode_png(drawn))]

    def write_example(name: str) -> str:
        return demo.write(f"{name.lower()}.png", encode_png(example(name)))

    def choose_face(shown: Prediction | None, event: gr.SelectData) -> Any:
        index = None if shown is None else find_clicked_face(shown, *event.index)
        if index is None or index >= MAX_ENLARGED:
            return gr.skip()
        return gr.Gallery(selected_index=index)

    # Gradio passes events by their type, which it cannot look up by a name of this function.
    choose_face.__annotations__["event"] = gr.SelectData

    with gr.Blocks(
        title="Face landmarks", analytics_enabled=False, fill_width=True, delete_cache=DELETE_CACHE
    ) as page:
        gr.Markdown(
            f"# Face landmarks\nDrop, choose, paste or take an image to find its faces. {limits}"
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = gr.Image(
                    label="Image", sources=["upload", "clipboard", "webcam"], height=240,
                    webcam_options=gr.WebcamOptions(mirror=False), elem_id="upload",
                )  # fmt: skip
                with gr.Row(visible=find_spec("skimage") is not None):
                    examples = [gr.Button(name, size="sm", min_width=60) for name in EXAMPLES]
                layouts = [(f"{points} ({name})", points) for points, name in LAYOUTS.items()]
                points = gr.Radio(layouts, value=layout, label="Points")
                network = gr.Radio(demo.models, value=model, label="Model")
                choices = [(name.capitalize(), name) for name in SWITCHES]
                switches = gr.CheckboxGroup(choices, value=["contours", "boxes"], label="Draw")
            with gr.Column(scale=5, min_width=280):
                summary = gr.HTML(note("No image yet."), elem_id="summary")
                whole = gr.Image(
                    label="Landmarks (a click on a face enlarges it)", interactive=False,
                    buttons=["fullscreen"], height=HEIGHT, elem_id="whole",
                )  # fmt: skip
                crops = gr.Gallery(
                    label="Faces", interactive=False, buttons=["fullscreen"], visible=False,
                    preview=True, object_fit="contain", height=HEIGHT, elem_id="crops",
                )  # fmt: skip
                with gr.Row():
                    record = gr.DownloadButton("Download JSON")
                    png = gr.Button("Download PNG", size="lg")
                    png_file = gr.DownloadButton(visible="hidden", elem_id="png-file")
        table = gr.Markdown(elem_id="faces")
        gr.Markdown(NOTES)
        shown = gr.State()
        # One worker for all functions, so that one image at a time is in memory. `preprocess` would
        # decode the upload without our limits.
        common: dict[str, Any] = {"concurrency_id": "demo", "concurrency_limit": 1}
        common |= {"preprocess": False, "api_visibility": "private"}
        inputs = [image, points, network, switches]
        outputs = [summary, shown, whole, crops, table, record]
        # Not `input`, which sends the old image when it is removed.
        image.change(predict, inputs, outputs, **common)
        for choice in (points, network):
            choice.input(predict, inputs, outputs, trigger_mode="always_last", **common)
        for name, button in zip(EXAMPLES, examples, strict=True):
            button.click(partial(write_example, name), None, image, **common)
        whole.select(choose_face, shown, crops, **common)
        switches.input(
            redraw, [shown, switches], [summary, whole, crops], trigger_mode="always_last", **common
        )
        written = png.click(write_png, [shown, switches], [summary, png_file], **common)
        # A full-size PNG takes seconds: it is written on request, then the browser fetches it.
        written.success(None, js="() => document.querySelector('#png-file').click()")
    page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
    return page


@contextmanager
def open_demo(
    make_detector: Callable[[int, str], Detector],
    *,
    layout: int = 98,
    model: str = "hih-small",
    host: str = "127.0.0.1",
    port: int = 7860,
    max_megabytes: int = 20,
    max_megapixels: int = 50,
    queue: int = 8,
) -> Iterator[str]:
    """Serve the page in a thread while the context is open, and yield its address.

    ``make_detector`` is called with a number of points and the name of a model; ``layout`` and
    ``model`` are preselected. Port 0 is any free port. ``queue`` requests may wait.

    Raises:
        ConfigurationError: Gradio is missing, the page does not offer the layout or the model, or
            the port is not available.
    """
    with missing_extra("demo"):
        import gradio as gr
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

    port = _find_port(host, port)
    name = f"[{host}]" if ":" in host else host
    limits = f"Files of up to {max_megabytes} MB and {max_megapixels} megapixels."
    with (
        tempfile.TemporaryDirectory(prefix="hihlandmark-", ignore_cleanup_errors=True) as folder,
        # An empty `allowed_paths` would be read from the environment.
        _environment(
            GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=folder, GRADIO_ALLOWED_PATHS="",
            GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="True",
        ),
    ):  # fmt: skip
        demo = Demo(make_detector, Path(folder), max_megapixels * 1_000_000)
        demo.detector(layout, model)
        page = build_page(demo, layout, model, limits, queue)
        known_hosts = Middleware(TrustedHostMiddleware, allowed_hosts=_host_names(name))
        text, code = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
        theme = gr.themes.Base(font=text, font_mono=code)
        try:
            page.launch(
                server_name=name, server_port=port, share=False, prevent_thread_lock=True,
                quiet=True, inline=False, footer_links=[], run_history=False,
                enable_monitoring=False, max_file_size=max_megabytes * 2**20, ssr_mode=False,
                mcp_server=False, num_workers=0, state_session_capacity=1000,
                app_kwargs={"middleware": [known_hosts]}, theme=theme, css=STYLE,
            )  # fmt: skip
            yield f"http://{name}:{port}"
        finally:
            page.close(verbose=False)


def serve(make_detector: Callable[[int, str], Detector], **options: Any) -> None:
    """Serve the page until Ctrl-C or SIGTERM; arguments and errors as `open_demo`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is removed
    with suppress(KeyboardInterrupt), open_demo(make_detector, **options) as address:
        print(f"The web demo is at {address} (Ctrl-C ends it).", flush=True)
        if options.get("host", "127.0.0.1") not in ("127.0.0.1", "localhost", "::1"):
            print("Everyone who reaches this address can use it, without a password.", flush=True)
        threading.Event().wait()


def _find_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises `ConfigurationError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on port {port} of {host} ({error.strerror or error}): choose a free "
            "--port, or 0 for any; --host must be an address of this machine"
        ) from error


def _host_names(name: str) -> list[str]:
    """Values of the `Host` header that are answered: other names may be DNS rebinding."""
    names = {name, "localhost", "127.0.0.1", "[::1]"}
    if name in ("0.0.0.0", "[::]"):
        names |= {socket.gethostname(), socket.getfqdn()}
        for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
            # No packet is sent: this chooses the address by which others reach this machine.
            with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                found = probe.getsockname()[0]
                names.add(f"[{found}]" if ":" in found else found)
    return sorted(names)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that are restored at the end."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
