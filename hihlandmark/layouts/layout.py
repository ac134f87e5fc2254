"""`Layout`: which point of a face is which. The table of layouts is filled by `schemes`.

*Left* and *right* are those of the image, in all names and tables: ``left_eye`` is the eye on the
left side of an upright image of a face seen from the front, which is the person's right eye.
Mirroring an image therefore swaps the names: ``left_eye_outer_corner`` becomes
``right_eye_outer_corner``, and a layout's mirror table follows from its names in this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hihlandmark.arrays import FloatArray, IndexArray
from hihlandmark.errors import ConfigurationError


class Contour(NamedTuple):
    """A line through points of a face, for drawing; a closed one returns to its first point."""

    indices: tuple[int, ...]
    closed: bool


# Compared by identity: there is one object per layout, and copies and pickles resolve to it.
@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """The P points of an annotation scheme: names, regions, lines and symmetry."""

    name: str
    aliases: tuple[str, ...]
    """Further names that `get_layout` accepts; the number of points is always accepted."""
    point_names: tuple[str, ...]
    """P unique names in snake_case; left and right as in the image."""
    parts: Mapping[str, tuple[int, ...]]
    """Regions of the face; every point is in exactly one."""
    contours: tuple[Contour, ...]
    ocular_pair: tuple[int, int]
    """The points whose distance normalizes errors: outer eye corners or, in FIVE5, pupils."""
    pupils: tuple[tuple[int, ...], tuple[int, ...]]
    """Two sets of points, left then right, whose means are the pupil centers."""
    mean_shape: NDArray[np.float64]
    """(P, 2), read-only: an upright frontal face, x right and y down, symmetric about x = 0, its
    tight box centered at (0, 0) with a longer side of 1."""
    other_edges: tuple[Contour, ...] = ()
    """ADNet's edges, where its released table differs from the contours."""
    mirror_table: tuple[int, ...] = ()
    """`mirror`, of a layout whose names do not determine it; (): they do."""

    @property
    def edges(self) -> tuple[Contour, ...]:
        """The lines whose maps ADNet predicts (arXiv 2109.05721, and its released tables)."""
        return self.other_edges or self.contours

    @property
    def size(self) -> int:
        """The number of points P."""
        return len(self.point_names)

    @cached_property
    def mirror(self) -> IndexArray:
        """(P,) read-only: ``mirror[i]`` is the point at index i of the mirrored image."""
        if self.mirror_table:
            return read_only(np.array(self.mirror_table, np.intp))
        indices = {name: i for i, name in enumerate(self.point_names)}
        return read_only(np.array([indices[other_side(name)] for name in self.point_names]))

    @cached_property
    def mirror_pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs (i, j), i < j, that are swapped in the mirrored image."""
        return tuple((i, int(j)) for i, j in enumerate(self.mirror) if i < j)

    def interocular(self, points: FloatArray) -> FloatArray:
        """Distances (...) of the outer eye corners of points (..., P, 2); they normalize errors."""
        left, right = self.ocular_pair
        return np.linalg.norm(points[..., left, :] - points[..., right, :], axis=-1)

    def __repr__(self) -> str:
        return f"Layout({self.name})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.name in BUILT_IN:
            return get_layout, (self.name,)
        values = (getattr(self, field.name) for field in fields(self))
        return _restored, tuple(dict(v) if isinstance(v, Mapping) else v for v in values)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, which can no longer be written to."""
    array.flags.writeable = False
    return array


def other_side(name: str) -> str:
    """A point's name with left and right swapped."""
    swapped = {"left": "right", "right": "left"}
    return re.sub(r"(?<![a-zA-Z])(left|right)(?![a-zA-Z])", lambda side: swapped[side[0]], name)


LAYOUTS: dict[str, Layout] = {}
"""All layouts by name. Add one with `register_layout`."""


BUILT_IN: set[str] = set()
"""Names of the layouts of this package. Pickles hold only the name of these."""


def register_layout(layout: Layout) -> Layout:
    """Make `get_layout` find a layout by its name, its aliases and its number of points.

    Raises:
        ConfigurationError: another layout has the name or one of the aliases, or the layout
            contradicts itself: points of its parts that it lacks, or names without a mirror image.
    """
    if problem := next(_problems(layout), None):
        raise ConfigurationError(f"the layout {layout.name!r} cannot be used: {problem}")
    names = {_key(name) for name in (layout.name, *layout.aliases)}
    for known in LAYOUTS.values():
        if known is not layout and names & set(map(_key, (known.name, *known.aliases))):
            raise ConfigurationError(
                f"{layout.name} shares a name or alias with the layout {known.name}: rename it"
            )
    LAYOUTS[layout.name] = layout
    return layout


def is_mirror_table(table: IndexArray) -> bool:
    """Whether a table (P,) is a permutation of 0..P-1 and its own inverse."""
    indices = np.arange(len(table))
    return np.array_equal(np.sort(table), indices) and np.array_equal(table[table], indices)


def _problems(layout: Layout) -> Iterator[str]:
    """What keeps a layout from being used."""
    size, known = layout.size, set(layout.point_names)
    if layout.name.strip().isdigit():
        yield "numbers name layouts by how many points they have"
    if len(known) < size:
        yield "two points have the same name"
    indices = {
        *chain(*layout.parts.values(), *(each.indices for each in layout.contours)),
        *chain(layout.ocular_pair, *layout.pupils),
    }
    if unknown := sorted(indices - set(range(size))):
        yield f"it has points 0 to {size - 1}, and its parts, contours or eyes name {unknown}"
    if np.shape(layout.mean_shape) != (size, 2):
        yield f"its mean shape has the shape {np.shape(layout.mean_shape)}, not ({size}, 2)"
    if not layout.mirror_table:
        alone = [name for name in layout.point_names if other_side(name) not in known]
        if alone:
            yield f"{alone[0]!r} has no mirror image {other_side(alone[0])!r}: give a mirror_table"
    elif len(layout.mirror) != size or not is_mirror_table(layout.mirror):
        yield f"its mirror table is no permutation of 0 to {size - 1} that is its own inverse"


def find_or_register(layout: Layout) -> Layout:
    """The registered layout of the same name and content; otherwise this one, registered now.

    Mean shapes are not compared: they depend on the faces on which they were measured.

    Raises:
        ConfigurationError: the name or an alias belongs to a layout with other content.
    """
    known = LAYOUTS.get(layout.name)
    if known is None:
        return register_layout(layout)
    same = {
        "points": known.point_names == layout.point_names,
        "mirror pairs": np.array_equal(known.mirror, layout.mirror),
        "contours": known.contours == layout.contours,
        "normalizing pair": known.ocular_pair == layout.ocular_pair,
    }
    if different := [what for what, is_same in same.items() if not is_same]:
        raise ConfigurationError(
            f"this process has another layout {layout.name!r} ({', '.join(different)} differ): "
            "rename one of them, or use them in different processes"
        )
    return known


def _restored(*values: Any) -> Layout:
    """The layout with the values of all fields, from a pickle."""
    return find_or_register(Layout(*values))


def _key(name: object) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", str(name)).lower()


def get_layout(layout: int | str | Layout) -> Layout:
    """The layout with a number of points (98, "98"), a name ("WFLW98") or an alias ("300w").

    Case, spaces, hyphens and underscores in names do not matter. Of layouts with the same number of
    points, the number means the first. A `Layout` is returned as it is.

    Raises:
        ConfigurationError: there is no such layout.
    """
    if isinstance(layout, Layout):
        return layout
    key = _key(layout)
    for known in LAYOUTS.values():
        if key in map(_key, (known.name, known.size, *known.aliases)):
            return known
    choices = "; ".join(
        f"{known.size} or {', '.join(map(repr, (known.name, *known.aliases)))}"
        for known in LAYOUTS.values()
    )
    raise ConfigurationError(f"unknown layout {layout!r}; choose one of: {choices}")


def mirror_points(
    points: ArrayLike, layout: int | str | Layout | IndexArray, width: float
) -> FloatArray:
    """The points of the mirrored image, in the layout's order: x' = width - 1 - x.

    Args:
        points: (..., P, 2) in pixels, NaN where unknown.
        layout: the layout of the points, or a mirror table (P,) such as `Layout.mirror`.
        width: width of the image in pixels.

    Raises:
        ConfigurationError: the points are not those of the layout.
    """
    table = layout if isinstance(layout, np.ndarray) else get_layout(layout).mirror
    mirrored = checked_points(points, table.size)[..., table, :]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


def checked_points(points: ArrayLike, size: int) -> FloatArray:
    """Points (..., P, 2) as floats. Raises `ConfigurationError` unless P is ``size``."""
    array = np.asarray(points)
    if array.shape[-2:] != (size, 2):
        raise ConfigurationError(
            f"points of this layout have the shape (..., {size}, 2), not {array.shape}"
        )
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
