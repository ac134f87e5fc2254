"""The objective of the nested network: integer heatmaps of every stack, decimals at some cells."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import NESTED_INTEGER_SIGMA, decode_nested, encode_nested
from hihlandmark.layouts import LAYOUTS
from hihlandmark.models.base import NestedHeatmaps, normalize
from hihlandmark.models.nested import Features, Nested, best_cells, is_of_visibility
from hihlandmark.training.config import Loss
from hihlandmark.training.data import Batch
from hihlandmark.training.losses import ERROR_LOSSES, smooth_l1
from hihlandmark.training.objectives.base import Objective, Teacher, point_loss_of
from hihlandmark.weights.card import Decoding

EARLY_WEIGHT = 0.5
"""Weight of the integer heatmaps of all stacks but the last."""
POINT_CELLS = 64
"""Losses of decoded points measure errors in cells of a map of this size, as their papers do."""
logger = logging.getLogger(__name__)

LOSSES = ("integer", "decimal", "point", "distillation", "consistency", "visibility")
"""Their names; the last one is that of networks that predict visibility."""
VISIBILITY_WEIGHT = 0.5
CELL_JITTER = 0.25
"""The second cell of a point is that of the point moved by up to this many cells."""
MOVED = (0.03, 0.05, 0.03)
"""How far crops are moved for the loss of consistency, at most: by which part of their side, by
which angle in radians, and by which factor less 1 they grow."""
CONSISTENT_BELOW = 0.05
"""Distance in cells below which the loss of consistency is quadratic."""


class NestedObjective(Objective):
    """`Objective` of `Nested`.

    Each layout counts by its share of the faces, whatever its number of points.
    """

    supports_distillation = True
    supports_consistency = True
    usual_integer_sigma = NESTED_INTEGER_SIGMA

    def __init__(self, network: Nested, loss: Loss, teacher: Teacher | None = None) -> None:
        if (loss.integer, loss.decimal) != ("cross_entropy", "cross_entropy"):
            raise ConfigurationError(
                "a nested network is trained with loss.integer and loss.decimal 'cross_entropy', "
                f"not {loss.integer!r}, {loss.decimal!r}"
            )
        super().__init__(network, loss, teacher)
        self.error_loss = point_loss_of(loss, ERROR_LOSSES, "loss.point of a nested network")
        if loss.point != "none" and not loss.point_weight:
            logger.warning("loss.point has no effect without loss.point_weight")
        layouts = {**network.configuration.layouts, **network.configuration.auxiliary_layouts}
        self.counts = list(layouts.values())
        self.layouts = list(layouts)
        self.consistent = {name: _consistent(name, count, loss) for name, count in layouts.items()}
        has_visibility = network.configuration.visibility > 0
        self.names = LOSSES if has_visibility else LOSSES[:-1]

    @staticmethod
    def decoding(loss: Loss, stride: int) -> Decoding:
        """The mean of the cells that were read, weighed by powers of their probabilities."""
        return Decoding(decoder="soft", activation="softmax", stride=stride)

    def totals(self, batch: Batch) -> torch.Tensor:
        """(3, L): of each layout the weights of points and of faces, and the number of faces."""
        groups = batch.weights.split(self.counts, dim=1)
        points = torch.stack([each.sum() for each in groups])
        faces = torch.stack([each.amax(dim=1).sum() for each in groups])
        return torch.stack([points, faces, torch.full_like(faces, len(batch.weights))])

    def weigh(self, losses: torch.Tensor) -> torch.Tensor:
        """The losses of `forward` -> the total loss."""
        distilled = self.teacher.weight if self.teacher else 0.0
        point = self.loss.point_weight
        consistent = self.loss.consistency_weight
        weights = (1.0, self.loss.decimal_weight, point, distilled, consistent, VISIBILITY_WEIGHT)
        return losses @ losses.new_tensor(weights[: len(losses)])

    def forward(self, batch: Batch, totals: torch.Tensor) -> torch.Tensor:
        """The losses of `names`: KL divergences, distances in cells, and that of visibility."""
        crops = normalize(batch.crops, self.mean, self.std)
        features = self._features(crops)
        faces = totals[2].amax().clamp(min=1)
        losses = []
        if self._trains(lambda name: not is_of_visibility(name)):
            labeled = self._labeled_sums(batch, features, totals)
            distilled = self._distillation_sum(crops, features) / faces
            consistent = self._consistency_sum(crops, features) / faces
            losses += [labeled, distilled[None], consistent[None]]
        else:
            losses += [torch.zeros(len(LOSSES) - 1, device=batch.points.device)]
        if len(self.names) == len(LOSSES):
            losses += [self._visibility_sum(batch, features)[None] / faces]
        return torch.cat(losses)

    def _trains(self, chosen: Callable[[str], bool]) -> bool:
        """Whether any parameter with a chosen name is trained."""
        return any(p.requires_grad and chosen(name) for name, p in self.network.named_parameters())

    def _visibility_sum(self, batch: Batch, features: Features) -> torch.Tensor:
        """The cross-entropy of visibility: a mean over known points and layouts, summed over faces.

        It is read where the network finds the points, as in prediction.
        """
        total = torch.zeros((), device=batch.points.device)
        read = self.network.visibility_map(features)
        for layout, target in zip(
            self.layouts, batch.visible.split(self.counts, dim=1), strict=True
        ):
            with torch.no_grad():
                cells = self.network.integer(layout, features.stacks[-1]).flatten(2).argmax(dim=-1)
            logits = self.network.visibility(layout, read, cells).float()
            known = target.isfinite()
            losses = nn.functional.binary_cross_entropy_with_logits(
                logits, target.nan_to_num(), reduction="none"
            )
            total = total + ((losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)).sum()
        return total / len(self.layouts)

    def _labeled_sums(self, batch: Batch, features: Features, totals: torch.Tensor) -> torch.Tensor:
        """The losses (3,) of the integer heatmaps, the decimal ones, and the decoded points."""
        size, stride = features.decimal.shape[-1], self.network.configuration.stride
        points = batch.points.split(self.counts, dim=1)
        weights = batch.weights.split(self.counts, dim=1)
        point_total, face_total, count = totals
        shares = face_total / count.clamp(min=1) / point_total.clamp(min=1e-6)
        labeled = torch.zeros(3, device=batch.points.device)
        for number, layout in enumerate(self.layouts):
            # Also without a face of the layout: every process must have gradients of every head.
            faces = (weights[number] > 0).any(dim=1)
            known = points[number][faces]
            cells = training_cells(known, size, stride)
            targets = encode_nested(
                known, cells, size, stride=stride, integer_sigma=self.integer_sigma
            )
            weight = weights[number][faces] * targets.inside
            integer = torch.zeros((), device=batch.points.device)
            for stack, maps in enumerate(features.stacks):
                scores = self.network.integer(layout, maps[faces], stack)
                divergence = _kl(scores.float().flatten(2), targets.integer.flatten(2))
                is_last = stack == len(features.stacks) - 1
                integer = integer + (1 if is_last else EARLY_WEIGHT) * (divergence * weight).sum()
            read = features._replace(decimal=features.decimal[faces])
            decimals = self.network.decimal(layout, read, cells)
            divergence = _kl(decimals.float(), targets.decimal).sum(dim=-1)
            reachable = targets.reachable * weight[..., None] / cells.shape[-1]
            decimal = (divergence * reachable).sum()
            point = torch.zeros((), device=batch.points.device)
            if self.error_loss and layout in self.network.heads:
                # The scores are those of the last stack.
                point = self._point_sum(layout, scores, read, known, weight)
            labeled = labeled + shares[number] * torch.stack([integer, decimal, point])
        return labeled

    def _point_sum(
        self,
        layout: str,
        integer: torch.Tensor,
        features: Features,
        points: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of decoded points, summed with weights (N, P) over N faces.

        Args:
            layout: of the points.
            integer: (N, P, h, h), of the last stack.
            features: that decimals are read from.
            points: (N, P, 2), the true ones in crop pixels.
            weights: (N, P).
        """
        assert self.error_loss
        side = integer.shape[-1] * self.network.configuration.stride
        errors = self._decoded(layout, integer, features) - points
        taught = weights > 0
        return (self.error_loss(errors[taught] * (POINT_CELLS / side)) * weights[taught]).sum()

    def _decoded(self, layout: str, integer: torch.Tensor, features: Features) -> torch.Tensor:
        """The points (N, P, 2) in crop pixels of integer heatmaps (N, P, h, h) and features."""
        cells = best_cells(integer)
        decimal = self.network.decimal(layout, features, cells)
        heatmaps = NestedHeatmaps(integer, cells, decimal, None).float()
        return decode_nested(heatmaps, stride=self.network.configuration.stride).points

    def _consistency_sum(self, crops: torch.Tensor, features: Features) -> torch.Tensor:
        """How far points stray when crops are moved: a mean over points, summed over faces.

        Every second crop is moved, to save time.
        """
        if not self.loss.consistency_weight:
            return torch.zeros((), device=crops.device)
        moved, matrices = moved_crops(crops[::2])
        there = self._features(moved)
        here = Features([maps[::2] for maps in features.stacks], features.decimal[::2])
        losses = []
        for layout in self.network.heads:
            place = self._places(layout, there)[:, :, None]
            # No matrix product, which autocast would round.
            expected = (matrices[:, None, :, :2] * place).sum(dim=-1) + matrices[:, None, :, 2]
            strayed = (self._places(layout, here) - expected)[:, self.consistent[layout]]
            losses.append(smooth_l1(strayed.flatten(0, 1) * (POINT_CELLS / 2), CONSISTENT_BELOW))
        return torch.stack([each.mean() for each in losses]).mean() * len(crops)

    def _places(self, layout: str, features: Features) -> torch.Tensor:
        """The points (N, P, 2) that are found, from -1 to 1 over the crop."""
        integer = self.network.integer(layout, features.stacks[-1])
        side = integer.shape[-1] * self.network.configuration.stride
        return (2 * self._decoded(layout, integer, features) + 1) / side - 1

    def _features(self, crops: torch.Tensor) -> Features:
        """Those of the network; without gradients where only heads are trained, to save time."""
        heads = ("heads.", "auxiliary_heads.")
        are_trained = self._trains(
            lambda name: not name.startswith(heads) and not is_of_visibility(name)
        )
        with torch.set_grad_enabled(are_trained and torch.is_grad_enabled()):
            features: Features = self.network.features(crops)
        if not are_trained:
            # It would keep heads that were cast without gradients (for the merged predictions).
            torch.clear_autocast_cache()
        return features

    def _distillation_sum(self, crops: torch.Tensor, features: Features) -> torch.Tensor:
        """KL divergences from the teacher, a mean over points and layouts, summed over faces.

        Decimals are compared at the teacher's best cells, by its probabilities of these cells.
        """
        total = torch.zeros((), device=crops.device)
        teacher = self.teacher_of(crops.shape[-1])
        if teacher is None:
            return total
        for layout, taught in teacher(crops).items():
            assert isinstance(taught, NestedHeatmaps)  # the teacher is a nested network
            target = taught.integer.float().flatten(2).softmax(dim=-1)
            for stack, maps in enumerate(features.stacks):
                is_last = stack == len(features.stacks) - 1
                scores = self.network.integer(layout, maps, stack).float().flatten(2)
                weight = 1 if is_last else EARLY_WEIGHT
                total = total + weight * _kl(scores, target).mean(dim=1).sum()
            scores = self.network.decimal(layout, features, taught.cells).float()
            divergence = _kl(scores, taught.decimal.float().softmax(dim=-1)).sum(dim=-1)
            at_cells = target.gather(-1, taught.cells)
            decimal = (divergence * at_cells).sum(dim=-1).mean(dim=1).sum()
            total = total + self.loss.decimal_weight * decimal
        return total / len(teacher.layouts)


def _consistent(layout: str, count: int, loss: Loss) -> list[int]:
    """The points of a layout of ``count`` that the loss of consistency holds, by index."""
    known = LAYOUTS.get(layout)
    if loss.consistency_pupils or known is None:
        return list(range(count))
    pupils = {pupil[0] for pupil in known.pupils if len(pupil) == 1}
    return [point for point in range(count) if point not in pupils]


def training_cells(points: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """The cells (N, P, 2) of points (N, P, 2) in crop pixels: the true one, and one near by.

    The jitter is taken from the later digits of the point, so that a resumed run repeats it.
    """
    u = (points + 0.5) / stride
    jitter = ((u * 997) % 1 * 2 - 1) * CELL_JITTER
    cells = torch.stack([u, u + jitter], dim=2).floor().clamp(0, size - 1).long()
    return cells[..., 1] * size + cells[..., 0]


def moved_crops(crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (N, 3, S, S) moved a little, and the maps (N, 2, 3) from their places to the crops'.

    Places run from -1 to 1. The motion is taken from the later digits of the mean brightness, so
    that a resumed run repeats it.
    """
    digits = crops.new_tensor([997.0, 4999.0, 9973.0, 19997.0])
    uniform = (crops.mean(dim=(1, 2, 3))[:, None] * digits) % 1 * 2 - 1
    shift, angle, growth = MOVED
    scale = 1 + growth * uniform[:, 0]
    cosine, sine = scale * (angle * uniform[:, 1]).cos(), scale * (angle * uniform[:, 1]).sin()
    rows = [cosine, -sine, 2 * shift * uniform[:, 2], sine, cosine, 2 * shift * uniform[:, 3]]
    matrices = torch.stack(rows, dim=1).view(-1, 2, 3)
    with torch.autocast(crops.device.type, enabled=False):  # it would move crops by half a pixel
        grid = nn.functional.affine_grid(matrices, list(crops.shape), align_corners=False)
        return nn.functional.grid_sample(crops, grid, align_corners=False), matrices


def _kl(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL divergence of softmax(scores) (..., n) from the target (..., n), 0 where that is empty."""
    entropy = torch.xlogy(target, target).sum(dim=-1)
    return entropy - (target * scores.log_softmax(dim=-1)).sum(dim=-1)
