"""The nested heatmap network: p(point) = p(cell) p(fraction | cell).

The second generation of HIH (Lan et al., arXiv 2104.03100). The integer heatmap is coarse, and the
decimal heatmap is predicted from the features of one cell: "if the point is in this cell, where in
it?". The down path of the first hourglass is a pretrained encoder, its up path ends at the grid;
further hourglasses on the grid follow, with intermediate supervision, and predictions merged back
as in HIH. docs/concepts/heatmaps.md has the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.base import (
    DECIMAL_EXTENT,
    LandmarkNetwork,
    NestedHeatmaps,
    NetworkConfiguration,
)
from hihlandmark.models.blocks import Bottleneck, ConvBlock, Hourglass
from hihlandmark.models.efficientnet import EfficientNetLite, InvertedResidual

ENCODERS: Mapping[str, Callable[[], EfficientNetLite]] = {
    "efficientnet-lite0": EfficientNetLite,
}
"""By name: modules with the features of a crop at strides 2, 4, 8, 16 and 32."""
ENCODER_STRIDE = 32
TOP_CELLS = 4
"""Cells of the integer heatmap whose decimal heatmaps are read."""
FINE_FEATURES = 32
"""Channels of a fine level before it is brought to the grid."""
MERGED_SCALE = 8.0
"""Factor of the probabilities that are merged back: with 1 they would hardly weigh."""


@dataclass(frozen=True, kw_only=True)
class NestedConfiguration(NetworkConfiguration):
    """`NetworkConfiguration` of `Nested`.

    ``encoder``: a name in `ENCODERS`. ``stride``: crop pixels a side of a cell. ``stacks``: the
    encoder with its up path, and ``stacks - 1`` hourglasses on the grid. ``decimal_features``:
    channels between the features of a cell and its decimal heatmaps. ``decimal_rank``: rank of the
    weights that follow, in layouts of more than twice as many points; 0: full rank in all.
    ``fine_rank``: rank of the convolutions that bring fine levels to the grid; 0: full rank.
    ``fine_kernel``: their kernel size, in pixels of the level, where they see the encoder's
    features as they are; 0: two cells, after a 1x1 convolution.
    ``visibility``: channels that visibility is read from; 0: the network does not predict it.
    ``pruned``: names of residual blocks that are left out, with the activation after their sum:
    their input is their output (Veit et al., arXiv 1605.06431). With fewer ``stacks``, those of the
    other ones are ignored.
    """

    encoder: str
    stride: int = field()
    decimal_features: int
    decimal_rank: int = 0
    fine_rank: int = 0
    fine_kernel: int = 0
    visibility: int = 0
    pruned: Sequence[str] = ()

    @property
    def crop_multiple(self) -> int:
        """Crops have a side of a multiple of this number of pixels."""
        return max(ENCODER_STRIDE, super().crop_multiple)

    def _problems_of_types(self) -> list[str]:
        is_list = isinstance(self.pruned, (list, tuple))
        if not is_list or not all(isinstance(name, str) for name in self.pruned):
            return ["pruned must list names of residual blocks"]
        return super()._problems_of_types()

    def _problems_of_sizes(self) -> Iterator[str]:
        if self.encoder not in ENCODERS:
            yield f"encoder={self.encoder!r} is not one of {', '.join(ENCODERS)}"
        if self.stride not in (4, 8, 16):
            yield f"stride={self.stride} is not 4, 8 or 16"
        else:
            if self.fine_kernel and (self.fine_kernel % 2 or self.fine_kernel < self.stride // 2):
                yield (
                    f"fine_kernel={self.fine_kernel} is neither 0 nor an even number of at least "
                    f"{self.stride // 2}"
                )
            yield from super()._problems_of_sizes()


class Features(NamedTuple):
    """What the heads of all layouts read, all (N, C, h, h).

    ``stacks``: features of each stack for the integer heatmaps. ``decimal``: for the decimals.
    """

    stacks: list[torch.Tensor]
    decimal: torch.Tensor


class UpPath(nn.Module):
    """From the encoder's coarse levels to the grid, with the context of the whole crop."""

    def __init__(self, channels: Sequence[int], features: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, features, 1) for count in channels)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], features, 1))
        self.residual = nn.ModuleList(Bottleneck(features, features) for _ in channels[:-1])
        self.position = nn.Conv2d(2, features, 1)
        self.body = Bottleneck(features, features)

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Levels from the grid's stride to stride 32 -> features (N, C, h, h) on the grid."""
        x = self.lateral[-1](levels[-1]) + self.context(levels[-1])
        for lateral, residual, level in reversed(
            list(zip(self.lateral, self.residual, levels, strict=False))
        ):
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = residual(x + lateral(level))
        size = x.shape[-1]
        centers = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size * 2 - 1
        place = torch.stack([centers.expand(size, size), centers[:, None].expand(size, size)])
        return self.body(x + self.position(place[None]))


class GridStack(nn.Module):
    """An hourglass on the grid that also sees the integer heatmaps of the stack before."""

    def __init__(self, depth: int, features: int, points: int) -> None:
        super().__init__()
        self.merge_predictions = nn.Conv2d(points, features, 1)
        upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.hourglass = Hourglass(depth, features, Bottleneck, nn.MaxPool2d(2), upsample)
        self.residual = Bottleneck(features, features)

    def forward(self, x: torch.Tensor, integer: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, h), integer heatmaps (N, P, h, h) -> features (N, C, h, h)."""
        probabilities = integer.flatten(2).softmax(dim=-1).view_as(integer) * MERGED_SCALE
        merged = x + self.merge_predictions(probabilities.to(x.dtype))
        return x + self.residual(self.hourglass(merged))


class DecimalFeatures(nn.Module):
    """Features for the decimals: those of the grid and the finer levels of the encoder.

    With the coarse features alone, the decimal heatmap is less accurate than the mean of the
    integer heatmap. ``rank``: of the strided convolutions, 0 for full rank. ``kernel_size``:
    `NestedConfiguration.fine_kernel`.
    """

    def __init__(
        self, fine_channels: Sequence[int], features: int, rank: int, kernel_size: int = 0
    ) -> None:
        super().__init__()
        self.coarse = ConvBlock(features, features)
        self.fine = nn.ModuleList()
        for level, channels in enumerate(fine_channels):
            ratio = 2 ** (len(fine_channels) - level)
            side = kernel_size or 2 * ratio
            strided = nn.Conv2d(
                channels if kernel_size else FINE_FEATURES,
                rank or features,
                side,
                ratio,
                padding=(side - ratio) // 2,
                bias=False,
            )
            first = nn.Identity() if kernel_size else ConvBlock(channels, FINE_FEATURES)
            mix = [nn.Conv2d(rank, features, 1, bias=False)] if rank else []
            self.fine.append(nn.Sequential(first, strided, *mix, nn.BatchNorm2d(features)))
        self.mix = nn.Sequential(nn.ReLU(), Bottleneck(features, features))

    def forward(self, x: torch.Tensor, fine_levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features (N, C, h, h) of the last stack and finer levels -> (N, C, h, h)."""
        x = self.coarse(x)
        for fine, level in zip(self.fine, fine_levels, strict=True):
            x = x + fine(level)
        return self.mix(x)


class NestedHead(nn.Module):
    """The layers of one layout of P points."""

    def __init__(self, points: int, configuration: NestedConfiguration) -> None:
        super().__init__()
        c = configuration
        self.integer = nn.ModuleList(nn.Conv2d(c.features, points, 1) for _ in range(c.stacks))
        self.embedding = nn.Parameter(torch.randn(points, c.features) * 0.02)
        out_channels = 2 * DECIMAL_EXTENT
        shape, rank = (c.decimal_features, out_channels), c.decimal_rank
        if rank and points > 2 * rank:
            self.basis = nn.Parameter(torch.randn(rank, *shape) * 0.02)
            self.mix = nn.Parameter(torch.randn(points, rank) * rank**-0.5)
        else:
            self.weight = nn.Parameter(torch.randn(points, *shape) * 0.02)
        self.bias = nn.Parameter(torch.zeros(points, out_channels))
        self.visibility = VisibilityReadOut(points, c.visibility) if c.visibility else None

    def read_out(self) -> torch.Tensor:
        """The weights (P, ``decimal_features``, 2 * `DECIMAL_EXTENT`) from features to scores."""
        if hasattr(self, "weight"):
            return self.weight
        return (self.mix @ self.basis.flatten(1)).unflatten(1, self.basis.shape[1:])

    def fold(self) -> None:
        """Keep the product of weights of low rank: for prediction."""
        if not hasattr(self, "weight"):
            self.weight = nn.Parameter(self.read_out().detach())
            del self.basis, self.mix

    def decimal(self, features: torch.Tensor, cells: torch.Tensor, read: nn.Module) -> torch.Tensor:
        """Decimal heatmaps at cells.

        Args:
            features: (N, C, h, h), of `Features`.
            cells: (N, P, K), row by row.
            read: from the features of a cell to ``decimal_features`` channels.

        Returns:
            (N, P, K, 2, `DECIMAL_EXTENT`), scores over x and over y.
        """
        count, _, top = cells.shape
        at_cells = _at_cells(features, cells)
        x = read(at_cells + self.embedding[:, None].to(at_cells.dtype))
        # One matrix product a point: OpenVINO's "einsum" costs twice as much.
        scores = x.transpose(0, 1).flatten(1, 2) @ self.read_out().to(x.dtype)
        scores = scores.unflatten(1, (count, top)).transpose(0, 1)
        return (scores.float() + self.bias[:, None]).unflatten(-1, (2, DECIMAL_EXTENT))


class _Standardized(nn.Module):
    """Maps (N, C, h, h) with mean 0 and variance 1 over a crop, one after the other (N, 2C, h, h).

    Their scales differ. A group norm does the same, but OpenVINO reorders all values for it.
    """

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        standardized = []
        for each in maps:
            values = each.float()
            centered = values - values.mean(dim=(1, 2, 3), keepdim=True)
            variance = centered.square().mean(dim=(1, 2, 3), keepdim=True)
            standardized.append(centered * torch.rsqrt(variance + 1e-5))
        return torch.cat(standardized, dim=1)


class VisibilityFeatures(nn.Sequential):
    """Both kinds of `Features` (N, C, h, h) -> what visibility is read from (N, V, h, h)."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__(
            _Standardized(),
            nn.Conv2d(2 * features, channels, 1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )


class VisibilityReadOut(nn.Module):
    """One logit for each of P points, from the features of a cell."""

    def __init__(self, points: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(points, channels) * 0.02)
        self.weight = nn.Parameter(torch.randn(points, channels) * channels**-0.5)
        self.bias = nn.Parameter(torch.zeros(points))

    def forward(self, features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Features (N, V, h, h), cells (N, P), row by row -> logits (N, P)."""
        x = nn.functional.gelu(_at_cells(features, cells) + self.embedding)
        # OpenVINO (2026.4) would add the bias wrongly to the sums of several crops.
        return (x * self.weight + self.bias[:, None] / x.shape[-1]).sum(dim=-1)


def _can_be_left_out(block: nn.Module | None) -> bool:
    if isinstance(block, InvertedResidual):
        return block.has_shortcut
    return isinstance(block, Bottleneck) and isinstance(block.skip, nn.Identity)


def without_blocks(
    state: Mapping[str, torch.Tensor], pruned: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Weights without those of the blocks that `NestedConfiguration` leaves out."""
    beginnings = tuple(f"{name}." for name in pruned)
    return {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def _number_of_stack(name: str) -> int:
    """The stack that a parameter belongs to, counted from 0; -1: to none."""
    found = re.search(r"(^stacks|\.integer)\.(\d+)\.", name)
    # The first stack is not in the list `Nested.stacks`.
    return -1 if found is None else int(found[2]) + (found[1] == "stacks")


def number_of_stacks(state: Mapping[str, torch.Tensor]) -> int:
    """How many stacks the network of weights has; 0 for weights of another architecture."""
    return 1 + max((_number_of_stack(name) for name in state if ".integer." in name), default=-1)


def without_stacks(state: Mapping[str, torch.Tensor], stacks: int) -> dict[str, torch.Tensor]:
    """Weights without those that only a network of more than ``stacks`` has."""
    return {name: tensor for name, tensor in state.items() if _number_of_stack(name) < stacks}


def blocks_left_out(network: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the residual blocks of a network that weights do without: for ``pruned``."""
    return [
        name
        for name, block in network.named_modules()
        if _can_be_left_out(block) and not any(key.startswith(f"{name}.") for key in state)
    ]


def fine_kernel_of(state: Mapping[str, torch.Tensor]) -> int:
    """`NestedConfiguration.fine_kernel` of the network of weights; 0 for other architectures."""
    prefix = "decimal_features.fine.0."
    strided = state.get(f"{prefix}1.weight")
    return 0 if strided is None or f"{prefix}0.0.weight" in state else strided.shape[-1]


def is_of_visibility(name: str) -> bool:
    """Whether a parameter of a nested network, by its name, serves visibility alone."""
    return name.startswith("visibility_features.") or ".visibility." in name


def best_cells(integer: torch.Tensor) -> torch.Tensor:
    """The `TOP_CELLS` best cells (N, P, K) of integer heatmaps (N, P, h, h), best first."""
    # Along the last axis, OpenVINO's "topk" would take six times as long.
    by_cell = integer.permute(0, 2, 3, 1).flatten(1, 2)
    return by_cell.topk(TOP_CELLS, dim=1).indices.transpose(1, 2)


def _at_cells(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Features (N, C, h, h) at cells (N, ...), row by row: (N, ..., C).

    OpenVINO's "gather" costs five times as much as the look-up of rows.
    """
    first = torch.arange(cells.shape[0], device=cells.device)
    first = first.view(-1, *[1] * (cells.ndim - 1)) * (features.shape[2] * features.shape[3])
    return nn.functional.embedding(cells + first, features.permute(0, 2, 3, 1).flatten(0, 2))


def low_rank(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest ``mix`` (P, r) and ``basis`` (r, C, O) of a head's ``weight`` (P, C, O)."""
    left, values, right = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
    scale = values[:rank].sqrt()
    return left[:, :rank] * scale, (right[:rank] * scale[:, None]).unflatten(1, weight.shape[1:])


def with_fine_rank(state: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Weights with their convolutions of fine levels as the nearest ones of ``fine_rank``."""
    found = dict(state)
    strided = [n for n in state if re.fullmatch(r"decimal_features\.fine\.\d+\.1\.weight", n)]
    for name in strided:
        weight, prefix = state[name].float(), name.removesuffix("1.weight")
        if f"{prefix}3.weight" in state:
            continue
        mix, basis = low_rank(weight.flatten(2), rank)
        found[name] = basis.view(rank, *weight.shape[1:])
        for old in [n for n in state if n.startswith(f"{prefix}2.")]:
            found[old.replace(f"{prefix}2.", f"{prefix}3.")] = found.pop(old)
        found[f"{prefix}2.weight"] = mix[..., None, None]
    return found


class Nested(LandmarkNetwork):
    """An encoder, an integer heatmap on a coarse grid, and decimal heatmaps at the best cells."""

    def __init__(self, configuration: NestedConfiguration) -> None:
        super().__init__()
        c = configuration
        self.configuration: NestedConfiguration = c
        self.encoder = ENCODERS[c.encoder]()
        channels = self.encoder.channels
        self.grid_level = c.stride.bit_length() - 2
        self.up_path = UpPath(channels[self.grid_level :], c.features)
        self.stacks = nn.ModuleList(
            GridStack(c.depth, c.features, c.points) for _ in range(c.stacks - 1)
        )
        self.decimal_features = DecimalFeatures(
            channels[: self.grid_level], c.features, c.fine_rank, c.fine_kernel
        )
        self.read = nn.Sequential(
            nn.LayerNorm(c.features), nn.Linear(c.features, c.decimal_features), nn.GELU()
        )
        self.heads = nn.ModuleDict({n: NestedHead(points, c) for n, points in c.layouts.items()})
        self.auxiliary_heads = nn.ModuleDict(
            {n: NestedHead(points, c) for n, points in c.auxiliary_layouts.items()}
        )
        if c.visibility:
            self.visibility_features = VisibilityFeatures(c.features, c.visibility)
        blocks = dict(self.named_modules()) if c.pruned else {}
        for name in c.pruned:
            stack = re.match(r"stacks\.(\d+)\.", name)
            if stack and int(stack[1]) >= len(self.stacks):
                continue
            if not _can_be_left_out(blocks.get(name)):
                raise ConfigurationError(
                    f"no Nested network can be built: pruned={name!r} is no residual block with as "
                    "many channels in as out"
                )
            self.set_submodule(name, nn.Identity())

    def forward(
        self, crops: torch.Tensor, layouts: Sequence[str] | None = None
    ) -> dict[str, NestedHeatmaps]:
        """Crops (N, 3, S, S), normalized -> `NestedHeatmaps` of the layouts."""
        features = self.features(crops)
        read = self.visibility_map(features) if self.configuration.visibility else None
        found = {}
        for name in self.configuration.layouts if layouts is None else layouts:
            integer = self.integer(name, features.stacks[-1])
            cells = best_cells(integer)
            decimal = self.decimal(name, features, cells)
            visibility = None if read is None else self.visibility(name, read, cells[..., 0])
            found[name] = NestedHeatmaps(integer, cells, decimal, visibility)
        return found

    def features(self, crops: torch.Tensor) -> Features:
        """Crops (N, 3, S, S), normalized -> what the heads read."""
        # Encoder: strides 2 to 32.
        levels = self.encoder(crops)
        # Up path: to the grid.
        x = self.up_path(levels[self.grid_level :])
        stacks = [x]
        # Further stacks: each refines the features with the prediction before.
        for number, stack in enumerate(self.stacks):
            predictions = [self.integer(name, x, number) for name in self.heads]
            x = stack(x, torch.cat(predictions, dim=1))
            stacks.append(x)
        return Features(stacks, self.decimal_features(x, levels[: self.grid_level]))

    def integer(self, layout: str, features: torch.Tensor, stack: int = -1) -> torch.Tensor:
        """A stack's features (N, C, h, h) -> integer heatmaps (N, P, h, h) of a layout."""
        heatmaps: torch.Tensor = self._head(layout).integer[stack](features)
        return heatmaps

    def decimal(self, layout: str, features: Features, cells: torch.Tensor) -> torch.Tensor:
        """Decimal heatmaps of a layout at cells, see `NestedHead.decimal`."""
        return self._head(layout).decimal(features.decimal, cells, self.read)

    def visibility_map(self, features: Features) -> torch.Tensor:
        """What `visibility` of all layouts is read from (N, V, h, h)."""
        found: torch.Tensor = self.visibility_features([features.stacks[-1], features.decimal])
        return found

    def visibility(self, layout: str, read: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Logits (N, P) of a layout's points being seen, from a map at cells (N, P)."""
        read_out = self._head(layout).visibility
        assert read_out is not None
        logits: torch.Tensor = read_out(read, cells)
        return logits

    def _head(self, layout: str) -> NestedHead:
        heads = self.heads if layout in self.heads else self.auxiliary_heads
        head = heads[layout]
        assert isinstance(head, NestedHead)
        return head
