"""The Heatmap-in-Heatmap network (Lan et al., arXiv 2104.03100), for one layout or many.

With one layout and the configuration ``hih`` of ``registry.py`` this is the network of the paper;
with several layouts, every prediction layer has one group of channels a layout, in the order of the
configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from hihlandmark.models.base import (
    Heatmaps,
    LandmarkNetwork,
    NetworkConfiguration,
    auxiliary_heads,
    halvings,
)
from hihlandmark.models.blocks import Block, Bottleneck, ConvBlock, DownBlock, Hourglass


@dataclass(frozen=True, kw_only=True)
class HIHConfiguration(NetworkConfiguration):
    """`NetworkConfiguration` of `HIH`, whose auxiliary heads predict no decimals.

    ``decimal_features`` channels in the decimal head, ``decimal_bins`` bins a side of a cell.
    ``unused_shortcuts``: the official network registers a projection in every bottleneck, also
    where input and output are equally wide and the forward never uses it. With them, every tensor
    of an official checkpoint has its place.
    """

    decimal_features: int
    decimal_bins: int = 8
    unused_shortcuts: bool = False

    def _problems_of_sizes(self) -> Iterator[str]:
        yield from super()._problems_of_sizes()
        if type(self.unused_shortcuts) is not bool:
            yield f"unused_shortcuts={self.unused_shortcuts!r} is neither true nor false"
        cells_a_bin, rest = divmod(self.heatmap_size, self.decimal_bins)
        if rest or cells_a_bin < 4 or cells_a_bin != 1 << halvings(cells_a_bin):
            yield (
                f"input_size={self.input_size} is not 16, 32, 64... times "
                f"decimal_bins={self.decimal_bins}"
            )


class Stack(nn.Module):
    """An hourglass, its prediction, and the way both are merged back into the backbone."""

    def __init__(self, depth: int, features: int, points: int, block: Block) -> None:
        super().__init__()
        upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.hourglass = Hourglass(depth, features, block, nn.MaxPool2d(2), upsample)
        self.residual = block(features, features)
        self.linear = ConvBlock(features, features)
        self.predict = nn.Conv2d(features, points, 1)
        self.merge_features = ConvBlock(features, features)
        self.merge_predictions = ConvBlock(points, features)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Backbone (N, C, h, h) -> (next backbone, features, predictions (N, P, h, h))."""
        features = self.linear(self.residual(self.hourglass(x)))
        predictions = self.predict(features)
        backbone = x + self.merge_features(features) + self.merge_predictions(predictions)
        return backbone, features, predictions


class DecimalHead(nn.Module):
    """From the last merged features (N, C, h, h) to decimal heatmaps (N, P, bins, bins)."""

    def __init__(
        self, in_channels: int, features: int, points: int, heatmap_size: int, bins: int
    ) -> None:
        super().__init__()
        self.heatmap_size = heatmap_size
        downs = halvings(heatmap_size // bins) - 1
        self.widen = ConvBlock(in_channels, features)
        self.pool = nn.MaxPool2d(3, 2)
        self.down = nn.Sequential(*(DownBlock(features) for _ in range(downs)))
        self.mix = ConvBlock(features, features)
        self.predict = nn.Conv2d(features, points, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, h) -> decimal heatmaps (N, P, bins, bins)."""
        x = self.widen(x)
        # Training may start on smaller crops: pooled to the usual size, they fill as many bins.
        if x.shape[-1] == self.heatmap_size:
            x = self.pool(x)
        else:
            x = nn.functional.adaptive_max_pool2d(x, (self.heatmap_size - 1) // 2)
        return self.predict(self.mix(self.down(x)))


class HIH(LandmarkNetwork):
    """Stacked hourglasses with an integer heatmap a stack and one decimal heatmap a point."""

    def __init__(self, configuration: HIHConfiguration) -> None:
        super().__init__()
        c = configuration
        self.configuration: HIHConfiguration = c
        block = partial(Bottleneck, unused_shortcut=c.unused_shortcuts)
        self.stem = nn.Sequential(
            ConvBlock(3, c.features // 4, kernel_size=7, stride=2),
            block(c.features // 4, c.features // 2),
            nn.MaxPool2d(2),
            block(c.features // 2, c.features // 2),
            block(c.features // 2, c.features),
        )
        self.stacks = nn.ModuleList(
            Stack(c.depth, c.features, c.points, block) for _ in range(c.stacks)
        )
        self.decimal_head = DecimalHead(
            c.features, c.decimal_features, c.points, c.heatmap_size, c.decimal_bins
        )
        self.auxiliary_heads = auxiliary_heads(c)

    def forward(
        self, crops: torch.Tensor, layouts: Sequence[str] | None = None
    ) -> dict[str, Heatmaps]:
        """Crops (N, 3, S, S), normalized -> `Heatmaps` of the layouts, from the last stack."""
        integers, decimal, _ = self.forward_stacks(crops)
        maps, decimals = self.by_layout(integers[-1]), self.by_layout(decimal)
        return {name: Heatmaps(maps[name], decimals[name]) for name in layouts or maps}

    def forward_stacks(
        self, crops: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """What training supervises, the layouts' points one after another in the channels.

        Returns the integer heatmaps of every stack, each (N, P, h, h), the decimal heatmaps
        (N, P, b, b), and the last stack's features (N, C, h, h) for the auxiliary heads.
        """
        # Stem: 1/4 of the crop's resolution.
        x = self.stem(crops)
        # Stacks: each refines the backbone with its features and its prediction.
        integers = []
        for stack in self.stacks:
            x, features, predictions = stack(x)
            integers.append(predictions)
        # Decimal head, on the last merged backbone.
        return integers, self.decimal_head(x), features
