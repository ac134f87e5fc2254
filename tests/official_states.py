"""State dicts as the official implementations write them: names and shapes, filled at random.

The names and shapes are those of ``data/*_golden.npz``; see ``test_official.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.layouts import get_layout

Shapes = Mapping[str, tuple[int, ...]]

# How names tell a stack, and the layers that merge it into the backbone, which the last one lacks.
STACK = {
    "hih": (r"hg(\d)", r"$^"),
    "adnet": (r"(?:hgs|features|out_\w+)\.(\d)", r"merge_\w+\.(\d)"),
    "awing": (r"(?:m|top_m_|conv_last|bn_end|l)(\d)", r"[ab]l(\d)"),
}


class RandomStream:
    """Uniform numbers from the raw bits of PCG64, which every release of NumPy draws alike."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def between(self, low: float, high: float, shape: tuple[int, ...]) -> torch.Tensor:
        raw = self.bits.random_raw(int(np.prod(shape, dtype=int)))
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy((low + (high - low) * unit).astype(np.float32).reshape(shape))


def official_weights(shapes: Shapes, seed: int = 2104, gain: float = 1) -> dict[str, torch.Tensor]:
    """Random weights under official names, drawn in the names' order, that keep outputs near 1."""
    stream = RandomStream(seed)
    weights = {}
    for name in sorted(shapes):
        shape, layer = shapes[name], name.rpartition(".")[2]
        if layer == "num_batches_tracked":
            weights[name] = torch.tensor(1000)
        elif len(shape) == 4 or (len(shape) == 2 and layer == "weight"):
            reach = gain * (6 / np.prod(shape[1:])) ** 0.5  # as He et al. do before a ReLU
            weights[name] = stream.between(-reach, reach, shape)
        elif layer == "weight":  # of batch norms: less than 1, since every residual block adds
            weights[name] = stream.between(0.1, 0.65, shape)
        elif layer == "running_var":
            weights[name] = stream.between(0.5, 1.5, shape)
        else:
            weights[name] = stream.between(-0.1, 0.1, shape)
    return weights


def golden(system: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of a system's golden file."""
    with np.load(Path(__file__).parent / "data" / f"{system}_golden.npz") as data:
        return dict(data)


def official_shapes(system: str) -> Shapes:
    """Names and shapes of the official state dict for 98 points.

    Of ADNet without its constants, which `adnet_constants` makes.
    """
    shapes = json.loads(golden(system)["shapes"].tobytes())
    constant = ("e2h_transform", ".filt")
    return {n: tuple(s) for n, s in shapes.items() if not any(c in n for c in constant)}


def adnet_constants(layout: str, blur: bool = False) -> dict[str, torch.Tensor]:
    """What an official ADNet holds besides weights: points by edges, and the filters of pools."""
    points, edges = get_layout(layout).size, get_layout(layout).edges
    table = torch.zeros(points, len(edges), 1, 1)
    for number, edge in enumerate(edges):
        table[list(edge.indices), number] = 1
    bias = (table.sum(dim=(1, 2, 3)) == 0).float()
    constants = {"e2h_transform.weight": table, "e2h_transform.bias": bias}
    if blur:
        shapes = json.loads(golden("adnet")["shapes"].tobytes())
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        constants |= {n: kernel.expand(s) for n, s in shapes.items() if n.endswith(".filt")}
    return constants


def small_shapes(system: str, stacks: int = 1) -> Shapes:
    """`official_shapes` of a network for 29 points with 16 features."""
    sizes = {256 // k: 16 // k for k in (1, 2, 4, 8)} | {259: 19, 261: 21}  # with coordinates
    sizes |= {384: 16, 98: 29, 99: 30}
    if system == "adnet":
        sizes[9] = len(get_layout("COFW29").edges)

    def kept(name: str) -> bool:
        stack, merge = (re.match(pattern, name) for pattern in STACK[system])
        absent_stack = stack and int(stack[1]) >= stacks
        absent_merge = merge and int(merge[1]) >= stacks - 1
        return not (absent_stack or absent_merge)

    return {
        name: tuple(sizes.get(size, size) for size in shape)
        for name, shape in official_shapes(system).items()
        if kept(name)
    }


def small_state(system: str, stacks: int = 1) -> dict[str, torch.Tensor]:
    """A random network for COFW29 under the names of the official implementation."""
    weights = official_weights(small_shapes(system, stacks))
    return weights | (adnet_constants("COFW29") if system == "adnet" else {})
