"""The objective of ADNet: landmarks, edge maps and point maps of every stack."""

from __future__ import annotations

import torch

from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import get_layout
from hihlandmark.models.adnet import ADNet
from hihlandmark.models.base import normalize
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ACTIVATION, POINT_LOSSES
from hihlandmark.training.objectives.base import LineObjective, Teacher, point_loss_of
from hihlandmark.weights.card import Decoding

SMALLEST_MASS = 1e-6
"""An attended heatmap with less mass is empty. The number of the released code."""


class ADNetObjective(LineObjective):
    """`Objective` of `ADNet` (arXiv 2109.05721, section "Loss").

    A point loss of every stack's landmarks and heatmap losses of its edge and point maps. Each
    stack has twice the weight of the one before.
    """

    names = ("point", "edge_map", "point_map")

    def __init__(self, network: ADNet, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__(network, loss, teacher)
        point_loss = point_loss_of(loss, POINT_LOSSES)
        if point_loss is None:
            raise ConfigurationError(
                "adnet is trained on landmarks: set loss.point, such as anisotropic_direction"
            )
        if ACTIVATION[loss.integer] != "linear":
            raise ConfigurationError(
                f"loss.integer={loss.integer!r} is for distributions, and adnet's edge and point "
                "maps are masks in 0..1: use adaptive_wing or mse"
            )
        self.point_loss = point_loss
        self.add_lines({name: get_layout(name).edges for name in network.configuration.layouts})

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """The landmark is the mean of the attended heatmap."""
        return Decoding(decoder="mean", activation="linear", stride=stride)

    def totals(self, batch: Batch) -> torch.Tensor:
        """Sums of weights (3,) of the predicted layouts' points, of edges, and of all points."""
        predicted = batch.weights[:, self.shipped]
        edges = self.line_weights(batch.weights)
        return torch.stack([predicted.sum(), edges.sum(), batch.weights.sum()])

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (3,) of `forward` -> the total loss."""
        weights = (self.loss.point_weight, self.loss.map_weight, self.loss.map_weight)
        return losses @ losses.new_tensor(weights)

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (3,) of `names`: weighted sums over ``totals`` (3,)."""
        stacks, features = self.network.forward_stacks(normalize(batch.crops, self.mean, self.std))
        edges, edge_weights = self.line_targets(batch, stacks[-1].attended.shape[-1])
        on_edge = edge_weights > 0
        centers = self.in_cells(batch) - 0.5
        own_centers, weights = centers[:, self.shipped], batch.weights[:, self.shipped]
        taught = weights > 0
        normals = self.normals(batch)[taught]
        losses = torch.zeros(3, device=features.device)
        for number, maps in enumerate(stacks, 1):
            attended = maps.attended[taught].float()
            mass = attended.sum(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_MASS)
            point = self.point_loss(attended / mass, own_centers[taught], normals)
            edge = self.integer_loss(maps.edges[on_edge].float().sigmoid(), edges[on_edge])
            sums = [
                (point * weights[taught]).sum(),
                (edge * edge_weights[on_edge]).sum(),
                self.map_sum(maps.points.float().sigmoid(), own_centers, weights),
            ]
            # As in the paper: 1/8, 1/4, 1/2 and 1 for four stacks.
            losses = losses + 2.0 ** (number - len(stacks)) * torch.stack(sums)
        auxiliary = self.auxiliary_sum(features, centers, batch.weights, torch.sigmoid)
        return (losses + auxiliary * losses.new_tensor([0, 0, 1])) / totals.clamp(min=1e-6)
