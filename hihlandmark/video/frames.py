"""Video files, webcams, streams and image sequences -> upright frames with their times."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.errors import (
    ConfigurationError,
    ImageError,
    check_positive,
    is_number,
    missing_extra,
)
from hihlandmark.image import MAX_BYTES, MAX_PIXELS
from hihlandmark.io.sources import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, find_images

logger = logging.getLogger(__name__)

CAMERA = "camera:"
SEQUENCE_RATE = 25.0  # frames per second of an image sequence
TIMEOUT = 20.0  # seconds without data after which a stream or camera has ended
_OBLONG = 8  # pixels that are longer than this many times their width come from wrong metadata
# FFmpeg's input format for the cameras of a system, and its name for camera n.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
_CAMERA_HINT = (
    "check that it is connected, that no other program uses it, and that you may use it (on Linux "
    "users of the group video); on Linux `ls /dev/video*` lists all, and containers often have none"
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video.

    Attributes:
        image: (H, W, 3) RGB, rotated as the video's metadata state.
        index: number from 0, broken frames not counted.
        time: presentation time in seconds from the start of the video; frame rates may vary.
        pixel_aspect: width of a pixel over its height, as displayed; 1 in most videos.

    Raises:
        ConfigurationError: the image is no array of that shape and of uint8, the time is not
            finite, or the pixel aspect is no number above 0.
    """

    image: Image
    index: int
    time: float
    pixel_aspect: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        check_frame(self.image, self.time)
        check_positive(pixel_aspect=self.pixel_aspect)


def check_frame(image: Image, time: float) -> None:
    """Raise `ConfigurationError` unless they are an RGB image and a finite time."""
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not is_image or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ConfigurationError(
            "the image of a frame is an array (H, W, 3) of uint8, RGB: convert it with "
            "hihlandmark.load_image"
        )
    if not is_number(time):
        raise ConfigurationError(f"the time of a frame is a number of seconds, not {time!r:.100}")


def read_frames(
    source: str | Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Iterator[Frame]:
    """Read the frames of a video as they are needed. Broken frames are skipped with a warning.

    Args:
        source: a file or a URL (rtsp://, http://) that FFmpeg reads; "camera:0", the first webcam;
            or an image sequence (a folder, a glob, an archive), played at 25 frames per second.
        max_pixels: limit on a frame, checked before it is decoded.
        max_bytes: limit on a file in an archive of images.

    Yields:
        The frames.

    Raises:
        ImageError: this is not a video or not a regular file, its frames are too large, none can be
            read, or a stream sends nothing for 20 seconds at its start. One that stops later has
            ended.
        ConfigurationError: the extra ``video`` is not installed.
    """
    text, is_empty = str(source), True
    if is_sequence(text):
        frames = _images(text, max_pixels, max_bytes)
    else:
        frames = _decoded(text, max_pixels)
    for frame in frames:
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
    av = import_av()
    name, kind = source, None
    if source.startswith(CAMERA):
        kind, name = _camera(source)
    else:
        _refuse_special_file(source)
    try:
        container = av.open(name, format=kind, timeout=TIMEOUT)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, av.error.ExitError):
            reason = f"no data within {TIMEOUT:g} seconds"
        if kind is not None:
            reason = f"no camera could be opened ({reason}): {_CAMERA_HINT}"
            raise ImageError(f"{source}: {reason}") from error
        raise ImageError(f"{source}: cannot be opened as a video ({reason})") from error
    if not container.streams.video:
        container.close()
        raise ImageError(f"{source}: there is no video in this file, only sound or text")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise ImageError(f"{source}: its video is of an unknown codec: convert it to H.264")
    return container


def _camera(source: str) -> tuple[str, str]:
    """FFmpeg's input format and name of a camera. Raises `ConfigurationError`."""
    if sys.platform not in _CAMERAS:
        raise ConfigurationError(f"{source}: cameras are supported on Linux and macOS only")
    number = source.removeprefix(CAMERA)
    if not (number.isascii() and number.isdigit()):
        raise ConfigurationError(f"{source}: no number of a camera; the first is camera:0")
    kind, pattern = _CAMERAS[sys.platform]
    return kind, pattern.format(number)


def _refuse_special_file(source: str) -> None:
    """Raise `ImageError` for a pipe or device, which FFmpeg would wait for without a timeout."""
    if re.fullmatch(r"\d+|/dev/video\d+", source) and not Path(source).is_file():
        number = source.removeprefix("/dev/video")
        raise ImageError(f"{source}: there is no such file; camera {number} is {CAMERA}{number}")
    path = source.removeprefix("file://").removeprefix("file:")
    with suppress(OSError, ValueError):  # a URL, or missing, which FFmpeg reports
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{source}: it is not a regular file")


def frame_rate(source: str | Path) -> float:
    """Average frames per second; 25 if unknown."""
    if is_sequence(str(source)):
        return SEQUENCE_RATE
    with open_container(str(source)) as container:
        return float(container.streams.video[0].average_rate or SEQUENCE_RATE)


def is_live(source: str) -> bool:
    """Whether the source is a camera or a stream without an end, which cannot be read again."""
    if source.startswith(CAMERA):
        return True
    if "://" not in source or source.startswith("file://") or is_sequence(source):
        return False
    with open_container(source) as container:
        return not container.duration  # None, or 0 in live FLV


def start_time(container: Any) -> Fraction:
    """When a video starts, in its own time; recordings may begin at any."""
    return Fraction(container.start_time or 0, import_av().time_base)


def is_sequence(source: str) -> bool:
    """Whether the source is images: a folder, an archive, a glob, or image files."""
    images = (*IMAGE_SUFFIXES - {".gif"}, *ARCHIVE_SUFFIXES)
    is_pattern = "://" not in source and glob.has_magic(source) and not os.path.lexists(source)
    return is_pattern or Path(source).is_dir() or source.lower().endswith(images)


def _images(source: str, max_pixels: int, max_bytes: int) -> Iterator[Frame]:
    index = 0
    for found in find_images([source], max_bytes=max_bytes):
        try:
            image = found.load(max_pixels=max_pixels, max_bytes=max_bytes)
        except ImageError as error:
            logger.warning("skipped in the sequence: %s", error)
            continue
        yield Frame(image, index, index / SEQUENCE_RATE)
        index += 1


def _decoded(source: str, max_pixels: int) -> Iterator[Frame]:
    with open_container(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or SEQUENCE_RATE)
        start, aspect = float(start_time(container)), _pixel_aspect(stream)
        _check_size(source, stream.codec_context, max_pixels)
        broken = index = 0
        for frame in _intact_frames(container, stream):
            if frame is None:
                broken += 1
                continue
            _check_size(source, frame, max_pixels)
            turns = round(frame.rotation / 90)
            upright = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
            time = index / rate if frame.time is None else frame.time - start
            yield Frame(upright, index, time, 1 / aspect if turns % 2 else aspect)
            index += 1
        if broken:
            logger.warning("%s: %d broken frames were skipped", source, broken)


def _pixel_aspect(stream: Any) -> Fraction:
    """Width over height of the stored pixels; 1 if unknown or implausible."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return aspect if Fraction(1, _OBLONG) <= aspect <= _OBLONG else Fraction(1)


def _check_size(source: str, frame: Any, max_pixels: int) -> None:
    if frame.width * frame.height > max_pixels:
        raise ImageError(
            f"{source}: frames of {frame.width} x {frame.height} pixels are larger than "
            f"max_pixels={max_pixels}: pass a larger limit if you trust it"
        )


def _intact_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames as FFmpeg decodes them, None for a broken one."""
    av = import_av()
    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    yield None if frame.is_corrupt else frame
            except av.error.FFmpegError:
                yield None
    except av.error.FFmpegError as error:  # the file is truncated, or the stream has ended
        logger.warning("the video ends early: %s", error)


def import_av() -> Any:
    """PyAV, which logs nothing. Raises `ConfigurationError` without the extra ``video``."""
    with missing_extra("video"):
        import av
    # At other levels FFmpeg's threads take Python's lock to log. If a video is left in the middle,
    # the thread that holds the lock waits for them forever.
    av.logging.set_level(None)
    return av
