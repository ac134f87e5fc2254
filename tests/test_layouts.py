"""Layout tables are consistent, and conversions map points to the right places."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hihlandmark.crop import similarities, transform_points
from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import (
    COFW29,
    CONVERSIONS,
    EXACT_98_29,
    EXACT_98_68,
    FIVE,
    LAYOUTS,
    W300_68,
    WFLW98,
    Conversion,
    Layout,
    convert,
    get_layout,
    mirror_points,
    register_conversion,
    register_layout,
)
from hihlandmark.layouts import conversions as conversions_module
from hihlandmark.layouts import layout as layout_module

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=repr)
every_conversion = pytest.mark.parametrize(
    "conversion", CONVERSIONS.values(), ids=lambda c: f"{c.source.size}-{c.target.size}"
)


def random_points(layout: Layout, *leading: int) -> NDArray[np.floating]:
    return np.random.default_rng(layout.size).uniform(0, 256, (*leading, layout.size, 2))


# -------------------------------------------------------------------------------------- layouts


@every_layout
def test_point_names_are_unique_snake_case(layout: Layout) -> None:
    assert len(set(layout.point_names)) == layout.size
    assert all(name.isidentifier() and name.islower() for name in layout.point_names)


@pytest.mark.parametrize(
    ("size", "indices", "names"),
    [
        (98, (0, 16, 32), "left_jaw_1 chin right_jaw_1"),
        (98, (33, 46), "left_eyebrow_outer_end right_eyebrow_outer_end"),
        (98, (50, 54), "right_eyebrow_inner_end_lower nose_tip"),
        (98, (60, 66), "left_eye_outer_corner left_eye_lower_lid_middle"),
        (98, (68, 72), "right_eye_inner_corner right_eye_outer_corner"),
        (98, (82, 85, 97), "right_mouth_corner outer_lower_lip_middle right_pupil"),
        (68, (8, 17, 26), "chin left_eyebrow_outer_end right_eyebrow_outer_end"),
        (68, (30, 36, 39), "nose_tip left_eye_outer_corner left_eye_inner_corner"),
        (68, (42, 45), "right_eye_inner_corner right_eye_outer_corner"),
        (68, (48, 57), "left_mouth_corner outer_lower_lip_middle"),
        (29, (1, 5), "right_eyebrow_outer_end left_eyebrow_lower_middle"),
        (29, (10, 14), "left_eye_inner_corner right_eye_upper_lid_middle"),
        (29, (16, 20, 28), "left_pupil nose_tip chin"),
    ],
)
def test_names_are_at_the_published_indices(size: int, indices: tuple, names: str) -> None:
    assert [get_layout(size).point_names[i] for i in indices] == names.split()


@every_layout
def test_left_points_are_left_of_their_mirror_partner(layout: Layout) -> None:
    for i, name in enumerate(layout.point_names):
        x, partner_x = layout.mean_shape[[i, layout.mirror[i]], 0]
        assert ("left" in name) == (x < partner_x)
        assert ("right" in name) == (x > partner_x)


@every_layout
def test_mirror_swaps_the_sides_of_names_and_parts(layout: Layout) -> None:
    def other_side(name: str) -> str:
        return name.replace("left", "~").replace("right", "left").replace("~", "right")

    names = layout.point_names
    assert [names[i] for i in layout.mirror] == [other_side(name) for name in names]
    assert layout.mirror_pairs == tuple((i, j) for i, j in enumerate(layout.mirror) if i < j)
    for part, indices in layout.parts.items():
        assert set(layout.mirror[list(indices)]) == set(layout.parts[other_side(part)])


@every_layout
def test_parts_cover_every_point_once(layout: Layout) -> None:
    assert sorted(i for part in layout.parts.values() for i in part) == list(range(layout.size))


@every_layout
def test_contours_are_symmetric_and_hold_all_points_but_single_ones(layout: Layout) -> None:
    edges, drawn = set(), set()
    for indices, closed in layout.contours:
        drawn |= set(indices)
        ends = [*indices[1:], indices[0]] if closed else indices[1:]
        edges |= {frozenset(edge) for edge in zip(indices, ends, strict=False)}
    assert {frozenset(int(layout.mirror[i]) for i in edge) for edge in edges} == edges
    single = {i for part in layout.parts.values() if len(part) == 1 for i in part}
    assert layout is FIVE or set(range(layout.size)) - single <= drawn


@every_layout
def test_ocular_pair_and_pupils_are_of_the_two_eyes(layout: Layout) -> None:
    left, right = layout.ocular_pair
    assert layout.mirror[left] == right
    assert set(layout.mirror[list(layout.pupils[0])]) == set(layout.pupils[1])
    shape = layout.mean_shape
    between_pupils = np.subtract(*(shape[list(p)].mean(axis=0) for p in layout.pupils))
    assert between_pupils[0] < 0
    if layout is not FIVE:
        assert layout.point_names[left] == "left_eye_outer_corner"
        # Pupils are about two thirds as far apart as the outer eye corners in every scheme.
        assert -between_pupils[0] / layout.interocular(shape) == pytest.approx(0.7, abs=0.04)


@every_layout
def test_mean_shape_is_a_normalized_symmetric_upright_face(layout: Layout) -> None:
    shape = layout.mean_shape
    assert shape.shape == (layout.size, 2)
    assert shape.dtype == np.float64
    low, high = shape.min(axis=0), shape.max(axis=0)
    # Shapes are stored with four decimals.
    np.testing.assert_allclose(low + high, 0, atol=2e-4)
    assert (high - low).max() == pytest.approx(1, abs=2e-4)
    # Width 1: the mirrored x is -x.
    np.testing.assert_allclose(mirror_points(shape, layout, width=1), shape, atol=2e-4)
    mouth = layout.point_names.index("left_mouth_corner")
    assert shape[layout.pupils[0][0], 1] < shape[mouth, 1]


@every_layout
def test_tables_are_read_only_and_copies_are_the_same_object(layout: Layout) -> None:
    assert pickle.loads(pickle.dumps(layout)) is layout
    assert copy.deepcopy(layout) is layout
    for table in (layout.mean_shape, layout.mirror):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


# ------------------------------------------------------------------------------------- look-up


@pytest.mark.parametrize(
    ("layout", "aliases"),
    [
        (WFLW98, (98, "98", np.int64(98), "WFLW98", "wflw98", "wflw", "WFLW 98", WFLW98)),
        (W300_68, (68, "68", "W300_68", "w300-68", "300w", "300-W", "w300", "ibug")),
        (COFW29, (29, "29", "COFW29", "cofw", "lfpw")),
        (FIVE, (5, "5", "FIVE5", "five")),
    ],
)
def test_get_layout_accepts_sizes_names_and_aliases(layout: Layout, aliases: tuple) -> None:
    for alias in aliases:
        assert get_layout(alias) is layout


@pytest.mark.parametrize("unknown", [70, "aflw", "", None, 98.0, True])
def test_unknown_layout_is_an_error(unknown: object) -> None:
    with pytest.raises(ConfigurationError, match="98 or 'WFLW98'"):
        get_layout(unknown)  # type: ignore[arg-type]


def test_registered_layout_and_conversion_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "LAYOUTS", dict(LAYOUTS))
    monkeypatch.setattr(conversions_module, "CONVERSIONS", dict(CONVERSIONS))
    five = replace(FIVE, name="OTHER5", aliases=("other",))
    with pytest.raises(ConfigurationError, match="other"):
        get_layout("other")
    assert register_layout(five) is get_layout("other 5") is register_layout(five)
    assert get_layout(5) is FIVE
    with pytest.raises(ConfigurationError, match="OTHER5"):
        register_layout(replace(five, name="THIRD5", aliases=("Other",)))
    register_conversion(Conversion.from_tables("other", 5, {i: i for i in range(5)}))
    assert convert(FIVE.mean_shape, "other", 5)[1].all()


# -------------------------------------------------------------------------------------- mirror


@every_layout
@given(data=st.data(), width=st.integers(1, 4096))
def test_mirror_twice_is_the_identity(layout: Layout, data: st.DataObject, width: int) -> None:
    pixels = st.floats(-5000, 5000)
    points = data.draw(arrays(np.float64, (2, layout.size, 2), elements=pixels))
    original = points.copy()
    twice = mirror_points(mirror_points(points, layout, width), layout, width)
    np.testing.assert_allclose(twice, points, atol=1e-9)
    np.testing.assert_array_equal(points, original)


def test_mirror_maps_pixel_centers_onto_pixel_centers() -> None:
    points = np.zeros((5, 2), np.float32)
    points[0], points[1] = (0, 7), (639, 9)
    mirrored = mirror_points(points, FIVE, width=640)
    assert mirrored.dtype == np.float32
    assert mirrored[1].tolist() == [639, 7]
    assert mirrored[0].tolist() == [0, 9]


@pytest.mark.parametrize(
    "call",
    [
        lambda: mirror_points(random_points(WFLW98), 68, 256),
        lambda: convert(random_points(W300_68), 98, 29),
        lambda: convert(random_points(W300_68), 68, 98),
    ],
)
def test_points_of_another_layout_and_missing_conversions_are_errors(call: Callable) -> None:
    with pytest.raises(ConfigurationError, match="68"):
        call()


# --------------------------------------------------------------------------------- conversions


@every_conversion
def test_terms_are_weighted_means_of_source_points(conversion: Conversion) -> None:
    assert len(conversion.terms) == len(conversion.exact) == conversion.target.size
    for terms, exact in zip(conversion.terms, conversion.exact, strict=True):
        indices, weights = zip(*terms, strict=True)
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert min(weights) > 0
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(conversion.source.size))
        assert not exact or len(indices) == 1


@every_conversion
def test_conversion_commutes_with_mirroring(conversion: Conversion) -> None:
    source, target = conversion.source, conversion.target
    points = random_points(source, 3)
    mirrored_first, exact = convert(mirror_points(points, source, 256), source, target)
    mirrored_last = mirror_points(convert(points, source, target)[0], target, 256)
    np.testing.assert_allclose(mirrored_first, mirrored_last, atol=1e-9)
    np.testing.assert_array_equal(exact, exact[target.mirror])


@every_conversion
def test_converted_mean_shape_is_nearly_the_target_mean_shape(conversion: Conversion) -> None:
    # In parts of the inter-ocular distance. The schemes themselves and the faces of the three data
    # sets differ by up to 0.046; one point taken from the next place is off by 0.07 or more.
    source, target = conversion.source, conversion.target
    points, _ = convert(source.mean_shape, source, target)
    aligned = transform_points(similarities(points[None], target.mean_shape)[0], points)
    apart = np.linalg.norm(aligned - target.mean_shape, axis=1)
    apart /= target.interocular(target.mean_shape)
    assert apart.mean() < 0.025
    assert apart.max() < 0.05


@every_conversion
def test_exact_points_of_eyes_nose_and_lips_have_the_same_name(conversion: Conversion) -> None:
    for place in np.flatnonzero(conversion.exact):
        name = conversion.target.point_names[place]
        source_name = conversion.source.point_names[conversion.terms[place][0][0]]
        assert name == source_name or "jaw" in name or "eyebrow" in name


def test_exact_flags_of_98_to_68() -> None:
    points = random_points(WFLW98)
    converted, exact = convert(points, 98, 68)
    interpolated = {17, 18, 19, 24, 25, 26, 37, 38, 40, 41, 43, 44, 46, 47}
    interpolated |= {55, 56, 58, 59, 61, 63, 65, 67}
    assert set(np.flatnonzero(~exact)) == interpolated
    assert list(EXACT_98_68) == np.flatnonzero(exact).tolist()
    np.testing.assert_array_equal(converted[:17], points[:33:2])
    np.testing.assert_array_equal(converted[27:36], points[51:60])
    np.testing.assert_array_equal(converted[[36, 39, 42, 45]], points[[60, 64, 68, 72]])
    np.testing.assert_array_equal(converted[48:55], points[76:83])
    np.testing.assert_allclose(converted[37], 0.7 * points[61] + 0.3 * points[62])
    np.testing.assert_allclose(converted[44], 0.7 * points[71] + 0.3 * points[70])


def test_exact_flags_of_98_to_29() -> None:
    points = random_points(WFLW98)
    converted, exact = convert(points, 98, 29)
    assert set(np.flatnonzero(~exact)) == {2, 3, 18, 19}
    assert list(EXACT_98_29) == np.flatnonzero(exact).tolist()
    np.testing.assert_array_equal(converted[[0, 8, 16, 28]], points[[33, 60, 96, 16]])
    np.testing.assert_allclose(converted[3], 0.25 * points[42] + 0.75 * points[50])


def test_five_points_are_pupils_nose_tip_and_mouth_corners() -> None:
    points = random_points(W300_68)
    five, exact = convert(points, 68, 5)
    np.testing.assert_allclose(five[0], points[36:42].mean(axis=0))
    np.testing.assert_allclose(five[1], points[42:48].mean(axis=0))
    np.testing.assert_array_equal(five[2:], points[[30, 48, 54]])
    assert exact.tolist() == [False, False, True, True, True]

    wflw = random_points(WFLW98)
    np.testing.assert_array_equal(convert(wflw, 98, 5)[0], wflw[[96, 97, 54, 76, 82]])
    cofw = random_points(COFW29)
    np.testing.assert_array_equal(convert(cofw, 29, 5)[0], cofw[[16, 17, 20, 22, 23]])
    assert convert(wflw, 98, 5)[1].all()
    assert convert(cofw, 29, 5)[1].all()


def test_nan_point_affects_only_points_interpolated_from_it() -> None:
    points = random_points(WFLW98)
    points[62] = np.nan
    converted, _ = convert(points, 98, 68)
    assert set(np.flatnonzero(np.isnan(converted).any(axis=1))) == {37, 38}
