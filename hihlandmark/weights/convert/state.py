"""Translate the names of an official state dict by rules, and refuse what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hihlandmark.errors import ConfigurationError, WeightsError, abbreviate
from hihlandmark.models.registry import LAYOUT_POINTS, build_model

LAYOUT_OF = {points: name for name, points in LAYOUT_POINTS.items()}

Rules = tuple[tuple[str, str], ...]
"""Patterns in our names and their replacements in official names, applied one after another. In
this direction, an error can name a missing tensor as the user's file should name it."""

Converted = tuple[dict[str, Any], dict[str, torch.Tensor]]
"""A configuration for `build_model`, and the state dict of its network."""


def plain_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefix ``module.`` of torch's DataParallel."""
    return {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in state_dict.items()}


class OfficialState:
    """A state dict of an official implementation, under its own names without ``module.``.

    All methods raise `WeightsError`, which names the system and the tensors at fault.
    """

    def __init__(self, system: str, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.system = system
        self.tensors = plain_names(state_dict)
        self.raise_if_any(
            {"not tensors": [n for n, t in self.tensors.items() if not isinstance(t, torch.Tensor)]}
        )

    def shape(self, name: str) -> torch.Size:
        """The shape (out_channels, in_channels, height, width) of a convolution's weight."""
        if name not in self.tensors:
            self.raise_if_any({"missing": [name]})
        shape = self.tensors[name].shape
        if len(shape) != 4:
            self.raise_if_any({"of another shape": [name]})
        return shape

    def count(self, pattern: str) -> int:
        """The number of tensors with a name that matches as a whole."""
        return sum(re.fullmatch(pattern, name) is not None for name in self.tensors)

    def layout_of(self, points: int, name: str) -> str:
        """The layout with the number of points that the tensor ``name`` predicts."""
        if points not in LAYOUT_OF:
            raise WeightsError(
                f"{name} predicts {points} points; supported are "
                f"{', '.join(map(str, LAYOUT_OF))} points: take such a checkpoint"
            )
        return LAYOUT_OF[points]

    def translate(
        self, architecture: str, configuration: dict[str, Any], rules: Rules
    ) -> dict[str, torch.Tensor]:
        """The tensors under our names; they must be exactly those of the network."""
        try:
            with torch.device("meta"):
                expected = build_model(architecture, configuration).state_dict()
        except ConfigurationError as error:
            raise WeightsError(
                f"this is not a checkpoint of the official {self.system}: {error}"
            ) from error
        official = {name: _rename(name, rules) for name in expected}
        # Batch norms saved by torch before 0.4.1 lack a counter, which evaluation never reads.
        counters = [name for name in official.values() if name.endswith(".num_batches_tracked")]
        tensors = {name: torch.tensor(0) for name in counters} | self.tensors
        self.raise_if_any(
            {
                "missing": [name for name in official.values() if name not in tensors],
                "unknown": list(tensors.keys() - official.values()),
                "of another shape": [
                    name
                    for ours, name in official.items()
                    if name in tensors and tensors[name].shape != expected[ours].shape
                ],
            }
        )
        return {ours: tensors[name] for ours, name in official.items()}

    def raise_if_any(self, faults: Mapping[str, list[str]]) -> None:
        """Raise if there are tensors at fault, given by kind of fault."""
        listed = [
            f"{len(names)} {kind}: {abbreviate(names, 10)}"
            for kind, names in faults.items()
            if names
        ]
        if listed:
            raise WeightsError(
                f"this is not a state dict of the official {self.system}; tensors "
                f"{'; '.join(listed)}. Use the checkpoint as its authors publish it"
            )


def numbered_levels(stack: str, depth: int, branch: str, center: str) -> Rules:
    """Rules for hourglasses whose levels are numbered from the innermost, 1; ours are nested.

    Args:
        stack: pattern of the name of a stack.
        depth: number of levels.
        branch: name of a block, with placeholders ``{level}`` and ``{branch}``, 1 to 3.
        center: name of the innermost block.
    """
    inner = r"inner\."
    levels = tuple(
        (
            rf"^({stack})\.{inner * nested}{ours}\.",
            rf"\1.{branch.format(level=depth - nested, branch=theirs)}.",
        )
        for nested in range(depth)
        for theirs, ours in enumerate(("upper", "down", "up"), start=1)
    )
    return (*levels, (rf"^({stack})\.{inner * depth}", rf"\1.{center}."))


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
