"""The network of Adaptive Wing (Wang et al., arXiv 1904.07399), for one layout or many.

Stacked hourglasses with CoordConv that predict a heatmap a point and one of the face's boundary,
which the next stack's CoordConv sees. With one layout and the configuration ``awing`` of
``registry.py`` this is the released network; with several, the channels are the points of all
layouts, in the order of the configuration, and then their boundaries. What makes it a system of its
own besides is the loss: ``training/losses.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hihlandmark.models.base import (
    Heatmaps,
    LandmarkNetwork,
    NetworkConfiguration,
    auxiliary_heads,
)
from hihlandmark.models.blocks import CoordHourglass, CoordStem, HierarchicalBlock


@dataclass(frozen=True, kw_only=True)
class AWingConfiguration(NetworkConfiguration):
    """`NetworkConfiguration` of `AWing`."""


class AWing(LandmarkNetwork):
    """Stacked hourglasses with a heatmap a point and a boundary map a layout."""

    def __init__(self, configuration: AWingConfiguration) -> None:
        super().__init__()
        c = configuration
        self.configuration: AWingConfiguration = c
        pool = nn.AvgPool2d(2)
        maps = c.points + len(c.layouts)
        self.stem = CoordStem(c.features, HierarchicalBlock, pool)
        self.stacks = nn.ModuleList(
            CoordHourglass(c.depth, c.features, HierarchicalBlock, pool, boundary=stack > 0)
            for stack in range(c.stacks)
        )
        self.predict = nn.ModuleList(nn.Conv2d(c.features, maps, 1) for _ in range(c.stacks))
        self.merge_features = nn.ModuleList(
            nn.Conv2d(c.features, c.features, 1) for _ in range(c.stacks - 1)
        )
        self.merge_predictions = nn.ModuleList(
            nn.Conv2d(maps, c.features, 1) for _ in range(c.stacks - 1)
        )
        self.auxiliary_heads = auxiliary_heads(c)

    def forward(
        self, crops: torch.Tensor, layouts: Sequence[str] | None = None
    ) -> dict[str, Heatmaps]:
        """Crops (N, 3, S, S), normalized -> `Heatmaps` of the layouts, from the last stack."""
        predictions, _ = self.forward_stacks(crops)
        maps = self.by_layout(predictions[-1][:, : self.configuration.points])
        return {name: Heatmaps(maps[name], None) for name in layouts or maps}

    def forward_stacks(self, crops: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What training supervises.

        Returns the maps of every stack, each (N, P + L, h, h): the points of the L layouts one
        layout after another, then their boundaries; and the last stack's features (N, C, h, h).
        """
        # Stem: 1/4 of the crop's resolution.
        x = self.stem(crops)
        # Stacks: the first layout's boundary tells the next one where the face's lines are.
        predictions: list[torch.Tensor] = []
        boundary = None
        for number, stack in enumerate(self.stacks):
            features = stack(x, boundary)
            maps = self.predict[number](features)
            predictions.append(maps)
            place = self.configuration.points
            boundary = maps[:, place : place + 1]
            if number < len(self.merge_features):
                x = x + self.merge_features[number](features)
                x = x + self.merge_predictions[number](maps)
        return predictions, features
