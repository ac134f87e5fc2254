"""Predict many images into a folder of results that survives being killed.

The folder holds every image exactly once. Results are written in parts that are never changed. A
file is entered in the manifest with its SHA-256, written under its final name, and then its images
are entered in one transaction: from then on they are done. A file without its images was left by a
killed process and is removed. Other files are neither replaced nor removed: what is not in the
manifest, or has other content than entered there, belongs to another program.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from hihlandmark.errors import ConfigurationError, ImageError, check_integer
from hihlandmark.face_detection.base import Detections
from hihlandmark.io.formats import FORMATS, Result, numbered
from hihlandmark.io.sources import DRAWING, MANIFEST, Source, escape
from hihlandmark.pipeline import Found
from hihlandmark.threads import default_workers, map_ahead
from hihlandmark.writing import check_local, uninterrupted, write_new

if TYPE_CHECKING:
    from hihlandmark.detector import Detector

logger = logging.getLogger(__name__)

# An image's name is stored as `_name_key`. A file of a part has the image ''.
_TABLES = """
BEGIN;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    path TEXT PRIMARY KEY, name TEXT NOT NULL, stamp TEXT NOT NULL, part INTEGER NOT NULL,
    faces INTEGER NOT NULL, error TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS images_by_name ON images (name);
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, image TEXT NOT NULL, part INTEGER NOT NULL, digest TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_image ON files (image);
COMMIT;
"""
_UNFINISHED = """
SELECT name, digest FROM files WHERE CASE image
    WHEN '' THEN part NOT IN (SELECT part FROM images)
    ELSE image NOT IN (SELECT path FROM images)
END
"""
_FILES_OF_PART = """
SELECT name, digest FROM files WHERE image IN (SELECT path FROM images WHERE part = ?)
"""
_WITHOUT_DRAWING = """
SELECT count(*) FROM images WHERE error IS NULL
    AND path NOT IN (SELECT image FROM files WHERE name LIKE '%.landmarks.png')
"""
_TEMPORARY = ".temporary"  # the setting that names the file under which others are written
_NEXT_IDS = ".next-ids"  # the setting with the next numbers of an image and a face
_FIXED_SETTINGS = ("format", "shards", "by_content")  # a folder cannot mix these

# Names that Windows takes for devices, also with a suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³]|con(in|out)\$)\s*(\.|$)", re.IGNORECASE)
# Errors of a file's name, not of the disk: they concern one image.
_NAME_ERRORS = frozenset(
    (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
)


def settings_of(detector: Detector) -> dict[str, Any]:
    """What the results of a detector depend on, for `ResultFolder`.

    As resolved, but for the options of the face detector, which are those that were given.
    """
    arguments = detector.arguments
    names = ("min_face", "min_box_score", "detection_size")
    given = {name: np.asarray(arguments[name]).tolist() for name in names}  # NumPy's numbers too
    if arguments["decoder"] != detector.card.decoding.decoder:
        given["decoder"] = arguments["decoder"]
    return {
        "layout": detector.layout.name,
        "model": detector.card.name,
        "weights": detector.card.sha256,
        "card": detector.card.digest,
        "runtime": detector.runtime.name,
        "precision": detector.runtime.precision,
        "face_detector": detector.face_detector.name,
        "refine": int(detector.pipeline.refine),
        "any_rotation": bool(detector.pipeline.any_rotation),
        "flip_test": bool(detector.landmarker.flip_test),
        "shape_prior": detector.landmarker.shape_prior is not None,
        "min_face": None,
        **{name: value for name, value in given.items() if value is not None},
    }


def predict_sources(
    detector: Detector,
    sources: Iterable[Source],
    workers: int | None = None,
    min_reliability: float = 0.0,
) -> Iterator[Result]:
    """Find the faces of many images; ``workers`` and limit as in `Detector.predict_many`.

    Memory does not grow with the number of images.

    Yields:
        The result of each source, in order: its faces, or its error.
    """
    if workers is not None:
        check_integer(workers=workers)
    model = {"model": detector.card.name, "weights": detector.card.sha256}

    def find(source: Source) -> Found[Result]:
        try:
            image, factor, size = source.load_by(detector.load_image)
        except ImageError as error:
            failed = Result(source, error=str(error), model=model, layout=detector.layout)
            return Found(failed, None, Detections.none())
        result = Result(source, size=size, model=model, layout=detector.layout)
        return Found(result, image, detector.find_faces(image), factor)

    found = map_ahead(find, sources, workers or default_workers())
    box_map = detector.box_map(detector.face_detector.name)
    for result, faces in detector.pipeline.run(found, box_map, min_reliability):
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

    def holds(self, name: str) -> bool:
        """Whether an image belongs to this shard, by `Source.name`.

        It is the same in every process, also where one gives the path of the folder in another way.
        """
        return zlib.crc32(name.encode("utf-8", "surrogateescape")) % self.total == self.number - 1


class ResultFolder:
    """A folder of results, used by one process at a time (per shard) as a context manager.

    Args:
        folder: created if it does not exist.
        output_format: a key of `FORMATS`.
        settings: what the results depend on, such as `settings_of` a detector; a folder with other
            settings is refused.
        shard: which part of the work this process does.
        part_size: images per part; a kill costs one part at most.
        drawings: images get a drawing, named after them.
        allow_mixed: take a folder with results of other settings.

    Attributes:
        done_before: images of `pending` that have a result from an earlier run.
        repeated: images of `pending` that were named before in this run.
        failed: images that were read but whose files could not be written; each is logged with its
            reason.
        failed_before: images among ``done_before`` that could not be read.
        failures: the text file that lists the images without faces because of an error, each with a
            tab and the reason; written at the end. None where there are none, and before.

    Raises:
        ConfigurationError: another process uses the folder, or it holds results of other settings,
            a damaged manifest, or files of another program and no manifest.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        output_format: str,
        settings: Mapping[str, Any],
        *,
        shard: Shard = Shard(),  # noqa: B008 - immutable
        part_size: int = 200,
        drawings: bool = False,
        allow_mixed: bool = False,
    ) -> None:
        check_local(Path(folder))
        self.folder = folder = Path(folder)
        self.shard, self.part_size = shard, part_size
        if output_format not in FORMATS:
            raise ConfigurationError(
                f"there is no format {output_format!r:.80}; there are {', '.join(FORMATS)}"
            )
        self.format = FORMATS[output_format]
        self.repeated = self.done_before = self.failed = self.failed_before = 0
        self.failures: Path | None = None
        self._draws = drawings
        self._problems: dict[str, str] = {}  # image -> why it gets no result
        self._has_files_of_images = drawings or self.format.of_image is not None
        self._in_progress: dict[str, str] = {}  # path -> key of the name, of images handed out
        self._paths: dict[str, str] = {}  # the inverse
        self._unwritten: list[Result] = []
        self._next_ids = [shard.number, shard.number]  # of an image and a face
        mark = f"-{shard.number}-of-{shard.total}" if shard.total > 1 else ""
        self._part_name = f"part{mark}-{{:06d}}{self.format.suffix}"
        # Readers of tables and data sets ignore names that begin with an underscore.
        self._failures_name = f"_failed{mark}.txt"
        if self.format.of_many is not None:
            self.format.of_many(())  # a missing package is an error before the work
        self._manifest_path = folder / f"{MANIFEST}{mark}.sqlite"
        lock = folder / f".lock{mark}"
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(f"{folder} is a file: give a folder for the results")
        _refuse_files_of_others(folder, lock)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(lock, blocking=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigurationError(
                f"another process writes to {folder}: wait for it, or share the work with --shard"
            ) from error
        with ExitStack() as opened:
            opened.callback(self._lock.release)
            self._refuse_other_shards()
            self._manifest = opened.enter_context(closing(_open_manifest(self._manifest_path)))
            given = {**settings, "format": output_format, "shards": shard.total}
            with _manifest_errors(self._manifest_path):
                self._begin_or_resume(given, allow_mixed)
            self._opened = opened.pop_all()

    def __enter__(self) -> ResultFolder:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Write the remaining results, also after an error, and release the folder."""
        with self._opened:
            if not isinstance(error, OSError):  # such as a full disk
                self.flush()
                self._write_failures()

    def pending(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Select the images that have no result yet; an image that is named twice comes once.

        An image that must not get a result comes with a ``problem``: it was changed since it was
        predicted, or the names of its files are those of another image or not portable.
        """
        for source in sources:
            if source.problem is not None:
                if self.shard.number == 1:
                    self._problems[source.path] = source.problem
                    yield source
                continue
            if not self.shard.holds(source.name):
                continue
            if source.path in self._in_progress:
                self.repeated += 1
                continue
            stamp, error, part = self._finished(source.path)
            if stamp == source.stamp and part >= self._first_part:
                self.repeated += 1
            elif stamp == source.stamp:
                self.done_before += 1
                self.failed_before += error is not None
            elif stamp is not None:
                problem = f"{source.path}: changed since it was predicted: use a new folder"
                self._problems[source.path] = problem
                yield replace(source, problem=problem)
            elif (reason := self._name_problem(source)) is not None:
                problem = f"{source.path}: {reason}"
                self._problems[source.path] = problem
                yield replace(source, problem=problem)
            else:
                key = _name_key(source.name)
                self._in_progress[source.path], self._paths[key] = key, source.path
                yield source

    def _finished(self, path: str) -> tuple[str | None, str | None, int]:
        """The stamp, the error and the part of an image that has a result, else None, None and 0.

        A result that was deleted is forgotten.
        """
        row = self._select("SELECT stamp, error, part FROM images WHERE path = ?", path)
        if not row:
            return None, None, 0
        if self._has_files_of_images:
            files = self._select("SELECT name FROM files WHERE image = ?", path)
            missing = [name for (name,) in files if not os.path.lexists(self.folder / name)]
            if missing and self.format.of_image is None:
                logger.warning("%s is missing: draw its image in a new folder", missing[0])
            elif missing:
                logger.warning("%s is missing: its image is predicted again", missing[0])
                self._forget_image(path)
                return None, None, 0
        stamp, image_error, part = row[0]
        return str(stamp), image_error, part

    def _select(self, query: str, *values: str) -> list[Any]:
        with _manifest_errors(self._manifest_path):
            return self._manifest.execute(query, values).fetchall()

    def _name_problem(self, source: Source) -> str | None:
        """Why no files may be named after an image, in formats with files per image."""
        if not self._has_files_of_images:
            return None
        parts = PurePath(source.name).parts
        if ".." in parts or PurePath(source.name).is_absolute():
            return "its name leads out of the folder of the results"
        advice = "rename it, or use --format jsonl, csv or parquet without --draw"
        if ":" in source.name or any(_DEVICE.match(part) for part in parts):
            return f"Windows has no files with such a name: {advice}"
        key = _name_key(source.name)
        query = "SELECT path FROM images WHERE name = ? AND path != ?"
        rows = self._select(query, key, source.path)
        other = rows[0][0] if rows else self._paths.get(key)
        if other is None:
            return None
        return (
            f"its results would replace those of {other}, on some systems at least: name a folder "
            f"above both, {advice}"
        )

    @uninterrupted()
    def add(self, result: Result, drawing: bytes | None = None) -> None:
        """Take the result of an image of `pending`; ``part_size`` of them are written as a part.

        Args:
            result: the result; one with a ``problem`` is listed among the failures.
            drawing: a PNG file, written at once as ``NAME.landmarks.png``.

        Raises:
            ConfigurationError: the image has a result already.
        """
        if result.source.problem is not None:
            self._problems[result.source.path] = result.source.problem
            self._release(result.source.path)
            return
        path = result.source.path
        if path not in self._in_progress and (
            any(each.source.path == path for each in self._unwritten)
            or self._select("SELECT 1 FROM images WHERE path = ?", path)
        ):
            raise ConfigurationError(
                f"{path} has a result already: predict what ResultFolder.pending(sources) selects"
            )
        if drawing is not None:
            name = result.source.name + DRAWING
            if self._write_files([(name, result.source.path, drawing)]):
                self.failed += 1
                return
        self._unwritten.append(result)
        if len(self._unwritten) >= self.part_size:
            self.flush()

    @uninterrupted()
    def flush(self) -> None:
        """Write the results taken so far as a part; after an `OSError` earlier parts are kept."""
        if not self._unwritten:
            return
        files: list[tuple[str, str, bytes]] = []
        if self.format.of_many is not None:
            while os.path.lexists(self.folder / self._part_name.format(self._part)):
                self._part += 1  # the file is not of this job
            ids = (count(first, self.shard.total) for first in self._next_ids)
            content = self.format.of_many(numbered(self._unwritten, *ids))
            files.append((self._part_name.format(self._part), "", content))
        elif self.format.of_image is not None:
            for result in self._unwritten:
                for suffix, content in self.format.of_image(result).items():
                    files.append((result.source.name + suffix, result.source.path, content))
        failed = self._write_files(files)
        self.failed += sum(r.source.path in failed and r.error is None for r in self._unwritten)
        rows = [
            (s.path, _name_key(s.name), s.stamp, self._part, len(result.faces), result.error)
            for result in self._unwritten
            if (s := result.source).path not in failed
        ]
        with _manifest_errors(self._manifest_path), self._manifest:
            self._manifest.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._count_ids()
        for result in self._unwritten:
            self._release(result.source.path)
        self._unwritten = []
        self._part += 1

    def _count_ids(self) -> None:
        """Store the numbers after those of the written images and faces, which are never reused."""
        counts = len(self._unwritten), sum(len(result.faces) for result in self._unwritten)
        for index, number in enumerate(counts):
            self._next_ids[index] += number * self.shard.total
        row = (_NEXT_IDS, json.dumps(self._next_ids))
        self._manifest.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", row)

    def _write_files(self, files: Iterable[tuple[str, str, bytes]]) -> set[str]:
        """Write new files, each with its name, image and content.

        Returns:
            The images of those that cannot be written because of their names, which are logged.
        """
        failed: dict[str, str] = {}
        new: list[tuple[str, str, bytes]] = []
        for name, image, content in files:
            if os.path.lexists(self.folder / name):
                failed[image] = f"{name} exists and is not a result of this job"
            else:
                new.append((name, image, content))
        claims = [
            (name, image, self._part, hashlib.sha256(content).hexdigest())
            for name, image, content in new
        ]
        with _manifest_errors(self._manifest_path), self._manifest:
            self._manifest.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?)", claims)
        for name, image, content in new:
            if image in failed:
                continue
            try:
                write_new(self.folder / name, content, self._temporary)
            except OSError as error:
                if error.errno not in _NAME_ERRORS or image == "":
                    raise
                failed[image] = f"{name} cannot be written ({error.strerror})"
                with _manifest_errors(self._manifest_path), self._manifest:
                    # It may not be of this job.
                    self._manifest.execute("DELETE FROM files WHERE name = ?", (name,))
        for image, reason in failed.items():
            self._forget_image(image)
            self._release(image)
            self._problems[image] = f"{image}: {reason}: rename it, or use a new folder"
            logger.warning("failed: %s", self._problems[image])
        return set(failed)

    def _write_failures(self) -> None:
        """List the images with errors, those of earlier runs as well.

        In the manifest it is a part without images, which the next run removes.
        """
        errors = dict(self._select("SELECT path, error FROM images WHERE error IS NOT NULL"))
        reasons = sorted({**errors, **self._problems}.items())
        path = self.folder / self._failures_name
        if not reasons:
            return
        if os.path.lexists(path):
            logger.warning("%s exists and is not a file of this job: failures are not listed", path)
            return
        content = "".join(f"{_line(image)}\t{_line(reason)}\n" for image, reason in reasons)
        self._write_files([(path.name, "", escape(content).encode())])
        self.failures = path

    def _release(self, path: str) -> None:
        key = self._in_progress.pop(path, None)
        if key is not None:
            self._paths.pop(key, None)

    def _forget_image(self, path: str) -> None:
        """Remove the files of an image and its entry."""
        with _manifest_errors(self._manifest_path), self._manifest:
            rows = self._manifest.execute("SELECT name, digest FROM files WHERE image = ?", (path,))
            self._remove_files(rows.fetchall())
            self._manifest.execute("DELETE FROM images WHERE path = ?", (path,))

    def _remove_files(self, rows: Iterable[tuple[str, str]]) -> None:
        """Remove files that have the content in the manifest, and the entries of all."""
        for name, digest in rows:
            path = self.folder / name
            with suppress(FileNotFoundError, NotADirectoryError):
                if os.path.isfile(path) and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                    path.unlink()
            self._manifest.execute("DELETE FROM files WHERE name = ?", (name,))

    def _begin_or_resume(self, settings: Mapping[str, Any], allow_mixed: bool) -> None:
        """Store the settings in a new folder; refuse other settings in one that was begun.

        What a kill left of the next part is removed; a part that was deleted is forgotten.
        """
        given = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
        own = _settings_in(self._manifest)
        stored = own or next(filter(None, map(_read_settings, _manifests(self.folder))), {})
        if stored:
            compared = {*(_FIXED_SETTINGS if allow_mixed else given.keys() | stored.keys())}
            compared -= {_TEMPORARY, _NEXT_IDS}
            if "card" not in stored:  # begun before it was stored
                compared.discard("card")
            self._refuse_other_settings(stored, given, compared)
        with self._manifest:
            if not own:
                given[_TEMPORARY] = f".{secrets.token_hex(8)}.tmp"
                self._manifest.executemany("INSERT INTO settings VALUES (?, ?)", given.items())
            self._temporary = self.folder / (own or given)[_TEMPORARY]
            self._next_ids = json.loads(own.get(_NEXT_IDS, json.dumps(self._next_ids)))
            self._temporary.unlink(missing_ok=True)
            self._remove_files(self._manifest.execute(_UNFINISHED).fetchall())
            parts = self._manifest.execute("SELECT name, part FROM files WHERE image = ''")
            for name, part in parts.fetchall():
                if not os.path.lexists(self.folder / name):
                    logger.warning("%s is missing: its images are predicted again", name)
                    drawings = self._manifest.execute(_FILES_OF_PART, (part,))
                    self._remove_files(drawings.fetchall())
                    self._manifest.execute("DELETE FROM images WHERE part = ?", (part,))
                    self._manifest.execute("DELETE FROM files WHERE name = ?", (name,))
            query = "SELECT coalesce(max(part), 0) FROM (SELECT part FROM images UNION ALL "
            ((last,),) = self._manifest.execute(query + "SELECT part FROM files)").fetchall()
        self._part = self._first_part = last + 1
        if self._draws:
            ((count,),) = self._select(_WITHOUT_DRAWING)
            if count:
                logger.warning("%d finished images get no drawing: use a new folder", count)

    def _refuse_other_settings(
        self, stored: Mapping[str, str], given: Mapping[str, str], names: Iterable[str]
    ) -> None:
        differences = [
            f"{name} was {stored.get(name)}, is {given.get(name)}"
            for name in sorted(names)
            if stored.get(name) != given.get(name)
        ]
        if differences:
            raise ConfigurationError(
                f"{self.folder} holds results of other settings: {', '.join(differences)}; use "
                "another folder, or --allow-mixed (for all but format, shards and by_content)"
            )

    def _refuse_other_shards(self) -> None:
        ending = f"-of-{self.shard.total}.sqlite" if self.shard.total > 1 else ".manifest.sqlite"
        for manifest in _manifests(self.folder):
            if not manifest.name.endswith(ending):
                raise ConfigurationError(
                    f"{self.folder} was begun with another number of shards ({manifest.name}): use "
                    "the same, or another folder"
                )


def _line(text: str) -> str:
    """A text without line breaks and tabs, such as those of a path."""
    return re.sub(r"\s*[\n\r\t]\s*", " ", text)


def _name_key(name: str) -> str:
    """Equal for names that are one on systems that ignore case or Unicode's normal forms."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob(".manifest*.sqlite"))


def _read_settings(path: Path) -> dict[str, str]:
    """The settings in the manifest of any shard; {} where there are none."""
    with closing(sqlite3.connect(path)) as manifest:
        try:
            return _settings_in(manifest)
        except sqlite3.OperationalError:  # no such table
            return {}


def _settings_in(manifest: sqlite3.Connection) -> dict[str, str]:
    return dict(manifest.execute("SELECT name, value FROM settings").fetchall())


def _refuse_files_of_others(folder: Path, lock: Path) -> None:
    """Raise `ConfigurationError` for a folder with visible files and no manifest of ours."""
    if lock.is_file() and lock.stat().st_size:  # ours is empty, and locking would empty it
        raise ConfigurationError(f"{lock} is not a file of this command: choose another folder")
    # The file first: another shard may begin meanwhile, and it writes its manifest first.
    other = _visible_file(folder)
    if other is None:
        return
    for manifest in _manifests(folder):
        try:
            if _read_settings(manifest):
                return
        except sqlite3.DatabaseError:
            return  # damaged, as is reported when it is opened
    raise ConfigurationError(
        f"{folder} holds files but no manifest of an earlier run, such as {other}: choose a new "
        "folder"
    )


def _visible_file(folder: Path) -> Path | None:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(files):
            if not name.startswith("."):
                return Path(parent, name)
    return None


def _open_manifest(path: Path) -> sqlite3.Connection:
    with _manifest_errors(path):
        manifest = sqlite3.connect(path)
        try:
            tables = {name for (name,) in manifest.execute("SELECT name FROM sqlite_master")}
            if tables and not {"settings", "images", "files"} <= tables:
                raise ConfigurationError(f"{path} is not a manifest: choose another folder")
            manifest.executescript(_TABLES)
            ((state,),) = manifest.execute("PRAGMA quick_check(1)").fetchall()
            if state != "ok":
                raise sqlite3.DatabaseError(state.splitlines()[-1])
        except BaseException:
            manifest.close()
            raise
    return manifest


@contextmanager
def _manifest_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into ours, which name the manifest."""
    try:
        yield
    except sqlite3.OperationalError as error:  # such as a full disk, or a read-only folder
        advice = "free space, or make the folder writable, and run the command again"
        advice += "; what is finished is kept"
        raise OSError(errno.EIO, f"{error}: {advice}", str(path)) from error
    except sqlite3.IntegrityError:  # an image was added twice
        raise
    except sqlite3.ProgrammingError as error:
        raise ConfigurationError(
            f"use a ResultFolder inside of its with block, in the thread that opened it: {error}"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"{path} is damaged ({error}): restore it from a copy, or use a new folder; the "
            "results in this one are kept"
        ) from error
