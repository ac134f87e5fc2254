"""The objective of ADNet: landmarks, edge maps and point maps of every stack."""

from __future__ import annotations

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import get_layout
from hihlandmark.models.adnet import ADNet, StackMaps
from hihlandmark.models.base import normalize
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ACTIVATION
from hihlandmark.training.objectives.base import Objective, Teacher, point_loss_of
from hihlandmark.training.objectives.lines import LineMaps, line_weights
from hihlandmark.weights.card import Decoding

SMALLEST_MASS = 1e-6
"""An attended heatmap with less mass is empty. The number of the released code."""


class ADNetObjective(Objective):
    """`Objective` of `ADNet` (arXiv 2109.05721, section "Loss").

    A point loss of every stack's landmarks and heatmap losses of its edge and point maps. Each
    stack has twice the weight of the one before.
    """

    names = ("point", "edge_map", "point_map")

    def __init__(self, network: ADNet, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__(network, loss, teacher)
        point_loss = point_loss_of(loss)
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
        layouts = {name: get_layout(name) for name in network.configuration.layouts}
        self.lines = nn.ModuleDict(
            {name: LineMaps(layout.edges, layout.size) for name, layout in layouts.items()}
        )

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """The landmark is the mean of the attended heatmap."""
        return Decoding(decoder="mean", activation="linear", stride=stride)

    def totals(self, batch: Batch) -> torch.Tensor:
        """Sums of weights (3,) of the predicted layouts' points, of edges, and of all points."""
        edges = self._edge_weights(batch.weights)
        predicted = batch.weights[:, self.shipped]
        return torch.stack([predicted.sum(), edges.sum(), batch.weights.sum()])

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (3,) of `forward` -> the total loss."""
        weights = (self.loss.point_weight, self.loss.map_weight, self.loss.map_weight)
        return losses @ losses.new_tensor(weights)

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (3,) of `names`: weighted sums over ``totals`` (3,)."""
        crops = normalize(batch.crops, self.mean, self.std)
        stacks, features = self.network.forward_stacks(crops)
        size = stacks[-1].attended.shape[-1]
        centers = self.in_cells(batch) - 0.5
        edges, edge_weights = self._edges(batch, centers[:, self.shipped], size)
        normals = self.normals(batch)
        losses = torch.zeros(3, device=crops.device)
        for number, maps in enumerate(stacks, 1):
            # As in the paper: 1/8, 1/4, 1/2 and 1 for four stacks.
            share = 2.0 ** (number - len(stacks))
            found = self._stack_sums(batch, maps, centers, normals, edges, edge_weights)
            losses = losses + share * found
        auxiliary = self.auxiliary_sum(features, centers, batch.weights, torch.sigmoid)
        return (losses + auxiliary * losses.new_tensor([0, 0, 1])) / totals.clamp(min=1e-6)

    def _stack_sums(
        self,
        batch: Batch,
        maps: StackMaps,
        centers: torch.Tensor,
        normals: torch.Tensor,
        edges: torch.Tensor,
        edge_weights: torch.Tensor,
    ) -> torch.Tensor:
        """The undivided losses (3,) of a stack; ``edges`` (B, E, h, h) are the targets."""
        weights = batch.weights[:, self.shipped]
        taught = weights > 0
        attended = maps.attended[taught].float()
        mass = attended.sum(dim=(-2, -1), keepdim=True)
        place = centers[:, self.shipped]
        point = self.point_loss(
            attended / mass.clamp(min=SMALLEST_MASS), place[taught], normals[taught]
        )
        on_edge = edge_weights > 0
        edge = self.integer_loss(maps.edges[on_edge].float().sigmoid(), edges[on_edge])
        return torch.stack(
            [
                (point * weights[taught]).sum(),
                (edge * edge_weights[on_edge]).sum(),
                self.map_sum(maps.points.float().sigmoid(), place, weights),
            ]
        )

    def _edges(
        self, batch: Batch, centers: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Target maps (B, E, size, size) of the edges of all layouts, and their weights (B, E)."""
        weights = self._edge_weights(batch.weights)
        maps = centers.new_zeros(*weights.shape, size, size)
        start = 0
        for name, points in self.network.by_layout(centers).items():
            lines = self.lines[name]
            assert isinstance(lines, LineMaps)
            place = slice(start, start + len(lines.lengths))
            start = place.stop
            faces = (weights[:, place] > 0).any(dim=1)
            if faces.any():
                maps[faces, place] = lines(points[faces], size, self.loss.line_sigma)
        return maps, weights

    def _edge_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights of points (B, P) -> weights of the edges of all layouts (B, E)."""
        by_layout = self.network.by_layout(weights[:, self.shipped])
        return torch.cat(list(line_weights(self.lines, by_layout)), dim=1)
