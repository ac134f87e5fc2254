"""Result folders of `hihlandmark predict` -> their faces, and a contact sheet of the worst ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from heapq import nsmallest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.crop import crop_matrix, cut_crop, square_around
from hihlandmark.draw import draw_faces
from hihlandmark.errors import DataError, HihlandmarkError
from hihlandmark.face import Face, transform_face
from hihlandmark.image import load_image
from hihlandmark.io.sources import require_pyarrow
from hihlandmark.layouts import get_layout


class FoundFace(NamedTuple):
    """A face of a result folder, and the path of its image as written there."""

    image: str
    face: Face


class CloseUp(NamedTuple):
    """A face drawn on its crop (S, S, 3), with a caption."""

    image: Image
    caption: str


def is_result_folder(folder: Path) -> bool:
    """Whether `hihlandmark predict` wrote the folder."""
    return any(folder.glob(".manifest*.sqlite"))


def read_results(folder: Path) -> Iterator[FoundFace]:
    """The faces of a result folder in the formats json, jsonl and parquet.

    Raises:
        DataError: the folder has no results in these formats, or a file is damaged.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl", ".parquet"))
    paths = [path for path in paths if not path.name.endswith(".coco.json")]
    if not paths:
        raise DataError(f"{folder} has no results in the formats json, jsonl or parquet")
    for path in paths:
        try:
            yield from _parquet_faces(path) if path.suffix == ".parquet" else _json_faces(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(f"{path} is damaged, or no result of predict: {error}") from error


def _json_faces(path: Path) -> Iterator[FoundFace]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            for values in record.get("faces", ()):
                yield FoundFace(record["image"], Face.from_dict(values))


def _parquet_faces(path: Path) -> Iterator[FoundFace]:
    with require_pyarrow().parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(256):
            for row in batch.to_pylist():
                if row["face"] is None:
                    continue
                layout = get_layout(row["layout"])
                covariance = row.get("covariance") or np.zeros((layout.size, 4))
                face = Face(
                    points=np.array(row["points"]),
                    scores=np.array(row["scores"]),
                    covariance=np.reshape(covariance, (layout.size, 2, 2)),
                    box=np.array(row["box"]),
                    box_score=row["box_score"],
                    layout=layout,
                )
                yield FoundFace(row["image"], face)


def worst_faces(folder: Path, count: int, side: int) -> list[CloseUp]:
    """Close-ups of the faces with the lowest mean scores, lowest first.

    Faces whose image cannot be read, such as one inside of an archive, are drawn on gray.

    Args:
        folder: a result folder.
        count: of faces, at most.
        side: of the close-ups in pixels.
    """
    found = nsmallest(count, read_results(folder), key=lambda each: float(each.face.scores.mean()))
    return [_close_up(*each, side) for each in found]


def _close_up(path: str, face: Face, side: int) -> CloseUp:
    square = square_around(face.points, 1.5)
    caption = f"{face.scores.mean():.2f} {Path(path).name}"
    try:
        crop = cut_crop(load_image(path), square, side)
    except HihlandmarkError:
        crop = np.full((side, side, 3), 96, np.uint8)
        caption += " (image not read)"
    return CloseUp(draw_faces(crop, [transform_face(face, crop_matrix(square, side))]), caption)
