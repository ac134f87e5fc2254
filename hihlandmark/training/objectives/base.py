"""The base class of objectives. The losses of each architecture are in a file of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import gaussian
from hihlandmark.layouts import get_layout
from hihlandmark.models.base import Heatmaps, LandmarkNetwork
from hihlandmark.models.hih import HIH
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import HEATMAP_LOSSES, POINT_LOSSES, PointLoss, contour_normals
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding, Normalization

NORMALIZATION = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""Of the crops of all networks that we train."""


@dataclass(frozen=True)
class Teacher:
    """A trained network whose heatmaps are the targets of `HIHObjective`.

    It is not a module, so that it is neither trained, nor saved, nor sent to other processes.

    Attributes:
        network: in evaluation mode.
        layouts: that it teaches.
        weight: of its loss.
        digest: SHA-256 of its weights file.
    """

    network: HIH
    layouts: tuple[str, ...]
    weight: float
    digest: str

    @property
    def crop_size(self) -> int:
        """Side of its crops in pixels; on crops of another size it is inaccurate."""
        return self.network.configuration.input_size

    @property
    def points(self) -> int:
        """Number of points of all layouts that it teaches."""
        return sum(self.network.configuration.layouts[name] for name in self.layouts)

    @torch.no_grad()
    def __call__(self, crops: torch.Tensor) -> dict[str, Heatmaps]:
        """Crops (N, 3, S, S), normalized -> raw `Heatmaps` of the layouts that it teaches."""
        heatmaps = self.network(crops)
        return {name: heatmaps[name] for name in self.layouts}


class Objective(nn.Module):
    """A network with its losses; `forward` computes the losses of a batch.

    A face trains the heads of its own layout and the points that another layout shares with it. A
    teacher gives targets in all its layouts for every face.

    Args:
        network: of the architecture.
        loss: names and weights of the losses.
        teacher: for distillation.

    Raises:
        ConfigurationError: a loss does not exist or does not fit the architecture.
    """

    names: ClassVar[tuple[str, ...]]
    """Names of the K losses of `forward`."""
    supports_distillation: ClassVar[bool] = False

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: Any, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__()
        if teacher is not None and not self.supports_distillation:
            raise ConfigurationError(
                "distillation needs the decimal heatmaps of HIH: remove the table"
            )
        self.network, self.loss, self.teacher = network, loss, teacher
        self.integer_loss = named_loss(HEATMAP_LOSSES, loss.integer, "loss.integer")
        self.register_buffer("mean", torch.tensor(NORMALIZATION.mean), persistent=False)
        self.register_buffer("std", torch.tensor(NORMALIZATION.std), persistent=False)

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """How heatmaps trained with these losses are decoded, as the model card states it."""
        raise NotImplementedError

    def totals(self, batch: Batch) -> torch.Tensor:
        """The divisors of the losses; added up over accumulated batches and processes."""
        raise NotImplementedError

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (K,) of `forward` -> the total loss."""
        raise NotImplementedError

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (K,) of `names`: weighted sums over a batch, divided by ``totals``."""
        raise NotImplementedError

    @property
    def shipped(self) -> slice:
        """The predicted layouts' points among all points; auxiliary ones follow them."""
        return slice(0, self.network.configuration.points)

    def in_cells(self, batch: Batch) -> torch.Tensor:
        """Points (B, P, 2) in cells of the heatmaps; the first cell is 0 to 1."""
        stride: int = self.network.configuration.stride
        return (batch.points + 0.5) / stride

    def map_sum(
        self, maps: torch.Tensor, centers: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the heatmap loss of p points.

        Args:
            maps: (B, p, h, h).
            centers: (B, p, 2) of the Gaussians; the center of cell c is c.
            weights: (B, p).
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
        """`map_sum` of the auxiliary heads; ``centers`` and ``weights`` are those of all points."""
        network: LandmarkNetwork = self.network
        total = torch.zeros((), device=features.device)
        start = self.shipped.stop
        for name, points in network.configuration.auxiliary_layouts.items():
            place = slice(start, start + points)
            start = place.stop
            # Also without a face of the layout: every process must have gradients of every head.
            faces = (weights[:, place] > 0).any(dim=1)
            maps = activation(network.auxiliary_heads[name](features[faces]))
            total = total + self.map_sum(maps, centers[faces, place], weights[faces, place])
        return total

    def normals(self, batch: Batch) -> torch.Tensor:
        """Unit normals (B, P, 2) of the contours at the predicted layouts' points."""
        known = batch.points.masked_fill(batch.weights[..., None] <= 0, torch.nan)
        groups = self.network.by_layout(known[:, self.shipped]).items()
        return torch.cat(
            [contour_normals(get_layout(name), group) for name, group in groups], dim=1
        )


def point_loss_of(loss: Loss) -> PointLoss | None:
    """The point loss of a configuration. Raises `ConfigurationError` for an unknown one."""
    return None if loss.point == "none" else named_loss(POINT_LOSSES, loss.point, "loss.point")


def named_loss(table: Mapping[str, Any], name: str, key: str) -> Any:
    """The loss of a name. Raises `ConfigurationError` with the ``key`` for an unknown one."""
    if name not in table:
        raise ConfigurationError(f"{key}: no loss {name!r}; there are {', '.join(table)}")
    return table[name]
