"""What a runtime runs: a network with normalization before and decoding after it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hihlandmark.heatmap import Decoded, decode_heatmaps
from hihlandmark.models.base import AnyHeatmaps, normalize
from hihlandmark.models.nested import NestedHead
from hihlandmark.runtimes.base import ANY, PixelGraph, Precision
from hihlandmark.runtimes.int8 import quantize
from hihlandmark.weights.card import Decoding, ModelCard, Normalization


class CropGraph(nn.Module):
    """A network in evaluation mode: crops as cut -> decoded points of one or more layouts.

    Args:
        network: maps normalized crops to the heatmaps of each layout.
        layouts: names of the layouts to decode; their points are concatenated in this order.
        normalization: mean and standard deviation of the card.
        decoding: how heatmaps are decoded.
        pixel_origin: of the card's crop contract.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        layouts: Sequence[str],
        normalization: Normalization,
        decoding: Decoding,
        pixel_origin: float = 0.5,
    ) -> None:
        super().__init__()
        self.network, self.layouts = network, tuple(layouts)
        self.decoding, self.pixel_origin = decoding, pixel_origin
        plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        self.register_buffer("mean", torch.tensor(normalization.mean, **plain), persistent=False)
        self.register_buffer("std", torch.tensor(normalization.std, **plain), persistent=False)
        self.eval()

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Crops (N, S, S, 3) uint8 RGB -> the tensors of `Decoded`, points (N, P, 2) first."""
        return self.decode(self.heatmaps(crops)).tensors()

    def heatmaps(self, crops: torch.Tensor) -> list[AnyHeatmaps]:
        """Crops (N, S, S, 3) uint8 RGB -> the raw heatmaps of each layout, float32."""
        raw = self.network(normalize(crops, self.mean, self.std), self.layouts)
        return [raw[layout].float() for layout in self.layouts]

    def decode(self, heatmaps: Sequence[AnyHeatmaps]) -> Decoded:
        """The raw heatmaps of each layout -> the points of all."""
        found = [
            decode_heatmaps(each, self.decoding, pixel_origin=self.pixel_origin)
            for each in heatmaps
        ]
        if len(found) == 1:
            return found[0]
        tensors = (each.tensors() for each in found)
        return Decoded(*(torch.cat(parts, dim=1) for parts in zip(*tensors, strict=True)))

    def on_pixels(self, size: int) -> PixelGraph:
        """This graph for any number of crops of ``size`` pixels."""
        has_visibility = bool(getattr(self.network.configuration, "visibility", 0))
        outputs = Decoded._fields if has_visibility else Decoded._fields[:3]
        return PixelGraph(self, "crops", (ANY, size, size, 3), outputs)


def graph_of_card(
    network: nn.Module, layout: str, card: ModelCard, decoding: Decoding, precision: Precision
) -> CropGraph:
    """What a runtime runs of a network: one layout, folded, and rounded for INT8."""
    network = folded(network, [layout])
    if precision == "int8":
        network = quantize(network, card.activation_ranges)
    return CropGraph(network, [layout], card.normalization, decoding, card.crop.pixel_origin)


def folded(network: nn.Module, layouts: Sequence[str]) -> nn.Module:
    """A copy in evaluation mode with each batch norm folded into the convolution before it.

    Weights of low rank are multiplied out. Auxiliary heads of other layouts are left out.
    The outputs are the same but for rounding, in fewer passes over the data.
    """
    network = copy.deepcopy(network).eval()
    auxiliary = getattr(network, "auxiliary_heads", {})
    for name in [name for name in auxiliary if name not in layouts]:
        del auxiliary[name]
    for module in network.modules():
        if isinstance(module, NestedHead):
            module.fold()
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            convolution, norm = module[place], module[place + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[place] = fuse_conv_bn_eval(convolution, norm)
                module[place + 1] = nn.Identity()
    return network


@contextlib.contextmanager
def without_tracer_warnings() -> Iterator[None]:
    """Silence warnings about shapes that become constants: only the number of crops varies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
