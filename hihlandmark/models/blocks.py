"""Convolution blocks shared by the architectures. No whole network lives here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Block = Callable[[int, int], nn.Module]
"""Makes a residual block of a number of input and of output channels."""


class ConvBlock(nn.Sequential):
    """Convolution, batch norm and, unless ``relu=False``, ReLU; "same" padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        relu: bool = True,
        bias: bool = False,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias
            ),
            nn.BatchNorm2d(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Bottleneck(nn.Module):
    """Residual bottleneck 1x1, 3x3, 1x1 (He et al., arXiv 1512.03385), half as wide inside.

    With ``unused_shortcut``, a block as wide at its input as at its output holds a projection that
    the forward never uses: see `HIHConfiguration`.
    """

    def __init__(self, in_channels: int, out_channels: int, unused_shortcut: bool = False) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvBlock(in_channels, out_channels // 2),
            ConvBlock(out_channels // 2, out_channels // 2, kernel_size=3),
            ConvBlock(out_channels // 2, out_channels, relu=False),
        )
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else ConvBlock(in_channels, out_channels, relu=False)
        )
        if unused_shortcut and in_channels == out_channels:
            self.unused_shortcut = ConvBlock(in_channels, out_channels, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, H, W)``."""
        return self.relu(self.residual(x) + self.skip(x))


class PreActivation(nn.Sequential):
    """Batch norm, ReLU, convolution, in this order (He et al., arXiv 1603.05027)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias),
        )


class PreActivationBottleneck(nn.Module):
    """`Bottleneck` with activations before the convolutions, as ADNet has it.

    ``unused_shortcut`` as there.
    """

    def __init__(self, in_channels: int, out_channels: int, unused_shortcut: bool = False) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            PreActivation(in_channels, out_channels // 2),
            PreActivation(out_channels // 2, out_channels // 2, kernel_size=3),
            PreActivation(out_channels // 2, out_channels),
        )
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )
        if unused_shortcut and in_channels == out_channels:
            self.unused_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, H, W)``."""
        return self.residual(x) + self.skip(x)


class HierarchicalBlock(nn.Module):
    """Three 3x3 convolutions in a row, outputs concatenated (Bulat et al., arXiv 1703.00862).

    The residual block of FAN (arXiv 1703.07332), from which Adaptive Wing has it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.wide = PreActivation(in_channels, out_channels // 2, kernel_size=3, bias=False)
        self.middle = PreActivation(out_channels // 2, out_channels // 4, kernel_size=3, bias=False)
        self.narrow = PreActivation(out_channels // 4, out_channels // 4, kernel_size=3, bias=False)
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else PreActivation(in_channels, out_channels, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, H, W)``."""
        wide = self.wide(x)
        middle = self.middle(wide)
        return torch.cat([wide, middle, self.narrow(middle)], dim=1) + self.skip(x)


class BlurPool(nn.Module):
    """Halves the resolution without aliasing (Zhang, 1904.11486): highest of 2x2, then a blur."""

    kernel: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (binomial[:, None] * binomial)[None, None], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> ``(N, C, H / 2, W / 2)``; H and W are even."""
        channels = x.shape[1]
        x = nn.functional.pad(nn.functional.max_pool2d(x, 2, stride=1), (1, 1, 1, 1), "reflect")
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return nn.functional.conv2d(x, kernel, stride=2, groups=channels)


class DownBlock(nn.Module):
    """Residual basic block that halves the resolution."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvBlock(features, features, kernel_size=3, stride=2),
            ConvBlock(features, features, kernel_size=3, relu=False),
        )
        self.skip = ConvBlock(features, features, stride=2, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> ``(N, C, ceil(H / 2), ceil(W / 2))``."""
        return self.relu(self.residual(x) + self.skip(x))


class Hourglass(nn.Module):
    """One hourglass (Newell et al., arXiv 1603.06937): ``depth`` halvings with skip branches.

    ``pool`` halves the resolution, ``upsample`` doubles it.
    """

    def __init__(
        self,
        depth: int,
        features: int,
        block: Block,
        pool: nn.Module,
        upsample: nn.Module,
    ) -> None:
        super().__init__()
        self.upper = block(features, features)
        self.pool = pool
        self.down = block(features, features)
        self.inner: nn.Module = (
            Hourglass(depth - 1, features, block, pool, upsample)
            if depth > 1
            else block(features, features)
        )
        self.up = block(features, features)
        self.upsample = upsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> same shape; H and W are multiples of ``2**depth``."""
        lower = self.up(self.inner(self.down(self.pool(x))))
        return self.upper(x) + self.upsample(lower)


BOUNDARY_THRESHOLD = 0.05
"""Where a boundary map is higher, `CoordConv` shows the coordinates: the released code's number."""


class CoordConv(nn.Conv2d):
    """Convolution that also sees where it is (Liu et al., arXiv 1807.03247), with "same" padding.

    Channels are added for row, column, both in -1..1, and the distance from the middle in 0..1.
    With ``boundary`` there are two more: row and column where a map of the face's lines is high
    and 0 elsewhere (Adaptive Wing, arXiv 1904.07399, section "CoordConv with boundary").
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        boundary: bool = False,
    ) -> None:
        added = 5 if boundary else 3
        super().__init__(
            in_channels + added, out_channels, kernel_size, stride, padding=kernel_size // 2
        )

    def forward(self, x: torch.Tensor, boundary: torch.Tensor | None = None) -> torch.Tensor:
        """(N, in_channels, H, W), boundary map (N, 1, H, W) -> (N, out_channels, ...)."""
        height, width = x.shape[-2:]
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None]
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)[None]
        place = torch.stack([rows.expand(height, width), columns.expand(height, width)])
        radius = place.square().sum(dim=0, keepdim=True).sqrt() / 2**0.5
        where = torch.cat([place, radius]).expand(x.shape[0], -1, -1, -1)
        seen = [x, where]
        if boundary is not None:
            seen.append(place * (boundary > BOUNDARY_THRESHOLD))
        return super().forward(torch.cat(seen, dim=1))


class CoordStem(nn.Sequential):
    """From a crop (N, 3, S, S) to a backbone (N, features, S / 4, S / 4), with coordinates."""

    def __init__(self, features: int, block: Block, pool: nn.Module) -> None:
        super().__init__(
            CoordConv(3, features // 4, kernel_size=7, stride=2),
            nn.BatchNorm2d(features // 4),
            nn.ReLU(inplace=True),
            block(features // 4, features // 2),
            pool,
            block(features // 2, features // 2),
            block(features // 2, features),
        )


class CoordHourglass(nn.Module):
    """From a backbone to a stack's features: of ADNet and Adaptive Wing.

    ``boundary``: whether it sees the boundary map of the stack before.
    """

    def __init__(
        self, depth: int, features: int, block: Block, pool: nn.Module, boundary: bool
    ) -> None:
        super().__init__()
        self.coordinates = CoordConv(features, features, boundary=boundary)
        self.hourglass = Hourglass(depth, features, block, pool, nn.Upsample(scale_factor=2))
        self.residual = block(features, features)
        self.linear = ConvBlock(features, features, bias=True)

    def forward(self, x: torch.Tensor, boundary: torch.Tensor | None) -> torch.Tensor:
        """Backbone ``(N, C, h, h)``, boundary ``(N, 1, h, h)`` -> features ``(N, C, h, h)``."""
        return self.linear(self.residual(self.hourglass(self.coordinates(x, boundary))))
