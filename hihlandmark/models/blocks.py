"""Convolution blocks shared by the architectures. No whole network lives here."""

from __future__ import annotations

import torch
from torch import nn


class ConvBlock(nn.Sequential):
    """Convolution without bias, batch norm and, unless ``relu=False``, ReLU; "same" padding."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, relu: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Bottleneck(nn.Module):
    """Residual bottleneck 1x1, 3x3, 1x1 (He et al., arXiv 1512.03385), half as wide inside.

    With ``idle_skip``, a block as wide at its input as at its output holds a projection that the
    forward never uses: see `HIHConfiguration`.
    """

    def __init__(self, inputs: int, outputs: int, idle_skip: bool = False) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvBlock(inputs, outputs // 2),
            ConvBlock(outputs // 2, outputs // 2, kernel=3),
            ConvBlock(outputs // 2, outputs, relu=False),
        )
        self.skip = nn.Identity() if inputs == outputs else ConvBlock(inputs, outputs, relu=False)
        if idle_skip and inputs == outputs:
            self.idle_skip = ConvBlock(inputs, outputs, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, inputs, H, W)`` -> ``(N, outputs, H, W)``."""
        return self.relu(self.residual(x) + self.skip(x))


class DownBlock(nn.Module):
    """Residual basic block that halves the resolution."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvBlock(features, features, kernel=3, stride=2),
            ConvBlock(features, features, kernel=3, relu=False),
        )
        self.skip = ConvBlock(features, features, stride=2, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> ``(N, C, ceil(H / 2), ceil(W / 2))``."""
        return self.relu(self.residual(x) + self.skip(x))


class Hourglass(nn.Module):
    """One hourglass (Newell et al., arXiv 1603.06937): ``depth`` halvings with skip branches."""

    def __init__(self, depth: int, features: int, idle_skips: bool = False) -> None:
        super().__init__()
        self.upper = Bottleneck(features, features, idle_skips)
        self.pool = nn.MaxPool2d(2)
        self.down = Bottleneck(features, features, idle_skips)
        self.inner: nn.Module = (
            Hourglass(depth - 1, features, idle_skips)
            if depth > 1
            else Bottleneck(features, features, idle_skips)
        )
        self.up = Bottleneck(features, features, idle_skips)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> same shape; H and W are multiples of ``2**depth``."""
        lower = self.up(self.inner(self.down(self.pool(x))))
        lower = nn.functional.interpolate(
            lower, scale_factor=2, mode="bilinear", align_corners=True
        )
        return self.upper(x) + lower
