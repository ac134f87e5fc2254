"""Predict many images into a folder of results that survives being killed.

The folder holds every image exactly once. Results are written in parts that are never changed. The
file of a part is written under its final name, then its images are entered in the manifest in one
transaction: from then on they are done. A part that is not in the manifest was left by a killed
process and is removed.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.face_detection.base import Detections
from hihlandmark.io.formats import FORMATS, Result
from hihlandmark.io.sources import Source
from hihlandmark.pipeline import Found
from hihlandmark.threads import default_workers, map_ahead
from hihlandmark.writing import write_atomically

if TYPE_CHECKING:
    from hihlandmark.detector import Detector

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    path TEXT PRIMARY KEY, name TEXT NOT NULL, stamp TEXT NOT NULL, part INTEGER NOT NULL,
    faces INTEGER NOT NULL, error TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS images_by_name ON images (name);
"""


def predict_sources(
    detector: Detector, sources: Iterable[Source], workers: int | None = None
) -> Iterator[Result]:
    """Find the faces of many images, with ``workers`` threads as in `Detector.predict_many`.

    Memory does not grow with the number of images.

    Yields:
        The result of each source, in order: its faces, or its error.
    """
    model = {"model": detector.card.name, "weights": detector.card.sha256}

    def find(source: Source) -> Found[Result]:
        try:
            image = source.load()
        except ImageError as error:
            return Found(Result(source, error=str(error), model=model), None, Detections.none())
        height, width = image.shape[:2]
        result = Result(source, size=(width, height), model=model)
        return Found(result, image, detector.find_faces(image))

    found = map_ahead(find, sources, workers or default_workers())
    box_map = detector.box_map(detector.face_detector.name)
    for result, faces in detector.pipeline.run(found, box_map):
        yield replace(result, faces=faces)


class Shard(NamedTuple):
    """One of several processes that share the work: number 1 to ``total``."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a shard such as "2/8"; raises `ConfigurationError` for malformed text."""
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
            raise ConfigurationError(f"a shard is written 2/8, the second of eight, not {text!r}")
        return cls(int(number), int(total))

    def holds(self, path: str) -> bool:
        """Whether an image belongs to this shard; the same in every process."""
        return zlib.crc32(path.encode("utf-8", "surrogateescape")) % self.total == self.number - 1


class ResultFolder:
    """A folder of results, used by one process at a time (per shard) as a context manager.

    Args:
        folder: created if it does not exist.
        output_format: a key of `FORMATS`.
        settings: what the results depend on; a folder with other settings is refused.
        shard: which part of the work this process does.
        part_size: images per part; a kill costs one part at most.

    Attributes:
        done_before: images of `pending` that have a result from an earlier run.
        repeated: images of `pending` that were named before in this run.

    Raises:
        ConfigurationError: another process uses the folder, or it holds results of other settings.
    """

    def __init__(
        self,
        folder: Path,
        output_format: str,
        settings: Mapping[str, Any],
        *,
        shard: Shard = Shard(),  # noqa: B008 - immutable
        part_size: int = 200,
    ) -> None:
        self.folder, self.shard, self.part_size = folder, shard, part_size
        self.format = FORMATS[output_format]
        self.repeated = self.done_before = 0
        self._in_progress: dict[str, str] = {}  # path -> name of images that were handed out
        self._unwritten: list[Result] = []
        folder.mkdir(parents=True, exist_ok=True)
        mark = f"-{shard.number}-of-{shard.total}" if shard.total > 1 else ""
        self._part_name = f"part{mark}-{{:06d}}{self.format.suffix}"
        self._lock = FileLock(folder / f".lock{mark}", blocking=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigurationError(
                f"another process writes to {folder}: wait for it, or share the work with --shard"
            ) from error
        try:
            self._refuse_other_shards()
            self._manifest = _open_manifest(folder / f".manifest{mark}.sqlite")
            (last,) = self._select("SELECT coalesce(max(part), 0) FROM images")
            self._part = last + 1
            self._begin_or_resume({**settings, "format": output_format, "shards": shard.total})
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Write the remaining results, also after an error, and release the folder."""
        try:
            if not isinstance(error, OSError):  # such as a full disk
                self.flush()
        finally:
            self._manifest.close()
            self._lock.release()

    def pending(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Select the images that have no result yet; an image that is named twice comes once.

        An image that must not get a result comes with a ``problem``: it was changed since it was
        predicted, or its files would replace those of another.
        """
        for source in sources:
            if source.problem is not None:
                if self.shard.number == 1:
                    yield source
                continue
            if not self.shard.holds(source.path):
                continue
            if source.path in self._in_progress:
                self.repeated += 1
                continue
            row = self._select("SELECT stamp FROM images WHERE path = ?", source.path)
            if row == (source.stamp,):
                self.done_before += 1
            elif row is not None:
                problem = f"{source.path}: changed since it was predicted: use a new folder"
                yield replace(source, problem=problem)
            elif (other := self._same_name(source)) is not None:
                problem = f"{source.path}: its results would replace those of {other}: "
                problem += "name a folder above both, or use --format jsonl, csv or parquet"
                yield replace(source, problem=problem)
            else:
                self._in_progress[source.path] = source.name
                yield source

    def _select(self, query: str, *values: str) -> Any:
        return self._manifest.execute(query, values).fetchone()

    def _same_name(self, source: Source) -> str | None:
        """Another image that is written to the same files, in formats with files per image."""
        if self.format.of_image is None:
            return None
        query = "SELECT path FROM images WHERE name = ? AND path != ?"
        row = self._select(query, source.name, source.path)
        same = (path for path, name in self._in_progress.items() if name == source.name)
        return row[0] if row else next(same, None)

    def add(self, result: Result) -> None:
        """Take the result of an image of `pending`; ``part_size`` of them are written as a part."""
        if result.source.problem is None:
            self._unwritten.append(result)
        if len(self._unwritten) >= self.part_size:
            self.flush()

    def flush(self) -> None:
        """Write the results taken so far as a part; after an `OSError` earlier parts are kept."""
        if not self._unwritten:
            return
        rows = [
            (r.source.path, r.source.name, r.source.stamp, self._part, len(r.faces), r.error)
            for r in self._unwritten
        ]
        with self._manifest:  # an error in the block takes back the rows
            self._manifest.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
            if self.format.of_many is not None:
                write_atomically(self._part_file, self.format.of_many(self._unwritten))
            elif self.format.of_image is not None:
                for result in self._unwritten:
                    target = self.folder / result.source.name
                    for suffix, content in self.format.of_image(result).items():
                        write_atomically(target.with_name(target.name + suffix), content)
        for result in self._unwritten:
            self._in_progress.pop(result.source.path, None)
        self._unwritten = []
        self._part += 1

    @property
    def _part_file(self) -> Path:
        return self.folder / self._part_name.format(self._part)

    def _begin_or_resume(self, settings: Mapping[str, Any]) -> None:
        """Store the settings in a new folder; refuse other settings in one that was begun.

        What a kill left of the next part is removed, but no file of a folder that is new to us.
        """
        stored = dict(self._manifest.execute("SELECT name, value FROM settings").fetchall())
        given = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        if not stored:
            if self.format.of_many is not None and self._part_file.exists():
                raise ConfigurationError(
                    f"{self._part_file} is not a result of this folder: choose another folder"
                )
            with self._manifest:
                self._manifest.executemany("INSERT INTO settings VALUES (?, ?)", given.items())
            return
        differences = [
            f"{name} was {stored.get(name)}, is {given.get(name)}"
            for name in sorted(given.keys() | stored.keys())
            if stored.get(name) != given.get(name)
        ]
        if differences:
            raise ConfigurationError(
                f"{self.folder} holds results of other settings: {', '.join(differences)}"
            )
        if self.format.of_many is not None:
            self._part_file.unlink(missing_ok=True)
            for path in self.folder.glob(f".{self._part_file.name}.*"):
                path.unlink()

    def _refuse_other_shards(self) -> None:
        ending = f"-of-{self.shard.total}.sqlite" if self.shard.total > 1 else ".manifest.sqlite"
        for manifest in self.folder.glob(".manifest*.sqlite"):
            if not manifest.name.endswith(ending):
                raise ConfigurationError(
                    f"{self.folder} was begun with another number of shards ({manifest.name})"
                )


def _open_manifest(path: Path) -> sqlite3.Connection:
    manifest = sqlite3.connect(path)
    try:
        manifest.executescript(_TABLES)
    except sqlite3.DatabaseError as error:
        manifest.close()
        raise ConfigurationError(f"{path} is damaged ({error}): remove the folder") from error
    return manifest
