"""The objective of HIH: integer heatmaps of every stack, and decimal heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import DECIMAL_SIGMA, gaussian, to_distributions
from hihlandmark.models.base import Heatmaps, normalize
from hihlandmark.models.hih import HIH
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ACTIVATION, POINT_LOSSES, csc
from hihlandmark.training.objectives.base import Objective, Teacher, point_loss_of
from hihlandmark.weights.card import Decoding


class HIHObjective(Objective):
    """`Objective` of `HIH` (arXiv 2104.03100, section 3.3), with more losses to choose from."""

    names = ("integer", "decimal", "point", "distillation")
    supports_distillation = True

    def __init__(self, network: HIH, loss: Loss, teacher: Teacher | None = None) -> None:
        super().__init__(network, loss, teacher)
        self.point_loss = point_loss_of(loss, POINT_LOSSES)
        if self.point_loss and loss.integer == "csc":
            raise ConfigurationError(
                "loss.point needs an integer heatmap whose mean is the point: loss.integer='csc' "
                "trains an almost flat one, use another"
            )

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """Only the cross-entropy trains more of a decimal heatmap than its maximum."""
        return Decoding(
            decoder="local_soft_argmax" if loss.decimal == "cross_entropy" else "argmax",
            activation=ACTIVATION[loss.integer],
            stride=stride,
        )

    def totals(self, batch: Batch) -> torch.Tensor:
        """Sums of weights (3,) of all points, of the predicted ones, and of the teacher's."""
        weights = batch.weights
        teacher = self.teacher_of(batch.crops.shape[1])
        distilled = weights.new_tensor(len(weights) * teacher.points if teacher else 0)
        return torch.stack([weights.sum(), weights[:, self.shipped].sum(), distilled])

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses (4,) of `forward` -> the total loss."""
        distilled = self.teacher.weight if self.teacher else 0.0
        weights = (1.0, self.loss.decimal_weight, self.loss.point_weight, distilled)
        return losses @ losses.new_tensor(weights)

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses (4,) of `names`; all but the decimal loss are means over the stacks."""
        crops = normalize(batch.crops, self.mean, self.std)
        integers, decimals, features = self.network.forward_stacks(crops)
        size, bins, shipped = integers[-1].shape[-1], decimals.shape[-1], self.shipped
        u = self.in_cells(batch)
        cells = u.floor().clamp(0, size - 1)

        weights = batch.weights[:, shipped]
        sums = [self.map_sum(maps, cells[:, shipped], weights) for maps in integers]
        integer = torch.stack(sums).mean() + self.auxiliary_sum(features, cells, batch.weights)

        taught = weights > 0
        fractions = (u - cells)[:, shipped][taught]
        targets = gaussian(fractions * bins - 0.5, bins, DECIMAL_SIGMA)
        decimal = (self.decimal_loss(decimals[taught].float(), targets) * weights[taught]).sum()

        point = torch.zeros((), device=crops.device)
        if self.point_loss is not None:
            normals = self.normals(batch)[taught]
            for maps in integers:
                activation = ACTIVATION[self.loss.integer]
                distributions, _ = to_distributions(maps[taught].float(), None, activation)
                # The integer heatmap encodes the cell, the decimal one the fraction.
                losses = self.point_loss(distributions, cells[:, shipped][taught], normals)
                point = point + (losses * weights[taught]).sum() / len(integers)
        distilled = self._distillation_sum(crops, integers, decimals)
        losses = torch.stack([integer, decimal, point, distilled])
        return losses / totals.clamp(min=1e-6)[[0, 1, 1, 2]]

    def _distillation_sum(
        self, crops: torch.Tensor, integers: Sequence[torch.Tensor], decimals: torch.Tensor
    ) -> torch.Tensor:
        """KL divergences of the student from the teacher, summed over faces and points.

        The gradient is that of Hinton et al., arXiv 1503.02531, equation 2, at temperature 1.
        """
        total = torch.zeros((), device=crops.device)
        teacher = self.teacher_of(crops.shape[-1])
        if teacher is None:
            return total
        stacks = [self.network.by_layout(maps) for maps in integers]
        own_decimals = self.network.by_layout(decimals)
        for name, taught in teacher(crops).items():
            for stack in stacks:
                total = total + csc(stack[name], taught.integer).sum() / len(stacks)
            assert isinstance(taught, Heatmaps)  # the teacher is an HIH network
            assert taught.decimal is not None
            decimal = csc(own_decimals[name], taught.decimal).sum()
            total = total + self.loss.decimal_weight * decimal
        return total
