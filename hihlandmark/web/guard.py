"""What may reach the web demo: the addresses that its page needs, with bodies of bounded size.

An ASGI application around another one. It also tells browsers to fetch nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OTHER_BODY_BYTES = 64 * 2**10
"""Room in a request for everything but the file."""

_FILE_PATH = "/gradio_api/file="

# Gradio also has paths that record screens, edit its own program, run queries, or fetch what lies
# behind any address. The page needs none of them.
_PATHS = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    r"|/(assets|static|svelte)/.+"
    r"|/photos/[^/]+/[^/]+"
    r"|/gradio_api/(app_id|cancel|info|queue/data|queue/join|reset|startup-events|theme\.css"
    r"|upload|upload_progress|heartbeat/[^/]+)"
    rf"|{_FILE_PATH}(?!\w+:/).+"
)
_UPLOAD_PATH, _EVENT_PATH = "/gradio_api/upload", "/gradio_api/queue/join"

# The browser itself refuses to fetch anything from elsewhere. Gradio's page has scripts and styles
# inside it, and compiles its templates.
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' "
    "blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# An upload that is opened by itself, such as an SVG drawing with a script in it, may do nothing.
_FILE_HEADERS = {"content-security-policy": "sandbox; default-src 'none'"}


def guarded(app: ASGIApp, upload_bytes: int, folder: Path) -> ASGIApp:
    """The app, of which only what the page needs is reached, by bodies of bounded size.

    Files named in requests lie in ``folder``. Gradio itself would also read others, such as those
    of the working directory, and fetch what lies on other machines.
    """
    inside = folder.resolve()
    from starlette.responses import PlainTextResponse

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        refusal = _refusal(scope, upload_bytes)
        if not refusal and scope["path"] == _EVENT_PATH:
            body = await _body(receive)
            if _names_other_file(body, inside):
                refusal = 400, "Only what was uploaded is read: give the photo itself."
            receive = _replayed(body, receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                is_file = scope["path"].startswith(_FILE_PATH)
                headers = _HEADERS | (_FILE_HEADERS if is_file else {})
                added = [(name.encode(), value.encode()) for name, value in headers.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        answer = PlainTextResponse(refusal[1] + "\n", refusal[0]) if refusal else app
        await answer(scope, receive, send_with_headers)

    return guard


def _refusal(scope: Scope, upload_bytes: int) -> tuple[int, str] | None:
    """Status and reason, or None for a request that may pass."""
    if not _PATHS.fullmatch(scope["path"]):
        return 404, "The web demo has no such page."
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:  # of unknown length; browsers always say it
        return 411, "Say how long the request is."
    length = headers.get(b"content-length", b"0")
    room = _OTHER_BODY_BYTES + (upload_bytes if scope["path"] == _UPLOAD_PATH else 0)
    if not length.isdigit() or int(length) > room:
        return 413, f"The request is larger than {room} bytes."
    return None


async def _body(receive: Receive) -> bytes:
    """All of a request's body, whose length `_refusal` has bounded."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read before, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _names_other_file(body: bytes, folder: Path) -> bool:
    """Whether an event's JSON names a file that does not lie in the folder, or an address.

    What is no JSON names none: Gradio refuses it.
    """
    try:
        return _leads_out(json.loads(body), folder)
    except (ValueError, RecursionError):
        return False


def _leads_out(value: Any, folder: Path) -> bool:
    if isinstance(value, list):
        return any(_leads_out(each, folder) for each in value)
    if not isinstance(value, dict):
        return False
    path = value.get("path")
    return (path is not None and not Path(str(path)).resolve().is_relative_to(folder)) or any(
        _leads_out(each, folder) for each in value.values()
    )
