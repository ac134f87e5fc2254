"""Results -> files: what a file of each format holds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np

from hihlandmark.arrays import BoolArray
from hihlandmark.errors import ConfigurationError
from hihlandmark.face import Face
from hihlandmark.io.sources import Source, escape, require_pyarrow
from hihlandmark.layouts import Layout
from hihlandmark.measures import Measurement, eye_openness, head_pose, mouth_openness


@dataclass(frozen=True)
class Result:
    """The result of one image.

    Attributes:
        source: the image.
        faces: its faces.
        size: width and height in pixels.
        error: why the image could not be read; None otherwise.
        model: ``model``, the name, and ``weights``, their SHA-256.
        ids: numbers of the image and of each of its faces in a result folder, for COCO.
        layout: that of the faces, where it is known without them: wide tables have its columns.
    """

    source: Source
    faces: Sequence[Face] = ()
    size: tuple[int, int] | None = None
    error: str | None = None
    model: Mapping[str, str] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    layout: Layout | None = None


RECORD_SCHEMA = 1
"""Version of `to_record`, whose JSON schema is docs/reference/result-1.schema.json. It rises when a
field is removed, or its type or meaning changes; new fields may come without a new version."""


def to_record(result: Result) -> dict[str, Any]:
    """The result of an image as plain values for JSON."""
    record: dict[str, Any] = {"schema": RECORD_SCHEMA, "image": result.source.path}
    if result.error is not None:
        return record | {"error": result.error}
    if result.size:
        record |= {"width": result.size[0], "height": result.size[1]}
    return record | {"faces": [face.to_dict() for face in result.faces]} | dict(result.model)


def write_json(result: Result) -> dict[str, bytes]:
    """One JSON object per file and image."""
    return {".json": _line(to_record(result))}


def write_pts(result: Result) -> dict[str, bytes]:
    """One 300-W .pts file per face."""
    return {f".{number}.pts": face.to_pts().encode() for number, face in enumerate(result.faces)}


def write_jsonl(results: Iterable[Result]) -> bytes:
    """One JSON object per line and image."""
    return b"".join(_line(to_record(result)) for result in results)


def write_csv(results: Iterable[Result]) -> bytes:
    """One row per point, with the number of its face; one row for an image without a face."""
    return _csv(results, Face.ROW_FIELDS, Face.to_rows)


def write_csv_wide(results: Iterable[Result], *, measures: bool = False) -> bytes:
    """One row per face; one row for an image without a face or with an error.

    Columns: image, width, height, error, face (its number), layout, x0, y0, x1, y1, box_score,
    reliability, score (the mean over the points), then x, y, score and visibility of each point
    after its name.

    Args:
        results: of faces of one layout or several, whose columns follow each other.
        measures: also write `measures.head_pose`, `eye_openness` and `mouth_openness`, each with
            its standard deviation.
    """
    listed = list(results)
    layouts = {face.layout: None for result in listed for face in result.faces}
    layouts |= {result.layout: None for result in listed if result.layout}
    names = dict.fromkeys(name for layout in layouts for name in layout.point_names)
    fields = [*_WIDE, *(_MEASURES if measures else ())]
    fields += [f"{name}_{column}" for name in names for column in _POINT]

    def rows(face: Face) -> list[dict[str, Any]]:
        return [_wide_columns(face) | (measure_columns(face) if measures else {})]

    return _csv(listed, fields, rows)


def _csv(
    results: Iterable[Result],
    fields: Sequence[str],
    rows: Callable[[Face], Iterable[dict[str, Any]]],
) -> bytes:
    """The rows of each face after the columns of its image; one row for an image without a face."""
    text = io.StringIO()
    columns = ("image", "width", "height", "error", "face", *fields)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for result in results:
        start = _image_columns(result)
        if not result.faces:
            writer.writerow(start)
        for number, face in enumerate(result.faces):
            writer.writerows(start | {"face": number} | row for row in rows(face))
    return escape(text.getvalue()).encode()


_WIDE = ("layout", "x0", "y0", "x1", "y1", "box_score", "reliability", "score")
_POINT = ("x", "y", "score", "visibility")
_MEASURES = tuple(
    f"{name}{suffix}"
    for name in ("yaw", "pitch", "roll", "left_eye_open", "right_eye_open", "mouth_open")
    for suffix in ("", "_std")
)


def _wide_columns(face: Face) -> dict[str, Any]:
    columns: dict[str, Any] = {"score": round(float(face.scores.mean()), 4)}
    for row in face.to_rows():
        name = row.pop("name")
        columns |= {f"{name}_{key}": row.pop(key) for key in _POINT}
        columns |= {key: row[key] for key in _WIDE if key in row}
    return columns


def measure_columns(face: Face) -> dict[str, float]:
    """Head pose in degrees and openness of eyes and mouth, with standard deviations, as columns.

    Those that the layout has no points for are left out.
    """
    measured: dict[str, Measurement] = {}
    with suppress(ConfigurationError):
        measured |= head_pose(face)._asdict()
        measured.pop("covariance")
    left, right = eye_openness(face)
    measured |= {"left_eye_open": left, "right_eye_open": right}
    with suppress(ConfigurationError):
        measured["mouth_open"] = mouth_openness(face)
    columns: dict[str, float] = {}
    for name, (value, std) in measured.items():
        if np.isfinite(value):
            columns |= {name: round(float(value), 4), f"{name}_std": round(float(std), 4)}
    return columns


def write_parquet(results: Iterable[Result], *, covariance: bool = True) -> bytes:
    """One row per face; one row for an image without a face or with an error.

    Columns: image, width, height, error, face (its number), box (4 values, xyxy), box_score,
    layout, points (P x 2), scores (P), covariance (P x 4; can be left out), reliability, visibility
    (P; missing where unknown), model, weights.
    """
    pyarrow = require_pyarrow()
    text, number = pyarrow.string(), pyarrow.int32()
    image = {"image": text, "width": number, "height": number, "error": text, "face": number}
    face = [column for column in face_columns() if covariance or column[0] != "covariance"]
    schema = pyarrow.schema([*image.items(), *face, ("model", text), ("weights", text)])
    rows: list[dict[str, Any]] = []
    for result in results:
        start = {**_image_columns(result), **result.model}
        faces = enumerate(result.faces)
        rows += [start | {"face": index} | face_row(each) for index, each in faces] or [start]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def face_columns() -> list[tuple[str, Any]]:
    """Names and Arrow types of the values of `face_row`."""
    pyarrow = require_pyarrow()
    number = pyarrow.float32()
    row, rows = pyarrow.list_(number), pyarrow.list_(pyarrow.list_(number))
    columns = {"box": row, "box_score": number, "layout": pyarrow.string()}
    columns |= {"points": rows, "scores": row, "covariance": rows, "reliability": number}
    columns["visibility"] = row
    return list(columns.items())


def face_row(face: Face) -> dict[str, Any]:
    """A face as a row of a table."""
    return {
        "box": face.box.tolist(),
        "box_score": face.box_score,
        "layout": face.layout.name,
        "points": face.points.tolist(),
        "scores": face.scores.tolist(),
        "covariance": np.reshape(face.covariance, (-1, 4)).tolist(),
        "reliability": None if np.isnan(face.reliability) else face.reliability,
        "visibility": None if np.isnan(face.visibility).any() else face.visibility.tolist(),
    }


def write_coco(results: Iterable[Result]) -> bytes:
    """COCO keypoints as JSON, with ``scores`` for the points of each face.

    The ids are those of the results, so that the parts of a folder can be joined; results without
    ids are numbered from 1 on. Points are marked as visible (2), or as labeled but not visible (1)
    where they are `Face.hidden`. Images that could not be read are left out: a trainer would take
    them for images without a face.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    layouts: dict[str, Layout] = {}
    for result in numbered(results, count(1), count(1)):
        if result.error is not None:
            continue
        image_id, *face_ids = result.ids
        columns = _image_columns(result)
        image = {"id": image_id, "file_name": columns.pop("image"), **columns}
        images.append({name: value for name, value in image.items() if value is not None})
        for face, face_id in zip(result.faces, face_ids, strict=True):
            layouts[face.layout.name] = face.layout
            annotations.append(_coco_annotation(face, image_id, face_id))
    categories = [_coco_category(layout) for layout in layouts.values()]
    return _line({"images": images, "annotations": annotations, "categories": categories})


def numbered(
    results: Iterable[Result], images: Iterator[int], faces: Iterator[int]
) -> Iterator[Result]:
    """The results, those without ids with the next of these."""
    for result in results:
        if result.ids:
            yield result
        else:
            yield replace(result, ids=(next(images), *islice(faces, len(result.faces))))


def _coco_annotation(face: Face, image_id: int, face_id: int) -> dict[str, Any]:
    x0, y0, x1, y1 = np.round(face.box.astype(float), 2).tolist()
    known: BoolArray = np.asarray(np.isfinite(face.points).all(axis=1))
    # Unknown points are (0, 0, 0), as COCO writes points without labels.
    points = np.where(known[:, None], np.round(face.points.astype(float), 3), 0)
    flags = np.where(face.hidden, 1, 2) * known
    return {
        "id": face_id,
        "image_id": image_id,
        "category_id": face.layout.size,
        "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
        "area": round((x1 - x0) * (y1 - y0), 2),
        "iscrowd": 0,
        "keypoints": np.column_stack([points, flags]).ravel().tolist(),
        "num_keypoints": int(known.sum()),
        "score": round(face.box_score, 4),
        "scores": np.round(face.scores.astype(float), 4).tolist(),
    }


def _coco_category(layout: Layout) -> dict[str, Any]:
    lines = [
        pair
        for indices, closed in layout.contours
        for pair in zip(indices, (*indices[1:], *(indices[:1] if closed else ())), strict=False)
    ]
    return {
        "id": layout.size,
        "name": "face",
        "supercategory": "person",
        "keypoints": list(layout.point_names),
        "skeleton": [[first + 1, second + 1] for first, second in lines],  # COCO counts from 1
    }


def _image_columns(result: Result) -> dict[str, Any]:
    """The columns of a table that describe the image."""
    width, height = result.size or (None, None)
    error = None if result.error is None else escape(result.error)
    return {"image": result.source.path, "width": width, "height": height, "error": error}


def _line(record: Mapping[str, Any]) -> bytes:
    return (escape(json.dumps(record, ensure_ascii=False)) + "\n").encode()


class Format(NamedTuple):
    """How results become files: for each image (suffix -> content), or one for many images."""

    suffix: str
    of_image: Callable[[Result], dict[str, bytes]] | None = None
    of_many: Callable[[Iterable[Result]], bytes] | None = None


FORMATS: Mapping[str, Format] = {
    "json": Format(".json", of_image=write_json),
    "pts": Format(".pts", of_image=write_pts),
    "jsonl": Format(".jsonl", of_many=write_jsonl),
    "csv": Format(".csv", of_many=write_csv),
    "csv-wide": Format(".csv", of_many=write_csv_wide),
    "csv-wide-measures": Format(".csv", of_many=partial(write_csv_wide, measures=True)),
    "coco": Format(".coco.json", of_many=write_coco),
    "parquet": Format(".parquet", of_many=write_parquet),
    "parquet-points": Format(".parquet", of_many=partial(write_parquet, covariance=False)),
}
"""The formats of `hihlandmark predict --format`, by name."""
