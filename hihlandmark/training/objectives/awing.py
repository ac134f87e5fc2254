"""The objective of Adaptive Wing: heatmaps of points and of the boundary, every stack."""

from __future__ import annotations

import torch
from torch import nn

from hihlandmark.layouts import get_layout
from hihlandmark.models.awing import AWing
from hihlandmark.models.base import normalize
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ACTIVATION
from hihlandmark.training.objectives.base import Objective, Teacher
from hihlandmark.training.objectives.lines import LineMaps, line_weights
from hihlandmark.weights.card import Decoding


class AWingObjective(Objective):
    """`Objective` of `AWing` (arXiv 1904.07399): one loss for points and boundary.

    The boundary consists of all contours of the layout; a face with an unknown point on a contour
    does not train it. (The released code leaves out the lower lines of WFLW's eyebrows.)
    """

    names = ("heatmap", "boundary")

    def __init__(self, network: AWing, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__(network, loss, teacher)
        layouts = {name: get_layout(name) for name in network.configuration.layouts}
        self.lines = nn.ModuleDict(
            {name: LineMaps(layout.contours, layout.size) for name, layout in layouts.items()}
        )

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
        boundaries = self._boundary_weights(batch.weights)
        return (batch.weights.sum() + boundaries.sum())[None]

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (2,) of `forward` -> the total loss."""
        return losses.sum()

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (2,) of `names`: weighted sums over ``totals`` (1,), means over stacks."""
        crops = normalize(batch.crops, self.mean, self.std)
        predictions, features = self.network.forward_stacks(crops)
        size, shipped = predictions[-1].shape[-1], self.shipped
        u = self.in_cells(batch)
        centers = u - 0.5 if self.loss.sub_cell else u.floor().clamp(0, size - 1)
        weights = batch.weights[:, shipped]
        boundaries, boundary_weights = self._boundaries(batch, u[:, shipped] - 0.5, size)
        taught = boundary_weights > 0

        heatmap = self.auxiliary_sum(features, centers, batch.weights)
        boundary = torch.zeros((), device=crops.device)
        for maps in predictions:
            heatmap = heatmap + self.map_sum(maps[:, shipped], centers[:, shipped], weights) / len(
                predictions
            )
            losses = self.integer_loss(maps[:, shipped.stop :][taught].float(), boundaries[taught])
            boundary = boundary + (losses * boundary_weights[taught]).sum() / len(predictions)
        return torch.stack([heatmap, boundary]) / totals.clamp(min=1e-6)

    def _boundaries(
        self, batch: Batch, centers: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Target maps (B, L, size, size) of the boundary in every layout, and weights (B, L)."""
        weights = self._boundary_weights(batch.weights)
        maps = centers.new_zeros(*weights.shape, size, size)
        for number, (name, points) in enumerate(self.network.by_layout(centers).items()):
            faces = weights[:, number] > 0
            if faces.any():
                drawn = self.lines[name](points[faces], size, self.loss.line_sigma)
                maps[faces, number] = drawn.amax(dim=1)
        return maps, weights

    def _boundary_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights of points (B, P) -> weights of the boundaries of L layouts (B, L)."""
        found = [
            each.mean(dim=1) * (each > 0).all(dim=1)
            for each in line_weights(self.lines, self.network.by_layout(weights[:, self.shipped]))
        ]
        return torch.stack(found, dim=1)
