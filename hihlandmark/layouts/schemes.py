"""The layouts of WFLW, 300-W and COFW, and five points, as data."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import accumulate, chain

import numpy as np

from hihlandmark.layouts.layout import Contour, Layout, other_side, read_only, register_layout


def _named(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}_{name}" for name in names.split())


def _paired(*names: str) -> tuple[str, ...]:
    """Each name for the left, then for the right side: the order of COFW."""
    return tuple(f"{side}_{name}" for name in names for side in ("left", "right"))


def _jaw(half: int) -> tuple[str, ...]:
    """``half`` points down the left side, the chin, ``half`` points up the right side."""
    left = tuple(f"left_jaw_{number}" for number in range(1, half + 1))
    return (*left, "chin", *map(other_side, reversed(left)))


def _both_sides(part: str, names: str, inner_end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of a line around the left and around the right eye or brow.

    The left one starts at its outer end and comes over the top to ``inner_end``; the right one
    starts at its inner end and also comes over the top, so it runs in the opposite direction.
    """
    left, right = _named(f"left_{part}", names), _named(f"right_{part}", names)
    return left, (*right[inner_end::-1], *right[:inner_end:-1])


_BROWS_OF_98 = _both_sides(
    "eyebrow",
    "outer_end upper_outer upper_middle upper_inner inner_end_upper "
    "inner_end_lower lower_inner lower_middle lower_outer",
    inner_end=4,
)
_BROWS_OF_68 = _both_sides("eyebrow", "outer_end outer middle inner inner_end", inner_end=4)
_EYES_OF_98 = _both_sides(
    "eye",
    "outer_corner upper_lid_outer upper_lid_middle upper_lid_inner "
    "inner_corner lower_lid_inner lower_lid_middle lower_lid_outer",
    inner_end=4,
)
_EYES_OF_68 = _both_sides(
    "eye",
    "outer_corner upper_lid_outer upper_lid_inner inner_corner lower_lid_inner lower_lid_outer",
    inner_end=3,
)
# Nose, lips, and the order of the parts are the same in WFLW and 300-W.
_NOSE = (
    "nose_bridge_top nose_bridge_upper nose_bridge_lower nose_tip left_nose_base_outer "
    "left_nose_base_inner nose_base_middle right_nose_base_inner right_nose_base_outer"
)
_LIPS = (
    "left_mouth_corner left_outer_upper_lip_outer left_outer_upper_lip_inner "
    "outer_upper_lip_middle right_outer_upper_lip_inner right_outer_upper_lip_outer "
    "right_mouth_corner right_outer_lower_lip_outer right_outer_lower_lip_inner "
    "outer_lower_lip_middle left_outer_lower_lip_inner left_outer_lower_lip_outer "
    "left_inner_mouth_corner left_inner_upper_lip inner_upper_lip_middle right_inner_upper_lip "
    "right_inner_mouth_corner right_inner_lower_lip inner_lower_lip_middle left_inner_lower_lip"
)
_PARTS = (
    "jaw left_eyebrow right_eyebrow nose_bridge nose_base left_eye right_eye "
    "outer_lips inner_lips left_pupil right_pupil"
)


def _parts(*sizes: int) -> dict[str, tuple[int, ...]]:
    """Parts that are consecutive runs of ``sizes`` points."""
    runs = zip(_PARTS.split(), sizes, accumulate(sizes), strict=False)
    return {name: tuple(range(end - size, end)) for name, size, end in runs}


def _contours(parts: dict[str, tuple[int, ...]], open_lines: str) -> tuple[Contour, ...]:
    """A line through each part of several points."""
    return tuple(
        Contour(indices, closed=name not in open_lines.split())
        for name, indices in parts.items()
        if len(indices) > 1
    )


# Generalized Procrustes means of the training faces of 300-W (without IBUG), of WFLW, and of LFPW
# with 29 points: of each set, the half that is nearest to its own mirror image (the frontal faces)
# and its mirror images. FIVE5 follows from WFLW98.
_SHAPES_FILE = files(__package__).joinpath("mean_shapes.json")
_MEAN_SHAPES = {
    name: read_only(np.array(shape, np.float64))
    for name, shape in json.loads(_SHAPES_FILE.read_text("utf-8")).items()
}

_PARTS_OF_98 = _parts(33, 9, 9, 4, 5, 8, 8, 12, 8, 1, 1)
WFLW98 = Layout(
    name="WFLW98",
    aliases=("wflw",),
    point_names=(
        *_jaw(16),
        *chain(*_BROWS_OF_98),
        *_NOSE.split(),
        *chain(*_EYES_OF_98),
        *_LIPS.split(),
        *_paired("pupil"),
    ),
    parts=_PARTS_OF_98,
    contours=_contours(_PARTS_OF_98, "jaw nose_bridge nose_base"),
    ocular_pair=(60, 72),
    pupils=((96,), (97,)),
    mean_shape=_MEAN_SHAPES["WFLW98"],
)

_PARTS_OF_68 = _parts(17, 5, 5, 4, 5, 6, 6, 12, 8)
W300_68 = Layout(
    name="W300_68",
    aliases=("w300", "300w", "ibug"),
    point_names=(
        *_jaw(8),
        *chain(*_BROWS_OF_68),
        *_NOSE.split(),
        *chain(*_EYES_OF_68),
        *_LIPS.split(),
    ),
    parts=_PARTS_OF_68,
    contours=_contours(_PARTS_OF_68, "jaw left_eyebrow right_eyebrow nose_bridge nose_base"),
    ocular_pair=(36, 45),
    pupils=(_PARTS_OF_68["left_eye"], _PARTS_OF_68["right_eye"]),
    mean_shape=_MEAN_SHAPES["W300_68"],
)

COFW29 = Layout(
    name="COFW29",
    aliases=("cofw", "lfpw"),
    point_names=(
        *_paired("eyebrow_outer_end", "eyebrow_inner_end"),
        *_named("left_eyebrow", "upper_middle lower_middle"),
        *_named("right_eyebrow", "upper_middle lower_middle"),
        *_paired("eye_outer_corner", "eye_inner_corner"),
        *_named("left_eye", "upper_lid_middle lower_lid_middle"),
        *_named("right_eye", "upper_lid_middle lower_lid_middle"),
        *_paired("pupil", "nose_wing"),
        *_named("nose", "tip base_middle"),
        *_paired("mouth_corner"),
        "outer_upper_lip_middle",
        *_named("inner", "upper_lip_middle lower_lip_middle"),
        "outer_lower_lip_middle",
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
        # Not closed in the released table.
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
    parts={"nose_bridge": (2,), "outer_lips": (3, 4), "left_pupil": (0,), "right_pupil": (1,)},
    contours=(),
    ocular_pair=(0, 1),
    pupils=((0,), (1,)),
    mean_shape=_MEAN_SHAPES["FIVE5"],
)

for _layout in (WFLW98, W300_68, COFW29, FIVE):
    register_layout(_layout)
