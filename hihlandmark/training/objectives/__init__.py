"""Training objectives: one file for each architecture, and the table that finds them."""

from __future__ import annotations

from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.models.registry import ARCHITECTURES, architecture_of
from hihlandmark.training.config import TrainingConfiguration
from hihlandmark.training.objectives.adnet import ADNetObjective
from hihlandmark.training.objectives.awing import AWingObjective
from hihlandmark.training.objectives.base import NORMALIZATION, Objective, Teacher
from hihlandmark.training.objectives.hih import HIHObjective
from hihlandmark.training.objectives.nested import NestedObjective
from hihlandmark.weights.card import Decoding

OBJECTIVES: dict[str, type[Objective]] = {
    "hih": HIHObjective,
    "adnet": ADNetObjective,
    "awing": AWingObjective,
    "nested": NestedObjective,
}
"""By name of the architecture; `register_objective` adds one."""


def register_objective(architecture: str, objective: type[Objective]) -> None:
    """Add the objective of an architecture of `models.registry`."""
    OBJECTIVES[architecture] = objective


def make_objective(
    configuration: TrainingConfiguration, network: LandmarkNetwork, teacher: Teacher | None = None
) -> Objective:
    """The objective of a network of the configuration's model.

    Raises:
        ConfigurationError: a loss does not exist or does not fit the architecture.
    """
    objective = OBJECTIVES[architecture_of(configuration.model)]
    return objective(network, configuration.loss, teacher)


def decoding_of(configuration: TrainingConfiguration) -> Decoding:
    """How heatmaps trained with a configuration are decoded, as the model card states it."""
    architecture = architecture_of(configuration.model)
    network = ARCHITECTURES[architecture].configuration(**configuration.network_configuration())
    return OBJECTIVES[architecture].decoding(configuration.loss, network.stride)


__all__ = [
    "NORMALIZATION",
    "OBJECTIVES",
    "Objective",
    "Teacher",
    "decoding_of",
    "make_objective",
    "register_objective",
]
