"""Reads 300-W as iBUG publishes it: 68 points in ``.pts`` files beside the images.

::

    afw/  helen/trainset/  helen/testset/  lfpw/trainset/  lfpw/testset/  ibug/
    300W/01_Indoor/  300W/02_Outdoor/          (the private test set; also without 300W/)

Splits as in the papers: train (AFW and the training parts of HELEN and LFPW, 3,148 faces), common
(the test parts, 554), challenge (IBUG, 135), full (both, 689, with the subsets "common" and
"challenge"), and test (300 faces each of the subsets "indoor" and "outdoor").

The coordinates of ``.pts`` files count from 1, as in MATLAB, so 1 is subtracted. Mirrored images
of some redistributions ("..._mirror.jpg") are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.datasets.faces import (
    AnnotatedFace,
    AnnotatedFaces,
    BadSample,
    Samples,
    StoredImage,
    check_layout,
    entry_names,
    finite_numbers,
    number_or_nan,
    unknown_split,
)
from hihlandmark.errors import DataError
from hihlandmark.layouts import W300_68

_COMMON = {"helen/testset": "common", "lfpw/testset": "common"}
_CHALLENGE = {"ibug": "challenge"}
# Split -> its folders -> the subset of the faces in a folder.
SPLITS: dict[str, dict[str, str | None]] = {
    "train": {"afw": None, "helen/trainset": None, "lfpw/trainset": None},
    "common": {**_COMMON},
    "challenge": {**_CHALLENGE},
    "full": {**_COMMON, **_CHALLENGE},
    "test": {"01_Indoor": "indoor", "02_Outdoor": "outdoor"},
}
PUBLISHED = {"train": 3148, "common": 554, "challenge": 135, "full": 689, "test": 600}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def recognize(folder: Path) -> bool:
    """Whether the folder is a data set of this format."""
    parts = {part for parts in SPLITS.values() for part in parts}
    return any(_part(folder, part) is not None for part in parts)


def splits(folder: Path) -> list[str]:
    """The splits whose folders all exist, and the subsets of the private test set."""
    whole = [split for split, parts in SPLITS.items() if all(_part(folder, p) for p in parts)]
    return whole + [f"test/{subset}" for subset in SPLITS["test"].values() if "test" in whole]


def read(folder: Path, split: str, layout: str | None, samples: Samples) -> AnnotatedFaces:
    """The annotated faces of a split; see `datasets.read_faces`."""
    check_layout("300-W", W300_68, layout)
    if split not in SPLITS:
        raise unknown_split(folder, split, SPLITS)
    places = {part: place for part in SPLITS[split] if (place := _part(folder, part)) is not None}
    if missing := [part for part in SPLITS[split] if part not in places]:
        raise DataError(
            f"{folder} lacks {' and '.join(missing)}: unpack iBUG's zip files there, with the .pts "
            "files beside their images"
        )
    for part, place in places.items():
        subset = SPLITS[split][part]
        subsets = frozenset() if subset is None else frozenset({subset})
        read_folder(folder, place, split, samples, W300_68.size, subsets, without_mirrored=True)
    return samples.result("300-W", W300_68, PUBLISHED[split])


def _part(folder: Path, part: str) -> Path | None:
    """The folder of a part, ignoring case ("IBUG", "Helen/trainset")."""
    return _descend(folder, part) or _descend(folder, f"300W/{part}")


def _descend(folder: Path, path: str) -> Path | None:
    for step in path.split("/"):
        names = (name for name in entry_names(folder) if name.lower() == step.lower())
        if (name := next(names, None)) is None:
            return None
        folder = folder / name
    return folder if folder.is_dir() else None


def read_folder(
    root: Path,
    folder: Path,
    split: str,
    samples: Samples,
    count: int,
    subsets: frozenset[str] = frozenset(),
    load: Callable[[Path], Callable[[], Image]] = StoredImage,
    *,
    without_mirrored: bool = False,
) -> None:
    """Add the images of a folder within ``root`` with their ``.pts`` files of ``count`` points.

    ``load`` makes the function that reads an image. ``without_mirrored`` leaves out what ends in
    ``_mirror``, as some redistributions of 300-W call copies.
    """
    names = entry_names(folder)
    if without_mirrored:
        names = [name for name in names if not Path(name).stem.endswith("_mirror")]
    images: dict[str, str] = {}
    annotations: dict[str, str] = {}
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix not in (".pts", *IMAGE_SUFFIXES):
            continue
        is_image = suffix != ".pts"
        known = images if is_image else annotations
        first = known.setdefault(Path(name).stem, name)
        with samples.reading((folder / name).relative_to(root).as_posix()):
            if first != name:
                raise BadSample(
                    f"{first} has {'the same name' if is_image else 'points of the same image'}: "
                    "remove one of them"
                )
    for stem in sorted(images.keys() | annotations.keys()):
        path = folder / annotations.get(stem, f"{stem}.pts")
        source = path.relative_to(root).as_posix()
        with samples.reading(source):
            if stem not in images:
                raise BadSample(f"there is no image {stem} beside it (.jpg, .jpeg, .png, .bmp)")
            if stem not in annotations:
                raise BadSample(f"there is no such file for the image {images[stem]}")
            image = folder / images[stem]
            samples.add(
                AnnotatedFace(
                    name=image.relative_to(root).as_posix(),
                    load_image=load(image),
                    points=read_pts(path, count) - 1,
                    split=split,
                    subsets=subsets,
                    source=source,
                )
            )


def read_pts(path: Path, count: int = W300_68.size) -> FloatArray:
    """The points (P, 2) of a ``.pts`` file as stored, counted from 1.

    Raises `BadSample` when they are not ``count`` pairs of finite numbers.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise BadSample(f"cannot be read: {error.strerror}") from error
    header, opening, rest = text.partition("{")
    body, closing, _ = rest.partition("}")
    if not opening or not closing:
        raise BadSample("has no coordinates between { and }: it is truncated or not a .pts file")
    fields = body.split()
    header_count = re.search(r"n_points\s*:\s*(\d+)", header)
    if header_count is not None and number_or_nan(header_count[1]) != count:
        raise BadSample(f"has {header_count[1][:20]} points instead of {count}")
    if len(fields) != 2 * count:
        raise BadSample(f"has {len(fields)} coordinates instead of {2 * count}")
    first_line = header.count("\n") + 2
    lines = body.strip("\r\n").splitlines()
    for number, line in enumerate(lines, start=first_line):
        try:
            finite_numbers(line.split())
        except BadSample as error:
            raise BadSample(f"line {number}: {error}") from error
    return finite_numbers(fields).reshape(-1, 2)
