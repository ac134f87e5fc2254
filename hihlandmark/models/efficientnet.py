"""EfficientNet-Lite as an encoder: the features of a crop at strides 2, 4, 8, 16 and 32.

EfficientNet (Tan and Le, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6. Padding
is that of TensorFlow, where the published ImageNet weights come from: at stride 2 one more column
and row of zeros on the right and at the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class BlockGroup:
    """``repeats`` `InvertedResidual` blocks in a row, the first one with the stride."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    out_channels: int


LITE0 = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(2, 5, 2, 6, 40),
    BlockGroup(3, 3, 2, 6, 80),
    BlockGroup(3, 5, 1, 6, 112),
    BlockGroup(4, 5, 2, 6, 192),
    BlockGroup(1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32


class DepthwiseConv(nn.Conv2d):
    """Depthwise convolution with padding as in TensorFlow.

    In training on a CPU it computes in float32: the backward pass of 5x5 kernels and of stride 2 is
    3 to 8 times slower in bfloat16.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(channels, channels, kernel_size, stride, groups=channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> ``(N, C, H / stride, W / stride)``."""
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        slow = self.kernel_size[0] == 5 or self.stride[0] == 2
        if not (self.training and slow and x.device.type == "cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def pad_same(x: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Pad ``(N, C, H, W)`` with zeros, so that a convolution gives H / stride x W / stride."""
    total = kernel_size - stride
    before = total // 2
    return nn.functional.pad(x, [before, total - before, before, total - before])


def conv_bn(convolution: nn.Conv2d, activation: bool = True) -> nn.Sequential:
    """A convolution with batch norm and, unless it is linear, ReLU6."""
    norm = nn.BatchNorm2d(convolution.out_channels, eps=1e-3, momentum=0.01)
    return nn.Sequential(convolution, norm, *([nn.ReLU6(inplace=True)] if activation else []))


class InvertedResidual(nn.Module):
    """MBConv: expansion, depthwise convolution, linear projection (Sandler, arXiv 1801.04381)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        expand = nn.Conv2d(in_channels, wide, 1, bias=False)
        self.expand = conv_bn(expand) if expansion > 1 else nn.Identity()
        self.depthwise = conv_bn(DepthwiseConv(wide, kernel_size, stride))
        self.project = conv_bn(nn.Conv2d(wide, out_channels, 1, bias=False), activation=False)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, H / stride, W / stride)``."""
        residual = self.project(self.depthwise(self.expand(x)))
        return x + residual if self.has_shortcut else residual


class EfficientNetLite(nn.Module):
    """The features of an EfficientNet-Lite; its classifier is left out.

    Attributes:
        channels: of the features at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self, groups: tuple[BlockGroup, ...] = LITE0) -> None:
        super().__init__()
        self.stem = conv_bn(nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, bias=False))
        self.channels: list[int] = []
        levels: list[list[nn.Module]] = [[]]
        channels = STEM_CHANNELS
        for group in groups:
            if group.stride == 2:
                self.channels.append(channels)
                levels.append([])
            for repeat in range(group.repeats):
                stride = 1 if repeat else group.stride
                block = InvertedResidual(
                    channels, group.out_channels, group.kernel_size, stride, group.expansion
                )
                levels[-1].append(block)
                channels = group.out_channels
        self.channels.append(channels)
        self.levels = nn.ModuleList(nn.Sequential(*blocks) for blocks in levels)

    def forward(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """Crops (N, 3, S, S), S a multiple of 32 -> features at strides 2, 4, 8, 16 and 32."""
        x = self.stem(pad_same(crops, 3, 2))
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features
