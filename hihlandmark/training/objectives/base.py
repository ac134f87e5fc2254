"""A network and what it is trained for. The losses of an architecture are in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import gaussian
from hihlandmark.layouts import get_layout
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import HEATMAP_LOSSES, POINT_LOSSES, PointLoss, contour_normals
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding

if TYPE_CHECKING:
    from hihlandmark.training.distillation import Teacher


class Objective(nn.Module):
    """A network and what it is trained for; `forward` gives the losses of a batch.

    A face teaches the heads of its own layout, and the points that another layout shares with it; a
    ``teacher`` teaches all its layouts on every face. Raises `ConfigurationError` for losses that
    there are not, and for settings that the architecture cannot follow.
    """

    names: ClassVar[tuple[str, ...]]
    """Of the K losses of `forward`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: Any, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.network, self.loss, self.teacher = network, loss, teacher
        self.integer_loss = named_loss(HEATMAP_LOSSES, loss.integer, "loss.integer")
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    @staticmethod
    def decoding(loss: Loss) -> Decoding:
        """How heatmaps trained with these losses are read, as a model card states it."""
        raise NotImplementedError

    def totals(self, batch: Batch) -> torch.Tensor:
        """What the sums over a batch are divided by: of several batches or processes the sum."""
        raise NotImplementedError

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (K,) of `forward` -> the number to be minimized."""
        raise NotImplementedError

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (K,) called `names`: weighted sums over a batch, divided by ``totals``."""
        raise NotImplementedError

    @property
    def shipped(self) -> slice:
        """The place of the predicted layouts' points among all, auxiliary ones behind them."""
        return slice(0, self.network.configuration.points)

    def in_cells(self, batch: Batch, size: int) -> torch.Tensor:
        """Points (B, P, 2) in cells of heatmaps with ``size`` cells a side: the first is 0 to 1."""
        return (batch.points + 0.5) * size / batch.crops.shape[1]

    def map_sum(
        self, maps: torch.Tensor, centers: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the heatmap loss of maps (B, p, h, h) of p points.

        ``centers`` (B, p, 2) of the Gaussians, where the center of cell c is c; ``weights`` (B, p).
        """
        taught = weights > 0
        targets = gaussian(centers[taught], maps.shape[-1], self.loss.integer_sigma)
        return (self.integer_loss(maps[taught].float(), targets) * weights[taught]).sum()

    def auxiliary_sum(
        self,
        features: torch.Tensor,
        centers: torch.Tensor,
        weights: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor] = lambda maps: maps,
    ) -> torch.Tensor:
        """`map_sum` of the auxiliary heads' maps; ``centers`` and ``weights`` of all points."""
        network: LandmarkNetwork = self.network
        total = torch.zeros((), device=features.device)
        start = self.shipped.stop
        for name, points in network.configuration.auxiliary_layouts.items():
            place = slice(start, start + points)
            start = place.stop
            # Also without a face that teaches it: every process must have gradients of every head.
            faces = (weights[:, place] > 0).any(dim=1)
            maps = activation(network.auxiliary_heads[name](features[faces]))
            total = total + self.map_sum(maps, centers[faces, place], weights[faces, place])
        return total

    def normals(self, batch: Batch) -> torch.Tensor:
        """Unit normals (B, P, 2) of the face's lines at the predicted layouts' points."""
        known = batch.points.masked_fill(batch.weights[..., None] <= 0, torch.nan)
        groups = self.network.by_layout(known[:, self.shipped]).items()
        return torch.cat(
            [contour_normals(get_layout(name), group) for name, group in groups], dim=1
        )


def point_loss_of(loss: Loss) -> PointLoss | None:
    """The point loss that a configuration names. Raises `ConfigurationError`."""
    return None if loss.point == "none" else named_loss(POINT_LOSSES, loss.point, "loss.point")


def named_loss(table: Mapping[str, Any], name: str, key: str) -> Any:
    """The loss called ``name`` by the configuration's ``key``. Raises `ConfigurationError`."""
    if name not in table:
        raise ConfigurationError(f"{key}: no loss {name!r}; there is {', '.join(table)}")
    return table[name]
