"""Batch normalization over the batches of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, and the sum of its gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return summed(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return summed(gradient.contiguous().clone())


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance are those of all processes' batches together.

    `nn.SyncBatchNorm` runs on CUDA alone.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = x.float()
        count = float(summed(values.new_tensor(values.numel() / values.shape[1])))
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        # A second sum, since a mean of squares less a squared mean would lose digits.
        centerd = values - mean[:, None, None]
        variance = _Sum.apply(centerd.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum or 0.0)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        normalized = centerd * scale[:, None, None] + self.bias[:, None, None]
        return normalized.to(x.dtype)


def synchronize_statistics(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalization over all processes, where there are several."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return network
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    replace_batch_norm(network)
    return network


def replace_batch_norm(network: nn.Module) -> None:
    """Makes every `nn.BatchNorm2d` a `SynchronizedBatchNorm` with the same tensors."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm


def freeze_batch_norm(network: nn.Module) -> None:
    """Puts batch normalization into eval mode: its statistics are used, and stay as they are."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values
