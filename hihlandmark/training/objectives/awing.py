"""What Adaptive Wing is trained for: heatmaps of points and of the face's boundary, every stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import get_layout
from hihlandmark.models.awing import AWing
from hihlandmark.runtimes.graph import normalize
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ACTIVATION
from hihlandmark.training.objectives.base import Objective
from hihlandmark.training.objectives.lines import LineMaps, line_weights
from hihlandmark.weights.card import Decoding

if TYPE_CHECKING:
    from hihlandmark.training.distillation import Teacher


class AWingObjective(Objective):
    """`Objective` of `AWing` (arXiv 1904.07399): one loss on points and boundary alike.

    The boundary are all contours of the layout; a face whose contours are not all known teaches no
    boundary. (The released code leaves out the lower lines of WFLW's eyebrows.)
    """

    names = ("heatmap", "boundary")

    def __init__(self, network: AWing, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__(network, loss, teacher)
        if teacher is not None:
            raise ConfigurationError(
                "distillation is of HIH's heatmaps, awing has no decimal ones: leave the table out"
            )
        layouts = {name: get_layout(name) for name in network.configuration.layouts}
        self.lines = nn.ModuleDict(
            {name: LineMaps(layout.contours, layout.size) for name, layout in layouts.items()}
        )

    @staticmethod
    def decoding(loss: Loss) -> Decoding:
        """Heatmaps around cells hold no more than the quarter; others hold the exact place."""
        return {
            "decoder": "local_soft_argmax" if loss.sub_cell else "quarter_shift",
            "bin_center": 0.5,
            "activation": ACTIVATION[loss.integer],
        }

    def totals(self, batch: Batch) -> torch.Tensor:
        """The sum of the weights of all points and of the boundaries: (1,)."""
        boundaries = self._boundary_weights(batch.weights)
        return (batch.weights.sum() + boundaries.sum())[None]

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (2,) of `forward` -> the number to be minimized."""
        return losses.sum()

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """Sums over points and over boundaries, over ``totals`` (1,): (2,), means over stacks."""
        crops = normalize(batch.crops, self.mean, self.std)
        predictions, features = self.network.forward_stacks(crops)
        size, shipped = predictions[-1].shape[-1], self.shipped
        u = self.in_cells(batch, size)
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
        """Weights of points (B, P) -> of the layouts' boundaries (B, L)."""
        found = [
            each.mean(dim=1) * (each > 0).all(dim=1)
            for each in line_weights(self.lines, self.network.by_layout(weights[:, self.shipped]))
        ]
        return torch.stack(found, dim=1)
