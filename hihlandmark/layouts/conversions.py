"""Conversions between layouts: tables of which point follows from which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike

from hihlandmark.arrays import BoolArray, FloatArray
from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts.layout import Layout, checked_points, get_layout, read_only
from hihlandmark.layouts.schemes import COFW29, FIVE, W300_68, WFLW98

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
    """(Q,) read-only: whether both layouts define the same point, or it is interpolated."""

    @classmethod
    def from_tables(
        cls,
        source: int | str | Layout,
        target: int | str | Layout,
        exact: Mapping[int, int],
        interpolated: Mapping[int, Mapping[int, float]] | None = None,
    ) -> Conversion:
        """A conversion from its tables.

        Args:
            source: the layout of the points given.
            target: the layout of the points wanted.
            exact: target index -> source index, of points that are the same in both layouts.
            interpolated: target index -> {source index: weight}. A point that is in neither table
                is the mirror image of one in this table.

        Raises:
            ConfigurationError: a layout is unknown, or the tables leave a point out or name one
                that a layout does not have.
        """
        source, target = get_layout(source), get_layout(target)
        stated: dict[int, Terms] = {p: tuple(w.items()) for p, w in (interpolated or {}).items()}
        same: dict[int, Terms] = {point: ((index, 1.0),) for point, index in exact.items()}
        indices = {index for each in chain(stated.values(), same.values()) for index, _ in each}
        for layout, named in ((target, {*stated, *same}), (source, indices)):
            if unknown := sorted(named - set(range(layout.size))):
                raise ConfigurationError(
                    f"{layout.name} has points 0 to {layout.size - 1}: the tables name {unknown}"
                )
        for point, weighted in stated.items():
            if not abs(sum(weight for _, weight in weighted) - 1) < 1e-6:
                raise ConfigurationError(
                    f"the weights of point {point} do not add up to 1: {dict(weighted)}"
                )
        mirrored: dict[int, Terms] = {
            int(target.mirror[point]): tuple(
                (int(source.mirror[index]), w) for index, w in weighted
            )
            for point, weighted in stated.items()
        }
        terms = mirrored | stated | same
        if missing := sorted(set(range(target.size)) - terms.keys()):
            raise ConfigurationError(
                f"a conversion to {target.name} needs each of its {target.size} points: {missing} "
                "are neither exact, nor interpolated, nor mirror images of interpolated points"
            )
        is_exact = read_only(np.array([point in exact for point in range(target.size)]))
        return cls(source, target, tuple(terms[i] for i in range(target.size)), is_exact)

    def followed_by(self, other: Conversion) -> Conversion:
        """This conversion and then another one, from this target, as one."""
        weights = other.matrix @ self.matrix
        terms = tuple(
            tuple((int(index), float(row[index])) for index in np.flatnonzero(row))
            for row in weights
        )
        exact = other.exact & (other.matrix @ ~self.exact == 0)
        return Conversion(self.source, other.target, terms, read_only(exact))

    @cached_property
    def matrix(self) -> FloatArray:
        """(Q, P) read-only: the weights of the source points in each target point."""
        weights = np.zeros((self.target.size, self.source.size))
        for point, terms in enumerate(self.terms):
            for index, weight in terms:
                weights[point, index] = weight
        return read_only(weights)

    @property
    def exact_table(self) -> dict[int, int]:
        """Target index -> source index of the exact points."""
        return {int(point): self.terms[point][0][0] for point in np.flatnonzero(self.exact)}

    def __call__(self, points: ArrayLike) -> FloatArray:
        """Convert points (..., P, 2) of the source to (..., Q, 2) of the target layout."""
        points = checked_points(points, self.source.size)
        means = [
            np.sum([weight * points[..., index, :] for index, weight in terms], axis=0)
            for terms in self.terms
        ]
        return np.stack(means, axis=-2)


CONVERSIONS: dict[tuple[Layout, Layout], Conversion] = {}
"""All conversions by source and target. Add one with `register_conversion`."""


def register_conversion(conversion: Conversion) -> Conversion:
    """Make a conversion known to `get_conversion`; it replaces one of the same layouts."""
    CONVERSIONS[conversion.source, conversion.target] = conversion
    return conversion


def get_conversion(source: int | str | Layout, target: int | str | Layout) -> Conversion:
    """The conversion between two layouts, which may be the same.

    Raises:
        ConfigurationError: a layout is unknown, or there is no conversion between the two.
    """
    source, target = get_layout(source), get_layout(target)
    if source is target:
        return Conversion.from_tables(source, target, exact={i: i for i in range(source.size)})
    if (source, target) not in CONVERSIONS:
        available = ", ".join(f"{s.name} -> {t.name}" for s, t in CONVERSIONS)
        raise ConfigurationError(
            f"{source.name} cannot be converted to {target.name}; available: {available}"
        )
    return CONVERSIONS[source, target]


def convert(
    points: ArrayLike, source: int | str | Layout, target: int | str | Layout
) -> tuple[FloatArray, BoolArray]:
    """Points (..., P, 2) of one layout as a new array (..., Q, 2) of another, or of the same.

    Also returns (Q,) bool: True where both layouts define the same point, False where it is
    interpolated from its neighbors.

    Raises:
        ConfigurationError: there is no conversion, or the points are not those of ``source``.
    """
    conversion = get_conversion(source, target)
    return conversion(points), conversion.exact


def _same(targets: Iterable[int], sources: Iterable[int]) -> dict[int, int]:
    return dict(zip(targets, sources, strict=True))


# No face is annotated in two schemes. What is exact follows from their definitions and from where
# the points lie on average between the ends of their own part of near-frontal training faces (d:
# inter-ocular distance). Weights fit those positions, to 0.05.
_98_TO_68 = Conversion.from_tables(
    WFLW98,
    W300_68,
    exact={
        # Every second point of a contour cut into equal steps in both. WFLW starts about 0.04 d
        # higher at the ears: a slip along the contour, which no annotator can place better.
        **_same(range(17), range(0, 33, 2)),
        # 300-W draws a brow as one line, and it is WFLW's upper edge (within 0.02 d; the lower
        # edge is 0.08 d below): the inner end, and the point next to it.
        **_same((20, 21, 22, 23), (36, 37, 42, 43)),
        **_same(range(27, 36), range(51, 60)),
        **_same((36, 39, 42, 45), (60, 64, 68, 72)),
        # Lips: corners, the whole upper outer edge, and the middle of the other edges.
        **_same(range(48, 55), range(76, 83)),
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
_98_TO_29 = Conversion.from_tables(
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
_68_TO_5 = Conversion.from_tables(
    W300_68,
    FIVE,
    exact=_same((2, 3, 4), (30, 48, 54)),
    interpolated={0: dict.fromkeys(W300_68.pupils[0], 1 / 6)},
)
_98_TO_5 = Conversion.from_tables(WFLW98, FIVE, exact=_same(range(5), (96, 97, 54, 76, 82)))
_29_TO_5 = Conversion.from_tables(COFW29, FIVE, exact=_same(range(5), (16, 17, 20, 22, 23)))

for _conversion in (_98_TO_68, _98_TO_29, _68_TO_5, _98_TO_5, _29_TO_5):
    register_conversion(_conversion)

EXACT_98_68 = _98_TO_68.exact_table
EXACT_98_29 = _98_TO_29.exact_table
