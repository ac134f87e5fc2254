"""The page in Gradio: what is on it, and which part of `Demo` answers it."""

# Without `from __future__ import annotations`: Gradio reads the types of handlers, and cannot look
# up names of a module that is imported inside of a function.
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hihlandmark.web.demo import LAYOUTS, Demo, Upload, View, example, gone_view, has_example
from hihlandmark.web.pictures import DRAWN, DRAWN_AT_FIRST, note_html

if TYPE_CHECKING:
    import gradio

    from hihlandmark.web.server import Limits

_QUEUE = "network"
"""Images wait for the network in one queue, whatever brought them."""

CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
@media (min-width: 700px) {#asked {min-width: 320px !important}}
p.note {margin: 0; padding: 10px 12px; border-radius: 6px;
  border-left: 4px solid var(--color-accent); background: var(--background-fill-secondary)}
p.note.error {border-left-color: #dc2626}
.html-container {padding: 0 !important}
a.picture {display: block; padding: 0}
img.whole, img.face {display: block; width: 100%; height: auto; margin: 0; border-radius: 6px}
img.whole {max-height: 75vh; object-fit: contain; background: var(--background-fill-secondary)}
img.face {max-width: 640px}
p.legend {display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; margin: 10px 0;
  font-size: 0.9em}
p.legend .scale {width: 120px; height: 12px; border-radius: 6px}
p.downloads {display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0}
p.downloads a {padding: 8px 14px; border: 1px solid var(--border-color-primary);
  border-radius: 6px; background: var(--button-secondary-background-fill);
  color: var(--body-text-color); text-decoration: none}
p.downloads a:hover {background: var(--button-secondary-background-fill-hover)}
.scrolled {overflow-x: auto; margin-top: 12px}
.scrolled :is(table, thead, tbody, tr) {border: 0 !important}
.scrolled table {width: 100%; margin: 0; border-collapse: collapse; font-size: 0.9em}
.scrolled caption {caption-side: bottom; padding-top: 6px; text-align: left}
.scrolled th, .scrolled td {padding: 6px 8px; text-align: left; vertical-align: top; border: 0;
  border-bottom: 1px solid var(--border-color-primary)}
.scrolled tr[aria-current] {background: var(--background-fill-secondary); font-weight: 600}
"""
"""Gradio puts the page's own class before each rule."""

# On a phone what was found is below what was asked.
_SHOW_RESULT = """() => {
  if (innerWidth < 700) document.querySelector("#summary").scrollIntoView({behavior: "smooth"});
}"""


def make_theme() -> "gradio.themes.Base":
    """Gradio's plain theme with the fonts that the browser has: none is fetched."""
    import gradio

    return gradio.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def build_page(
    demo: Demo, limits: "Limits", folder: Path, layout: int, model: str
) -> "gradio.Blocks":
    """The page, with ``layout`` and ``model`` chosen at first, and uploads put into ``folder``.

    Its functions are no API: programs use the package, or `hihlandmark predict`.
    """
    import gradio as gr

    layouts = [(f"{points} ({name})", points) for points, name in LAYOUTS.items()]
    with gr.Blocks(title="Face landmarks", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# Face landmarks\n" + _introduction(limits))
        with gr.Row():
            with gr.Column(scale=2, min_width=260, elem_id="asked"):
                photo = gr.Image(
                    label="Photo: drop, choose, paste or take one",
                    sources=["upload", "clipboard", "webcam"],
                    height=210,
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_id="photo",
                )
                astronaut = gr.Button("Try the astronaut", visible=has_example())
                with gr.Row():
                    points = gr.Dropdown(layouts, value=layout, label="Points", min_width=120)
                    network = gr.Dropdown(demo.models, value=model, label="Model", min_width=120)
                drawn = gr.CheckboxGroup(
                    [(label, name) for name, label in DRAWN.items()],
                    value=list(DRAWN_AT_FIRST),
                    label="Draw",
                )
            with gr.Column(scale=5, min_width=260):
                summary = gr.HTML(note_html("No photo yet."), elem_id="summary")
                whole = gr.HTML(elem_id="whole")
                face = gr.Radio([], label="Face to look at", visible=False, elem_id="face")
                details = gr.HTML(elem_id="details")
        gr.Markdown(_notes(limits))
        shown = [summary, whole, details, face]

        def update(view: View) -> list[Any]:
            choices = [(str(number + 1), number) for number in range(view.faces)]
            value = view.shown if choices else None
            selector = gr.update(choices=choices, value=value, visible=view.faces > 1)
            return [view.summary, view.whole, view.details, selector]

        def take(
            payload: Any, layout: int, model: str, drawn: list[str], request: gr.Request
        ) -> list[Any]:
            if payload is None:  # the image was taken out again
                return [None, *[gr.skip()] * len(shown)]
            upload = take_upload(payload, folder)
            return [None, *update(demo.take(_session(request), upload, layout, model, drawn))]

        def take_example(
            layout: int, model: str, drawn: list[str], request: gr.Request
        ) -> list[Any]:
            return update(demo.take(_session(request), example(), layout, model, drawn))

        def take_again(
            layout: int, model: str, face: int | None, drawn: list[str], request: gr.Request
        ) -> list[Any]:
            view = demo.take_again(_session(request), layout, model, face or 0, drawn)
            return update(view or gone_view(limits.kept_seconds))

        def show(face: int | None, drawn: list[str], request: gr.Request) -> list[Any]:
            view = demo.show(_session(request), face or 0, drawn)
            return update(view or gone_view(limits.kept_seconds))

        def leave(request: gr.Request) -> None:
            demo.photos.drop(_session(request))

        queued: dict[str, Any] = {
            "concurrency_id": _QUEUE,
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        # As it came: decoding and checking are ours.
        given = photo.input(
            take, [photo, points, network, drawn], [photo, *shown], preprocess=False, **queued
        )
        tried = astronaut.click(take_example, [points, network, drawn], shown, **queued)
        for event in (given, tried):
            event.then(None, js=_SHOW_RESULT)
        for asked in (points, network):
            asked.input(
                take_again,
                [points, network, face, drawn],
                shown,
                trigger_mode="always_last",
                **queued,
            )
        for way in (face, drawn):
            way.input(
                show,
                [face, drawn],
                shown,
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )
        page.unload(leave)
    page.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)
    return page


def take_upload(payload: dict[str, Any], folder: Path) -> Upload:
    """What Gradio put into its folder, in memory. The file is removed.

    ``payload``: Gradio's `FileData`, from the browser. A path that leads out of the folder is left
    alone. A file that is not there becomes one of 0 bytes, of which `load_image` says so.
    """
    path, content = Path(payload.get("path") or "").resolve(), b""
    if path.is_relative_to(folder.resolve()):
        with suppress(OSError):
            content = path.read_bytes()
            path.unlink()
            path.parent.rmdir()  # which fails where another page's upload of the same bytes lies
    return Upload(payload.get("orig_name") or path.name, content)


def _introduction(limits: "Limits") -> str:
    return (
        "Give a photo, and every face in it gets its landmarks. Files of up to "
        f"{limits.upload_bytes / 2**20:.0f} MB and {limits.pixels / 1e6:.0f} megapixels. Photos "
        "are not stored, and the models' weights are for research only, not for commercial use."
    )


def _notes(limits: "Limits") -> str:
    return (
        "The machine that runs this page works on a photo, keeps it in memory while the page "
        f"shows it, and forgets it when the page is closed or {limits.kept_seconds / 60:.0f} "
        "minutes after it was last looked at. The points of a face do not say who it is."
    )


def _session(request: Any) -> str:
    return str(request.session_hash)
