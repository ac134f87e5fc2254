"""What networks are trained for: a file an architecture, and the table that finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.models.registry import architecture_of
from hihlandmark.training.config import TrainingConfiguration
from hihlandmark.training.objectives.adnet import ADNetObjective
from hihlandmark.training.objectives.awing import AWingObjective
from hihlandmark.training.objectives.base import Objective
from hihlandmark.training.objectives.hih import HIHObjective
from hihlandmark.weights.card import Decoding

if TYPE_CHECKING:
    from hihlandmark.training.distillation import Teacher

OBJECTIVES: dict[str, type[Objective]] = {
    "hih": HIHObjective,
    "adnet": ADNetObjective,
    "awing": AWingObjective,
}
"""By name of the architecture."""


def make_objective(
    configuration: TrainingConfiguration, network: LandmarkNetwork, teacher: Teacher | None = None
) -> Objective:
    """A network of the configuration's model with what it is trained for."""
    objective = OBJECTIVES[architecture_of(configuration.model)]
    return objective(network, configuration.loss, teacher)


def decoding_of(configuration: TrainingConfiguration) -> Decoding:
    """How heatmaps of a network trained like this are read, as a model card states it."""
    return OBJECTIVES[architecture_of(configuration.model)].decoding(configuration.loss)


__all__ = ["OBJECTIVES", "Objective", "decoding_of", "make_objective"]
