"""Result folders of `hihlandmark predict` -> their faces, and a contact sheet of the worst ones."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from heapq import nsmallest
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.errors import ConfigurationError, DataError, HihlandmarkError
from hihlandmark.face import Face, draw_close_up
from hihlandmark.image import load_image
from hihlandmark.io.sources import require_pyarrow


class FoundFace(NamedTuple):
    """A face of results.

    ``image``: its path as written there. ``reliability``: NaN where it is unknown. ``score``: the
    mean over the points, NaN where none has one. ``values``: those of `Face.to_dict` that the
    results have.
    """

    image: str
    reliability: float
    score: float
    values: Mapping[str, Any]

    def to_face(self) -> Face:
        """The face, with covariances of 0 where they are unknown. Raises `DataError`."""
        try:
            unknown = np.zeros((len(self.values["points"]), 2, 2))
            return Face.from_dict({"covariance": unknown, "approximate": [], **self.values})
        except (ConfigurationError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"a face of {self.image} is damaged: {error!r}") from error


class CloseUp(NamedTuple):
    """A face drawn on its crop (S, S, 3), with a caption."""

    image: Image
    caption: str


def is_result_folder(folder: Path) -> bool:
    """Whether `hihlandmark predict` wrote the folder."""
    return any(folder.glob(".manifest*.sqlite"))


def read_results(results: str | Path) -> Iterator[FoundFace]:
    """The faces of results in the formats json, jsonl, csv, csv-wide and parquet.

    Args:
        results: a result folder, one of its files, or ``annotations.jsonl`` of `data label`.

    Raises:
        DataError: there are no results in these formats, or a file is damaged.
    """
    results = Path(results)
    readers = {".json": _read_json, ".jsonl": _read_json, ".csv": _read_csv}
    readers[".parquet"] = _read_parquet
    files = [results] if results.is_file() else sorted(results.rglob("*"))
    is_read = False
    for file in files:
        reader = readers.get(file.suffix.lower())
        if reader is None or file.name.endswith(".coco.json") or not file.is_file():
            continue
        is_read = True
        try:
            for image, values in reader(file):
                reliability = float(values.get("reliability", np.nan))
                yield FoundFace(image, reliability, _mean_score(values["scores"]), values)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is damaged, or no result of predict: {error!r}") from error
    if not is_read:
        raise DataError(f"{results} has no results in the formats json, jsonl, csv or parquet")


_Read = Iterator[tuple[str, dict[str, Any]]]
"""Images and the values of their faces."""


def _read_json(path: Path) -> _Read:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line) if line.strip() else {}
            if "faces" in record:
                for values in record["faces"]:
                    yield record["image"], values
            elif "scores" in record:  # of `data label`, whose images are relative to its folder
                yield os.path.normpath(path.parent.resolve() / record["image"]), record


def _read_csv(path: Path) -> _Read:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = (row for row in csv.DictReader(lines) if row["face"])
        for (image, _), group in groupby(rows, key=lambda row: (row["image"], row["face"])):
            first, *others = group
            points = _points_of_wide(first) if "x" not in first else [first, *others]
            yield (
                image,
                {
                    "layout": first["layout"],
                    "points": [(float(point["x"]), float(point["y"])) for point in points],
                    "scores": [float(point["score"] or "nan") for point in points],
                    "visibility": [float(point.get("visibility") or "nan") for point in points],
                    "box": [float(first[name]) for name in ("x0", "y0", "x1", "y1")],
                    "box_score": float(first["box_score"]),
                    "reliability": float(first.get("reliability") or "nan"),
                },
            )


def _points_of_wide(row: Mapping[str, str]) -> list[dict[str, str]]:
    """The row of a face (csv-wide) as one row per point (csv)."""
    names = [key[:-2] for key, value in row.items() if key.endswith("_x") and value]
    keys = ("x", "y", "score", "visibility")
    return [{key: row.get(f"{name}_{key}", "") for key in keys} for name in names]


def _read_parquet(path: Path) -> _Read:
    with require_pyarrow().parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(256):
            for row in batch.to_pylist():
                if row["face"] is None:
                    continue
                values = {name: value for name, value in row.items() if value is not None}
                if "covariance" in values:
                    values["covariance"] = np.reshape(values["covariance"], (-1, 2, 2))
                yield row["image"], values


def _mean_score(scores: Any) -> float:
    """The mean of scores, which are None or NaN where unknown; NaN if all are."""
    values = np.array(scores, np.float64)
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def worst_faces(folder: str | Path, count: int, side: int) -> list[CloseUp]:
    """Close-ups of the faces with the lowest mean scores, lowest first.

    Faces whose image cannot be read, such as one inside of an archive, are drawn on gray.

    Args:
        folder: a result folder.
        count: of faces, at most.
        side: of the close-ups in pixels.
    """
    found = nsmallest(count, read_results(folder), key=lambda each: np.nan_to_num(each.score))
    return [_close_up(each.image, each.to_face(), side) for each in found]


def _close_up(path: str, face: Face, side: int) -> CloseUp:
    caption = f"{_mean_score(face.scores):.2f} {Path(path).name}"
    try:
        image = load_image(path)
    except HihlandmarkError:
        image = None
        caption += " (image not read)"
    return CloseUp(draw_close_up([face], image, side), caption)
