"""The layouts' tables agree with one another, and conversions put points where they belong."""

from __future__ import annotations

import ast
import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hihlandmark import layouts
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
    get_conversion,
    get_layout,
    mirror_points,
)

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=repr)
every_conversion = pytest.mark.parametrize(
    "conversion", CONVERSIONS.values(), ids=lambda c: f"{c.source.size}-{c.target.size}"
)


def random_points(layout: Layout, *leading: int) -> NDArray[np.floating]:
    return np.random.default_rng(layout.size).uniform(0, 256, (*leading, layout.size, 2))


def distance(points: NDArray[np.floating], pair: tuple[int, int]) -> float:
    return float(np.linalg.norm(points[pair[0]] - points[pair[1]]))


def distances_after_alignment(
    points: NDArray[np.floating], onto: NDArray[np.floating]
) -> NDArray[np.floating]:
    """(P,) distances left after the similarity transform that brings the points nearest."""
    moving, still = points @ (1, 1j), onto @ (1, 1j)
    moving, still = moving - moving.mean(), still - still.mean()
    return np.abs(moving * np.vdot(moving, still) / np.vdot(moving, moving) - still)


# -------------------------------------------------------------------------------------- layouts


def test_layouts_have_the_sizes_of_their_schemes() -> None:
    assert [layout.size for layout in LAYOUTS.values()] == [98, 68, 29, 5]
    assert list(LAYOUTS) == ["WFLW98", "W300_68", "COFW29", "FIVE5"]


@every_layout
def test_point_names_are_unique_snake_case(layout: Layout) -> None:
    assert len(set(layout.point_names)) == layout.size
    assert all(name.isidentifier() and name.islower() for name in layout.point_names)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (
            WFLW98,
            {
                **{0: "left_jaw_1", 16: "chin", 32: "right_jaw_1", 33: "left_eyebrow_outer_end"},
                **{46: "right_eyebrow_outer_end", 50: "right_eyebrow_inner_end_lower"},
                **{54: "nose_tip", 60: "left_eye_outer_corner", 66: "left_eye_lower_lid_middle"},
                **{68: "right_eye_inner_corner", 72: "right_eye_outer_corner"},
                **{82: "right_mouth_corner", 85: "outer_lower_lip_middle", 97: "right_pupil"},
            },
        ),
        (
            W300_68,
            {
                **{8: "chin", 17: "left_eyebrow_outer_end", 26: "right_eyebrow_outer_end"},
                **{30: "nose_tip", 36: "left_eye_outer_corner", 39: "left_eye_inner_corner"},
                **{42: "right_eye_inner_corner", 45: "right_eye_outer_corner"},
                **{48: "left_mouth_corner", 57: "outer_lower_lip_middle"},
            },
        ),
        (
            COFW29,
            {
                **{1: "right_eyebrow_outer_end", 5: "left_eyebrow_lower_middle"},
                **{10: "left_eye_inner_corner", 14: "right_eye_upper_lid_middle"},
                **{16: "left_pupil", 20: "nose_tip", 28: "chin"},
            },
        ),
    ],
)
def test_names_are_at_the_published_places(layout: Layout, names: dict[int, str]) -> None:
    assert {i: layout.point_names[i] for i in names} == names


@every_layout
def test_left_of_every_name_is_left_of_its_partner_in_the_picture(layout: Layout) -> None:
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
    for part, indices in layout.parts.items():
        assert set(layout.mirror[list(indices)]) == set(layout.parts[other_side(part)])


@every_layout
def test_mirror_pairs_are_the_points_that_change_places(layout: Layout) -> None:
    rebuilt = np.arange(layout.size)
    for i, j in layout.mirror_pairs:
        assert i < j
        rebuilt[[i, j]] = j, i
    np.testing.assert_array_equal(rebuilt, layout.mirror)


def test_known_mirror_pairs() -> None:
    assert {(0, 32), (33, 46), (38, 50), (60, 72), (61, 71), (67, 73), (96, 97)} <= set(
        WFLW98.mirror_pairs
    )
    assert {(0, 16), (17, 26), (36, 45), (41, 46), (48, 54), (65, 67)} <= set(W300_68.mirror_pairs)
    assert {(0, 1), (4, 6), (5, 7), (12, 14), (13, 15)} <= set(COFW29.mirror_pairs)


@every_layout
def test_parts_cover_every_point_once(layout: Layout) -> None:
    assert sorted(i for part in layout.parts.values() for i in part) == list(range(layout.size))


@every_layout
def test_contours_are_symmetric_lines_that_leave_only_lone_points_out(layout: Layout) -> None:
    edges, drawn = set(), set()
    for indices, closed in layout.contours:
        drawn |= set(indices)
        ends = [*indices[1:], indices[0]] if closed else indices[1:]
        edges |= {frozenset(edge) for edge in zip(indices, ends, strict=False)}
    assert {frozenset(int(layout.mirror[i]) for i in edge) for edge in edges} == edges
    lone = {i for part in layout.parts.values() if len(part) == 1 for i in part}
    assert layout is FIVE or set(range(layout.size)) - lone <= drawn


@every_layout
def test_normalizing_points_are_those_of_the_two_eyes(layout: Layout) -> None:
    left, right = layout.ocular_pair
    assert layout.mirror[left] == right
    assert set(layout.mirror[list(layout.pupils[0])]) == set(layout.pupils[1])
    shape = layout.mean_shape
    between_pupils = np.subtract(*(shape[list(p)].mean(axis=0) for p in layout.pupils))
    assert between_pupils[0] < 0
    if layout is not FIVE:
        assert layout.point_names[left] == "left_eye_outer_corner"
        # Pupils are about two thirds as far apart as the outer eye corners in every scheme.
        assert -between_pupils[0] / distance(shape, (left, right)) == pytest.approx(0.7, abs=0.04)


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
def test_tables_are_read_only(layout: Layout) -> None:
    for table in (layout.mean_shape, layout.mirror):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@every_layout
def test_copies_and_pickles_are_the_same_object(layout: Layout) -> None:
    assert pickle.loads(pickle.dumps(layout)) is layout
    assert copy.deepcopy(layout) is layout


def test_layouts_import_neither_torch_nor_the_rest_of_the_package() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(layouts.__file__).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    outside = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert outside == {"numpy", "numpy.typing", "hihlandmark.errors"}


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
def test_get_layout_takes_sizes_names_and_aliases(layout: Layout, aliases: tuple) -> None:
    for alias in aliases:
        assert get_layout(alias) is layout


@pytest.mark.parametrize("unknown", [70, "aflw", "", None, 98.0, True])
def test_get_layout_lists_the_choices(unknown: object) -> None:
    with pytest.raises(ConfigurationError, match="Unknown layout") as error:
        get_layout(unknown)  # type: ignore[arg-type]
    assert repr(unknown) in str(error.value)
    assert all(f"{each.size} or '{each.name}'" in str(error.value) for each in LAYOUTS.values())


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


def test_mirror_refuses_points_of_another_layout() -> None:
    with pytest.raises(ConfigurationError, match=r"W300_68 needs .*68, 2\), got \(98, 2\)"):
        mirror_points(random_points(WFLW98), 68, 256)


# --------------------------------------------------------------------------------- conversions


def test_the_promised_conversions_exist() -> None:
    available = {(source.size, target.size) for source, target in CONVERSIONS}
    assert available >= {(98, 68), (98, 29), (68, 5), (98, 5), (29, 5)}


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
def test_matrix_converts_like_the_terms(conversion: Conversion) -> None:
    assert get_conversion(conversion.source.size, conversion.target.name) is conversion
    points = random_points(conversion.source)
    np.testing.assert_allclose(conversion.matrix @ points, conversion(points), atol=1e-9)


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
    apart = distances_after_alignment(points, target.mean_shape)
    apart /= distance(target.mean_shape, target.ocular_pair)
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


@every_layout
def test_conversion_to_the_same_layout_is_a_copy(layout: Layout) -> None:
    points = random_points(layout, 2)
    same, exact = convert(points, layout, layout.size)
    np.testing.assert_array_equal(same, points)
    assert exact.shape == (layout.size,)
    assert exact.all()
    assert not np.shares_memory(same, points)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,)])
def test_conversion_keeps_leading_axes_and_float_type(leading: tuple[int, ...]) -> None:
    points = random_points(WFLW98, *leading).astype(np.float32)
    converted, exact = convert(points, "wflw", "300w")
    assert converted.shape == (*leading, 68, 2)
    assert converted.dtype == np.float32
    assert exact.shape == (68,)
    assert convert(points.astype(int), 98, 29)[0].dtype == np.float64


def test_an_unknown_point_spoils_only_the_points_made_from_it() -> None:
    points = random_points(WFLW98)
    points[62] = np.nan
    converted, _ = convert(points, 98, 68)
    assert set(np.flatnonzero(np.isnan(converted).any(axis=1))) == {37, 38}


def test_missing_conversion_names_the_available_ones() -> None:
    with pytest.raises(ConfigurationError, match="W300_68 cannot be converted to WFLW98") as error:
        convert(random_points(W300_68), 68, 98)
    assert "WFLW98 -> W300_68, WFLW98 -> COFW29, W300_68 -> FIVE5" in str(error.value)


def test_conversion_refuses_points_of_another_layout() -> None:
    with pytest.raises(ConfigurationError, match=r"WFLW98 needs .*98, 2\), got \(68, 2\)"):
        convert(random_points(W300_68), 98, 29)


def test_exact_tables_hold_the_exact_points_only() -> None:
    assert len(EXACT_98_68) == 46
    assert EXACT_98_68[8] == 16
    assert 37 not in EXACT_98_68
    assert len(EXACT_98_29) == 25
    assert EXACT_98_29[28] == 16
