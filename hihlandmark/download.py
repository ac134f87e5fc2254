"""Downloading image files over http and https, with limits on time and size."""

from __future__ import annotations

import math
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
)
from typing import IO, Any
from urllib import parse, request
from urllib.error import HTTPError

from hihlandmark.errors import ImageError

_SCHEME = re.compile(r"(data:|[a-z][a-z0-9+.-]+://)", re.IGNORECASE)
_URL_SAFE = "/%:@!$&'()*+,;=~?[]"


class _Connections:
    """The sockets of one download, which ``close`` shuts down, also while another thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_closed = False

    def add(self, connected: socket.socket) -> None:
        with self._lock:
            if self._is_closed:
                raise TimeoutError
            # A duplicate, because TLS takes over the original before its handshake.
            self._sockets.append(connected.dup())

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for each in self._sockets:
                with suppress(OSError):  # the server has closed it
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


class _Handler(request.AbstractHTTPHandler):
    """Opens http and https URLs by connections that are known to ``connections``."""

    def __init__(self, connections: _Connections) -> None:
        super().__init__()

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                connections.add(self.sock)

        class Encrypted(HTTPSConnection, Plain):  # calls Plain.connect before its handshake
            pass

        self._plain, self._encrypted = Plain, Encrypted

    def http_open(self, query: request.Request) -> HTTPResponse:
        return self.do_open(self._plain, query)

    def https_open(self, query: request.Request) -> HTTPResponse:
        return self.do_open(self._encrypted, query)

    http_request = https_request = request.AbstractHTTPHandler.do_request_


class _Redirects(request.HTTPRedirectHandler):
    """Follows redirects without reading their bodies, which urllib would read to their end."""

    def http_error_302(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> Any:
        fp.close()  # a closed response reads as empty
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


_HANDLERS = (
    request.ProxyHandler,
    _Redirects,
    request.HTTPDefaultErrorHandler,
    request.HTTPErrorProcessor,
    request.UnknownHandler,
)


def is_url(text: str) -> bool:
    """Whether a text is a URL of any scheme, not a path."""
    return _SCHEME.match(text) is not None


def download(url: str, timeout: float, max_bytes: int) -> bytes:
    """Download a file over http or https, following redirects, within ``timeout`` seconds.

    Raises:
        ImageError: the scheme is another, the server cannot be reached or answers with an error, or
            a limit is exceeded.
    """
    scheme = _SCHEME.match(url)
    if scheme and scheme[0].lower() not in ("http://", "https://"):
        advice = "pass the decoded bytes" if scheme[0].lower() == "data:" else "pass its bytes"
        raise ImageError(f"URL {shorten(url)} is neither http nor https: {advice}")
    connections = _Connections()
    try:
        return _finish_within(timeout, lambda: _fetch(url, timeout, max_bytes, connections))
    except ImageError:
        raise
    except HTTPError as error:
        error.close()
        answer = f"{error.code} {str(error.reason)[:100]}"
        message = f"cannot download {shorten(url)}: the server answered {answer}"
        raise ImageError(message) from error
    # futures.TimeoutError is a class of its own before Python 3.11.
    except (OSError, ValueError, HTTPException, futures.TimeoutError) as error:
        cause: object = getattr(error, "reason", error)
        if isinstance(cause, (TimeoutError, futures.TimeoutError)):
            cause = f"timeout after {timeout:g} s; download it by other means and pass its bytes"
        raise ImageError(f"cannot download {shorten(url)}: {str(cause)[:300]}") from error
    finally:
        connections.close()


def _finish_within(seconds: float, task: Callable[[], bytes]) -> bytes:
    """The result of the task. Raises `futures.TimeoutError`.

    A socket's timeout restarts with each read and does not cover name resolution, so the task runs
    in a thread. An abandoned thread ends when its sockets are closed.
    """
    outcome: futures.Future[bytes] = futures.Future()

    def work() -> None:
        try:
            outcome.set_result(task())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="hihlandmark-download", daemon=True).start()
    return outcome.result(timeout=seconds)


def _fetch(url: str, timeout: float, max_bytes: int, connections: _Connections) -> bytes:
    deadline = time.monotonic() + timeout
    source = f"URL {shorten(url)}"
    # A redirect could lead to file, ftp and data URLs, which urllib's default opener reads.
    opener = request.OpenerDirector()
    for handler in (_Handler(connections), *(kind() for kind in _HANDLERS)):
        opener.add_handler(handler)
    # Some hosts reject the user agent of urllib.
    query = request.Request(_ascii_url(url), headers={"User-Agent": "hihlandmark"})
    with opener.open(query, timeout=timeout) as response:
        if (response.length or 0) > max_bytes:
            raise _too_many_bytes(source, max_bytes)
        # read1 returns what has arrived, so the deadline is checked between two packets.
        return read_at_most(max_bytes, response.read1, source, deadline)


def _ascii_url(url: str) -> str:
    """The URL with spaces and other than ASCII characters escaped, as browsers do."""
    parts = parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (parse.quote(part, safe=_URL_SAFE) for part in (parts.path, parts.query))
    return parse.urlunsplit((parts.scheme, host, path, query, ""))


def read_at_most(
    max_bytes: int, read: Callable[[int], Any], source: str, deadline: float = math.inf
) -> bytes:
    """Everything that ``read`` returns, before ``deadline`` (seconds of the monotonic clock)."""
    data = bytearray()
    while chunk := read(2**16):
        if not isinstance(chunk, bytes):
            raise not_bytes(source)
        data += chunk
        if len(data) > max_bytes:
            raise _too_many_bytes(source, max_bytes)
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(data)


def shorten(text: str) -> str:
    """The text in quotes; of more than 300 characters the start and the end."""
    return repr(text if len(text) <= 300 else f"{text[:200]}...{text[-50:]}")


def not_bytes(source: str) -> ImageError:
    """The error for a stream that does not return bytes."""
    return ImageError(f"{source} does not give bytes: open it in binary mode, 'rb'")


def _too_many_bytes(source: str, max_bytes: int) -> ImageError:
    return ImageError(
        f"{source} is larger than max_bytes={max_bytes}: raise the limit if you trust it"
    )
