"""Frames and faces -> an annotated video with the sound of the original; rows of faces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError
from hihlandmark.face import Face
from hihlandmark.io.formats import face_columns, face_row
from hihlandmark.io.sources import require_pyarrow
from hihlandmark.video.frames import Frame, frame_rate, open_container
from hihlandmark.writing import atomic_write_path

_CLOCK = Fraction(1, 90_000)
"""Of presentation times: fine enough for any rate of frames, whether it varies or not."""

_TAIL = 1.0
"""Seconds of sound after the last frame began: it does not go on where frames were left out."""


class AnnotatedVideo:
    """An H.264 file that frames are added to, with the sound of the video that they come from.

    It appears under its name when it is whole. Times stay as they are. Raises `ConfigurationError`
    for a suffix that FFmpeg has no container for, `OSError` where nothing can be written.
    """

    def __init__(self, path: Path, source: str | Path | None = None) -> None:
        self.path = path
        self._replacing = atomic_write_path(path)
        self._partial = self._replacing.__enter__()
        # A camera or a stream cannot be opened a second time.
        self._source = source if source and Path(source).exists() else None
        self._output: Any = None
        self._video: Any = None
        self._sound: Iterator[tuple[float, Any]] = iter(())
        self._next_sound: tuple[float, Any] | None = None
        self._last = -1

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._output is not None:
                if kind is None:
                    self._output.mux(self._video.encode())
                    self._copy_sound(until=float(self._last * _CLOCK) + _TAIL)
                self._output.close()
        finally:
            self._replacing.__exit__(kind, error, trace)

    def add(self, image: NDArray[np.uint8], time: float) -> None:
        """The next frame (H, W, 3) RGB, shown from a time in seconds on."""
        import av

        if self._output is None:
            self._open(image)
        height, width = self._video.height, self._video.width
        padded = np.zeros((height, width, 3), np.uint8)
        part = image[:height, :width]
        padded[: part.shape[0], : part.shape[1]] = part
        frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
        # Two frames at one time, as of broken files, are shown one after the other.
        self._last = max(self._last + 1, round(time / _CLOCK))
        frame.pts, frame.time_base = self._last, _CLOCK
        self._copy_sound(until=time)
        self._output.mux(self._video.encode(frame))

    def _open(self, image: NDArray[np.uint8]) -> None:
        import av

        try:
            self._output = av.open(str(self._partial), "w", format=_container_of(self.path))
        except ValueError as error:
            raise ConfigurationError(
                f"{self.path}: no video is written with such a suffix ({error}): take .mp4 or .mkv"
            ) from error
        rate = Fraction(frame_rate(self._source)).limit_denominator(1001) if self._source else 25
        self._video = self._output.add_stream("libx264", rate=rate)
        height, width = image.shape[:2]
        # H.264 stores every other pixel's color, so sides are even.
        self._video.height, self._video.width = height + height % 2, width + width % 2
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = _CLOCK
        if self._source and Path(self._source).is_file():
            self._sound = self._sound_of(str(self._source))

    def _sound_of(self, source: str) -> Iterator[tuple[float, Any]]:
        """Packets of sound, as they are, with their times."""
        with open_container(source) as container:
            if not container.streams.audio:
                return
            there = container.streams.audio[0]
            here = self._output.add_stream_from_template(there)
            # Streams must be there before the first packet is written.
            yield float("-inf"), None
            for packet in container.demux(there):
                if packet.dts is not None:
                    packet.stream = here
                    yield float(packet.dts * packet.time_base), packet

    def _copy_sound(self, until: float) -> None:
        """Sound goes beside the frames, for players, and so that no packets pile up."""
        while True:
            self._next_sound = self._next_sound or next(self._sound, None)
            if self._next_sound is None or self._next_sound[0] > until:
                return
            if self._next_sound[1] is not None:
                self._output.mux(self._next_sound[1])
            self._next_sound = None


def _container_of(path: Path) -> str:
    """FFmpeg's name of the container, which the name of the unfinished file does not say."""
    return {".mkv": "matroska", ".m4v": "mp4"}.get(path.suffix.lower(), path.suffix[1:].lower())


class FaceWriter(Protocol):
    """Takes the faces of frames, one after the other."""

    def add(self, frame: Frame, faces: Iterable[Face]) -> None:
        """Writes them, or keeps them to be written with others."""
        ...


class JsonLinesFaces:
    """A line of JSON a frame: ``frame``, ``time``, ``faces`` as of `Face.to_dict`."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, frame: Frame, faces: Iterable[Face]) -> None:
        """Writes a line."""
        record = {"frame": frame.index, "time": round(frame.time, 6)}
        line = json.dumps(record | {"faces": [face.to_dict() for face in faces]})
        self._file.write(line + "\n")
        self._file.flush()  # others read on while a stream lasts


class ParquetFaces:
    """A row a face: frame, time, track_id and the columns of `folder`'s tables."""

    _ROWS = 2000

    def __init__(self, path: Path) -> None:
        pyarrow = require_pyarrow()
        self._schema = pyarrow.schema(
            [
                ("frame", pyarrow.int64()),
                ("time", pyarrow.float64()),
                ("track_id", pyarrow.int64()),
                *face_columns(),
            ]
        )
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._table = pyarrow.Table
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: Frame, faces: Iterable[Face]) -> None:
        """Keeps the rows, and writes them in groups."""
        start = {"frame": frame.index, "time": frame.time}
        self._rows += [start | {"track_id": face.track_id} | face_row(face) for face in faces]
        if len(self._rows) >= self._ROWS:
            self._write()

    def close(self) -> None:
        """Writes the last rows and ends the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows = []


@contextmanager
def open_faces(path: Path) -> Iterator[FaceWriter]:
    """A file of faces, .jsonl or .parquet, which appears under its name when it is whole.

    Raises `ConfigurationError` for another suffix.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigurationError(f"{path}: faces are written to .jsonl or .parquet")
    with atomic_write_path(path) as partial:
        if path.suffix == ".jsonl":
            with partial.open("w", encoding="utf-8") as file:
                yield JsonLinesFaces(file)
        else:
            with closing(ParquetFaces(partial)) as table:
                yield table
