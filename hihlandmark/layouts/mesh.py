"""MESH478: the 478 vertices of MediaPipe's face mesh with irises, in two dimensions.

Vertices have the numbers of the mesh. Those that mark a point of our other layouts have its name;
the others have the number of the vertex, on the right side that of its mirror image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from itertools import chain

import numpy as np

from hihlandmark.layouts.conversions import Conversion, get_conversion, register_conversion
from hihlandmark.layouts.layout import Contour, Layout, other_side, read_only, register_layout
from hihlandmark.layouts.schemes import COFW29, FIVE, W300_68, WFLW98

VERTICES = 478
# The mirror table of the mesh, and the generalized Procrustes mean of the meshes of FairFace: the
# half that is nearest to its own mirror image, and its mirror images.
_DATA = json.loads(files(__package__).joinpath("mesh478.json").read_text("utf-8"))
MIRROR = read_only(np.array(_DATA["mirror"], np.intp))

# Lines of the mesh from the left to the right side, or from the outer to the inner end.
JAW = (
    *(127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152),
    *(377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356),
)
FOREHEAD = (162, 21, 54, 103, 67, 109, 10, 338, 297, 332, 284, 251, 389)
LEFT_BROW_UPPER = (70, 63, 105, 66, 107)
LEFT_BROW_LOWER = (46, 53, 52, 65, 55)
LEFT_UPPER_LID = (33, 246, 161, 160, 159, 158, 157, 173, 133)
LEFT_LOWER_LID = (33, 7, 163, 144, 145, 153, 154, 155, 133)
NOSE_BRIDGE = (168, 6, 197, 195, 5, 4)
NOSE_BASE = (64, 98, 97, 2, 326, 327, 294)
OUTER_UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
OUTER_LOWER_LIP = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
INNER_UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
INNER_LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
LEFT_IRIS = (468, 469, 470, 471, 472)


def mirrored(line: tuple[int, ...]) -> tuple[int, ...]:
    """The vertices of the other side, in the same order."""
    return tuple(MIRROR[list(line)].tolist())


def _ring(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Two lines with the same ends as one ring."""
    return (*one, *other[-2:0:-1])


_LEFT_BROW = (*LEFT_BROW_UPPER, *LEFT_BROW_LOWER[::-1])
_LEFT_EYE = _ring(LEFT_UPPER_LID, LEFT_LOWER_LID)
_PARTS = {
    "jaw": JAW,
    "forehead": FOREHEAD,
    "left_eyebrow": _LEFT_BROW,
    "right_eyebrow": mirrored(_LEFT_BROW),
    "nose_bridge": NOSE_BRIDGE,
    "nose_base": NOSE_BASE,
    "left_eye": _LEFT_EYE,
    "right_eye": mirrored(_LEFT_EYE),
    "outer_lips": _ring(OUTER_UPPER_LIP, OUTER_LOWER_LIP),
    "inner_lips": _ring(INNER_UPPER_LIP, INNER_LOWER_LIP),
    "left_iris": LEFT_IRIS,
    "right_iris": mirrored(LEFT_IRIS),
}
_ON_LINES = set(chain(*_PARTS.values()))
_PARTS["skin"] = tuple(vertex for vertex in range(VERTICES) if vertex not in _ON_LINES)

# Names of points on the left side and in the middle; the right side has the mirrored names.
_NAMED = {
    152: "chin",
    70: "left_eyebrow_outer_end",
    107: "left_eyebrow_inner_end",
    105: "left_eyebrow_upper_middle",
    52: "left_eyebrow_lower_middle",
    168: "nose_bridge_top",
    4: "nose_tip",
    2: "nose_base_middle",
    33: "left_eye_outer_corner",
    133: "left_eye_inner_corner",
    159: "left_eye_upper_lid_middle",
    145: "left_eye_lower_lid_middle",
    61: "left_mouth_corner",
    0: "outer_upper_lip_middle",
    17: "outer_lower_lip_middle",
    78: "left_inner_mouth_corner",
    13: "inner_upper_lip_middle",
    14: "inner_lower_lip_middle",
    468: "left_iris_center",
    469: "left_iris_inner",
    470: "left_iris_top",
    471: "left_iris_outer",
    472: "left_iris_bottom",
}


def _names(shape: np.ndarray) -> tuple[str, ...]:
    names = dict(_NAMED)
    for vertex in range(VERTICES):
        twin = int(MIRROR[vertex])
        if vertex == twin:
            names.setdefault(vertex, f"vertex_{vertex}")
        elif shape[vertex, 0] < 0:
            names.setdefault(vertex, f"left_vertex_{vertex}")
            names[twin] = other_side(names[vertex])
    return tuple(names[vertex] for vertex in range(VERTICES))


_SHAPE = read_only(np.array(_DATA["mean_shape"], np.float64))
_OPEN = ("jaw", "forehead", "nose_bridge", "nose_base")
MESH478 = Layout(
    name="MESH478",
    aliases=("mesh", "mediapipe"),
    point_names=_names(_SHAPE),
    parts=_PARTS,
    contours=tuple(
        Contour(
            tuple(part[1:] if "iris" in name else part),  # a ring without its center
            closed=name not in _OPEN,
        )
        for name, part in _PARTS.items()
        if name != "skin"
    ),
    ocular_pair=(33, 263),
    pupils=((468,), (473,)),
    mean_shape=_SHAPE,
)
register_layout(MESH478)

# Conversions: by the vertices that are usually published for the points, and by equal steps along
# the lines of the mesh, measured on the mean shape. Manual templates of the London and Canada sets
# of webmorphR.stim (CC-BY-4.0) agree with lids and lips within 1 % of the inter-ocular distance.
# They tell how far the jaw lies outside of that of the mesh, and where on the outer lips and on the
# base of the nose the points lie.
Vertex = int | dict[int, float]
"""A vertex, or vertices with their weights."""
JAW_BEYOND = 0.029
"""Share of the way from the nose's base by which an annotated jaw lies beyond that of the mesh."""
_NOSE_BASE_MIDDLE = 2


def along(line: tuple[int, ...], fractions: Iterable[float]) -> list[dict[int, float]]:
    """Points at fractions (0..1) of the length of a line: each as its vertices and weights."""
    lengths = np.linalg.norm(np.diff(_SHAPE[list(line)], axis=0), axis=-1)
    ends = np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum()
    found = []
    for fraction in fractions:
        number = int(np.clip(np.searchsorted(ends, fraction) - 1, 0, len(line) - 2))
        share = float((fraction - ends[number]) / (ends[number + 1] - ends[number]))
        weights = {line[number]: round(1 - share, 4), line[number + 1]: round(share, 4)}
        found.append({vertex: weight for vertex, weight in weights.items() if weight})
    return found


def _jaw(count: int) -> list[dict[int, float]]:
    """The first ``count`` points of a jaw in equal steps, from the left ear to the chin."""
    return [
        {vertex: weight * (1 + JAW_BEYOND) for vertex, weight in point.items()}
        | {_NOSE_BASE_MIDDLE: -JAW_BEYOND}
        for point in along(JAW[: len(JAW) // 2 + 1], np.linspace(0, 1, count))
    ]


def _at(first: int, points: Iterable[Vertex]) -> dict[int, dict[int, float]]:
    """Points, given as vertices or as weights, by their indices from ``first`` on."""
    weights = (p if isinstance(p, dict) else {p: 1.0} for p in points)
    return dict(enumerate(weights, first))


_NOSE: tuple[Vertex, ...] = (*along(NOSE_BRIDGE, np.linspace(0, 1, 4)), {98: 0.57, 97: 0.43}, 97, 2)
_BROW: list[Vertex] = [*along(LEFT_BROW_UPPER, np.linspace(0, 1, 5))]
_OUTER_UPPER_LIP: tuple[Vertex, ...] = (61, {40: 0.31, 39: 0.69}, 37, 0)
_OUTER_LOWER_LIP: tuple[Vertex, ...] = (17, {181: 0.28, 84: 0.72}, {91: 0.72, 181: 0.28})
_QUARTERS = (0.25, 0.5, 0.75)
_TABLES = {
    W300_68: {
        **_at(0, _jaw(9)),
        **_at(17, _BROW),
        **_at(27, _NOSE),
        **_at(36, (33, 160, 158, 133, 153, 144)),
        **_at(48, _OUTER_UPPER_LIP),
        **_at(57, _OUTER_LOWER_LIP),
        **_at(60, (78, 82, 13)),
        **_at(66, (14, 87)),
    },
    WFLW98: {
        **_at(0, _jaw(17)),
        **_at(33, (*_BROW, 55, 65, 52, 53)),
        **_at(51, _NOSE),
        **_at(60, (33, *along(LEFT_UPPER_LID, _QUARTERS), 133)),
        **_at(65, reversed(along(LEFT_LOWER_LID, _QUARTERS))),
        **_at(76, _OUTER_UPPER_LIP),
        **_at(85, _OUTER_LOWER_LIP),
        **_at(88, (78, *along(INNER_UPPER_LIP, _QUARTERS[:2]))),
        **_at(94, reversed(along(INNER_LOWER_LIP, _QUARTERS[:2]))),
        96: {468: 1.0},
    },
}
for _target, _table in _TABLES.items():
    register_conversion(Conversion.from_tables(MESH478, _target, {}, _table))
for _target in (COFW29, FIVE):
    register_conversion(
        get_conversion(MESH478, WFLW98).followed_by(get_conversion(WFLW98, _target))
    )
