"""The objective of Adaptive Wing: heatmaps of points and of the boundary, every stack."""

from __future__ import annotations

import torch

from hihlandmark.layouts import get_layout
from hihlandmark.models.awing import AWing
from hihlandmark.models.base import normalize
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ACTIVATION
from hihlandmark.training.objectives.base import LineObjective, Teacher
from hihlandmark.weights.card import Decoding


class AWingObjective(LineObjective):
    """`Objective` of `AWing` (arXiv 1904.07399): one loss for points and boundary.

    The boundary consists of all contours of the layout; a face with an unknown point on a contour
    does not train it. (The released code leaves out the lower lines of WFLW's eyebrows.)
    """

    names = ("heatmap", "boundary")
    supports_points = False

    def __init__(self, network: AWing, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__(network, loss, teacher)
        contours = {name: get_layout(name).contours for name in network.configuration.layouts}
        self.add_lines(contours, merged=True)

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """Gaussians centered on cells encode a quarter of a cell, others the exact position."""
        return Decoding(
            decoder="local_soft_argmax" if loss.sub_cell else "quarter_shift",
            activation=ACTIVATION[loss.integer],
            stride=stride,
        )

    def totals(self, batch: Batch) -> torch.Tensor:
        """The sum of the weights of all points and of the boundaries: (1,)."""
        return (batch.weights.sum() + self.line_weights(batch.weights).sum())[None]

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (2,) of `forward` -> the total loss."""
        return losses.sum()

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (2,) of `names`: weighted sums over ``totals`` (1,), means over stacks."""
        stacks, features = self.network.forward_stacks(normalize(batch.crops, self.mean, self.std))
        size, shipped = stacks[-1].shape[-1], self.shipped
        u = self.in_cells(batch)
        centers = u - 0.5 if self.loss.sub_cell else u.floor().clamp(0, size - 1)
        weights = batch.weights[:, shipped]
        boundaries, boundary_weights = self.line_targets(batch, size)
        taught = boundary_weights > 0

        heatmap = self.auxiliary_sum(features, centers, batch.weights)
        boundary = torch.zeros((), device=features.device)
        for maps in stacks:
            points = self.map_sum(maps[:, shipped], centers[:, shipped], weights)
            heatmap = heatmap + points / len(stacks)
            losses = self.integer_loss(maps[:, shipped.stop :][taught].float(), boundaries[taught])
            boundary = boundary + (losses * boundary_weights[taught]).sum() / len(stacks)
        return torch.stack([heatmap, boundary]) / totals.clamp(min=1e-6)
