"""Landmark layouts: point names, parts, contours, mirror pairs, and conversions."""

from hihlandmark.layouts.conversions import (
    CONVERSIONS,
    EXACT_98_29,
    EXACT_98_68,
    Conversion,
    convert,
    get_conversion,
    register_conversion,
)
from hihlandmark.layouts.layout import (
    BUILT_IN,
    LAYOUTS,
    Contour,
    Layout,
    find_or_register,
    get_layout,
    mirror_points,
    register_layout,
)
from hihlandmark.layouts.mesh import MESH478
from hihlandmark.layouts.schemes import COFW29, FIVE, W300_68, WFLW98

BUILT_IN.update(LAYOUTS)

__all__ = [
    "COFW29",
    "CONVERSIONS",
    "EXACT_98_29",
    "EXACT_98_68",
    "FIVE",
    "LAYOUTS",
    "MESH478",
    "W300_68",
    "WFLW98",
    "Contour",
    "Conversion",
    "Layout",
    "convert",
    "find_or_register",
    "get_conversion",
    "get_layout",
    "mirror_points",
    "register_conversion",
    "register_layout",
]
