"""The format of this package: a folder with ``annotations.jsonl`` and images.

`label` writes it.

One JSON object per line:

- ``image``: path relative to the folder; ``points``: [[x, y], ...] in pixels of the upright image
  with the center of the top-left pixel at (0, 0), or null for a point that is not annotated;
  ``split``: a name without "/", which separates a split from a subset;
- optional: ``visible``, a list of true and false, or of codes where 0 means fully visible;
  ``rect``, the official face rectangle xyxy; ``attributes``, an object whose entries become subsets
  (``{"pose": 1, "blur": 0, "set": "london"}`` gives "pose" and "set=london"); ``source``, the
  photograph that the image was cut from.

Objects without points are images without annotation, and in no split. The mirror table of a scheme
that is not a `Layout` is in ``points.json`` in the folder or its parent:
``{"86": {"flip": [...]}}``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray, Image, IndexArray
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    BadSample,
    Samples,
    ScannedFolders,
    layout_of_size,
    numbered_lines,
    unknown_split,
    with_reasons,
)
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError, DataError
from hihlandmark.face import Face
from hihlandmark.face_detection import Detections
from hihlandmark.image import load_image
from hihlandmark.io.job import predict_sources
from hihlandmark.io.sources import Source
from hihlandmark.layouts import LAYOUTS
from hihlandmark.layouts.layout import is_mirror_table
from hihlandmark.writing import relative_name, write_atomically

ANNOTATIONS = "annotations.jsonl"

STARTS_WITH = {70: "W300_68"}
"""Schemes, by number of points, that start with the points of a layout: FaceSynthetics has the 68
points of iBUG and two eye centers."""


def recognize(folder: Path) -> bool:
    """Whether the folder is a data set of this format."""
    return (folder / ANNOTATIONS).is_file()


def splits(folder: Path) -> list[str]:
    """The splits with annotated faces, in the order of their first face."""
    rows = _rows(folder, Samples())
    return list(dict.fromkeys(str(row["split"]) for _, row in rows if row.get("points")))


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated faces of a split; see `datasets.read_faces`.

    Without a ``layout``, it follows from the number of points.
    """
    rows = _rows(folder, samples)
    chosen = [(n, row) for n, row in rows if row["split"] == split and row.get("points")]
    if not chosen:
        if samples.skipped:
            return AnnotatedFaces(folder.name, "", np.zeros(0, np.intp), [], samples.skipped)
        raise unknown_split(folder, split, splits(folder))
    count = Counter(_length(row["points"]) for _, row in chosen).most_common(1)[0][0]
    layout = layout or layout_of_size(count)
    size = _used_points(folder, layout, count)
    files = ScannedFolders()
    for number, row in chosen:
        source = f"{ANNOTATIONS}, line {number}"
        with samples.reading(source):
            if not files.has(path := folder / row["image"]):
                raise BadSample(f"there is no image {row['image']}")
            samples.add(
                AnnotatedFace(
                    name=row["image"],
                    load_image=partial(load_image, path),
                    points=_points(row["points"], count)[:size],
                    split=split,
                    rectangle=_rectangle(row.get("rect")),
                    visible=_visible(row.get("visible"), count, size),
                    subsets=_subsets(row.get("attributes")),
                    source=source,
                    photo=photo if isinstance(photo := row.get("source"), str) else "",
                )
            )
    mirror = _mirror(folder, layout, size, samples.needs_mirror)
    return AnnotatedFaces(folder.name, layout, mirror, samples.faces, samples.skipped)


def _rows(folder: Path, samples: Samples) -> list[tuple[int, dict[str, Any]]]:
    """The objects of the annotation file with their line numbers."""
    rows = []
    for number, line in numbered_lines(folder / ANNOTATIONS):
        with samples.reading(f"{ANNOTATIONS}, line {number}"):
            rows.append((number, _object(line)))
    return rows


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"is not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise BadSample("is not a JSON object")
    for key in ("image", "split"):
        if not isinstance(row.get(key), str):
            raise BadSample(f"has no text {key!r}")
    if not is_split_name(row["split"]):
        raise BadSample(f"its 'split' is {row['split']!r}: give it a name without '/'")
    return row


def is_split_name(text: str) -> bool:
    """Whether a text can name a split: "/" separates a split from a subset in `read_faces`."""
    return bool(text.strip()) and "/" not in text


def _length(points: Any) -> int:
    return len(points) if isinstance(points, list) else 0


def _used_points(folder: Path, layout: str, count: int) -> int:
    """How many of a face's points, from the first on, are those of the layout."""
    if layout not in LAYOUTS or LAYOUTS[layout].size == count:
        return count
    if STARTS_WITH.get(count) == layout:
        return LAYOUTS[layout].size
    raise ConfigurationError(
        f"{folder} has {count} points per face, {layout} has {LAYOUTS[layout].size}: "
        "give the layout in which it is annotated"
    )


def _mirror(folder: Path, layout: str, size: int, is_needed: bool) -> IndexArray:
    if layout in LAYOUTS:
        return LAYOUTS[layout].mirror
    places = [folder / "points.json", folder.parent / "points.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None and not is_needed:
        return np.arange(size)
    if path is None:
        raise DataError(
            f"{size} points per face are no known layout: describe them in a layout file (--layout "
            "of hihlandmark finetune and data), give weights that hold it, or write their mirror "
            f'table, {{"{size}": {{"flip": [...]}}}}, into {folder}/points.json'
        )
    try:
        mirror = np.array(json.loads(path.read_text(encoding="utf-8"))[str(size)]["flip"], np.intp)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} has no mirror table {size!r} -> 'flip': {error!r}; add it"
        ) from error
    if mirror.shape != (size,) or not is_mirror_table(mirror):
        raise DataError(
            f"{path}: 'flip' of {size} must be a permutation of 0..{size - 1} and its own inverse"
        )
    return mirror


def _points(points: Any, count: int) -> FloatArray:
    if not isinstance(points, list):
        raise BadSample("its points are not a list")
    if len(points) != count:
        raise BadSample(f"has {len(points)} points, the other faces have {count}")
    array = _array([(np.nan, np.nan) if point is None else point for point in points])
    if array.shape != (count, 2):
        raise BadSample("its points are not all pairs [x, y] of numbers")
    known = np.array([point is not None for point in points])
    wrong = np.flatnonzero(known & ~np.isfinite(array).all(axis=1))
    if len(wrong):
        raise BadSample(f"point {wrong[0]} is {points[wrong[0]]}; write null for unknown points")
    return array


def _array(values: Any) -> FloatArray:
    """The values as an array of numbers; empty when they are none."""
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.zeros(0)


def _rectangle(rect: Any) -> FloatArray | None:
    if rect is None:
        return None
    array = _array(rect)
    if array.shape != (4,) or not np.isfinite(array).all():
        raise BadSample("its rect is not four numbers x0, y0, x1, y1")
    return array


def _visible(codes: Any, count: int, size: int) -> BoolArray | None:
    if codes is None:
        return None
    if _length(codes) != count:
        raise BadSample(f"its 'visible' has {_length(codes)} entries for {count} points")
    return np.array(
        [code if isinstance(code, bool) else code in (0, None) for code in codes[:size]], bool
    )


def _subsets(attributes: Any) -> frozenset[str]:
    if attributes is None:
        return frozenset()
    if not isinstance(attributes, dict):
        raise BadSample("its 'attributes' is not an object")
    flags = {key.lower() for key, value in attributes.items() if value in (1, True)}
    texts = {key.lower(): value for key, value in attributes.items() if isinstance(value, str)}
    return frozenset(flags | {f"{key}={value}" for key, value in texts.items() if value})


@dataclass(frozen=True)
class CenteredFaceDetector:
    """A `FaceDetector` for crops around one face each, whose margin is known.

    Attributes:
        scale: longer side of the image, in longer sides of the box.
        name: of the face detector that made the boxes.
    """

    scale: float
    name: str

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One box with score 1 in the center of every image (H, W, 3)."""
        found = []
        for image in images:
            center = (np.array(image.shape[1::-1]) - 1) / 2
            half = max(image.shape[:2]) / self.scale / 2
            box = np.concatenate([center - half, center + half])
            found.append(Detections(box[None], np.ones(1)))
        return found


class Labeled(NamedTuple):
    """Numbers of labeled images and faces, and a message for each input that failed."""

    images: int
    faces: int
    without_face: int
    failed: list[str]


def label(
    images: Iterable[Path], detector: Detector, out: str | Path, *, problems: Sequence[str] = ()
) -> Labeled:
    """Write ``annotations.jsonl`` with every face found in the images.

    The images are not moved; the file names them relative to its folder. Each face has its
    ``points``, ``scores`` and ``covariance``, and ``made_by`` identifies the weights. A stopped
    call continues when it is repeated: until the end, faces are in a hidden file in the folder.

    Args:
        images: paths of image files.
        detector: finds the faces.
        out: folder for the file.
        problems: a message for each input without images, such as an empty folder.

    Raises:
        DataError: the folder has such a file already, one of a call with another detector was
            stopped in it, or no face is found.
    """
    out = Path(out)
    target = out / ANNOTATIONS
    if target.exists():
        raise DataError(f"{target} exists already: remove it or choose another folder")
    failed = list(problems)
    with _Unfinished(out / f".{ANNOTATIONS}.part", detector) as unfinished:
        named = {relative_name(path, out): path for path in images}
        rest = [(name, path) for name, path in named.items() if name not in unfinished.rows]
        sources = (Source(str(path), name) for name, path in rest)
        for result in predict_sources(detector, sources):
            if result.error is not None:
                failed.append(f"{result.source.path}: {result.error}")
                continue
            name = result.source.name
            unfinished.add(name, [_row(name, face, detector) for face in result.faces])
    found = [unfinished.rows[name] for name in named if name in unfinished.rows]
    lines = [json.dumps(row) + "\n" for rows in found for row in rows]
    if not lines:
        unfinished.path.unlink()
        message = f"no face was found in {len(found)} images, {len(failed)} failed: choose others"
        raise DataError(with_reasons(message, failed))
    write_atomically(target, "".join(lines).encode())
    unfinished.path.unlink()
    return Labeled(len(found), len(lines), found.count([]), failed)


def _row(image: str, face: Face, detector: Detector) -> dict[str, Any]:
    return {
        "image": image,
        "split": "train",
        "points": face.points.round(2).tolist(),
        "scores": face.scores.round(4).tolist(),
        "covariance": face.covariance.round(3).tolist(),
        "made_by": detector.card.sha256,
    }


class _Unfinished:
    """The faces of the images that are labeled, kept in a file; a context manager.

    Attributes:
        path: of the file: settings in the first line, then a line for each image.
        rows: those of each image's faces, by its name.
    """

    def __init__(self, path: Path, detector: Detector) -> None:
        self.path = path
        self.rows: dict[str, list[dict[str, Any]]] = {}
        arguments = {
            **detector.arguments,
            "weights": detector.card.sha256,
            "card": detector.card.digest,
            "runtime": detector.runtime.name,
            "precision": detector.runtime.precision,
        }
        self._settings = json.dumps(arguments, default=_described, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if kept and kept[0] != self._settings:
            raise DataError(
                f"labeling with another detector was stopped in {path.parent}: repeat that "
                f"command, remove {path}, or choose another folder"
            )
        for line in kept[1:]:
            try:
                name, rows = json.loads(line)
            except ValueError:  # the last line, cut by a kill
                break
            self.rows[name] = rows

    def __enter__(self) -> _Unfinished:
        content = [self._settings, *(json.dumps(item) for item in self.rows.items())]
        write_atomically(self.path, "".join(f"{line}\n" for line in content).encode())
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of an image."""
        self.rows[name] = rows
        self._file.write(json.dumps([name, rows]) + "\n")
        self._file.flush()


def _described(value: Any) -> Any:
    """An argument that JSON cannot hold, such as a path or a face detector."""
    if isinstance(value, CenteredFaceDetector):
        return asdict(value)
    return str(value) if isinstance(value, Path) else getattr(value, "name", str(value))
