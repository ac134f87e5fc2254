"""Video files, webcams, streams and image sequences -> upright frames with their times."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError, ImageError, missing_extra
from hihlandmark.io.sources import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, find_images

logger = logging.getLogger(__name__)

CAMERA = "camera:"
SEQUENCE_RATE = 25.0  # frames per second of an image sequence
TIMEOUT = 20.0  # seconds without data after which a stream or camera has ended
# FFmpeg's input format for the cameras of a system, and its name for camera n.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video.

    Attributes:
        image: (H, W, 3) RGB, rotated as the video's metadata state.
        index: number from 0, broken frames not counted.
        time: presentation time in seconds; frame rates may vary.
    """

    image: Image
    index: int
    time: float


def read_frames(source: str | Path) -> Iterator[Frame]:
    """Read the frames of a video as they are needed. Broken frames are skipped with a warning.

    Args:
        source: a file or a URL (rtsp://, http://) that FFmpeg reads; "camera:0", the first webcam;
            or an image sequence (a folder, a glob, an archive), played at 25 frames per second.

    Yields:
        The frames.

    Raises:
        ImageError: this is not a video or not a regular file, no frame can be read, or a stream
            sends nothing for 20 seconds at its start. One that stops later has ended.
        ConfigurationError: the extra ``video`` is not installed.
    """
    text, is_empty = str(source), True
    for frame in _images(text) if _is_sequence(text) else _decoded(text):
        is_empty = False
        yield frame
    if is_empty:
        raise ImageError(f"{text}: no frame could be read: download or record it again")


def open_container(source: str) -> Any:
    """PyAV's container of a file, URL or camera.

    Raises:
        ImageError: it cannot be opened, or has no video.
        ConfigurationError: the extra ``video`` is not installed, or cameras are not supported here.
    """
    av = _av()
    name, kind = source, None
    if source.startswith(CAMERA):
        if sys.platform not in _CAMERAS:
            raise ConfigurationError(f"{source}: cameras are supported on Linux and macOS only")
        kind, pattern = _CAMERAS[sys.platform]
        name = pattern.format(source[len(CAMERA) :])
    else:
        _refuse_special_file(source)
    try:
        container = av.open(name, format=kind, timeout=TIMEOUT)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, av.error.ExitError):
            reason = f"no data within {TIMEOUT:g} seconds"
        raise ImageError(f"{source}: cannot be opened as a video ({reason})") from error
    if not container.streams.video:
        container.close()
        raise ImageError(f"{source}: there is no video in this file, only sound or text")
    return container


def _refuse_special_file(source: str) -> None:
    """Raise `ImageError` for a pipe or device, which FFmpeg would wait for without a timeout."""
    path = source.removeprefix("file://").removeprefix("file:")
    with suppress(OSError, ValueError):  # a URL, or missing, which FFmpeg reports
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{source}: it is not a regular file")


def frame_rate(source: str | Path) -> float:
    """Average frames per second; 25 if unknown."""
    if _is_sequence(str(source)):
        return SEQUENCE_RATE
    with open_container(str(source)) as container:
        return float(container.streams.video[0].average_rate or SEQUENCE_RATE)


def _is_sequence(source: str) -> bool:
    """Whether the source is images: a folder, an archive, a glob, or image files."""
    images = (*IMAGE_SUFFIXES - {".gif"}, *ARCHIVE_SUFFIXES)
    return Path(source).is_dir() or source.lower().endswith(images)


def _images(source: str) -> Iterator[Frame]:
    index = 0
    for found in find_images([source]):
        try:
            image = found.load()
        except ImageError as error:
            logger.warning("skipped in the sequence: %s", error)
            continue
        yield Frame(image, index, index / SEQUENCE_RATE)
        index += 1


def _decoded(source: str) -> Iterator[Frame]:
    with open_container(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or SEQUENCE_RATE)
        broken = index = 0
        for frame in _intact_frames(container, stream):
            if frame is None:
                broken += 1
                continue
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            time = index / rate if frame.time is None else frame.time
            yield Frame(np.ascontiguousarray(upright), index, time)
            index += 1
        if broken:
            logger.warning("%s: %d broken frames were skipped", source, broken)


def _intact_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames as FFmpeg decodes them, None for a broken one."""
    av = _av()
    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    yield None if frame.is_corrupt else frame
            except av.error.FFmpegError:
                yield None
    except av.error.FFmpegError as error:  # the file is truncated, or the stream has ended
        logger.warning("the video ends early: %s", error)


def _av() -> Any:
    with missing_extra("video"):
        import av
    # At other levels FFmpeg's threads take Python's lock to log. If a video is left in the middle,
    # the thread that holds the lock waits for them forever.
    av.logging.set_level(None)
    return av
