"""A trained network as the teacher of another one: who it is, whether it fits, what it says.

What the student makes of it is the objective's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.models.base import Heatmaps, NetworkConfiguration
from hihlandmark.models.hih import HIH, HIHConfiguration
from hihlandmark.training.config import Distillation, TrainingConfiguration
from hihlandmark.training.objectives import decoding_of
from hihlandmark.weights import load_model
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode and the layouts that it teaches.

    No module, so that it is neither trained, nor saved, nor sent to other processes. ``weight``: of
    its loss; ``digest``: the SHA-256 of its files.
    """

    network: HIH
    layouts: tuple[str, ...]
    weight: float
    digest: str

    @property
    def crop_size(self) -> int:
        """Side of the crops that it knows, in pixels.

        A network whose last stage had crops of 256 pixels misses most points of crops of 128.
        """
        return self.network.configuration.input_size

    @property
    def points(self) -> int:
        """Number of points that it teaches, of all its layouts."""
        return sum(self.network.configuration.layouts[name] for name in self.layouts)

    @torch.no_grad()
    def __call__(self, crops: torch.Tensor) -> dict[str, Heatmaps]:
        """Crops (N, 3, S, S), normalized -> raw `Heatmaps` of the layouts taught."""
        heatmaps = self.network(crops)
        return {name: heatmaps[name] for name in self.layouts}


def read_teacher(
    settings: Distillation,
    configuration: TrainingConfiguration,
    student: NetworkConfiguration,
    device: torch.device,
) -> Teacher:
    """The teacher that a configuration names, on the device.

    Raises `WeightsError` when there are no such weights, and `ConfigurationError` when their
    heatmaps cannot be compared with the student's, cell by cell.
    """
    name = f"distillation.weights={settings.weights!r}"
    if not isinstance(student, HIHConfiguration):
        raise ConfigurationError(
            f"distillation compares the heatmaps of HIH networks, and {configuration.model} is "
            "none: leave the table out"
        )
    try:
        network, card, _ = load_model(settings.weights, model="hih")  # of a folder with several
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    if not isinstance(network, HIH):
        raise ConfigurationError(
            f"{name}: the heatmaps of architecture {card.architecture!r} are not those of HIH, "
            "take a teacher of architecture 'hih'"
        )
    problems = list(_problems(card, network.configuration, configuration, student))
    if problems:
        raise ConfigurationError(
            f"{name} cannot teach this network: {'; '.join(problems)}. Take another teacher, or "
            "change the configuration"
        )
    layouts = _layouts(settings, student, network.configuration)
    network = network.requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return Teacher(network, layouts, settings.weight, " ".join(card.files.values()))


def _layouts(
    settings: Distillation, student: HIHConfiguration, teacher: HIHConfiguration
) -> tuple[str, ...]:
    both = [name for name in student.layouts if name in teacher.layouts]
    chosen = both if settings.layouts is None else list(settings.layouts)
    if not chosen or set(chosen) - set(both):
        raise ConfigurationError(
            f"distillation.layouts: {', '.join(chosen) or 'none'} cannot be taught; the network "
            f"predicts {', '.join(student.layouts)}, its teacher {', '.join(teacher.layouts)}: "
            "choose among what both predict"
        )
    return tuple(dict.fromkeys(chosen))


def _problems(
    card: ModelCard,
    teacher: HIHConfiguration,
    configuration: TrainingConfiguration,
    student: HIHConfiguration,
) -> Iterator[str]:
    """Why the softmaxes of both networks' heatmaps do not mean the same."""
    if card.normalization != {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}:
        yield f"its crops are normalized by {card.normalization}, ours by ImageNet's mean and std"
    if (origin := card.crop["pixel_origin"]) != 0.5:
        yield f"its pixel origin is {origin}, ours 0.5"
    own = decoding_of(configuration)
    if own["activation"] != "softmax":
        yield (
            f"loss.integer={configuration.loss.integer!r} teaches values, no distribution over "
            "cells: take cross_entropy"
        )
    elif card.decoding != own:
        yield f"its heatmaps are read by {card.decoding}, ours by {own}"
    if teacher.decimal_bins != student.decimal_bins:
        yield f"it has {teacher.decimal_bins} decimal bins a side, ours {student.decimal_bins}"
    sizes = [stage.crop_size for stage in configuration.stages[configuration.first_stage - 1 :]]
    if teacher.input_size not in sizes:
        yield f"it knows crops of {teacher.input_size} pixels, and no stage has them"
