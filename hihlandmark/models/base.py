"""What all architectures have in common: their configuration's core, their output, their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError

DECIMAL_BINS = 8
"""Bins a side of a cell of the decimal heatmaps of nested networks."""
DECIMAL_MARGIN = 4
"""Bins beyond each border of a cell, so that a neighboring cell can also reach the point."""
DECIMAL_EXTENT = DECIMAL_BINS + 2 * DECIMAL_MARGIN


@dataclass(frozen=True, kw_only=True)
class NetworkConfiguration:
    """What fixes the shape of every parameter of a stacked-hourglass network.

    ``stacks`` hourglasses of ``depth`` halvings with ``features`` channels. ``input_size``: side of
    the square crop in pixels. ``stride``: crop pixels a side of a heatmap cell. ``layouts`` maps a
    layout's name to its number of points, in the order of the channels. ``auxiliary_layouts`` are
    heads used in training only: they feed nothing back, and are dropped from packaged weights.

    Raises `ConfigurationError` for values that no network can have.
    """

    stacks: int
    features: int
    depth: int
    input_size: int
    layouts: Mapping[str, int]
    auxiliary_layouts: Mapping[str, int]
    stride: int = field(default=4, init=False)  # the stems of all three papers halve twice

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            name = type(self).__name__.removesuffix("Configuration")
            raise ConfigurationError(f"no {name} network can be built: {'; '.join(problems)}")

    @property
    def crop_multiple(self) -> int:
        """Crops have a side of a multiple of this number of pixels."""
        return self.stride * 2**self.depth

    @property
    def heatmap_size(self) -> int:
        """Cells a side of a heatmap."""
        return self.input_size // self.stride

    @property
    def points(self) -> int:
        """Points of all layouts together, auxiliary ones excluded."""
        return sum(self.layouts.values())

    def problems(self) -> Iterator[str]:
        """What keeps a network from being built; values may come from a file, of any type."""
        yield from self._problems_of_types() or self._problems_of_sizes()

    def _problems_of_types(self) -> list[str]:
        mappings = ("layouts", "auxiliary_layouts")
        if not all(isinstance(getattr(self, name), Mapping) for name in mappings):
            return ["layouts and auxiliary_layouts must map names to numbers of points"]
        values = {field.name: (field.type, getattr(self, field.name)) for field in fields(self)}
        counts: dict[str, Any] = {
            n: value for n, (kind, value) in values.items() if kind in (int, "int")
        }
        for layouts in (self.layouts, self.auxiliary_layouts):
            for name in layouts:
                if not name or "." in name or hasattr(nn.ModuleDict, name):
                    return [f"no layout can be called {name!r}: use letters, digits, _ and -"]
            counts |= {f"points of {name}": points for name, points in layouts.items()}
        least = {field.name: 0 for field in fields(self) if field.default == 0}  # 0: without
        wrong = [
            f"{name}={n!r}"
            for name, n in counts.items()
            if type(n) is not int or n < least.get(name, 1)
        ]
        return [f"{', '.join(wrong)} must be whole numbers above 0"] if wrong else []

    def _problems_of_sizes(self) -> Iterator[str]:
        if not self.layouts:
            yield "layouts is empty"
        if self.features % 4:
            yield f"features={self.features} is not a multiple of 4"
        if self.input_size % self.crop_multiple:
            yield (
                f"input_size={self.input_size} is not a multiple of {self.crop_multiple}, for "
                f"stride {self.stride} and depth={self.depth}"
            )


def halvings(number: int) -> int:
    """How often a number above 0 can be halved without remainder."""
    return (number & -number).bit_length() - 1


class Heatmaps(NamedTuple):
    """Raw output of a network for one layout of P points, the input of ``heatmap.decode``.

    ``integer``: (N, P, h, h), scores of the last stack over cells of the crop. ``decimal``:
    (N, P, b, b), scores over the b x b bins inside the cell; None of networks without such a head.
    """

    integer: torch.Tensor
    decimal: torch.Tensor | None

    def float(self) -> Heatmaps:
        """In float32."""
        decimal = None if self.decimal is None else self.decimal.float()
        return Heatmaps(self.integer.float(), decimal)


class NestedHeatmaps(NamedTuple):
    """Raw output of a nested network for one layout of P points.

    ``integer``: (N, P, h, h), scores over cells of the crop. ``cells``: (N, P, K), the K best
    cells, row by row, best first. ``decimal``: (N, P, K, 2, `DECIMAL_EXTENT`), scores over the bins
    of x and of y inside of each of them and `DECIMAL_MARGIN` bins around it. ``visibility``:
    (N, P), logits of the point being seen; None of networks without that head.
    """

    integer: torch.Tensor
    cells: torch.Tensor
    decimal: torch.Tensor
    visibility: torch.Tensor | None = None

    def float(self) -> NestedHeatmaps:
        """In float32."""
        visibility = None if self.visibility is None else self.visibility.float()
        return NestedHeatmaps(self.integer.float(), self.cells, self.decimal.float(), visibility)


AnyHeatmaps = Heatmaps | NestedHeatmaps


def normalize(crops: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Crops (N, S, S, 3) uint8 RGB -> (N, 3, S, S) float32 with mean (3,) 0 and std (3,) 1."""
    # By rows, before the axes change: OpenVINO then needs no pass over the pixels but this one.
    side = crops.shape[2]
    scale, shift = (1 / (255 * std)).repeat(side), (mean / std).repeat(side)
    rows = crops.flatten(2).float() * scale - shift
    return rows.unflatten(2, (side, 3)).permute(0, 3, 1, 2)


class LandmarkNetwork(nn.Module):
    """Crops in, heatmaps of every layout out."""

    configuration: NetworkConfiguration
    auxiliary_heads: nn.ModuleDict

    def forward(
        self, crops: torch.Tensor, layouts: Sequence[str] | None = None
    ) -> Mapping[str, AnyHeatmaps]:
        """Crops (N, 3, S, S), normalized -> heatmaps of the last stack by layout; None: of all."""
        raise NotImplementedError

    def by_layout(self, maps: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps (N, P, h, h) of all layouts' points -> those of each layout by its name."""
        layouts = self.configuration.layouts
        return dict(zip(layouts, maps.split(list(layouts.values()), dim=1), strict=True))


def auxiliary_heads(configuration: NetworkConfiguration) -> nn.ModuleDict:
    """A layer for each auxiliary layout that predicts its heatmaps from a stack's features."""
    return nn.ModuleDict(
        {
            name: nn.Conv2d(configuration.features, points, 1)
            for name, points in configuration.auxiliary_layouts.items()
        }
    )
