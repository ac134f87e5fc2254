"""INT8 convolutions: the range of each one's input, and the rounding that runtimes recognize.

A convolution whose input and weights pass through "fake quantization" (Jacob et al., arXiv
1712.05877: rounded to 256 values, but kept as float32) is run by OpenVINO on integers of 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from hihlandmark.errors import WeightsError
from hihlandmark.models.blocks import CoordConv

Ranges = dict[str, tuple[float, float]]
"""Lowest and highest value of the input of a convolution, by its name in a folded network."""

UNROUNDED = ("encoder.stem.", "encoder.levels.0.", "heads.", "auxiliary_heads.")
"""Beginnings of the names of convolutions without a range: in a nested network, rounding the first
and the last ones makes points tremble twice as much, and saves no time."""
_LEVELS = 255
"""Steps from the lowest to the highest value of an input."""
_LARGEST_WEIGHT = 127


@contextmanager
def observed_ranges(network: nn.Module, covered: float | None = None) -> Iterator[Ranges]:
    """The ranges of a network that runs in this context, filled in at its end.

    Args:
        network: its convolutions are observed.
        covered: share of the batches whose lowest value lies in the range, and of those whose
            highest does. None: both ends are means over the batches. The extremes of all batches
            are so far apart that the steps between 256 values become too large.
    """
    seen: dict[str, list[tuple[float, float]]] = {}
    ranges: Ranges = {}

    def observe(name: str, values: torch.Tensor) -> None:
        low, high = values.detach().float().aminmax()
        # Zero, which is what padding adds, is always in the range.
        seen.setdefault(name, []).append((min(low.item(), 0), max(high.item(), 0)))

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, n=name: observe(n, inputs[0]))
        for name, module in _convolutions(network).items()
        if not name.startswith(UNROUNDED)
    ]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()
        for name, extremes in seen.items():
            lows, highs = np.transpose(extremes)
            if covered is None:
                ends = lows.mean(), highs.mean()
            else:
                ends = np.quantile(lows, 1 - covered), np.quantile(highs, covered)
            ranges[name] = round(float(ends[0]), 4), round(float(ends[1]), 4)


def quantize(network: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> nn.Module:
    """Round inputs and weights of all convolutions with a range, in place; returns the network.

    Inputs are rounded to 8 bits within their range, the weights of each output channel to 8 bits
    within plus and minus their largest absolute value.

    Raises:
        WeightsError: there are ranges, but none of a convolution of the network.
    """
    found = {name: each for name, each in _convolutions(network).items() if name in ranges}
    if ranges and not found:
        raise WeightsError(
            f"the card's activation_ranges, such as {min(ranges)!r}, are of another network: "
            "measure them with benchmarks/fit_activation_ranges.py, or use precision='fp32'"
        )
    for name, module in found.items():
        parent, _, own = name.rpartition(".")
        parametrize.register_parametrization(module, "weight", _RoundedWeights(module.weight))
        rounded = nn.Sequential(_RoundedInput(*ranges[name]), module)
        setattr(network.get_submodule(parent), own, rounded)
    return network.eval()


def round_in_training(network: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Round the inputs of all convolutions with a range while a network is trained.

    The network adapts to the rounding of INT8 (Jacob et al., arXiv 1712.05877). Gradients pass
    unchanged within the range. Weights are not rounded: their error is the same in every crop.
    """

    def round_input(module: nn.Module, rounded: _RoundedInput) -> None:
        module.register_forward_pre_hook(
            lambda _, inputs: (rounded(inputs[0].float()),) if module.training else None
        )

    for name, module in _convolutions(network).items():
        if name in ranges:
            round_input(module, _RoundedInput(*ranges[name]))


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Those that can be rounded, by name: `CoordConv` may have two inputs."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and not isinstance(module, CoordConv)
    }


class _RoundedInput(nn.Module):
    """To 256 values from ``low`` (at most 0) to ``high`` (at least 0), of which one is zero."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.step = max(high - low, 1e-6) / _LEVELS
        self.zero = round(-low / self.step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, _LEVELS)


class _RoundedWeights(nn.Module):
    """To 255 values an output channel, symmetric around zero."""

    steps: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        largest = weight.detach().abs().amax(dim=(1, 2, 3))
        self.register_buffer("steps", largest.clamp(min=1e-6) / _LARGEST_WEIGHT)
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int32))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(
            weight, self.steps, self.zeros, 0, -_LARGEST_WEIGHT, _LARGEST_WEIGHT
        )
