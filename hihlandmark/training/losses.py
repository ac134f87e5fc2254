"""Losses on heatmaps. Each takes the points that count, already gathered: (K, h, w) tensors."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def heatmap_mse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error a map: (K, h, w) twice -> (K,). HIH, arXiv 2104.03100, equation 5."""
    return (predicted - target).square().mean(dim=(-2, -1))


def csc(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL divergence between the softmaxes of target and prediction: (K, h, w) twice -> (K,).

    The "CSC" loss of HIH (arXiv 2104.03100, section 3.3) on decimal heatmaps.
    """
    log_p = F.log_softmax(predicted.flatten(-2), dim=-1)
    q = F.softmax(target.flatten(-2), dim=-1)
    return F.kl_div(log_p, q, reduction="none").sum(dim=-1)


def soft_label_cross_entropy(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over cells, the normalised target as the label: (K, h, w) twice -> (K,)."""
    log_p = F.log_softmax(predicted.flatten(-2), dim=-1)
    q = target.flatten(-2)
    q = q / q.sum(dim=-1, keepdim=True)
    return -(q * log_p).sum(dim=-1)
