"""Annotations corrected in CVAT and Label Studio, and which images to label first.

Reads what was made of the exports of `io.connectors.to_cvat` and `to_label_studio`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from hihlandmark.datasets.project import ANNOTATIONS, is_split_name
from hihlandmark.errors import ConfigurationError, DataError
from hihlandmark.io.connectors import HIDDEN
from hihlandmark.io.results import read_results
from hihlandmark.layouts import LAYOUTS, Layout, get_layout
from hihlandmark.writing import relative_name, write_atomically

DECIMALS = 2
"""Digits after the point of coordinates in pixels, as CVAT writes them."""
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # of the names of files uploaded to Label Studio


class CorrectedFace(NamedTuple):
    """The points of one face by name, in pixels with the center of the top-left one at (0, 0).

    ``image``: as the tool names it. ``hidden``: names of points marked as covered.
    """

    image: str
    points: Mapping[str, tuple[float, float]]
    hidden: frozenset[str] = frozenset()


class Imported(NamedTuple):
    """Numbers of images and faces that were imported, and a message for each that was not."""

    images: int
    faces: int
    left_out: list[str]


def import_corrections(
    file: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    layout: int | str | Layout | None = None,
    split: str = "train",
    append: bool = False,
) -> Imported:
    """Write the faces of a file of CVAT or Label Studio as ``annotations.jsonl``.

    Args:
        file: "CVAT for images 1.1" (XML), or the JSON export of Label Studio.
        images: folder of the images, which are not moved.
        out: folder for ``annotations.jsonl``, in which the images are relative to it.
        layout: of the points; None: the smallest layout that has all their names, and with
            ``append`` one of as many points as the faces have already.
        split: of all faces.
        append: add to an ``annotations.jsonl`` that exists.

    Raises:
        ConfigurationError: there is no such layout, or the split is empty or has "/" in it.
        DataError: the file cannot be read or has no usable face; or ``out`` has annotations
            already: without ``append``, of one of these images, or with another number of points.
    """
    file, images, out = Path(file), Path(images), Path(out)
    if not is_split_name(split):
        raise ConfigurationError(f"split={split!r}: give a name without '/'")
    target = out / ANNOTATIONS
    if target.exists() and not append:
        raise DataError(f"{target} exists already: choose another folder, or append to it")
    faces = read_corrections(file)
    if not faces:
        raise DataError(
            f"{file} holds no annotations: label faces (in CVAT as skeletons), and export again"
        )
    old = target.read_bytes() if target.exists() else b""
    old_rows = _rows(old)
    size = _size_of(old_rows, split)
    known = get_layout(layout) if layout is not None else _layout_of(faces, file, size)
    if size not in (None, known.size):
        raise DataError(
            f"the faces in {target} have {size} points, those of {file} are {known.size} of "
            f"{known.name}: choose another folder, or the layout of the former"
        )
    left_out: list[str] = []
    rows: list[dict[str, Any]] = []
    found = {face.image: _find_image(images, face.image) for face in faces}
    shared = Counter(filter(None, found.values()))
    for face in faces:
        path = found[face.image]
        unknown = sorted(face.points.keys() - set(known.point_names))
        if path is None:
            left_out.append(f"{face.image}: there is no such image in {images}")
        elif shared[path] > 1:
            left_out.append(f"{face.image}: {path} is the file of another image as well")
        elif unknown:
            left_out.append(f"{face.image}: {known.name} has no point {unknown[0]!r}")
        else:
            name = relative_name(path, out)
            rows.append({"image": name, "split": split, **_columns(face, known)})
    left_out = list(dict.fromkeys(left_out))
    if not rows:
        raise DataError(f"{file} has no face that can be used: {left_out[0]}")
    _refuse_repeated(target, old_rows, {row["image"] for row in rows})
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write_atomically(target, old + (b"\n" if old and not old.endswith(b"\n") else b"") + lines)
    return Imported(len({row["image"] for row in rows}), len(rows), left_out)


def read_corrections(file: Path) -> list[CorrectedFace]:
    """The faces in a file of CVAT (XML) or Label Studio (JSON). Raises `DataError`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {file}: {reason}") from error
    try:
        if text.lstrip().startswith("<"):
            return list(_faces_of_cvat(text))
        return list(_faces_of_label_studio(text)) if text.strip() else []
    except (ElementTree.ParseError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is no 'CVAT for images 1.1' and no JSON export of Label Studio: {error!r}"
        ) from error


def _faces_of_cvat(text: str) -> Iterator[CorrectedFace]:
    """CVAT counts from the corner of the image, not from the center of its first pixel."""
    root = ElementTree.fromstring(text)
    if root.tag != "annotations":
        raise ValueError(f"the root is <{root.tag}>, not <annotations>")
    for image in root.iter("image"):
        for skeleton in image.iter("skeleton"):
            points, hidden = {}, set()
            for point in skeleton.iter("points"):
                if point.get("outside") == "1":
                    continue
                x, y = map(float, point.attrib["points"].split(","))
                points[point.attrib["label"]] = x - 0.5, y - 0.5
                if point.get("occluded") == "1":
                    hidden.add(point.attrib["label"])
            if points:
                yield CorrectedFace(image.attrib["name"], points, frozenset(hidden))


def _faces_of_label_studio(text: str) -> Iterator[CorrectedFace]:
    """The last annotation of each task. Predictions that nobody has accepted are no annotations."""
    for task in json.loads(text):
        done = [each for each in task["annotations"] if not each.get("was_cancelled")]
        if not done:
            continue
        last = max(done, key=lambda each: each.get("updated_at") or "")
        marked = [each for each in last["result"] if _is_marked_hidden(each)]
        hidden = {item for face in _grouped(marked) for item in face.items()}
        for points in _grouped(last["result"]):
            covered = frozenset(name for name, place in points.items() if (name, place) in hidden)
            yield CorrectedFace(_text(task["data"]["image"]), points, covered)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no path of an image")
    return value


def _is_marked_hidden(result: Mapping[str, Any]) -> bool:
    """Whether the meta information of a point, which may be null, is "hidden"."""
    meta = result.get("meta") or {}
    return HIDDEN in (meta.get("text") or ())


def _grouped(results: Iterable[Mapping[str, Any]]) -> list[dict[str, tuple[float, float]]]:
    """The points of each face: those of one ``parentID``, or without one, up to a repeated label.

    Points without a parent beside points with one were added by hand: they belong to the face that
    lacks them, and of several to the one that is nearest.
    """
    faces: dict[str, dict[str, tuple[float, float]]] = {}
    loose: list[tuple[str, tuple[float, float]]] = []
    for result in results:
        if result.get("type") != "keypointlabels":
            continue
        value = result["value"]
        size = np.array([result["original_width"], result["original_height"]])
        x, y = (np.array([value["x"], value["y"]]) / 100 * size - 0.5).tolist()
        (label,) = value["keypointlabels"]
        if result.get("parentID"):
            faces.setdefault(result["parentID"], {})[label] = x, y
        else:
            loose.append((label, (x, y)))
    grouped = list(faces.values())
    for label, point in loose:
        lacking = [face for face in grouped if label not in face]
        if faces and lacking:
            distance = [np.hypot(*np.subtract(_middle(face), point)) for face in lacking]
            lacking[int(np.argmin(distance))][label] = point
        elif grouped and label not in grouped[-1]:
            grouped[-1][label] = point
        else:
            grouped.append({label: point})
    return grouped


def _middle(face: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    x, y = np.mean(list(face.values()), axis=0)
    return float(x), float(y)


def _layout_of(faces: Sequence[CorrectedFace], file: Path, size: int | None) -> Layout:
    """The layout of ``size`` points with all names; without one, the smallest with all names."""
    names = {name for face in faces for name in face.points}
    fitting = [known for known in LAYOUTS.values() if names <= set(known.point_names)]
    if not fitting:
        raise DataError(
            f"{file} has no face whose points are named as those of a layout: give the layout, or "
            "label the points with its names"
        )
    return min(fitting, key=lambda known: (known.size != size, known.size))


def _columns(face: CorrectedFace, layout: Layout) -> dict[str, Any]:
    """``points``, null for those that were not annotated, and ``visible`` where some are hidden."""
    points = [
        [round(value, DECIMALS) for value in face.points[name]] if name in face.points else None
        for name in layout.point_names
    ]
    if not face.hidden:
        return {"points": points}
    return {"points": points, "visible": [n not in face.hidden for n in layout.point_names]}


def _find_image(folder: Path, name: str) -> Path | None:
    """The image in a folder that a tool names by path, URL or upload.

    It is the longest end of the path or URL that is a file in the folder; None: there is none.
    """
    try:
        url = urlsplit(name)
    except ValueError:  # such as brackets that are no address
        return None
    # Label Studio serves local files as /data/local-files/?d=PATH.
    local = parse_qs(url.query).get("d")
    texts = [local[0]] if local else [name, unquote(url.path)]
    for text in texts:
        parts = [part for part in PurePosixPath(text).parts if part not in ("/", "..")]
        for start in range(len(parts)):
            path = folder.joinpath(*parts[start:])
            for candidate in (path, path.with_name(_UPLOAD.sub("", path.name))):
                with suppress(OSError):  # a name that is too long, such as that of a data URI
                    if candidate.is_file():
                        return candidate
    return None


def _rows(content: bytes) -> list[dict[str, Any]]:
    """The objects in the lines of an ``annotations.jsonl``."""
    rows = []
    for line in content.decode("utf-8", "replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # `data info` names it
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _size_of(rows: Sequence[Mapping[str, Any]], split: str) -> int | None:
    """The number of points of most faces of a split, or of the file where the split is new.

    None: the file has no faces.
    """
    annotated = [row for row in rows if row.get("points") and isinstance(row["points"], list)]
    of_split = [row for row in annotated if row.get("split") == split]
    counts = Counter(len(row["points"]) for row in of_split or annotated)
    return counts.most_common(1)[0][0] if counts else None


def _refuse_repeated(target: Path, rows: Sequence[Mapping[str, Any]], images: set[str]) -> None:
    """Raise `DataError` where an image has lines already: its faces would count twice."""
    for image in (row.get("image") for row in rows):
        if isinstance(image, str) and image in images:
            raise DataError(
                f"{target} has lines of {image} already: remove them, or choose another folder"
            )


# Which images to label first


class ImageToLabel(NamedTuple):
    """An image to label: its number of faces, and the values of the worst of them."""

    image: str
    faces: int
    reliability: float
    score: float


def images_to_label(results: str | Path) -> list[ImageToLabel]:
    """The images of results, those first whose worst face has the lowest reliability.

    Faces of equal or unknown reliability (NaN) are ordered by their mean score. Images without a
    face are left out.

    Args:
        results: as of `io.results.read_results`.

    Raises:
        DataError: there are no results, or none with a face.
    """
    results = Path(results)
    # Not the faces themselves: there may be millions.
    by_image: dict[str, ImageToLabel] = {}
    for found in read_results(results):
        face = ImageToLabel(found.image, 1, found.reliability, found.score)
        if (worst := by_image.get(found.image)) is not None:
            face = min(worst, face, key=_order)._replace(faces=worst.faces + 1)
        by_image[found.image] = face
    if not by_image:
        raise DataError(f"{results} has no results with faces")
    return sorted(by_image.values(), key=_order)


def _order(face: ImageToLabel) -> tuple[float, float]:
    return (1.0 if np.isnan(face.reliability) else face.reliability), face.score
