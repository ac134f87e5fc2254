"""The Heatmap-in-Heatmap network (Lan et al., arXiv 2104.03100), for one layout or many.

With one layout and the configuration ``hih`` of ``registry.py`` this is the network of the paper;
with several layouts, every prediction layer has one group of channels a layout, in the order of the
configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.blocks import Bottleneck, ConvBlock, DownBlock, Hourglass


@dataclass(frozen=True)
class HIHConfiguration:
    """What fixes the shape of every parameter of `HIH`.

    ``layouts`` maps a layout's name to its number of points, in the order of the channels.
    ``auxiliary_layouts`` are heads used in training only: they read the last stack's features, feed
    nothing back, predict no decimals, and are dropped from packaged weights. ``input_size`` is the
    side of the square crop in pixels. ``idle_skips``: the official network registers a projection
    in every bottleneck, also in those whose input and output are equally wide, where the forward
    never uses it; with them, every tensor of an official checkpoint has its place.

    Raises `ConfigurationError` for values that no network can have.
    """

    stacks: int
    features: int
    depth: int
    decimal_features: int
    input_size: int
    layouts: Mapping[str, int]
    auxiliary_layouts: Mapping[str, int]
    decimal_bins: int = 8
    idle_skips: bool = False

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigurationError(f"no HIH network can be built: {'; '.join(problems)}")

    @property
    def heatmap_size(self) -> int:
        """Cells a side of the integer heatmap: the trunk's stride is 4."""
        return self.input_size // 4

    @property
    def points(self) -> int:
        """Points of all layouts together, auxiliary ones excluded."""
        return sum(self.layouts.values())


def _problems(c: HIHConfiguration) -> Iterator[str]:
    """What keeps a network from being built; values may come from a file and be of any type."""
    if not isinstance(c.layouts, Mapping) or not isinstance(c.auxiliary_layouts, Mapping):
        yield "layouts and auxiliary_layouts must map names to numbers of points"
        return
    counts: dict[str, object] = {
        "stacks": c.stacks,
        "features": c.features,
        "depth": c.depth,
        "decimal_features": c.decimal_features,
        "input_size": c.input_size,
        "decimal_bins": c.decimal_bins,
        **{f"points of {name}": points for name, points in c.layouts.items()},
        **{f"points of {name}": points for name, points in c.auxiliary_layouts.items()},
    }
    wrong = [f"{name}={n!r}" for name, n in counts.items() if type(n) is not int or n < 1]
    if wrong:
        yield f"{', '.join(wrong)} must be whole numbers above 0"
        return
    if not c.layouts:
        yield "layouts is empty"
    if type(c.idle_skips) is not bool:
        yield f"idle_skips={c.idle_skips!r} is neither true nor false"
    if c.features % 4:
        yield f"features={c.features} is not a multiple of 4"
    if c.input_size % 4 or _halvings(c.heatmap_size) < c.depth:
        yield f"input_size={c.input_size} is not a multiple of 4 * 2**depth with depth={c.depth}"
    cells_a_bin, rest = divmod(c.heatmap_size, c.decimal_bins)
    if rest or cells_a_bin < 4 or cells_a_bin != 1 << _halvings(cells_a_bin):
        yield f"input_size={c.input_size} is not 16, 32, 64... times decimal_bins={c.decimal_bins}"


def _halvings(number: int) -> int:
    """How often a number above 0 can be halved without remainder."""
    return (number & -number).bit_length() - 1


class Heatmaps(NamedTuple):
    """Raw output (logits) of `HIH` for one layout of P points.

    ``integer``: (N, P, h, h), scores of the last stack over cells of the crop.
    ``decimal``: (N, P, b, b), scores over the b x b bins inside the cell.
    """

    integer: torch.Tensor
    decimal: torch.Tensor


class Stack(nn.Module):
    """An hourglass, its prediction, and the way both are merged back into the trunk."""

    def __init__(self, depth: int, features: int, points: int, idle_skips: bool) -> None:
        super().__init__()
        self.hourglass = Hourglass(depth, features, idle_skips)
        self.residual = Bottleneck(features, features, idle_skips)
        self.linear = ConvBlock(features, features)
        self.predict = nn.Conv2d(features, points, 1)
        self.merge_features = ConvBlock(features, features)
        self.merge_predictions = ConvBlock(points, features)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Trunk (N, C, h, h) -> (next trunk, features, predictions (N, P, h, h))."""
        features = self.linear(self.residual(self.hourglass(x)))
        predictions = self.predict(features)
        trunk = x + self.merge_features(features) + self.merge_predictions(predictions)
        return trunk, features, predictions


class DecimalHead(nn.Module):
    """From the last merged features (N, C, h, h) to decimal heatmaps (N, P, bins, bins)."""

    def __init__(
        self, inputs: int, features: int, points: int, heatmap_size: int, bins: int
    ) -> None:
        super().__init__()
        self.heatmap_size = heatmap_size
        halvings = int(math.log2(heatmap_size // bins))
        self.widen = ConvBlock(inputs, features)
        self.pool = nn.MaxPool2d(3, 2)
        self.down = nn.Sequential(*(DownBlock(features) for _ in range(halvings - 1)))
        self.mix = ConvBlock(features, features)
        self.predict = nn.Conv2d(features, points, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.widen(x)
        # Training may start on smaller crops: pooled to the usual size, they fill as many bins.
        if x.shape[-1] == self.heatmap_size:
            x = self.pool(x)
        else:
            x = nn.functional.adaptive_max_pool2d(x, (self.heatmap_size - 1) // 2)
        return self.predict(self.mix(self.down(x)))


class HIH(nn.Module):
    """Stacked hourglasses with an integer heatmap a stack and one decimal heatmap a point."""

    def __init__(self, configuration: HIHConfiguration) -> None:
        super().__init__()
        c = configuration
        self.configuration = c
        self.stem = nn.Sequential(
            ConvBlock(3, c.features // 4, kernel=7, stride=2),
            Bottleneck(c.features // 4, c.features // 2),
            nn.MaxPool2d(2),
            Bottleneck(c.features // 2, c.features // 2, c.idle_skips),
            Bottleneck(c.features // 2, c.features),
        )
        self.stacks = nn.ModuleList(
            Stack(c.depth, c.features, c.points, c.idle_skips) for _ in range(c.stacks)
        )
        self.decimal_head = DecimalHead(
            c.features, c.decimal_features, c.points, c.heatmap_size, c.decimal_bins
        )
        self.auxiliary_heads = nn.ModuleDict(
            {name: nn.Conv2d(c.features, p, 1) for name, p in c.auxiliary_layouts.items()}
        )

    def forward(self, crops: torch.Tensor) -> dict[str, Heatmaps]:
        """Crops (N, 3, S, S), normalised -> `Heatmaps` of every layout, from the last stack."""
        integers, decimal, _ = self.forward_stacks(crops)
        sizes = list(self.configuration.layouts.values())
        groups = zip(integers[-1].split(sizes, dim=1), decimal.split(sizes, dim=1), strict=True)
        return {
            name: Heatmaps(*pair)
            for name, pair in zip(self.configuration.layouts, groups, strict=True)
        }

    def forward_stacks(
        self, crops: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """What training supervises, the layouts' points one after another in the channels.

        Returns the integer heatmaps of every stack, each (N, P, h, h), the decimal heatmaps
        (N, P, b, b), and the last stack's features (N, C, h, h) for the auxiliary heads.
        """
        # Stem: 1/4 of the crop's resolution.
        x = self.stem(crops)
        # Stacks: each refines the trunk with its features and its prediction.
        integers = []
        for stack in self.stacks:
            x, features, predictions = stack(x)
            integers.append(predictions)
        # Decimal head, on the last merged trunk.
        return integers, self.decimal_head(x), features
