"""Batch normalization and sums over the processes of a training run."""

from __future__ import annotations

import torch
from torch import distributed, nn


def synchronize_statistics(network: nn.Module, device: torch.device) -> nn.Module:
    """Normalize over the batches of all processes, on CUDA; elsewhere return the network as it is.

    `nn.SyncBatchNorm` runs on CUDA only: on a CPU each process normalizes by its own batch.

    Args:
        network: its batch norms are replaced in place.
        device: where it is trained.

    Returns:
        The network to train.
    """
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    if processes > 1 and device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


def freeze_batch_norm(network: nn.Module) -> None:
    """Put batch norms into eval mode: they use their running statistics and do not update them."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values
