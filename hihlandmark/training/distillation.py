"""Targets from a trained network: distillation and self-training.

`read_teacher` loads the network that `Distillation` names; the HIH objective computes its loss.
`PseudoLabeler` makes the batch of `SelfTraining` from unlabeled faces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.models.base import LandmarkNetwork, NetworkConfiguration
from hihlandmark.models.hih import HIH, HIHConfiguration
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.training.config import Distillation, SelfTraining, TrainingConfiguration
from hihlandmark.training.data import Batch, UnlabeledBatch
from hihlandmark.training.objectives import NORMALIZATION, Teacher, decoding_of
from hihlandmark.weights import load_model
from hihlandmark.weights.card import ModelCard


def read_teacher(
    settings: Distillation,
    configuration: TrainingConfiguration,
    student: NetworkConfiguration,
    device: torch.device,
) -> Teacher:
    """Load the teacher that a configuration names.

    Args:
        settings: the table ``[distillation]``.
        configuration: of the run.
        student: configuration of the network to train.
        device: where the teacher runs.

    Raises:
        WeightsError: the weights cannot be found or read.
        ConfigurationError: the heatmaps of teacher and student are not comparable cell by cell.
    """
    name = f"distillation.weights={settings.weights!r}"
    if not isinstance(student, HIHConfiguration):
        raise ConfigurationError(
            f"distillation compares the heatmaps of HIH networks, {configuration.model} is not "
            "one: remove the table"
        )
    try:
        loaded = load_model(settings.weights, model="hih")  # of a folder with several
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    network, card = loaded.network, loaded.card
    if not isinstance(network, HIH):
        raise ConfigurationError(
            f"{name}: the heatmaps of architecture {card.architecture!r} are not those of HIH, "
            "choose a teacher of architecture 'hih'"
        )
    problems = list(_problems(card, network.configuration, configuration, student))
    if problems:
        raise ConfigurationError(
            f"{name} cannot teach this network: {'; '.join(problems)}. Choose another teacher, or "
            "change the configuration"
        )
    layouts = _common_layouts(settings, student, network.configuration)
    network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return Teacher(network, layouts, settings.weight, card.sha256)


def _common_layouts(
    settings: Distillation, student: HIHConfiguration, teacher: HIHConfiguration
) -> tuple[str, ...]:
    both = [name for name in student.layouts if name in teacher.layouts]
    chosen = both if settings.layouts is None else list(settings.layouts)
    if not chosen or set(chosen) - set(both):
        raise ConfigurationError(
            f"distillation.layouts: {', '.join(chosen) or 'none'} cannot be taught; the network "
            f"predicts {', '.join(student.layouts)}, its teacher {', '.join(teacher.layouts)}: "
            "choose layouts that both predict"
        )
    return tuple(dict.fromkeys(chosen))


def _problems(
    card: ModelCard,
    teacher: HIHConfiguration,
    configuration: TrainingConfiguration,
    student: HIHConfiguration,
) -> Iterator[str]:
    """The reasons why the softmaxes of both networks' heatmaps are not comparable."""
    if card.normalization != NORMALIZATION:
        yield f"its crops have normalization {card.normalization}, ours ImageNet's"
    if (origin := card.crop.pixel_origin) != 0.5:
        yield f"its pixel origin is {origin}, ours 0.5"
    own = decoding_of(configuration)
    if own.activation != "softmax":
        yield (
            f"loss.integer={configuration.loss.integer!r} trains values, not a distribution over "
            "cells: use cross_entropy"
        )
    elif card.decoding != own:
        yield f"its decoding is {card.decoding}, ours {own}"
    if teacher.decimal_bins != student.decimal_bins:
        yield f"it has {teacher.decimal_bins} decimal bins a side, ours {student.decimal_bins}"
    sizes = [stage.crop_size for stage in configuration.stages[configuration.first_stage - 1 :]]
    if teacher.input_size not in sizes:
        yield f"it is trained on crops of {teacher.input_size} pixels, and no stage has them"


class PseudoLabeler:
    """Labels plain crops with a teacher, as a batch of augmented crops for the student.

    Each point has the weight ``weight * s^2 / (s^2 + v)`` of `SelfTraining`, with v the teacher's
    variance in squared cells.

    Args:
        teacher: the network; put into evaluation mode.
        settings: the table ``[self_training]``.
        configuration: of the run.
    """

    def __init__(
        self, teacher: LandmarkNetwork, settings: SelfTraining, configuration: TrainingConfiguration
    ) -> None:
        self.settings = settings
        layouts = tuple(dict.fromkeys(settings.layouts))
        decoding = decoding_of(configuration)
        graph = CropGraph(teacher, layouts, NORMALIZATION, decoding)
        self.graph = graph.to(next(teacher.parameters()).device)
        counts = {**teacher.configuration.layouts, **teacher.configuration.auxiliary_layouts}
        self.row = sum(counts.values())
        places = torch.arange(self.row).split(list(counts.values()))
        by_layout = dict(zip(counts, places, strict=True))
        self.places = torch.cat([by_layout[name] for name in layouts])

    @torch.no_grad()
    def __call__(self, unlabeled: UnlabeledBatch, autocast: AbstractContextManager[Any]) -> Batch:
        """Label U faces.

        Args:
            unlabeled: the faces.
            autocast: precision of the network; decoding is in float32.

        Returns:
            The augmented crops with points (U, P, 2) and weights (U, P), P points of all layouts,
            auxiliary ones included; weight 0 for points outside of the crop.
        """
        with autocast:
            heatmaps = self.graph.heatmaps(unlabeled.plain)
        found = self.graph.decode(heatmaps)
        faces, size = unlabeled.plain.shape[:2]
        variance = found.covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        variance = variance / self.graph.decoding.stride**2
        trusted = self.settings.trusted_spread**2
        linear, shift = unlabeled.matrices[:, None, :, :2], unlabeled.matrices[:, None, :, 2]
        moved = (linear @ found.points[..., None]).squeeze(-1) + shift
        inside = ((moved >= -0.5) & (moved < size - 0.5)).all(dim=-1) & (found.mass > 0)
        points, weights = moved.new_zeros(faces, self.row, 2), moved.new_zeros(faces, self.row)
        points[:, self.places] = torch.where(inside[..., None], moved, 0)
        weight = self.settings.weight * trusted / (trusted + variance)
        weights[:, self.places] = torch.where(inside, weight, 0)
        unreadable = torch.zeros(faces, dtype=torch.int64, device=moved.device)
        return Batch(unlabeled.augmented, points, weights, unreadable)


def join(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches of crops of one size."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
