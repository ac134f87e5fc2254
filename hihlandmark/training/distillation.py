"""Targets from a trained network: the teacher of distillation, labels for self-training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.models.base import LandmarkNetwork, NetworkConfiguration
from hihlandmark.models.hih import HIHConfiguration
from hihlandmark.models.nested import NestedConfiguration
from hihlandmark.models.registry import architecture_of
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
    """Load the teacher that a configuration names, onto ``device``.

    Raises:
        WeightsError: the weights cannot be found or read.
        ConfigurationError: the heatmaps of teacher and student are not comparable cell by cell.
    """
    name = f"distillation.weights={settings.weights!r}"
    architecture = architecture_of(configuration.model)
    if not isinstance(student, (HIHConfiguration, NestedConfiguration)):
        raise ConfigurationError(
            f"distillation needs an HIH or nested network, {configuration.model} is none: remove "
            "the table"
        )
    try:
        # The model is for a folder with several.
        loaded = load_model(settings.weights, model=configuration.model)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    network, card = loaded.network, loaded.card
    assert isinstance(network, LandmarkNetwork)
    if card.architecture != architecture:
        raise ConfigurationError(
            f"{name} has architecture {card.architecture!r}: choose a teacher of {architecture!r}"
        )
    problems = list(_problems(card, network.configuration, configuration, student))
    if problems:
        raise ConfigurationError(f"{name} cannot teach this network: {'; '.join(problems)}")
    both = [each for each in student.layouts if each in network.configuration.layouts]
    chosen = tuple(dict.fromkeys(both if settings.layouts is None else settings.layouts))
    if not chosen or set(chosen) - set(both):
        raise ConfigurationError(
            f"distillation.layouts: {', '.join(chosen) or 'none'} cannot be taught; network and "
            f"teacher both predict {', '.join(both) or 'none'}"
        )
    network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return Teacher(network, chosen, settings.weight, card.sha256, settings.mirrored)


def _problems(
    card: ModelCard,
    teacher: NetworkConfiguration,
    configuration: TrainingConfiguration,
    student: NetworkConfiguration,
) -> Iterator[str]:
    """The reasons why the softmaxes of both networks' heatmaps are not comparable."""
    if card.normalization != NORMALIZATION:
        yield f"its crops have normalization {card.normalization}, ours ImageNet's"
    if (origin := card.crop.pixel_origin) != 0.5:
        yield f"its pixel origin is {origin}, ours 0.5"
    own = decoding_of(configuration)
    if own.activation != "softmax":
        yield f"loss.integer={configuration.loss.integer!r} is no distribution: use cross_entropy"
    elif card.decoding != own:
        yield f"its decoding is {card.decoding}, ours {own}"
    bins, own_bins = (getattr(each, "decimal_bins", None) for each in (teacher, student))
    if bins != own_bins:
        yield f"it has {bins} decimal bins a side, ours {own_bins}"
    sizes = [stage.crop_size for stage in configuration.stages[configuration.first_stage - 1 :]]
    if teacher.input_size not in sizes:
        yield f"it is trained on crops of {teacher.input_size} pixels, and no stage has them"


class PseudoLabeler:
    """Labels plain crops with a teacher, as a batch of augmented crops for the student.

    The teacher is put into evaluation mode. The weights of the points are those of `SelfTraining`.
    It calls `CropGraph` rather than `Landmarker`, which sees NumPy arrays only: the decoding is the
    same, and the tensors stay on the device.
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
        """The augmented crops with their labels; points outside of the crop have weight 0.

        The network runs under ``autocast``; decoding is in float32.
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
        visible = torch.full_like(weights, torch.nan)
        return Batch(unlabeled.augmented, points, weights, unreadable, visible)
