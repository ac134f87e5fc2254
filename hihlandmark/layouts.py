"""The landmark layouts: names, parts, contours, mirror pairs, mean shapes, conversions."""
from __future__ import annotations
from dataclasses import dataclass

# 98 -> 68: i-th entry is the WFLW point that is the same point as i of 300-W; None: interpolated.
_JAW = list(range(0, 33, 2))
EXACT_98_68 = {i: 2 * i for i in range(17)}
EXACT_98_68 |= {17+i: 33+i for i in range(5)}  # brows upper edge
EXACT_98_68 |= {22+i: 42+i for i in range(5)}
EXACT_98_68 |= {27+i: 51+i for i in range(9)}
EXACT_98_68 |= {36: 60, 39: 64, 42: 68, 45: 72}
EXACT_98_68 |= {48+i: 76+i for i in range(12)}
EXACT_98_68 |= {60+i: 88+i for i in range(8)}
EXACT_98_29 = dict(zip(range(29), [33,46,37,42,35,None,44,None,60,72,64,68,62,66,70,74,96,97,55,59,54,57,76,82,79,90,94,85,16]))
EXACT_98_29 = {k: v for k, v in EXACT_98_29.items() if v is not None}
