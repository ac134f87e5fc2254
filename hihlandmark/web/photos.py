"""Images in memory, each for as long as its page shows it. Nothing here writes to a disk."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hihlandmark.face import Face
from hihlandmark.image import load_image


@dataclass(frozen=True)
class Photo:
    """An upload and what was found in it.

    The bytes are kept as they came, since pixels take many times as much memory.
    """

    name: str
    content: bytes = field(repr=False)
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    layout: int
    """Number of points of a face."""
    faces: tuple[Face, ...]
    model: Mapping[str, str]
    """``model``: its name; ``weights``: their SHA-256."""

    def load(self) -> NDArray[np.uint8]:
        """The pixels (H, W, 3), upright. They were read before, so that no limit is needed."""
        return load_image(self.content, max_pixels=self.size[0] * self.size[1])


@dataclass
class _Kept:
    session: str
    photo: Photo
    until: float


class Photos:
    """The images of all open pages, one a page, each under a token that cannot be guessed.

    An image goes when its page takes another one or is closed, when nobody has asked for it for
    ``seconds``, or when ``most`` others have come since.
    """

    def __init__(
        self, *, seconds: float, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.most = seconds, most
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def keep(self, session: str, photo: Photo) -> str:
        """Takes a page's image in place of its last one; returns its token."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._forget(session)
            self._kept[token] = _Kept(session, photo, self._clock() + self.seconds)
            while len(self._kept) > self.most:
                del self._kept[next(iter(self._kept))]
        return token

    def replace(self, token: str, photo: Photo) -> None:
        """Keeps other results of the same image under its token, unless it is gone."""
        with self._lock:
            if token in self._kept:
                self._kept[token].photo = photo

    def get(self, token: str) -> Photo | None:
        """The image of a token, which from now on stays for ``seconds`` again; None: it is gone."""
        self.expire()
        with self._lock:
            kept = self._kept.get(token)
            if kept is None:
                return None
            kept.until = self._clock() + self.seconds
            return kept.photo

    def of_session(self, session: str) -> tuple[str, Photo] | None:
        """Token and image of a page, as `get`."""
        with self._lock:
            tokens = [token for token, kept in self._kept.items() if kept.session == session]
        photo = self.get(tokens[0]) if tokens else None
        return (tokens[0], photo) if photo else None

    def drop(self, session: str) -> None:
        """Forgets the image of a page, if it has one."""
        with self._lock:
            self._forget(session)

    def expire(self) -> None:
        """Forgets what nobody has asked for in ``seconds``."""
        with self._lock:
            now = self._clock()
            for token in [token for token, kept in self._kept.items() if kept.until <= now]:
                del self._kept[token]

    def _forget(self, session: str) -> None:
        for token in [token for token, kept in self._kept.items() if kept.session == session]:
            del self._kept[token]

    def __len__(self) -> int:
        return len(self._kept)
