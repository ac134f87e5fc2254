"""Layouts that users describe in a file: its content, and what is guessed from annotated faces."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from hihlandmark.arrays import FloatArray, IndexArray
from hihlandmark.crop import rotate_points, similarities, transform_points
from hihlandmark.errors import ConfigurationError, DataError, abbreviate, missing_extra
from hihlandmark.layouts import Contour, Layout, mirror_points
from hihlandmark.layouts.layout import other_side
from hihlandmark.shape_prior import procrustes_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LAYOUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,60}")
MOST_POINTS = 2000
LARGEST_ASYMMETRY = 0.06
"""Mean distance of a mean shape from its mirror image, in longer sides of its box. Guessed pairs of
faces stay below 0.03 even where most of them are turned to one side."""

TRIED_DEGREES = sorted(range(-40, 41, 5), key=abs)
"""Rotations of a mirrored mean shape, twice those of the shape itself. From one that is wrong by 8
degrees, the jaw is often matched with a shift of one point."""

CLEAR_ASYMMETRY = 0.01
"""Below it other rotations need not be tried: a shift by one point leaves 0.03."""

Point = StrictInt | StrictStr
"""A point, by index or name."""


class _FileTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ContourLines(_FileTable):
    """A line through points."""

    points: tuple[Point, ...] = Field(min_length=2)
    closed: StrictBool = False


class LayoutFile(_FileTable):
    """The content of a layout file, TOML or JSON."""

    name: StrictStr | None = None
    """None: the name of the file."""
    points: tuple[StrictStr, ...] | Annotated[StrictInt, Field(ge=3, le=MOST_POINTS)]
    """The names of the annotated points in their order, or only their number."""
    mirror_pairs: tuple[tuple[Point, Point], ...] | None = None
    """Points that change places in the mirrored image; all others lie in the middle. None: guessed
    by left and right in the names, otherwise by the mean shape."""
    normalizing_pair: tuple[Point, Point] | None = None
    """Points whose distance is the unit of errors, left and right, such as the outer eye corners.
    None: the mirror pair that is farthest apart."""
    contours: tuple[ContourLines, ...] = ()

    @property
    def point_names(self) -> tuple[str, ...]:
        """The names of the points; "point_0" and so on where the file has none."""
        if isinstance(self.points, int):
            return tuple(f"point_{index}" for index in range(self.points))
        return self.points


@dataclass(frozen=True)
class DescribedLayout:
    """A layout of a file, completed by annotated faces."""

    layout: Layout
    guessed: tuple[str, ...]
    """What the file left out, as sentences for the user."""


def read_layout_file(path: Path) -> tuple[str, LayoutFile]:
    """The name and content of a layout file.

    Raises:
        ConfigurationError: it cannot be read, or a key or value is wrong. The message names it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{path} cannot be read as a layout: {reason}; give a .toml or .json file"
        ) from error
    try:
        content = LayoutFile.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(each) for each in first["loc"][:2]) or "the file"
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigurationError(f"{path}: {place}: {what}") from error
    name = content.name or path.stem
    if not LAYOUT_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{path}: the name {name!r} must start with a letter and have only letters, digits, "
            "_ and -"
        )
    names = content.point_names
    if not 3 <= len(names) <= MOST_POINTS:
        raise ConfigurationError(
            f"{path}: points: 3 to {MOST_POINTS} are possible, {len(names)} given"
        )
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise ConfigurationError(f"{path}: points: used more than once: {abbreviate(twice, 5)}")
    return name, content


def describe(path: Path, shapes: FloatArray, kept: Sequence[int] | None = None) -> DescribedLayout:
    """The layout of a file, with what it leaves out guessed from annotated faces. Not registered.

    Args:
        path: of the file.
        shapes: (N, A, 2), all annotated points of the faces, NaN where unknown.
        kept: indices of the points to use; None: all.

    Raises:
        ConfigurationError: the file is wrong, or does not fit the faces.
        DataError: no face has all points, or the mirror pairs cannot be guessed.
    """
    name, content = read_layout_file(path)
    names, count = content.point_names, shapes.shape[1]
    if len(names) != count:
        raise ConfigurationError(f"{path}: it has {len(names)} points, the faces have {count}")
    complete = shapes[np.isfinite(shapes).all(axis=(1, 2))]
    if not len(complete):
        raise DataError(f"no face has all {count} points of {path}: annotate some completely")
    index = _Index(path, names)
    # Starting from the mean of all faces, which is upright; a single face may be tilted.
    mean = procrustes_mean(np.concatenate([complete.mean(axis=0)[None], complete]))
    guessed = []
    if content.mirror_pairs is not None:
        mirror = index.mirror(content.mirror_pairs)
    else:
        by_names, how = index.mirror_by_names(), "by left and right in the names"
        mirror = guess_mirror(mean) if by_names is None else by_names
        if by_names is None:
            how = "by the mean shape"
            if (apart := asymmetry(mean, mirror)) > LARGEST_ASYMMETRY:
                raise DataError(
                    f"{path}: the points are not symmetric ({100 * apart:.0f} % of their extent "
                    "apart from their mirror image), so no mirror pairs can be guessed: add them, "
                    "and the points of the other side if these are missing"
                )
        pairs = [f"{names[i]} - {names[j]}" for i, j in enumerate(mirror) if i < j]
        guessed.append(f"mirror pairs, {how}: {', '.join(pairs)}")
    mean = symmetric_shape(complete, mirror)
    place = {old: new for new, old in enumerate(range(count) if kept is None else kept)}
    pair = index.pair(content.normalizing_pair) if content.normalizing_pair else None
    if pair is None:
        usable = [(i, int(j)) for i, j in enumerate(mirror) if i < j and {i, int(j)} <= set(place)]
        if not usable:
            raise ConfigurationError(f"{path}: there is no mirror pair: give normalizing_pair")
        i, j = max(usable, key=lambda each: np.linalg.norm(mean[each[0]] - mean[each[1]]))
        pair = (i, j) if mean[i, 0] < mean[j, 0] else (j, i)
        guessed.append(f"normalizing pair: {names[pair[0]]} - {names[pair[1]]}, farthest apart")
    if not set(pair) <= set(place):
        raise ConfigurationError(
            f"{path}: normalizing_pair lies outside of the crops of most faces: choose another"
        )
    ends = (place[pair[0]], place[pair[1]])
    chosen = list(place)
    contours = [
        Contour(tuple(place[i] for i in line if i in place), each.closed)
        for each in content.contours
        for line in [index.of(each.points, "contours")]
    ]
    layout = Layout(
        name=name,
        aliases=(),
        point_names=tuple(names[i] for i in chosen),
        parts={"points": tuple(range(len(chosen)))},
        contours=tuple(line for line in contours if len(line.indices) > 1),
        ocular_pair=ends,
        pupils=((ends[0],), (ends[1],)),
        mean_shape=centered(mean[chosen]).astype(np.float64),
        mirror_table=tuple(place[int(mirror[i])] for i in chosen),
    )
    return DescribedLayout(layout, tuple(guessed))


class _Index:
    """Finds the points of a layout file by index or name."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, names
        self.by_name = {name: index for index, name in enumerate(names)}

    def of(self, points: Sequence[Point], key: str) -> list[int]:
        """Indices of different points."""
        found = []
        for point in points:
            index = self.by_name.get(point, -1) if isinstance(point, str) else point
            if not 0 <= index < len(self.names):
                raise ConfigurationError(f"{self.path}: {key}: there is no point {point!r}")
            found.append(index)
        if len(set(found)) != len(found):
            raise ConfigurationError(
                f"{self.path}: {key}: a point is used more than once: {points}"
            )
        return found

    def pair(self, points: tuple[Point, Point]) -> tuple[int, int]:
        left, right = self.of(points, "normalizing_pair")
        return left, right

    def mirror(self, pairs: Sequence[tuple[Point, Point]]) -> IndexArray:
        """The mirror table (P,) of given pairs."""
        ends = self.of([point for pair in pairs for point in pair], "mirror_pairs")
        mirror = np.arange(len(self.names))
        for i, j in zip(ends[::2], ends[1::2], strict=True):
            mirror[i], mirror[j] = j, i
        return mirror

    def mirror_by_names(self) -> IndexArray | None:
        """The mirror table (P,) by left and right in the names; None: no name has them."""
        other = [other_side(name) for name in self.names]
        if other == list(self.names):
            return None
        if alone := [
            name for name, each in zip(self.names, other, strict=True) if each not in self.by_name
        ]:
            raise ConfigurationError(
                f"{self.path}: no mirror image of {abbreviate(alone, 5)}, by left and right in the "
                "names: rename points or give mirror_pairs"
            )
        return np.array([self.by_name[each] for each in other])


def guess_mirror(shape: FloatArray) -> IndexArray:
    """The mirror table (P,) of an upright face (P, 2) whose points are symmetric.

    Each point is matched with one near its mirror image, by least total distance; then the mirror
    image is fitted to the face by these, and the points are matched again.
    """
    target = shape - shape.mean(axis=0)
    best, least = np.arange(len(shape)), np.inf
    for degrees in TRIED_DEGREES:  # the face may be rotated
        turned = rotate_points((target * (-1, 1))[None], np.deg2rad([degrees]))[0]
        mirror = _matched(turned, target)
        if (apart := asymmetry(target, mirror)) < least:
            best, least = mirror, apart
        if least < CLEAR_ASYMMETRY:
            break
    return best


def _matched(flipped: FloatArray, target: FloatArray) -> IndexArray:
    """The mirror table (P,) of a mirrored shape (P, 2) that lies roughly on the shape (P, 2)."""
    mirror = np.arange(len(target))
    for _ in range(10):
        found = _involution(((flipped[:, None] - target[None]) ** 2).sum(axis=-1))
        if np.array_equal(found, mirror):
            break
        mirror = found
        matrix = similarities(flipped[None, mirror], target)[0]
        flipped = transform_points(matrix, flipped)
    return mirror


def _involution(costs: FloatArray) -> IndexArray:
    """The table (P,) of pairs, and of points alone, with a low total of costs (P, P)."""
    with missing_extra("train"):
        from scipy.optimize import linear_sum_assignment

    costs = (costs + costs.T) / 2
    found = linear_sum_assignment(costs)[1]
    # Pairs that are mutual are kept; of the others, those that are nearest.
    closed = found[found] == np.arange(len(found))
    found = np.where(closed, found, -1)
    while (open_ := np.flatnonzero(found < 0)).size:
        part = costs[np.ix_(open_, open_)]
        i, j = np.unravel_index(part.argmin(), part.shape)
        found[open_[i]], found[open_[j]] = open_[j], open_[i]
    return np.asarray(found)


def asymmetry(shape: FloatArray, mirror: IndexArray) -> float:
    """Mean distance of a shape (P, 2) from its mirror image, in longer sides of its box."""
    flipped = mirror_points(shape, mirror, width=0)
    aligned = transform_points(similarities(flipped[None], shape)[0], flipped)
    return float(np.linalg.norm(aligned - shape, axis=-1).mean() / np.ptp(shape, axis=0).max())


def symmetric_shape(shapes: FloatArray, mirror: IndexArray) -> FloatArray:
    """The mean (P, 2) of upright faces (N, P, 2) and their mirror images, symmetric about x = 0."""
    both = np.concatenate([shapes, mirror_points(shapes, mirror, width=0)])
    # A reference that is its own mirror image keeps the mean upright.
    mean = both.mean(axis=0) - both.mean(axis=(0, 1))
    for _ in range(5):
        mean = (mean + mirror_points(mean, mirror, width=1)) / 2
        aligned = transform_points(similarities(both, mean), both)
        mean = aligned.mean(axis=0)
        mean -= mean.mean(axis=0)
    return centered((mean + mirror_points(mean, mirror, width=1)) / 2)


def centered(shape: FloatArray) -> FloatArray:
    """A shape (P, 2) with its tight box centered at (0, 0), the longer side 1."""
    low, high = shape.min(axis=0), shape.max(axis=0)
    return (shape - (low + high) / 2) / (high - low).max()
