"""What a runtime runs: a network for one layout, from crops as cut to heatmaps or points."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hihlandmark.heatmap import read_heatmaps
from hihlandmark.models.base import Heatmaps
from hihlandmark.weights.card import Decoding, Normalization

ANY = -1
"""In shapes: whatever comes."""


class PixelGraph(NamedTuple):
    """A module over pixels, with what there is to know to convert it."""

    module: nn.Module
    input: str
    """Name of what goes in: uint8 (N, H, W, 3)."""
    shape: tuple[int, ...]
    """Its shape, with `ANY` where a number may be any."""
    outputs: Sequence[str]
    """Names of the tensors that come out, float32."""

    def example(self) -> torch.Tensor:
        """Black pixels of a shape in which no number happens to be special."""
        return torch.zeros(
            [(37 if axis else 2) if n == ANY else n for axis, n in enumerate(self.shape)],
            dtype=torch.uint8,
        )


def normalize(crops: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Crops (N, S, S, 3) uint8 -> (N, 3, S, S) float32 with zero mean and unit spread."""
    return ((crops.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class CropGraph(nn.Module):
    """A network in evaluation mode for one layout, with what comes before it and perhaps after it.

    Without ``decoding`` it gives raw heatmaps, with it points.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        layout: str,
        normalization: Normalization,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__()
        self.network, self.layout, self.decoding = network, layout, decoding
        self.register_buffer("mean", torch.tensor(normalization["mean"]), persistent=False)
        self.register_buffer("std", torch.tensor(normalization["std"]), persistent=False)
        self.eval()

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Crops (N, S, S, 3) uint8 RGB -> heatmaps (N, P, h, h) and, where the network has them,
        (N, P, b, b), both raw; or points (N, P, 2) in crop pixels, their masses (N, P) and
        covariances (N, P, 2, 2), all float32."""
        raw: Heatmaps = self.network(normalize(crops, self.mean, self.std))[self.layout]
        heatmaps = raw.float()
        if self.decoding is None:
            return tuple(maps for maps in heatmaps if maps is not None)
        found = read_heatmaps(heatmaps.integer, heatmaps.decimal, self.decoding)
        return found.points, found.mass, found.covariance

    def on_pixels(self, size: int) -> PixelGraph:
        """This graph for any number of crops of ``size`` pixels."""
        outputs = ["integer", "decimal"]
        if self.decoding is not None:
            outputs = ["points", "mass", "covariance"]
        with torch.inference_mode():
            found = self(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        return PixelGraph(self, "crops", (ANY, size, size, 3), outputs[: len(found)])


def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose convolutions do the work of the batch norms behind them.

    The same numbers but for rounding, in fewer passes over the data.
    """
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            convolution, norm = module[place], module[place + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[place] = fuse_conv_bn_eval(convolution, norm)
                module[place + 1] = nn.Identity()
    return network
