"""The three networks of MTCNN (Zhang et al., arXiv 1604.02878) with facenet-pytorch's weights.

How they are combined into a face detector: `face_detection.mtcnn`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import max_pool2d

# The networks take (pixels - mean) / std.
_MEAN, _STD = 127.5, 128.0
_PIXEL_OFFSET = 128.0  # with steps of 1 from -128 to 127, INT8 rounds no pixel


class MTCNNNetwork(nn.Module):
    """One of the networks, from pixels (N, H, W, 3) uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What facenet-pytorch's network returns; the probabilities of a face come last."""
        # OpenVINO then leaves the order of the pixels as it is.
        normalized = ((pixels.float() - _MEAN) / _STD).permute(0, 3, 1, 2)
        outputs: tuple[torch.Tensor, ...] = self.network(normalized)
        return outputs


class ProposalNetwork(nn.Module):
    """P-Net, from pixels (1, H, W, 3) uint8 with even sides.

    Normalization is part of the first convolution, except for subtracting 128, which is exact in
    bf16 and INT8, and both outputs are computed by one.
    """

    network: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network = copy.deepcopy(network).eval()
        first, moves, classes = network.conv1, network.conv4_2, network.conv4_1
        self.output = nn.Conv2d(moves.in_channels, 5, kernel_size=1)
        with torch.no_grad():
            first.weight /= _STD
            first.bias -= (_MEAN - _PIXEL_OFFSET) * first.weight.sum(dim=(1, 2, 3))
            for name, joined in self.output.named_parameters():
                no_face, face = getattr(classes, name)
                joined.copy_(torch.cat([getattr(moves, name), (face - no_face)[None]]))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        """(1, 5, H', W'): the four moves of a box, and the logit of a face."""
        network = self.network
        centered = pixels.permute(0, 3, 1, 2).float() - _PIXEL_OFFSET
        features = network.prelu1(network.conv1(centered))
        features = max_pool2d(features, 2)
        features = network.prelu2(network.conv2(features))
        features = network.prelu3(network.conv3(features))
        return (self.output(features),)


def mtcnn_network(name: str) -> nn.Module:
    """The network "PNet", "RNet" or "ONet" with its weights."""
    from facenet_pytorch.models import mtcnn  # slow to import

    network = getattr(mtcnn, name)()
    return ProposalNetwork(network) if name == "PNet" else MTCNNNetwork(network)
