"""Reads annotated faces in their published formats as `AnnotatedFaces`.

One module per format, each with ``recognize``, ``splits`` and ``read``; adding a format is adding a
module and a row to `DATASET_FORMATS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from hihlandmark.datasets import cofw, lists, packed, project, pts, w300, wflw
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    OnBadSample,
    Samples,
    with_reasons,
)
from hihlandmark.errors import ConfigurationError, DataError
from hihlandmark.layouts import get_layout

__all__ = ["DATASET_FORMATS", "AnnotatedFace", "AnnotatedFaces", "dataset_splits", "read_faces"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetFormat:
    """How data sets of one format are recognized and read."""

    recognized_by: str
    recognize: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str, str | None, Samples], AnnotatedFaces]


# In the order in which they are tried.
DATASET_FORMATS: Mapping[str, DatasetFormat] = {
    "project": DatasetFormat("annotations.jsonl", project.recognize, project.splits, project.read),
    "packed": DatasetFormat("pack.json", packed.recognize, packed.splits, packed.read),
    "wflw": DatasetFormat(
        "WFLW_annotations/ and WFLW_images/", wflw.recognize, wflw.splits, wflw.read
    ),
    "cofw": DatasetFormat("COFW_{train,test}_color.mat", cofw.recognize, cofw.splits, cofw.read),
    "w300": DatasetFormat(
        "afw/, helen/, lfpw/, ibug/, 300W/", w300.recognize, w300.splits, w300.read
    ),
    "lists": DatasetFormat("lists of crops, SPLIT.txt", lists.recognize, lists.splits, lists.read),
    "pts": DatasetFormat(".pts files beside images", pts.recognize, pts.splits, pts.read),
}


def read_faces(
    folder: str | Path,
    split: str,
    *,
    format: str = "auto",
    layout: str | None = None,
    on_bad_sample: OnBadSample = "skip",
    needs_mirror: bool = True,
) -> AnnotatedFaces:
    """Read the annotated faces of one split of a data set. Images are read later.

    Args:
        folder: of the data set.
        split: such as "test", or "test/pose" for the faces of a subset.
        format: a key of `DATASET_FORMATS`; "auto" recognizes it by the files in the folder.
        layout: name of the points' layout, where the data set does not define it or has several.
        on_bad_sample: "skip" leaves out samples with a wrong number of points, with NaN or without
            image, and lists them in ``skipped``; "raise" raises.
        needs_mirror: False also reads points whose mirror table is not known; it is the identity.

    Raises:
        DataError: a file is missing or does not follow its format, or no sample is usable.
        ConfigurationError: an argument does not fit the data set.
    """
    folder = Path(folder)
    if on_bad_sample not in get_args(OnBadSample):
        raise ConfigurationError(f"on_bad_sample={on_bad_sample!r}: pass 'skip' or 'raise'")
    name = _find_format(folder, format)
    with suppress(ConfigurationError):  # names of schemes that are no layouts stay as they are
        layout = layout and get_layout(layout).name
    whole, _, subset = split.partition("/")
    faces = DATASET_FORMATS[name].read(folder, whole, layout, Samples(on_bad_sample, needs_mirror))
    _check_any(folder, split, faces)
    if not subset:
        return faces
    chosen = [face for face in faces if subset in face.subsets]
    if not chosen:
        known = ", ".join(sorted(set().union(*(face.subsets for face in faces)))) or "none"
        raise ConfigurationError(
            f"{folder}: split {whole!r} has no subset {subset!r}; it has {known}"
        )
    return replace(faces, faces=chosen, published=None)


def dataset_splits(folder: str | Path, format: str = "auto") -> tuple[str, list[str]]:
    """The format of a data set, and its splits for `read_faces`.

    Arguments and errors are those of `read_faces`.
    """
    folder = Path(folder)
    name = _find_format(Path(folder), format)
    return name, DATASET_FORMATS[name].splits(Path(folder))


def _find_format(folder: Path, format: str) -> str:
    if format != "auto" and format not in DATASET_FORMATS:
        raise ConfigurationError(
            f"no format {format!r}; there is auto, {', '.join(DATASET_FORMATS)}"
        )
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}: choose the folder of a data set")
    if (name := _recognized(folder) if format == "auto" else format) is not None:
        return name
    inside = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
    inside = [name for name in inside[:100] if _recognized(folder / name) is not None]
    advice = f"; choose one of the data sets in it: {', '.join(inside)}" if inside else ""
    known = "; ".join(f"{name}: {row.recognized_by}" for name, row in DATASET_FORMATS.items())
    raise DataError(f"{folder} has no known format ({known}){advice}")


def _recognized(folder: Path) -> str | None:
    return next((name for name, row in DATASET_FORMATS.items() if row.recognize(folder)), None)


def _check_any(folder: Path, split: str, faces: AnnotatedFaces) -> None:
    """Raises when there is no face; warns when their number differs from the published one."""
    if not len(faces):
        message = f"{folder} has no usable face in split {split!r}: repair it or use another split"
        if faces.skipped:
            message += f"\n  all {len(faces.skipped)} samples were skipped:"
        raise DataError(with_reasons(message, faces.skipped))
    count = len(faces) + len(faces.skipped)
    if faces.published not in (None, count):
        message = "%s has %d faces in split %r, published are %d: results are not comparable"
        _log.warning(message, folder, count, split, faces.published)
