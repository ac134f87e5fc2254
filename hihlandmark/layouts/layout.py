"""The landmark layouts: names, parts, contours, mirror tables, mean shapes, conversions. No torch.

*Left* and *right* are those of the image, in all names and tables: ``left_eye`` is the eye on the
left side of an upright image of a face seen from the front, which is the person's right eye.
Mirroring an image therefore swaps the names: what was ``left_eye_outer_corner`` becomes
``right_eye_outer_corner``, and a layout's mirror table is read off its names in just this way.

Layouts are data, conversions are tables: adding one is adding a row at the end of its section.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hihlandmark.arrays import BoolArray, FloatArray, IndexArray
from hihlandmark.errors import ConfigurationError


class Contour(NamedTuple):
    """A line through points of a face, for drawing."""

    indices: tuple[int, ...]
    closed: bool
    """Whether the line returns from the last point to the first."""


# Compared by identity: there is one object a layout, and copies and pickles lead back to it.
@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """What the P points of an annotation scheme are, and how they belong together."""

    name: str
    aliases: tuple[str, ...]
    """Further names that `get_layout` accepts; the number of points is always accepted."""
    point_names: tuple[str, ...]
    """P unique names in snake_case; left and right as in the image."""
    parts: Mapping[str, tuple[int, ...]]
    """Regions of the face; every point is in exactly one."""
    contours: tuple[Contour, ...]
    ocular_pair: tuple[int, int]
    """The points whose distance normalizes errors: outer eye corners, left then right. FIVE5 has
    no eye corners and takes its pupils."""
    pupils: tuple[tuple[int, ...], tuple[int, ...]]
    """Two sets of points, left then right, whose means are the pupil centers."""
    mean_shape: NDArray[np.float64]
    """(P, 2), read-only: an upright frontal face, x right and y down, symmetric about x = 0, its
    tight box centerd at (0, 0) with a longer side of 1."""
    other_edges: tuple[Contour, ...] = ()
    """ADNet's edges, where its released table has others than the contours."""

    @property
    def edges(self) -> tuple[Contour, ...]:
        """The lines of which ADNet predicts maps (arXiv 2109.05721, and its released tables)."""
        return self.other_edges or self.contours

    @property
    def size(self) -> int:
        """The number of points P."""
        return len(self.point_names)

    @cached_property
    def mirror(self) -> IndexArray:
        """(P,) read-only: ``mirror[i]`` is the point that takes place i in the mirrored image."""
        places = {name: i for i, name in enumerate(self.point_names)}
        return _read_only(np.array([places[_other_side(name)] for name in self.point_names]))

    @cached_property
    def mirror_pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs (i, j), i < j, that change places in the mirrored image."""
        return tuple((i, int(j)) for i, j in enumerate(self.mirror) if i < j)

    def __repr__(self) -> str:
        return f"Layout({self.name})"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_layout, (self.name,)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _other_side(name: str) -> str:
    swapped = {"left": "right", "right": "left"}
    return re.sub("left|right", lambda side: swapped[side[0]], name)


# ---------------------------------------------------------------------------------------- names


def _named(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}_{name}" for name in names)


def _paired(*names: str) -> tuple[str, ...]:
    """Each name for the left, then for the right side: the order of COFW."""
    return tuple(f"{side}_{name}" for name in names for side in ("left", "right"))


def _jaw(half: int) -> tuple[str, ...]:
    """``half`` points down the left side, the chin, ``half`` points up the right side."""
    left = _named("left_jaw", map(str, range(1, half + 1)))
    return (*left, "chin", *map(_other_side, reversed(left)))


def _from_inner_end(ring: Sequence[str], inner_end: int) -> tuple[str, ...]:
    """The names of a closed line around the right eye or brow, given those around the left one.

    The left one starts at its outer end and comes over the top to ``inner_end``; the right one
    starts at its inner end and comes over the top too, so it runs the other way round.
    """
    return (*ring[inner_end::-1], *ring[:inner_end:-1])


_BROW_OF_98 = (
    *("outer_end", "upper_outer", "upper_middle", "upper_inner", "inner_end_upper"),
    *("inner_end_lower", "lower_inner", "lower_middle", "lower_outer"),
)
_BROW_OF_68 = ("outer_end", "outer", "middle", "inner", "inner_end")
_EYE_OF_98 = (
    *("outer_corner", "upper_lid_outer", "upper_lid_middle", "upper_lid_inner"),
    *("inner_corner", "lower_lid_inner", "lower_lid_middle", "lower_lid_outer"),
)
_EYE_OF_68 = (
    *("outer_corner", "upper_lid_outer", "upper_lid_inner"),
    *("inner_corner", "lower_lid_inner", "lower_lid_outer"),
)
# Nose and lips are the same runs in WFLW and 300-W.
_NOSE = (
    *("nose_bridge_top", "nose_bridge_upper", "nose_bridge_lower", "nose_tip"),
    *("left_nose_base_outer", "left_nose_base_inner", "nose_base_middle"),
    *("right_nose_base_inner", "right_nose_base_outer"),
)
_LIPS = (
    *("left_mouth_corner", "left_outer_upper_lip_outer", "left_outer_upper_lip_inner"),
    "outer_upper_lip_middle",
    *("right_outer_upper_lip_inner", "right_outer_upper_lip_outer", "right_mouth_corner"),
    *("right_outer_lower_lip_outer", "right_outer_lower_lip_inner"),
    "outer_lower_lip_middle",
    *("left_outer_lower_lip_inner", "left_outer_lower_lip_outer"),
    *("left_inner_mouth_corner", "left_inner_upper_lip", "inner_upper_lip_middle"),
    *("right_inner_upper_lip", "right_inner_mouth_corner"),
    *("right_inner_lower_lip", "inner_lower_lip_middle", "left_inner_lower_lip"),
)


# -------------------------------------------------------------------------------------- layouts


def _run(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def _mean_shapes() -> dict[str, NDArray[np.float64]]:
    """The shape of each layout by name.

    Generalized Procrustes means of the training faces of 300-W (without IBUG), of WFLW faces and of
    LFPW faces with 29 points: of each set the half that is nearest to its own mirror image, so the
    frontal ones, together with their mirror images. FIVE5 is taken from the shape of WFLW98.
    """
    shapes = json.loads(files(__package__).joinpath("mean_shapes.json").read_text("utf-8"))
    return {name: _read_only(np.array(shape, np.float64)) for name, shape in shapes.items()}


_MEAN_SHAPES = _mean_shapes()

WFLW98 = Layout(
    name="WFLW98",
    aliases=("wflw",),
    point_names=(
        *_jaw(16),
        *_named("left_eyebrow", _BROW_OF_98),
        *_named("right_eyebrow", _from_inner_end(_BROW_OF_98, 4)),
        *_NOSE,
        *_named("left_eye", _EYE_OF_98),
        *_named("right_eye", _from_inner_end(_EYE_OF_98, 4)),
        *_LIPS,
        *_paired("pupil"),
    ),
    parts={
        "jaw": _run(0, 32),
        "left_eyebrow": _run(33, 41),
        "right_eyebrow": _run(42, 50),
        "nose_bridge": _run(51, 54),
        "nose_base": _run(55, 59),
        "left_eye": _run(60, 67),
        "right_eye": _run(68, 75),
        "outer_lips": _run(76, 87),
        "inner_lips": _run(88, 95),
        "left_pupil": (96,),
        "right_pupil": (97,),
    },
    contours=(
        Contour(_run(0, 32), closed=False),
        Contour(_run(33, 41), closed=True),
        Contour(_run(42, 50), closed=True),
        Contour(_run(51, 54), closed=False),
        Contour(_run(55, 59), closed=False),
        Contour(_run(60, 67), closed=True),
        Contour(_run(68, 75), closed=True),
        Contour(_run(76, 87), closed=True),
        Contour(_run(88, 95), closed=True),
    ),
    ocular_pair=(60, 72),
    pupils=((96,), (97,)),
    mean_shape=_MEAN_SHAPES["WFLW98"],
)

W300_68 = Layout(
    name="W300_68",
    aliases=("w300", "300w", "ibug"),
    point_names=(
        *_jaw(8),
        *_named("left_eyebrow", _BROW_OF_68),
        *_named("right_eyebrow", reversed(_BROW_OF_68)),
        *_NOSE,
        *_named("left_eye", _EYE_OF_68),
        *_named("right_eye", _from_inner_end(_EYE_OF_68, 3)),
        *_LIPS,
    ),
    parts={
        "jaw": _run(0, 16),
        "left_eyebrow": _run(17, 21),
        "right_eyebrow": _run(22, 26),
        "nose_bridge": _run(27, 30),
        "nose_base": _run(31, 35),
        "left_eye": _run(36, 41),
        "right_eye": _run(42, 47),
        "outer_lips": _run(48, 59),
        "inner_lips": _run(60, 67),
    },
    contours=(
        Contour(_run(0, 16), closed=False),
        Contour(_run(17, 21), closed=False),
        Contour(_run(22, 26), closed=False),
        Contour(_run(27, 30), closed=False),
        Contour(_run(31, 35), closed=False),
        Contour(_run(36, 41), closed=True),
        Contour(_run(42, 47), closed=True),
        Contour(_run(48, 59), closed=True),
        Contour(_run(60, 67), closed=True),
    ),
    ocular_pair=(36, 45),
    pupils=(_run(36, 41), _run(42, 47)),
    mean_shape=_MEAN_SHAPES["W300_68"],
)

COFW29 = Layout(
    name="COFW29",
    aliases=("cofw", "lfpw"),
    point_names=(
        *_paired("eyebrow_outer_end", "eyebrow_inner_end"),
        *_named("left_eyebrow", ("upper_middle", "lower_middle")),
        *_named("right_eyebrow", ("upper_middle", "lower_middle")),
        *_paired("eye_outer_corner", "eye_inner_corner"),
        *_named("left_eye", ("upper_lid_middle", "lower_lid_middle")),
        *_named("right_eye", ("upper_lid_middle", "lower_lid_middle")),
        *_paired("pupil", "nose_wing"),
        *("nose_tip", "nose_base_middle"),
        *_paired("mouth_corner"),
        *("outer_upper_lip_middle", "inner_upper_lip_middle"),
        *("inner_lower_lip_middle", "outer_lower_lip_middle"),
        "chin",
    ),
    parts={
        "jaw": (28,),
        "left_eyebrow": (0, 4, 2, 5),
        "right_eyebrow": (3, 6, 1, 7),
        "nose_bridge": (20,),
        "nose_base": (18, 21, 19),
        "left_eye": (8, 12, 10, 13),
        "right_eye": (11, 14, 9, 15),
        "outer_lips": (22, 24, 23, 27),
        "inner_lips": (25, 26),
        "left_pupil": (16,),
        "right_pupil": (17,),
    },
    contours=(
        Contour((0, 4, 2, 5), closed=True),
        Contour((3, 6, 1, 7), closed=True),
        Contour((18, 21, 19), closed=False),
        Contour((8, 12, 10, 13), closed=True),
        Contour((11, 14, 9, 15), closed=True),
        Contour((22, 24, 23, 27), closed=True),
        Contour((22, 25, 23, 26), closed=True),
    ),
    ocular_pair=(8, 9),
    pupils=((16,), (17,)),
    mean_shape=_MEAN_SHAPES["COFW29"],
    other_edges=(
        Contour((0, 4, 2, 5), closed=True),
        Contour((1, 6, 3, 7), closed=True),
        Contour((8, 12, 10, 13), closed=True),
        # The released table forgets to close the line of this eye.
        Contour((9, 14, 11, 15), closed=True),
        Contour((18, 20, 19, 21), closed=True),
        # Lips as two rings through the corners, where the contours have an outer and an inner one.
        Contour((22, 26, 23, 27), closed=True),
        Contour((22, 24, 23, 25), closed=True),
    ),
)

FIVE = Layout(
    name="FIVE5",
    aliases=("five",),
    point_names=(*_paired("pupil"), "nose_tip", *_paired("mouth_corner")),
    parts={
        "nose_bridge": (2,),
        "outer_lips": (3, 4),
        "left_pupil": (0,),
        "right_pupil": (1,),
    },
    contours=(),
    ocular_pair=(0, 1),
    pupils=((0,), (1,)),
    mean_shape=_MEAN_SHAPES["FIVE5"],
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (WFLW98, W300_68, COFW29, FIVE)}
"""By name. A program may add layouts of its own: docs/extending/layout.md."""


def _key(name: object) -> str:
    """A name as users may write it, without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", str(name)).lower()


def get_layout(layout: int | str | Layout) -> Layout:
    """The layout of a number of points (98, "98"), a name ("WFLW98") or an alias ("300w").

    Case, spaces, hyphens and underscores in names do not matter; of layouts with the same number of
    points the number means the first. Raises `ConfigurationError` for anything else.
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
    raise ConfigurationError(f"Unknown layout {layout!r}. Choose one of: {choices}.")


def mirror_points(
    points: ArrayLike, layout: int | str | Layout | IndexArray, width: float
) -> FloatArray:
    """The points of the mirrored image, in the layout's order: x' = width - 1 - x.

    ``points``: (..., P, 2) in pixels, NaN where unknown; ``layout``: or, for a scheme that is none
    of ours, its table (P,) such as `Layout.mirror`; ``width``: of the image, in pixels. Returns a
    new array (..., P, 2). Raises `ConfigurationError` when the points are not those of the layout.
    """
    if isinstance(layout, np.ndarray):
        table, points = layout, _checked(f"This mirror table of {layout.size}", layout.size, points)
    else:
        layout = get_layout(layout)
        table, points = layout.mirror, _points_of(layout, points)
    mirrored = points[..., table, :]
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored


def _points_of(layout: Layout, points: ArrayLike) -> FloatArray:
    return _checked(layout.name, layout.size, points)


def _checked(scheme: str, size: int, points: ArrayLike) -> FloatArray:
    """Points as floats, after a check that there are as many as the scheme has."""
    array = np.asarray(points)
    if array.shape[-2:] != (size, 2):
        raise ConfigurationError(
            f"{scheme} needs points of shape (..., {size}, 2), got {array.shape}. "
            "Pass the layout in which the points are."
        )
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


# ---------------------------------------------------------------------------------- conversions


Terms = tuple[tuple[int, float], ...]
"""The weighted source points (index, weight) whose sum is a target point; weights sum to 1."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """How the points of one layout follow from those of another."""

    source: Layout
    target: Layout
    terms: tuple[Terms, ...]
    """For each of the Q target points, the source points that it is the weighted mean of."""
    exact: BoolArray = field(repr=False)
    """(Q,) read-only: whether both schemes mean the same point; interpolated otherwise."""

    @cached_property
    def matrix(self) -> FloatArray:
        """(Q, P) read-only: the weights of the source points in each target point."""
        weights = np.zeros((self.target.size, self.source.size))
        for place, terms in enumerate(self.terms):
            for index, weight in terms:
                weights[place, index] = weight
        return _read_only(weights)

    def __call__(self, points: ArrayLike) -> FloatArray:
        """Points of the target layout: (..., P, 2) -> (..., Q, 2).

        Raises `ConfigurationError` when the points are not those of the source layout.
        """
        points = _points_of(self.source, points)
        means = [
            np.sum([weight * points[..., index, :] for index, weight in terms], axis=0)
            for terms in self.terms
        ]
        return np.stack(means, axis=-2)


def _conversion(
    source: Layout,
    target: Layout,
    exact: Mapping[int, int],
    interpolated: Mapping[int, Mapping[int, float]],
) -> Conversion:
    """A conversion from its tables: target index -> source index, or -> {source index: weight}.

    A point that is in neither table is the mirror image of one in ``interpolated``.
    """
    terms: dict[int, Terms] = {place: ((index, 1.0),) for place, index in exact.items()}
    for place, weights in interpolated.items():
        terms[place] = tuple(weights.items())
        terms[int(target.mirror[place])] = tuple(
            (int(source.mirror[index]), weight) for index, weight in weights.items()
        )
    is_exact = _read_only(np.array([place in exact for place in range(target.size)]))
    return Conversion(source, target, tuple(terms[i] for i in range(target.size)), is_exact)


def _same(targets: Iterable[int], sources: Iterable[int]) -> dict[int, int]:
    return dict(zip(targets, sources, strict=True))


# No face is annotated in two of the schemes, so what is exact was decided from their definitions
# and from where the points lie on average between the ends of their own part, measured on the
# near-frontal training faces (d: inter-ocular distance). Weights fit those positions, to 0.05.
_98_TO_68 = _conversion(
    WFLW98,
    W300_68,
    exact={
        # Every second point of a contour cut into equal steps in both. WFLW starts about 0.04 d
        # higher at the ears: a slip along the contour, which no annotator can place better.
        **_same(_run(0, 16), range(0, 33, 2)),
        # 300-W draws a brow as one line, and it is WFLW's upper edge (within 0.02 d; the lower
        # edge is 0.08 d below): the inner end, and the point next to it.
        **_same((20, 21, 22, 23), (36, 37, 42, 43)),
        **_same(_run(27, 35), _run(51, 59)),
        **_same((36, 39, 42, 45), (60, 64, 68, 72)),
        # Lips: corners, the whole upper outer edge, and the middle of the other edges.
        **_same(_run(48, 54), _run(76, 82)),
        **_same((57, 60, 62, 64, 66), (85, 88, 90, 92, 94)),
    },
    interpolated={
        # The outer end of a brow is 0.055 d further out in 300-W: 33 is only the nearest point.
        17: {33: 1.0},
        18: {33: 0.25, 34: 0.75},
        19: {34: 0.3, 35: 0.7},
        # Two points on a lid where WFLW has three.
        37: {61: 0.7, 62: 0.3},
        38: {62: 0.45, 63: 0.55},
        40: {65: 0.5, 66: 0.5},
        41: {66: 0.2, 67: 0.8},
        # The lower outer edge and the inner edges: as many points as WFLW, but nearer to the
        # middle, by 0.03 d outside and 0.06 d inside.
        58: {86: 0.75, 85: 0.25},
        59: {87: 0.75, 86: 0.25},
        61: {89: 0.55, 90: 0.45},
        67: {95: 0.55, 94: 0.45},
    },
)
_98_TO_29 = _conversion(
    WFLW98,
    COFW29,
    exact={
        **_same((0, 1), (33, 46)),
        **_same((4, 5, 6, 7), (35, 40, 44, 48)),
        **_same((8, 9, 10, 11), (60, 72, 64, 68)),
        **_same((12, 13, 14, 15), (62, 66, 70, 74)),
        **_same((16, 17), (96, 97)),
        **_same((20, 21), (54, 57)),
        **_same((22, 23, 24, 25, 26, 27), (76, 82, 79, 90, 94, 85)),
        28: 16,
    },
    interpolated={
        # One inner end of the brow where WFLW has an upper and a lower one.
        2: {37: 0.25, 38: 0.75},
        # The side of the nose wing, 0.03 to 0.05 d above the end of the nose base.
        18: {55: 1.0},
    },
)
_68_TO_5 = _conversion(
    W300_68,
    FIVE,
    exact=_same((2, 3, 4), (30, 48, 54)),
    interpolated={0: dict.fromkeys(W300_68.pupils[0], 1 / 6)},
)
_98_TO_5 = _conversion(
    WFLW98, FIVE, exact=_same((0, 1, 2, 3, 4), (96, 97, 54, 76, 82)), interpolated={}
)
_29_TO_5 = _conversion(
    COFW29, FIVE, exact=_same((0, 1, 2, 3, 4), (16, 17, 20, 22, 23)), interpolated={}
)

CONVERSIONS: dict[tuple[Layout, Layout], Conversion] = {
    (conversion.source, conversion.target): conversion
    for conversion in (_98_TO_68, _98_TO_29, _68_TO_5, _98_TO_5, _29_TO_5)
}
"""By source and target."""


def get_conversion(source: int | str | Layout, target: int | str | Layout) -> Conversion:
    """The conversion between two layouts, which may be the same.

    Raises `ConfigurationError` for an unknown layout or a pair without a conversion.
    """
    source, target = get_layout(source), get_layout(target)
    if source is target:
        every = range(source.size)
        return _conversion(source, target, exact=_same(every, every), interpolated={})
    if (source, target) not in CONVERSIONS:
        available = ", ".join(f"{s.name} -> {t.name}" for s, t in CONVERSIONS)
        raise ConfigurationError(
            f"{source.name} cannot be converted to {target.name}. Available: {available}."
        )
    return CONVERSIONS[source, target]


def convert(
    points: ArrayLike, source: int | str | Layout, target: int | str | Layout
) -> tuple[FloatArray, BoolArray]:
    """Points of one layout in another one, and which of them are exact.

    ``points``: (..., P, 2) in any unit. Returns (..., Q, 2), a new array, and (Q,): True where both
    schemes mean the same point, False where it is interpolated from its neighbors. Source and
    target may be the same. Raises `ConfigurationError` for an unknown layout, a pair without a
    conversion, or points that are not those of the source.
    """
    conversion = get_conversion(source, target)
    return conversion(points), conversion.exact


def _exact_table(conversion: Conversion) -> dict[int, int]:
    """Target index -> source index of the exact points."""
    return {
        place: conversion.terms[place][0][0] for place in map(int, np.flatnonzero(conversion.exact))
    }


EXACT_98_68 = _exact_table(_98_TO_68)
EXACT_98_29 = _exact_table(_98_TO_29)
