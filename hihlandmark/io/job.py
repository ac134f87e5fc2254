"""A folder of results that survives being killed: every image in it exactly once.

Results are written in parts. A part's file is written under its final name first, then the part is
entered in the manifest, in one transaction: that is the moment at which its images are done. Files
of parts that the manifest does not know are left over from a kill, and are removed.
"""

from __future__ import annotations

import glob
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.io.formats import FORMATS, Result
from hihlandmark.io.sources import Source
from hihlandmark.writing import write_atomically

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    path TEXT PRIMARY KEY, name TEXT NOT NULL, stamp TEXT NOT NULL, part INTEGER NOT NULL,
    faces INTEGER NOT NULL, error TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS images_by_name ON images (name);
"""


class Shard(NamedTuple):
    """One of several processes that share the work: the ``number``-th, from 1, of ``total``."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/8". Raises `ConfigurationError`."""
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
            raise ConfigurationError(f"a shard is written 2/8, the second of eight, not {text!r}")
        return cls(int(number), int(total))

    def holds(self, path: str) -> bool:
        """Whether an image falls to this shard; the same in every process."""
        return zlib.crc32(path.encode("utf-8", "surrogateescape")) % self.total == self.number - 1


class Totals(NamedTuple):
    """What lies in the folder."""

    images: int
    faces: int
    failed: int


class ResultFolder:
    """Results of `settings` in a folder, one process at a time (for each shard).

    Args:
        folder: made if it is not there.
        output_format: of `FORMATS`.
        settings: what the results depend on: a folder of others is refused.
        shard: which part of the work this is.
        part_size: images a part: what a kill costs at most.
        retry_failed: look again at images that could not be read.

    Raises:
        ConfigurationError: another process works on it, or it holds results of other settings.
    """

    def __init__(
        self,
        folder: Path,
        output_format: str,
        settings: Mapping[str, Any],
        *,
        shard: Shard = Shard(),  # noqa: B008 - cannot be changed
        part_size: int = 200,
        retry_failed: bool = False,
    ) -> None:
        self.folder, self.shard, self.part_size = folder, shard, part_size
        self.retry_failed = retry_failed
        self.format = FORMATS[output_format]
        self.repeated = self.done_before = 0
        self._under_way: dict[str, str] = {}
        """Paths of the images that are handed out, and their names."""
        self._waiting: list[Result] = []
        folder.mkdir(parents=True, exist_ok=True)
        mark = f"-{shard.number}-of-{shard.total}" if shard.total > 1 else ""
        self._part_name = f"part{mark}-{{:06d}}{self.format.suffix}"
        self._lock = FileLock(folder / f".lock{mark}", blocking=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigurationError(
                f"another process writes to {folder}: wait for it, choose another folder, or share "
                "the work with --shard 1/2 and --shard 2/2"
            ) from error
        try:
            self._refuse_other_shards()
            self._manifest = _open_manifest(folder / f".manifest{mark}.sqlite")
            self._check_settings({**settings, "format": output_format, "shards": shard.total})
            self._remove_unknown_parts()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes what waits, whatever ended the work, and lets the folder go."""
        try:
            if not isinstance(error, OSError):  # such as a full disk
                self.flush()
        finally:
            self._manifest.close()
            self._lock.release()

    def pending(self, sources: Iterable[Source | ImageError]) -> Iterator[Source | ImageError]:
        """The images that have no result yet, or another one since they were changed.

        An image that is named twice comes once; errors are handed on.
        """
        for source in sources:
            if isinstance(source, ImageError):
                if self.shard.number == 1:
                    yield source
                continue
            if not self.shard.holds(source.path):
                continue
            if source.path in self._under_way:
                self.repeated += 1
            elif self._is_done(source):
                self.done_before += 1
            elif (other := self._of_same_name(source)) is not None:
                yield ImageError(
                    f"{source.path}: its results would replace those of {other}: name a folder "
                    "above both, or take --format jsonl, csv or parquet"
                )
            else:
                self._under_way[source.path] = source.name
                yield source

    def _is_done(self, source: Source) -> bool:
        row = self._manifest.execute(
            "SELECT stamp, error FROM images WHERE path = ?", (source.path,)
        ).fetchone()
        return row is not None and row[0] == source.stamp and not (row[1] and self.retry_failed)

    def _of_same_name(self, source: Source) -> str | None:
        """Another image that is written to the same files, where each has its own."""
        if self.format.of_image is None:
            return None
        row = self._manifest.execute(
            "SELECT path FROM images WHERE name = ? AND path != ?", (source.name, source.path)
        ).fetchone()
        same = (path for path, name in self._under_way.items() if name == source.name)
        return row[0] if row else next(same, None)

    def add(self, result: Result) -> None:
        """Takes a result; with `part_size` of them a part is written."""
        self._waiting.append(result)
        if len(self._waiting) >= self.part_size:
            self.flush()

    def flush(self) -> None:
        """Writes the results that wait as a part. Raises `OSError`, with all before it kept."""
        if not self._waiting:
            return
        results = self._waiting
        (number,) = self._manifest.execute(
            "SELECT coalesce(max(number), 0) + 1 FROM parts"
        ).fetchone()
        file, changed = "", {}
        if self.format.of_many is not None:
            file = self._part_name.format(number)
            write_atomically(self.folder / file, self.format.of_many(results))
            changed = self._without(results, number)
        else:
            self._write_images(results)
        with self._manifest:
            self._manifest.execute("INSERT INTO parts VALUES (?, ?)", (number, file))
            self._manifest.executemany(
                "UPDATE parts SET file = ? WHERE number = ?",
                [(new, part) for part, (_, new) in changed.items()],
            )
            self._manifest.executemany(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (r.source.path, r.source.name, r.source.stamp, number, len(r.faces), r.error)
                    for r in results
                ],
            )
        for old, _ in changed.values():
            (self.folder / old).unlink(missing_ok=True)
        self._waiting = []
        for result in results:
            self._under_way.pop(result.source.path, None)

    def _without(self, results: Sequence[Result], number: int) -> dict[int, tuple[str, str]]:
        """Parts with earlier results of these images, written anew without them: old, new file."""
        stale: dict[int, set[str]] = {}
        for result in results:
            row = self._manifest.execute(
                "SELECT part FROM images WHERE path = ?", (result.source.path,)
            ).fetchone()
            if row:
                stale.setdefault(row[0], set()).add(result.source.path)
        changed = {}
        for part, images in stale.items():
            (old,) = self._manifest.execute(
                "SELECT file FROM parts WHERE number = ?", (part,)
            ).fetchone()
            new = f"{self._part_name.format(part).partition('.')[0]}-{number:06d}"
            new += self.format.suffix
            assert self.format.without is not None  # parts have it
            content = self.format.without((self.folder / old).read_bytes(), images)
            write_atomically(self.folder / new, content)
            changed[part] = (old, new)
        return changed

    def _write_images(self, results: Sequence[Result]) -> None:
        assert self.format.of_image is not None
        for result in results:
            target = self.folder / result.source.name
            for old in target.parent.glob(f"{glob.escape(target.name)}.*{self.format.suffix}"):
                old.unlink()  # of an earlier run that found more faces
            for suffix, content in self.format.of_image(result).items():
                write_atomically(target.with_name(target.name + suffix), content)

    def totals(self) -> Totals:
        """Of all that is written, in this run and before."""
        return Totals(
            *self._manifest.execute(
                "SELECT count(*), coalesce(sum(faces), 0), count(error) FROM images"
            ).fetchone()
        )

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        """Enters the settings of a new folder; raises `ConfigurationError` for other ones."""
        known = dict(self._manifest.execute("SELECT name, value FROM settings").fetchall())
        wanted = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        if not known:
            with self._manifest:
                self._manifest.executemany("INSERT INTO settings VALUES (?, ?)", wanted.items())
            return
        differences = [
            f"{name} was {known.get(name)}, is {wanted.get(name)}"
            for name in sorted(wanted.keys() | known.keys())
            if known.get(name) != wanted.get(name)
        ]
        if differences:
            raise ConfigurationError(
                f"{self.folder} holds results of other settings ({', '.join(differences)}): choose "
                "another folder, or remove it"
            )

    def _refuse_other_shards(self) -> None:
        wanted = f"-of-{self.shard.total}.sqlite" if self.shard.total > 1 else ".manifest.sqlite"
        for manifest in self.folder.glob(".manifest*.sqlite"):
            if not manifest.name.endswith(wanted):
                raise ConfigurationError(
                    f"{self.folder} was begun with another number of shards ({manifest.name}): go "
                    "on with that number, or choose another folder"
                )

    def _remove_unknown_parts(self) -> None:
        """Files that a kill left: parts that were not entered, and those half written."""
        known = {file for (file,) in self._manifest.execute("SELECT file FROM parts")}
        pattern = self._part_name.replace("{:06d}", "*")
        for path in (*self.folder.glob(pattern), *self.folder.glob(f".{pattern}.*")):
            if path.name not in known:
                path.unlink()


def _open_manifest(path: Path) -> sqlite3.Connection:
    """Raises `ConfigurationError` for a file that is no manifest."""
    manifest = sqlite3.connect(path)
    try:
        manifest.executescript(_TABLES)
    except sqlite3.DatabaseError as error:
        manifest.close()
        raise ConfigurationError(
            f"{path} is damaged or no manifest ({error}): remove the folder to start anew"
        ) from error
    return manifest
