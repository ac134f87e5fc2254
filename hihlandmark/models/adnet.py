"""ADNet (Huang et al., arXiv 2109.05721), for one layout or many.

Stacked hourglasses with CoordConv and three kinds of maps a stack: heatmaps of points, maps of the
face's edges, and maps of points. Edges and points together mask the heatmaps (anisotropic
attention), and the masked heatmap's mean is the landmark. With one layout and the configuration
``adnet`` of ``registry.py`` this is the released network. The anisotropic direction loss is in
``training/losses.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from hihlandmark.models.base import (
    Heatmaps,
    LandmarkNetwork,
    NetworkConfiguration,
    auxiliary_heads,
)
from hihlandmark.models.blocks import (
    BlurPool,
    CoordHourglass,
    CoordStem,
    PreActivationBottleneck,
)


@dataclass(frozen=True, kw_only=True)
class ADNetConfiguration(NetworkConfiguration):
    """`NetworkConfiguration` of `ADNet`.

    ``edges``: of each layout the lines of the face that are predicted, each the numbers of its
    points; a point may be on several or on none. ``unused_shortcuts`` as of `HIHConfiguration`.
    ``blur_pool``: pool with `BlurPool`, as in the weights that were released for WFLW.
    """

    edges: Mapping[str, Sequence[Sequence[int]]]
    unused_shortcuts: bool = False
    blur_pool: bool = False

    def _problems_of_types(self) -> list[str]:
        problems = super()._problems_of_types()
        if not problems and not (
            isinstance(self.edges, Mapping)
            and all(_are_lines(self.edges.get(name)) for name in self.layouts)
        ):
            problems.append("edges must map each layout to lines of its face, lists of points")
        return problems

    def _problems_of_sizes(self) -> Iterator[str]:
        yield from super()._problems_of_sizes()
        for option in ("unused_shortcuts", "blur_pool"):
            if type(value := getattr(self, option)) is not bool:
                yield f"{option}={value!r} is neither true nor false"
        for name, points in self.layouts.items():
            for edge in self.edges[name]:
                if not edge or any(type(p) is not int or not 0 <= p < points for p in edge):
                    yield f"edges of {name}: {edge!r} are not numbers of points, 0 to {points - 1}"


class StackMaps(NamedTuple):
    """What a stack of `ADNet` predicts of P points and E edges of all layouts.

    ``attended``: (N, P, h, h), heatmaps times the attention mask, not negative, their means are the
    landmarks; ``edges`` (N, E, h, h) and ``points`` (N, P, h, h): logits, their sigmoids the mask.
    """

    attended: torch.Tensor
    edges: torch.Tensor
    points: torch.Tensor


class ADNet(LandmarkNetwork):
    """Stacked hourglasses with heatmaps, edge maps and point maps, and attention."""

    edges_of_points: torch.Tensor
    on_no_edge: torch.Tensor

    def __init__(self, configuration: ADNetConfiguration) -> None:
        super().__init__()
        c = configuration
        self.configuration: ADNetConfiguration = c
        block = partial(PreActivationBottleneck, unused_shortcut=c.unused_shortcuts)
        pool = BlurPool() if c.blur_pool else nn.MaxPool2d(2)
        self.stem = CoordStem(c.features, block, pool)
        self.stacks = nn.ModuleList(
            CoordHourglass(c.depth, c.features, block, pool, boundary=stack > 0)
            for stack in range(c.stacks)
        )
        membership = _membership(c)
        # Not in the state dict: the configuration says it all.
        self.register_buffer("edges_of_points", membership[:, :, None, None], persistent=False)
        on_no_edge = (membership.sum(dim=1) == 0).float()
        self.register_buffer("on_no_edge", on_no_edge, persistent=False)
        edges = membership.shape[1]

        def layers(count: int, in_channels: int, out_channels: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1) for _ in range(count))

        self.predict_heatmaps = layers(c.stacks, c.features, c.points)
        self.predict_edges = layers(c.stacks, c.features, edges)
        self.predict_points = layers(c.stacks, c.features, c.points)
        self.merge_features = layers(c.stacks - 1, c.features, c.features)
        self.merge_heatmaps = layers(c.stacks - 1, c.points, c.features)
        self.merge_edges = layers(c.stacks - 1, edges, c.features)
        self.merge_points = layers(c.stacks - 1, c.points, c.features)
        self.auxiliary_heads = auxiliary_heads(c)

    def forward(
        self, crops: torch.Tensor, layouts: Sequence[str] | None = None
    ) -> dict[str, Heatmaps]:
        """Crops (N, 3, S, S), normalized -> `Heatmaps` of the layouts, from the last stack."""
        maps, _ = self.forward_stacks(crops)
        attended = self.by_layout(maps[-1].attended)
        return {name: Heatmaps(attended[name], None) for name in layouts or attended}

    def forward_stacks(self, crops: torch.Tensor) -> tuple[list[StackMaps], torch.Tensor]:
        """What training supervises: the maps of every stack, the last one's features (N, C, h, h).

        Points and edges of all layouts follow one another in the channels.
        """
        # Stem: 1/4 of the crop's resolution.
        x = self.stem(crops)
        stacks: list[StackMaps] = []
        boundary = None
        for number, stack in enumerate(self.stacks):
            features = stack(x, boundary)
            # Heatmaps: normalized over the map of each point and face, so that all are as strong.
            heatmaps = F.relu(F.instance_norm(self.predict_heatmaps[number](features)))
            edge_logits = self.predict_edges[number](features)
            point_logits = self.predict_points[number](features)
            edges, points = edge_logits.sigmoid(), point_logits.sigmoid()
            # Attention: a point is looked for on its edges, and near itself.
            on_edges = F.conv2d(edges, self.edges_of_points, self.on_no_edge)
            stacks.append(StackMaps(on_edges * points * heatmaps, edge_logits, point_logits))
            # The released code takes the last point's heatmap for the boundary of CoordConv.
            boundary = heatmaps[:, -1:]
            if number < len(self.merge_features):
                x = (
                    x
                    + self.merge_features[number](features)
                    + self.merge_heatmaps[number](heatmaps)
                )
                x = x + self.merge_edges[number](edges) + self.merge_points[number](points)
        return stacks, features


def _are_lines(value: object) -> bool:
    if not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(line, Sequence) for line in value)


def _membership(configuration: ADNetConfiguration) -> torch.Tensor:
    """(P, E): 1 where point p of all layouts' points is on edge e of all their edges."""
    blocks = []
    for name, points in configuration.layouts.items():
        block = torch.zeros(points, len(configuration.edges[name]))
        for number, edge in enumerate(configuration.edges[name]):
            block[list(edge), number] = 1
        blocks.append(block)
    return torch.block_diag(*blocks)
