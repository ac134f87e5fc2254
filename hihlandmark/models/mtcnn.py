"""The three networks of MTCNN (Zhang et al., arXiv 1604.02878) with facenet-pytorch's weights.

How they are combined into a face detector: `face_detection.mtcnn`.
"""

from __future__ import annotations

import torch
from torch import nn


class MTCNNNetwork(nn.Module):
    """One of the networks, from pixels (N, H, W, 3) uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What facenet-pytorch's network returns; the probabilities of a face come last."""
        normalized = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 128
        outputs: tuple[torch.Tensor, ...] = self.network(normalized)
        return outputs


def mtcnn_network(name: str) -> MTCNNNetwork:
    """The network "PNet", "RNet" or "ONet" with its weights."""
    from facenet_pytorch.models import mtcnn  # slow to import

    return MTCNNNetwork(getattr(mtcnn, name)())
