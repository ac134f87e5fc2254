"""The web demo's server: what it listens on, what it lets in, and when it forgets.

Everything of the page itself is in `page`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hihlandmark.errors import ConfigurationError
from hihlandmark.web.demo import Demo
from hihlandmark.web.guard import guarded
from hihlandmark.web.photos import Photo, Photos
from hihlandmark.web.pictures import (
    drawn_of_query,
    face_jpeg,
    file_stem,
    json_record,
    whole_jpeg,
    whole_png,
)

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from hihlandmark.detector import Detector

_SWEEP_SECONDS = 5.0
_CLOSING_SECONDS = 2
"""What open pages, which hold a connection each, get when the server ends."""


@dataclass(frozen=True)
class Limits:
    """What the server takes and keeps.

    ``upload_bytes`` and ``pixels``: of the largest image; ``queue``: images that may wait while one
    is worked on; ``kept_seconds``: how long an image that nobody asks for stays in memory, and a
    file of an upload that was broken off on the disk; ``kept_photos``: how many stay at most.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    queue: int = 8
    kept_seconds: float = 600.0
    kept_photos: int = 16


class OpenDemo(NamedTuple):
    """A web demo that listens: ``run`` answers until ``close``, from another thread, ends it."""

    address: str
    folder: Path
    """Where uploads are on their way into memory."""
    demo: Demo
    run: Callable[[], None]
    close: Callable[[], None]


def serve(
    make_detector: Callable[[int, str], Detector],
    *,
    layout: int = 98,
    model: str = "hih-small",
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Answers browsers until Ctrl-C or SIGTERM. Arguments and errors as `open_demo`.

    ``announce`` is told the address. To be called in the main thread, which gets signals.
    """
    # uvicorn hands the signal on when it has ended, and by itself it would end the process before
    # the folder of uploads is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    arguments: dict[str, Any] = {"layout": layout, "model": model, "host": host, "port": port}
    with open_demo(make_detector, limits=limits, **arguments) as opened:
        announce(f"The web demo is at {opened.address} (Ctrl-C ends it).")
        if not _is_loopback(host):
            announce("Everyone who reaches this address can use it, without a password.")
        opened.run()


@contextmanager
def open_demo(
    make_detector: Callable[[int, str], Detector],
    *,
    layout: int = 98,
    model: str = "hih-small",
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
) -> Iterator[OpenDemo]:
    """A web demo that listens at ``host`` and ``port`` (0: any that is free), but does not run yet.

    ``make_detector`` takes the points of a layout and a model's name, and is called once for each
    pair that a page asks for; that of ``layout`` and ``model``, which pages begin with, is made
    here. Its folder for uploads is removed at the end. Raises `ConfigurationError` where Gradio is
    missing, the model did not come with the package, or the port cannot be had.
    """
    _require_gradio()
    import uvicorn

    limits = limits or Limits()
    photos = Photos(seconds=limits.kept_seconds, most=limits.kept_photos)
    demo = Demo(make_detector, photos, max_pixels=limits.pixels)
    with (
        _listen(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="hihlandmark-") as folder,
        _environment(
            GRADIO_TEMP_DIR=folder,
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_RUN_HISTORY="False",
            HF_HUB_DISABLE_TELEMETRY="True",
        ),
    ):
        demo.detector(layout, model)
        app = _make_app(demo, limits, Path(folder), layout, model)
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", timeout_graceful_shutdown=_CLOSING_SECONDS, ws="none"
            )
        )
        yield OpenDemo(
            f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}",
            Path(folder),
            demo,
            lambda: _run(server, listener),
            lambda: setattr(server, "should_exit", True),
        )


def _require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "the web demo needs Gradio: pip install 'hihlandmark[demo]'"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `ConfigurationError`."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} of {host} is in use: name another one with --port, or 0 for any that "
                "is free"
            ) from error
        raise ConfigurationError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; --host must be an "
            "address of this machine, and ports below 1024 need permission"
        ) from error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables, which are as they were afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(KeyboardInterrupt):  # uvicorn hands it on after it has closed everything
        server.run(sockets=[listener])


def _make_app(demo: Demo, limits: Limits, folder: Path, layout: int, model: str) -> ASGIApp:
    """The page and the addresses of images, behind the guard."""
    import gradio
    from fastapi import FastAPI
    from starlette.routing import Route

    from hihlandmark.web.page import CSS, build_page, make_theme

    @asynccontextmanager
    async def sweeping(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep(demo.photos, folder, limits.kept_seconds))
        yield
        task.cancel()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=sweeping)
    drawing = threading.Lock()  # one image at a time, since each may take a lot of memory

    def hand_out(request: Request) -> Response:
        with drawing:
            return _response(demo.photos, request)

    app.router.routes.append(Route("/photos/{token}/{name}", hand_out))
    gradio.mount_gradio_app(
        app,
        build_page(demo, limits, folder, layout, model),
        path="/",
        footer_links=[],
        show_error=False,
        max_file_size=limits.upload_bytes,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=make_theme(),
        css=CSS,
    )
    return guarded(app, limits.upload_bytes, folder)


def _response(photos: Photos, request: Request) -> Response:
    """An image or a file of an image, made now; nothing of it is to be kept by the browser."""
    from starlette.responses import PlainTextResponse, Response

    photo = photos.get(request.path_params["token"])
    made = _made(photo, request.path_params["name"], request.query_params) if photo else None
    if photo is None or made is None:
        gone = "This photo is no longer kept. Please give it to the page once more.\n"
        return PlainTextResponse(gone, 404)
    content, kind, suffix = made
    headers = {"cache-control": "no-store"}
    if suffix:
        name = f"{file_stem(photo)}.{suffix}"
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{_quoted(name)}"
    return Response(content, media_type=kind, headers=headers)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _made(photo: Photo, name: str, query: Any) -> tuple[bytes, str, str] | None:
    """Content, type and, of downloads, the suffix of their name; None for what there is not."""
    drawn = drawn_of_query(query.get("drawn", ""))
    face = re.fullmatch(r"face-([1-9]\d{0,3})\.jpg", name)
    if name == "whole.jpg":
        return whole_jpeg(photo, drawn), "image/jpeg", ""
    if face and int(face[1]) <= len(photo.faces):
        return face_jpeg(photo, int(face[1]) - 1, drawn), "image/jpeg", ""
    if name == "landmarks.json":
        return json_record(photo), "application/json", name
    if name == "landmarks.png":
        return whole_png(photo, drawn), "image/png", name
    return None


async def _sweep(photos: Photos, folder: Path, seconds: float) -> None:
    """Forgets images that nobody asks for, and removes what broken uploads left, for ever."""
    while True:
        await asyncio.sleep(min(_SWEEP_SECONDS, seconds))
        photos.expire()
        remove_older(folder, seconds)


def remove_older(folder: Path, seconds: float) -> None:
    """Removes the files below a folder that nobody has written to for so long."""
    latest = time.time() - seconds
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.stat().st_mtime < latest:
                path.unlink()
        except FileNotFoundError:  # taken into memory meanwhile
            continue
