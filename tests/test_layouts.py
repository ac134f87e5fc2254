"""Layout tables are consistent, and conversions map points to the right places."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

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
    MESH478,
    W300_68,
    WFLW98,
    Conversion,
    Layout,
    convert,
    get_conversion,
    get_layout,
    mirror_points,
    register_conversion,
    register_layout,
)
from hihlandmark.layouts import conversions as conversions_module
from hihlandmark.layouts import layout as layout_module
from hihlandmark.layouts.layout import other_side
from hihlandmark.layouts.mesh import JAW_BEYOND

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=repr)
every_conversion = pytest.mark.parametrize(
    "conversion", CONVERSIONS.values(), ids=lambda c: f"{c.source.size}-{c.target.size}"
)


def random_points(layout: Layout, *leading: int) -> NDArray[np.floating]:
    return np.random.default_rng(layout.size).uniform(0, 256, (*leading, layout.size, 2))


# -------------------------------------------------------------------------------------- layouts


@every_layout
def test_point_names_are_unique_snake_case_and_parts_cover_every_point_once(layout: Layout) -> None:
    assert len(set(layout.point_names)) == layout.size
    assert all(name.isidentifier() and name.islower() for name in layout.point_names)
    assert sorted(i for part in layout.parts.values() for i in part) == list(range(layout.size))


@pytest.mark.parametrize(
    ("size", "indices", "names"),
    [
        (98, (16, 32, 33), "chin right_jaw_1 left_eyebrow_outer_end"),
        (98, (50, 54, 60), "right_eyebrow_inner_end_lower nose_tip left_eye_outer_corner"),
        (98, (68, 85, 97), "right_eye_inner_corner outer_lower_lip_middle right_pupil"),
        (68, (8, 26, 30), "chin right_eyebrow_outer_end nose_tip"),
        (68, (39, 45, 48), "left_eye_inner_corner right_eye_outer_corner left_mouth_corner"),
        (29, (5, 14, 20), "left_eyebrow_lower_middle right_eye_upper_lid_middle nose_tip"),
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
    names = layout.point_names
    assert [names[i] for i in layout.mirror] == [other_side(name) for name in names]
    assert layout.mirror_pairs == tuple((i, j) for i, j in enumerate(layout.mirror) if i < j)
    for part, indices in layout.parts.items():
        assert set(layout.mirror[list(indices)]) == set(layout.parts[other_side(part)])


@every_layout
def test_contours_are_symmetric_and_hold_all_points_but_single_ones(layout: Layout) -> None:
    edges, drawn = set(), set()
    for indices, closed in layout.contours:
        drawn |= set(indices)
        ends = [*indices[1:], indices[0]] if closed else indices[1:]
        edges |= {frozenset(edge) for edge in zip(indices, ends, strict=False)}
    assert {frozenset(int(layout.mirror[i]) for i in edge) for edge in edges} == edges
    single = {i for part in layout.parts.values() if len(part) == 1 for i in part}
    if layout is MESH478:
        single = {*layout.parts["skin"], *chain(*layout.pupils)}
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


@every_layout
def test_get_layout_accepts_sizes_names_and_aliases(layout: Layout) -> None:
    for name in (layout, layout.size, np.int64(layout.size), layout.name, *layout.aliases):
        assert get_layout(name) is layout
    assert get_layout("wflw 98") is WFLW98
    assert get_layout("300-W") is get_layout("w300-68") is W300_68


@pytest.mark.parametrize("unknown", [70, "aflw", "", None, 98.0])
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
    points = np.array([(0, 7), (639, 9), (0, 0), (0, 0), (0, 0)], np.float32)
    mirrored = mirror_points(points, FIVE, width=640)
    assert mirrored.dtype == np.float32
    assert mirrored[:2].tolist() == [[0, 9], [639, 7]]


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
    assert conversion.matrix.shape == (conversion.target.size, conversion.source.size)
    # The jaw of annotators lies beyond that of the mesh.
    smallest = -JAW_BEYOND if conversion.source is MESH478 else 0
    assert conversion.matrix.min() >= smallest
    np.testing.assert_allclose(conversion.matrix.sum(axis=1), 1, atol=1e-12)
    assert (conversion.matrix[conversion.exact].max(axis=1, initial=1) == 1).all()


def test_stated_points_of_a_conversion_go_before_mirrored_ones() -> None:
    right = {42: 0.5, 45: 0.5}
    stated = Conversion.from_tables(W300_68, FIVE, {2: 30}, {0: {36: 1.0}, 1: right, 3: {48: 1.0}})
    exact = Conversion.from_tables(W300_68, FIVE, {0: 36, 2: 30}, {1: right, 3: {48: 1.0}})
    for conversion in (stated, exact):
        assert conversion.terms[:2] == (((36, 1.0),), tuple(right.items()))
        assert conversion.terms[4] == ((54, 1.0),), "the mirror image of a stated point"
    assert exact.exact.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("name", "other"),
    [("left_eye_left", "right_eye_right"), ("cleft_chin", "cleft_chin"), ("left2", "right2")],
)
def test_left_and_right_are_swapped_as_words(name: str, other: str) -> None:
    assert other_side(name) == other


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
    # sets differ by up to 0.046; one point taken from the next place is off by 0.07 or more. The
    # mesh has other faces and another idea of where a jaw begins.
    source, target = conversion.source, conversion.target
    points, _ = convert(source.mean_shape, source, target)
    aligned = transform_points(similarities(points[None], target.mean_shape)[0], points)
    apart = np.linalg.norm(aligned - target.mean_shape, axis=1)
    apart /= target.interocular(target.mean_shape)
    assert apart.mean() < 0.03
    assert apart.max() < (0.08 if source is MESH478 else 0.05)


@pytest.mark.parametrize(
    ("target", "table", "interpolated"),
    [
        (68, EXACT_98_68, "17 18 19 24 25 26 37 38 40 41 43 44 46 47 55 56 58 59 61 63 65 67"),
        (29, EXACT_98_29, "2 3 18 19"),
    ],
)
def test_exact_points_are_copied(target: int, table: dict[int, int], interpolated: str) -> None:
    points = random_points(WFLW98)
    converted, exact = convert(points, 98, target)
    assert np.flatnonzero(~exact).tolist() == [int(i) for i in interpolated.split()]
    assert list(table) == np.flatnonzero(exact).tolist()
    np.testing.assert_array_equal(converted[exact], points[list(table.values())])


def test_interpolated_points_are_weighted_means() -> None:
    points = random_points(WFLW98)
    converted, _ = convert(points, 98, 68)
    np.testing.assert_allclose(converted[37], 0.7 * points[61] + 0.3 * points[62])
    np.testing.assert_allclose(converted[44], 0.7 * points[71] + 0.3 * points[70])
    np.testing.assert_allclose(convert(points, 98, 29)[0][3], 0.25 * points[42] + 0.75 * points[50])


def test_five_points_are_pupils_nose_tip_and_mouth_corners() -> None:
    points = random_points(W300_68)
    five, exact = convert(points, 68, 5)
    np.testing.assert_allclose(five[0], points[36:42].mean(axis=0))
    np.testing.assert_allclose(five[1], points[42:48].mean(axis=0))
    np.testing.assert_array_equal(five[2:], points[[30, 48, 54]])
    assert exact.tolist() == [False, False, True, True, True]

    wflw, cofw = random_points(WFLW98), random_points(COFW29)
    np.testing.assert_array_equal(convert(wflw, 98, 5)[0], wflw[[96, 97, 54, 76, 82]])
    np.testing.assert_array_equal(convert(cofw, 29, 5)[0], cofw[[16, 17, 20, 22, 23]])
    assert convert(wflw, 98, 5)[1].all()
    assert convert(cofw, 29, 5)[1].all()


def test_nan_point_affects_only_points_interpolated_from_it() -> None:
    points = random_points(WFLW98)
    points[62] = np.nan
    converted, _ = convert(points, 98, 68)
    assert set(np.flatnonzero(np.isnan(converted).any(axis=1))) == {37, 38}


def test_mesh_follows_to_all_layouts_and_everything_in_it_is_approximate() -> None:
    for target in (W300_68, WFLW98, COFW29, FIVE):
        points, exact = convert(MESH478.mean_shape, MESH478, target)
        assert points.shape == (target.size, 2)
        assert not exact.any()
    pupils, _ = convert(MESH478.mean_shape, MESH478, WFLW98)
    np.testing.assert_array_equal(pupils[[96, 97]], MESH478.mean_shape[[468, 473]])


def test_followed_by_is_one_conversion_after_the_other() -> None:
    points = random_points(WFLW98)
    both = get_conversion(WFLW98, W300_68).followed_by(get_conversion(W300_68, FIVE))
    in_turn = convert(convert(points, WFLW98, W300_68)[0], W300_68, FIVE)[0]
    np.testing.assert_allclose(both(points), in_turn)
    assert both.exact.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "98"}, "numbers name layouts"),
        ({"point_names": ("tip", "tip", *FIVE.point_names[2:])}, "the same name"),
        (
            {"point_names": ("left_a", "right_b", *FIVE.point_names[2:])},
            "no mirror image 'right_a'",
        ),
        ({"parts": {"nose_bridge": (2, 5)}}, r"name \[5\]"),
        ({"contours": (layout_module.Contour((0, 9), False),)}, r"name \[9\]"),
        ({"pupils": ((7,), (1,))}, r"name \[7\]"),
        ({"mean_shape": np.zeros((2, 2))}, r"shape \(2, 2\), not \(5, 2\)"),
        ({"mirror_table": (0, 1, 2, 3, 3)}, "no permutation"),
        ({"mirror_table": (0, 1, 2)}, "no permutation"),
        ({"mirror_table": (1, 2, 0, 3, 4)}, "its own inverse"),
    ],
)
def test_a_layout_that_contradicts_itself_is_not_registered(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        register_layout(replace(FIVE, **{"name": "OWN5", "aliases": (), **changes}))
    assert "OWN5" not in LAYOUTS


@pytest.mark.parametrize(
    ("exact", "interpolated", "message"),
    [
        ({0: 36, 1: 45, 2: 30}, {}, r"\[3, 4\] are neither"),
        ({0: 36, 1: 45, 2: 99}, {3: {48: 1.0}}, r"name \[99\]"),
        ({0: 36, 1: 45, 2: 30, 7: 1}, {3: {48: 1.0}}, r"name \[7\]"),
        ({0: 36, 1: 45, 2: 30}, {3: {48: 1.0}, 4: {70: 1.0}}, r"name \[70\]"),
        ({0: 36, 1: 45, 2: 30}, {3: {48: 1.0, 49: 1.0}}, "do not add up to 1"),
    ],
)
def test_a_conversion_names_every_point_of_its_target_and_no_others(
    exact: dict[int, int], interpolated: dict[int, dict[int, float]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Conversion.from_tables(W300_68, FIVE, exact, interpolated)
