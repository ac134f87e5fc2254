"""Downloading image files over http and https, with limits on time and size."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from concurrent import futures
from http.client import HTTPException
from typing import Any
from urllib import parse, request
from urllib.error import HTTPError

from hihlandmark.errors import ImageError

_SCHEME = re.compile(r"(data:|[a-z][a-z0-9+.-]+://)", re.IGNORECASE)
_URL_SAFE = "/%:@!$&'()*+,;=~?[]"
_HANDLERS = (
    request.ProxyHandler,
    request.HTTPHandler,
    request.HTTPSHandler,
    request.HTTPRedirectHandler,
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
        raise ImageError(f"URL {url[:80]!r} is neither http nor https; pass data as bytes")
    try:
        return _finish_within(timeout, lambda: _fetch(url, timeout, max_bytes))
    except ImageError:
        raise
    except HTTPError as error:
        error.close()
        message = f"cannot download {url!r}: the server answered {error.code} {error.reason}"
        raise ImageError(message) from error
    # futures.TimeoutError is a class of its own before Python 3.11.
    except (OSError, ValueError, HTTPException, futures.TimeoutError) as error:
        cause: object = getattr(error, "reason", error)
        if isinstance(cause, (TimeoutError, futures.TimeoutError)):
            cause = f"timeout after {timeout:g} s; pass a larger timeout"
        raise ImageError(f"cannot download {url!r}: {cause}") from error


def _finish_within(seconds: float, task: Callable[[], bytes]) -> bytes:
    """The result of the task. Raises `futures.TimeoutError`.

    A socket's timeout restarts with each read and does not cover name resolution, so the task runs
    in a thread. An abandoned thread ends at its next socket timeout.
    """
    outcome: futures.Future[bytes] = futures.Future()

    def work() -> None:
        try:
            outcome.set_result(task())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="hihlandmark-download", daemon=True).start()
    return outcome.result(timeout=seconds)


def _fetch(url: str, timeout: float, max_bytes: int) -> bytes:
    deadline = time.monotonic() + timeout
    source = f"URL {url!r}"
    # A redirect could lead to file, ftp and data URLs, which urllib's default opener reads.
    opener = request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
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


def not_bytes(source: str) -> ImageError:
    """The error for a stream that does not return bytes."""
    return ImageError(f"{source} does not give bytes: open it in binary mode, 'rb'")


def _too_many_bytes(source: str, max_bytes: int) -> ImageError:
    return ImageError(f"{source} is larger than {max_bytes} bytes: pass a larger max_bytes")
