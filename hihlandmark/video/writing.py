"""Frames and faces -> an annotated video with the sound of the original; files of faces."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError, ImageError, check_positive
from hihlandmark.face import Face
from hihlandmark.io.formats import face_columns, face_row
from hihlandmark.io.sources import require_pyarrow
from hihlandmark.video.frames import (
    Frame,
    check_frame,
    frame_rate,
    import_av,
    is_sequence,
    open_container,
    start_time,
)
from hihlandmark.writing import atomic_write_path

logger = logging.getLogger(__name__)

_LARGEST_ASPECT = 1000  # numbers in the ratio of a pixel's width and height
_CLOCK = Fraction(1, 90_000)  # time base, fine enough for every frame rate, also a variable one
_PIXELS = "yuv420p"
_BT709, _LIMITED = 1, 1  # in FFmpeg: colors of HD television, and luma in 16..235
_TAIL = 1.0  # seconds of sound that are kept after the last frame starts
_SOUND_RATE = 48_000  # of sound that is encoded again, in Hz


class AnnotatedVideo:
    """Writes frames to an H.264 file with the sound of the original; a context manager.

    The file appears under its name, in place of one that was there, when it is complete, and not
    without a frame. Presentation times are kept. Sound that the format cannot hold becomes AAC;
    what cannot be read of it is left out with a warning.

    Args:
        path: the file to write, such as .mp4 or .mkv.
        source: the original video, for sound and frame rate; None: no sound.

    Raises:
        ConfigurationError: the file is the source, its suffix is not that of a format that holds
            H.264, or the extra ``video`` is not installed.
    """

    def __init__(self, path: str | Path, source: str | Path | None = None) -> None:
        self.path = path = Path(path)
        self._format = _format_of(path)
        if source and path.exists() and Path(source).exists() and path.samefile(source):
            raise ConfigurationError(f"{path} is the source: choose another name for the result")
        self._opened = ExitStack()
        self._partial = self._opened.enter_context(atomic_write_path(path))
        # A camera or a stream cannot be opened twice.
        self._source = source if source and Path(source).exists() else None
        self._output: Any = None
        self._video: Any = None
        self._sound: Iterator[tuple[float, Any]] = iter(())
        self._next_sound: tuple[float, Any] | None = None
        self._last, self._offset, self._time = -1, 0, -math.inf

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._output is None:
            self._partial.unlink(missing_ok=True)
        self._opened.__exit__(*raised)

    def add(self, image: Image, time: float, pixel_aspect: Fraction = Fraction(1)) -> None:
        """Append a frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            time: its presentation time in seconds.
            pixel_aspect: as in `Frame`; that of the first frame is used.

        Raises:
            ConfigurationError: as of `Frame`.
        """
        check_frame(image, time)
        check_positive(pixel_aspect=pixel_aspect)
        av = import_av()
        if self._output is None:
            self._open(image, Fraction(pixel_aspect).limit_denominator(_LARGEST_ASPECT))
        if image.shape[:2] != self._size:  # the resolution of a stream may change
            image = np.asarray(cv2.resize(image, self._size[::-1]), np.uint8)
        height, width = self._video.height, self._video.width
        padded = np.zeros((height, width, 3), np.uint8)
        part = image[:height, :width]
        padded[: part.shape[0], : part.shape[1]] = part
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format=_PIXELS, dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        now = round(time / _CLOCK) + self._offset
        if time < self._time:  # where streams were joined: as if it went on
            self._offset += self._last + self._step - now
            now = self._last + self._step
        self._time = time
        # Frames of damaged files may have equal times; times in the output must increase.
        self._last = max(self._last + 1, now)
        frame.pts, frame.time_base = self._last, _CLOCK
        self._copy_sound(until=time)
        self._write(self._video.encode(frame))

    def _open(self, image: Image, pixel_aspect: Fraction) -> None:
        # FFmpeg does not see the suffix in the name of the unfinished file.
        output = import_av().open(str(self._partial), "w", format=self._format)
        self._output = self._opened.enter_context(output)
        rate = Fraction(frame_rate(self._source)).limit_denominator(1001) if self._source else 25
        self._video = self._output.add_stream("libx264", rate=rate)
        self._step = round(1 / rate / _CLOCK)
        self._size = height, width = image.shape[:2]
        # H.264 subsamples color by 2, so sides must be even.
        self._video.height, self._video.width = height + height % 2, width + width % 2
        self._video.pix_fmt = _PIXELS
        context = self._video.codec_context
        context.time_base, context.sample_aspect_ratio = _CLOCK, pixel_aspect
        # Players would guess them from the size.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if self._source and Path(self._source).is_file() and not is_sequence(str(self._source)):
            sound = self._sound_of(str(self._source))
            self._sound = self._opened.enter_context(closing(sound))
            self._copy_sound(until=float("-inf"))
        try:
            self._output.start_encoding()
        except OSError:  # such as a full disk
            raise
        except import_av().error.FFmpegError as error:
            raise ConfigurationError(
                f"{self.path}: no H.264 video of {width} x {height} pixels can be made ({error}): "
                "use smaller images, or write points alone"
            ) from error
        self._opened.push(self._finish)

    def _finish(self, kind: object, error: object, trace: object) -> None:
        """Write what the encoder and the sound still hold, unless an error ends the video."""
        if kind is None:
            self._write(self._video.encode())
            self._copy_sound(until=float(self._last * _CLOCK) + _TAIL)

    def _write(self, packets: Iterable[Any]) -> None:
        """Write packets. What is damaged is left out: FFmpeg names it some packets later."""
        av = import_av()
        for packet in packets:
            try:
                self._output.mux(packet)
            except OSError:  # such as a full disk
                raise
            except av.error.FFmpegError as error:
                logger.warning("%s: a damaged packet is left out: %s", self.path, error)

    def _sound_of(self, source: str) -> Generator[tuple[float, Any], None, None]:
        """The sound packets of the original, or of its sound as AAC, with their times."""
        with open_container(source) as container:
            if not container.streams.audio:
                return
            original, start = container.streams.audio[0], start_time(container)
            is_copied = self._can_hold(original)
            if is_copied:
                stream = self._output.add_stream_from_template(original)
                packets = container.demux(original)
            else:
                stream = self._output.add_stream("aac", rate=_SOUND_RATE)
                packets = _encoded(container.decode(original), stream)
            # Streams must exist before the first packet is written.
            yield float("-inf"), None
            for packet in packets:
                if packet.dts is not None:
                    shift = round(start / packet.time_base)
                    packet.dts -= shift
                    packet.pts = packet.dts if packet.pts is None else packet.pts - shift
                    packet.stream = stream
                    yield float(packet.dts * packet.time_base), packet

    def _can_hold(self, sound: Any) -> bool:
        """Whether the format holds the packets of a sound stream as they are."""
        av = import_av()
        codec = getattr(sound.codec_context, "name", "")
        if self._format == "mp4" and codec.startswith("pcm"):
            return False  # FFmpeg fails at the end
        try:
            with av.open(io.BytesIO(), "w", format=self._format) as trial:
                trial.add_stream_from_template(sound)
                trial.start_encoding()
        except (ValueError, av.error.FFmpegError):
            return False
        return True

    def _copy_sound(self, until: float) -> None:
        """Interleave sound with frames, for players and to limit memory."""
        while True:
            self._next_sound = self._next_sound or self._read_sound()
            if self._next_sound is None or self._next_sound[0] > until:
                return
            if self._next_sound[1] is not None:
                self._write([self._next_sound[1]])
            self._next_sound = None

    def _read_sound(self) -> tuple[float, Any] | None:
        """The next packet of the sound, with its time; None at its end or where it is damaged."""
        try:
            return next(self._sound, None)
        except (ValueError, ImageError, import_av().error.FFmpegError) as error:
            logger.warning("%s: the sound, or the rest of it, is left out: %s", self.path, error)
            return None


def _format_of(path: Path) -> str:
    """FFmpeg's name of the format of a path. Raises `ConfigurationError`: it holds no H.264."""
    av, suffix = import_av(), path.suffix[1:].lower()
    name = {"mkv": "matroska", "m4v": "mp4"}.get(suffix, suffix)
    if name == "avi":
        raise ConfigurationError(f"{path}: AVI has no presentation times: use .mp4 or .mkv")
    try:
        with av.open(io.BytesIO(), "w", format=name) as trial:
            trial.add_stream("libx264", rate=25)
    except (ValueError, av.error.FFmpegError) as error:
        raise ConfigurationError(f"{path}: {error}: use .mp4 or .mkv") from error
    return name


def _encoded(frames: Iterable[Any], stream: Any) -> Iterator[Any]:
    """The packets of sound frames, encoded for a stream."""
    context = stream.codec_context
    resampler = import_av().AudioResampler(context.format, context.layout, context.rate)
    for frame in chain(frames, [None]):
        for part in resampler.resample(frame):
            yield from stream.encode(part)
    yield from stream.encode()


class JsonLinesFaces:
    """A line of JSON per frame: ``frame``, ``time``, ``faces`` as `Face.to_dict` gives them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, frame: Frame, faces: Iterable[Face]) -> None:
        """Write a line."""
        record = {"frame": frame.index, "time": round(frame.time, 6)}
        line = json.dumps(record | {"faces": [face.to_dict() for face in faces]})
        self._file.write(line + "\n")
        self._file.flush()  # for readers of a live stream


class ParquetFaces:
    """A row per face: frame, time, track_id and the columns of `io.formats.face_columns`."""

    _ROWS = 2000

    def __init__(self, path: Path) -> None:
        pyarrow = require_pyarrow()
        columns = {"frame": pyarrow.int64(), "time": pyarrow.float64(), "track_id": pyarrow.int64()}
        self._schema = pyarrow.schema([*columns.items(), *face_columns()])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._table = pyarrow.Table
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: Frame, faces: Iterable[Face]) -> None:
        """Keep the rows, and write them in groups."""
        start = {"frame": frame.index, "time": frame.time}
        self._rows += [start | {"track_id": face.track_id} | face_row(face) for face in faces]
        if len(self._rows) >= self._ROWS:
            self._write()

    def close(self) -> None:
        """Write the last rows and close the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows = []


FaceWriter = JsonLinesFaces | ParquetFaces


@contextmanager
def open_faces(path: str | Path) -> Iterator[FaceWriter]:
    """Open a .jsonl or .parquet file for faces; it appears when it is complete.

    Raises:
        ConfigurationError: the suffix is another one.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigurationError(f"{path}: faces are written to .jsonl or .parquet")
    with atomic_write_path(path) as partial:
        if path.suffix == ".jsonl":
            with partial.open("w", encoding="utf-8") as file:
                yield JsonLinesFaces(file)
        else:
            with closing(ParquetFaces(partial)) as table:
                yield table
