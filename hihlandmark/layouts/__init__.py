"""Landmark layouts: point names, parts, contours, mirror pairs, and conversions."""

from hihlandmark.layouts.layout import (
    COFW29,
    CONVERSIONS,
    EXACT_98_29,
    EXACT_98_68,
    FIVE,
    LAYOUTS,
    W300_68,
    WFLW98,
    Contour,
    Conversion,
    Layout,
    convert,
    get_conversion,
    get_layout,
    mirror_points,
)

__all__ = [
    "COFW29",
    "CONVERSIONS",
    "EXACT_98_29",
    "EXACT_98_68",
    "FIVE",
    "LAYOUTS",
    "W300_68",
    "WFLW98",
    "Contour",
    "Conversion",
    "Layout",
    "convert",
    "get_conversion",
    "get_layout",
    "mirror_points",
]
