"""Reads the project's own format: a folder with ``annotations.jsonl`` and images.

One JSON object a line:

- ``image``: path within the folder; ``points``: [[x, y], ...] in pixels of the upright image with
  the center of the top-left pixel at (0, 0), or null for a point that is not annotated; ``split``;
- optional: ``visible``, a list of true and false, or of codes of which 0 means plainly visible;
  ``rect``, the official face rectangle xyxy; ``attributes``, an object whose entries become subsets
  (``{"pose": 1, "blur": 0, "set": "london"}`` gives "pose" and "set=london"); ``source``.

Objects without points are images without annotation, and in no split. The mirror tables of
schemes that are no `Layout` stand in ``points.json`` in the folder or in its parent:
``{"86": {"flip": [...]}}``.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hihlandmark.datasets.faces import AnnotatedFace, AnnotatedFaces
from hihlandmark.datasets.reading import (
    BadSample,
    Samples,
    ScannedFolders,
    numbered_lines,
    unknown_split,
)
from hihlandmark.errors import ConfigurationError, DataError
from hihlandmark.image import load_image
from hihlandmark.layouts import LAYOUTS

ANNOTATIONS = "annotations.jsonl"

STARTS_WITH = {70: "W300_68"}
"""Schemes, by number of points, whose first points are those of a layout: FaceSynthetics' 70 are
iBUG's 68 and two eye centers."""


def recognize(folder: Path) -> bool:
    """Whether the folder holds a data set of this format."""
    return (folder / ANNOTATIONS).is_file()


def splits(folder: Path) -> list[str]:
    """The splits with annotated faces, in the order of their first."""
    rows = _rows(folder, Samples())
    return list(dict.fromkeys(str(row["split"]) for _, row in rows if row.get("points")))


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated faces of a split. ``layout`` names the scheme; default: by number of points.

    Raises `DataError` and `ConfigurationError`.
    """
    rows = _rows(folder, samples)
    chosen = [(n, row) for n, row in rows if row["split"] == split and row.get("points")]
    if not chosen:
        if samples.skipped:
            return AnnotatedFaces(folder.name, "", np.zeros(0, np.intp), [], samples.skipped)
        raise unknown_split(folder, split, splits(folder))
    count = Counter(_length(row["points"]) for _, row in chosen).most_common(1)[0][0]
    layout = layout or _name_of_scheme(count)
    size = _size_taken(folder, layout, count)
    files = ScannedFolders()
    for number, row in chosen:
        with samples.reading(f"{ANNOTATIONS}, line {number}"):
            source = f"{ANNOTATIONS}, line {number}"
            samples.add(_face(folder, row, count, size, source, files))
    mirror = _mirror(folder, layout, size)
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
    except ValueError as error:
        raise BadSample(f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadSample("is no JSON object")
    for key in ("image", "split"):
        if not isinstance(row.get(key), str):
            raise BadSample(f"has no text {key!r}")
    return row


def _length(points: Any) -> int:
    return len(points) if isinstance(points, list) else 0


def _name_of_scheme(count: int) -> str:
    by_size = {layout.size: layout.name for layout in LAYOUTS.values()}
    return by_size.get(count, f"POINTS{count}")


def _size_taken(folder: Path, layout: str, count: int) -> int:
    """How many of a face's points are those of the layout, from the first on."""
    if layout not in LAYOUTS or LAYOUTS[layout].size == count:
        return count
    if STARTS_WITH.get(count) == layout:
        return LAYOUTS[layout].size
    raise ConfigurationError(
        f"{folder} has {count} points a face, {layout} has {LAYOUTS[layout].size}: "
        "give the layout in which it is annotated"
    )


def _mirror(folder: Path, layout: str, size: int) -> NDArray[np.intp]:
    if layout in LAYOUTS:
        return LAYOUTS[layout].mirror
    places = [folder / "points.json", folder.parent / "points.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder} has {size} points a face, which is no layout of this package, and there is "
            f"no points.json with their mirror table in it or in {folder.parent}: write "
            f'{{"{size}": {{"flip": [...]}}}}, where flip[i] is the point that takes place i in '
            "the mirrored picture"
        )
    try:
        mirror = np.array(json.loads(path.read_text(encoding="utf-8"))[str(size)]["flip"], np.intp)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} has no mirror table {size!r} -> 'flip': {error!r}; write one into it"
        ) from error
    every_place = np.arange(size)
    if mirror.shape != (size,) or not np.array_equal(np.sort(mirror), every_place):
        raise DataError(
            f"{path}: 'flip' of {size} does not name each of 0..{size - 1} once: mend it"
        )
    if not np.array_equal(mirror[mirror], every_place):
        raise DataError(
            f"{path}: 'flip' of {size} applied twice does not give every point back: mend it"
        )
    return mirror


def _face(
    folder: Path, row: dict[str, Any], count: int, size: int, source: str, files: ScannedFolders
) -> AnnotatedFace:
    path = folder / row["image"]
    if not files.has(path):
        raise BadSample(f"there is no image {row['image']}")
    rect = row.get("rect")
    return AnnotatedFace(
        name=row["image"],
        load_image=partial(load_image, path),
        points=_points(row["points"], count)[:size],
        split=row["split"],
        rectangle=None if rect is None else _rectangle(rect),
        visible=_visible(row.get("visible"), count, size),
        subsets=_subsets(row.get("attributes")),
        source=source,
    )


def _points(points: Any, count: int) -> NDArray[np.float64]:
    if _length(points) != count:
        raise BadSample(f"has {_length(points)} points, the other faces have {count}")
    known = np.array([point is not None for point in points])
    try:
        pairs = [(np.nan, np.nan) if point is None else point for point in points]
        array = np.array(pairs, np.float64)
    except (ValueError, TypeError) as error:
        raise BadSample("its points are not all pairs [x, y] of numbers") from error
    if array.shape != (count, 2):
        raise BadSample("its points are not all pairs [x, y] of numbers")
    wrong = np.flatnonzero(known & ~np.isfinite(array).all(axis=1))
    if len(wrong):
        raise BadSample(f"point {wrong[0]} is {points[wrong[0]]}; write null where none is known")
    if not known.any():
        raise BadSample("none of its points is known")
    return array


def _rectangle(rect: Any) -> NDArray[np.float64]:
    try:
        array = np.array(rect, np.float64)
    except (ValueError, TypeError):
        array = np.zeros(0)
    if array.shape != (4,) or not np.isfinite(array).all():
        raise BadSample(f"its rect {rect} is not four numbers x0, y0, x1, y1")
    return array


def _visible(codes: Any, count: int, size: int) -> NDArray[np.bool_] | None:
    if codes is None:
        return None
    if _length(codes) != count:
        raise BadSample(f"its 'visible' has {_length(codes)} entries for {count} points")
    return np.array([code if isinstance(code, bool) else code == 0 for code in codes[:size]], bool)


def _subsets(attributes: Any) -> frozenset[str]:
    if attributes is None:
        return frozenset()
    if not isinstance(attributes, dict):
        raise BadSample("its 'attributes' is no object")
    flags = {key.lower() for key, value in attributes.items() if value in (1, True)}
    values = {f"{key.lower()}={value}" for key, value in attributes.items() if _is_text(value)}
    return frozenset(flags | values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
