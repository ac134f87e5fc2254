"""Files, cameras, streams and image sequences -> upright frames with their times. No faces here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.io.sources import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, find_images

logger = logging.getLogger(__name__)

CAMERA = "camera:"
SEQUENCE_RATE = 25.0
"""Frames a second of an image sequence, which does not say."""
# What FFmpeg calls the cameras of a system, and the name of the n-th.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a video."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB, turned as the video's metadata say."""
    index: int
    """How many frames came before it, broken ones not counted."""
    time: float
    """Seconds, as the video says: not always the same from frame to frame."""


def read_frames(source: str | Path) -> Iterator[Frame]:
    """The frames of a video, read as they are needed; broken ones are left out, with a warning.

    ``source``: a file or a URL (rtsp://, http://) that FFmpeg reads; "camera:0", the first camera;
    or a sequence of images: a folder, a glob, an archive, which counts as 25 frames a second. Needs
    the extra ``video``. Raises `ImageError` for what is no video, or one without a frame.
    """
    text = str(source)
    frames = _images(text) if _is_sequence(text) else _decoded(text)
    empty = True
    for frame in frames:
        empty = False
        yield frame
    if empty:
        raise ImageError(f"{text}: no frame of it could be read; fetch or record it again")


def open_container(source: str) -> Any:
    """PyAV's container of a file, URL or camera. Raises `ImageError`."""
    av = _av()
    options: dict[str, Any] = {}
    name = source
    if source.startswith(CAMERA):
        kind, pattern = _CAMERAS.get(sys.platform, ("", ""))
        if not kind:
            raise ConfigurationError(
                f"{source}: cameras are read on Linux and macOS only; read a recorded file here"
            )
        name, options = pattern.format(source[len(CAMERA) :]), {"format": kind}
    try:
        container = av.open(name, **options)
    except (OSError, ValueError) as error:  # as all errors of FFmpeg are
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{source}: cannot be opened as a video ({reason}): check the path and the file"
        ) from error
    if not container.streams.video:
        container.close()
        raise ImageError(
            f"{source}: there is no video in this file, only sound or text: give another one"
        )
    return container


def frame_rate(source: str | Path) -> float:
    """Frames a second, on average; 25 where that is not known."""
    if _is_sequence(str(source)):
        return SEQUENCE_RATE
    with open_container(str(source)) as container:
        return float(container.streams.video[0].average_rate or SEQUENCE_RATE)


def _is_sequence(source: str) -> bool:
    """Whether there is an image in each file: in a folder, an archive, or what a glob finds."""
    images = (*IMAGE_SUFFIXES - {".gif"}, *ARCHIVE_SUFFIXES)
    return Path(source).is_dir() or source.lower().endswith(images)


def _images(source: str) -> Iterator[Frame]:
    index = 0
    for found in find_images([source]):
        try:
            if isinstance(found, ImageError):
                raise found
            image = found.load()
        except ImageError as error:
            logger.warning("left out of the sequence: %s", error)
            continue
        yield Frame(image, index, index / SEQUENCE_RATE)
        index += 1


def _decoded(source: str) -> Iterator[Frame]:
    with open_container(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or SEQUENCE_RATE)
        broken = index = 0
        for frame in _whole_frames(container, stream):
            if frame is None:
                broken += 1
                continue
            image = frame.to_ndarray(format="rgb24")
            turned = np.rot90(image, round(frame.rotation / 90))
            time = index / rate if frame.time is None else frame.time
            yield Frame(np.ascontiguousarray(turned), index, time)
            index += 1
        if broken:
            logger.warning("%s: %d broken frames were left out", source, broken)


def _whole_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames as FFmpeg decodes them, None for one that is broken."""
    av = _av()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            # The rest cannot be found: a file cut off in the middle, a stream that went away.
            logger.warning("the video ends early: %s", error)
            return
        try:
            for frame in packet.decode():
                yield None if frame.is_corrupt else frame
        except av.error.FFmpegError:
            yield None


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigurationError("videos need PyAV: pip install 'hihlandmark[video]'") from error
    # At any other level FFmpeg's threads ask for Python's lock in order to log, and where a video
    # is left in the middle, the thread that has the lock waits for them for ever.
    av.logging.set_level(None)
    return av
