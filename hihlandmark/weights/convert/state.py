"""What reading state dicts of other projects has in common: renaming by rules, and refusing.

Only names and shapes are translated; a system's names are in ``official_*.py``, reading the
checkpoint file is ``conversion.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.models.registry import LAYOUT_POINTS, build_model

LAYOUT_OF = {points: name for name, points in LAYOUT_POINTS.items()}

Rules = tuple[tuple[str, str], ...]
"""Patterns in our names and what official names have in their place, applied one after another. In
this direction, an error can call a missing tensor by the name that the user's file should have."""

Converted = tuple[dict[str, Any], dict[str, torch.Tensor]]
"""A configuration for `build_model`, and the state dict of the network that it builds."""


def plain_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the ``module.`` that torch's DataParallel writes before their names."""
    return {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in state_dict.items()}


class OfficialState:
    """A state dict of another project's ``system``, under its own names without ``module.``.

    All methods raise `WeightsError`, which names the system and the tensors at fault.
    """

    def __init__(self, system: str, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.system = system
        self.tensors = plain_names(state_dict)
        self.raise_if_any(
            {"not tensors": [n for n, t in self.tensors.items() if not isinstance(t, torch.Tensor)]}
        )

    def shape(self, name: str) -> torch.Size:
        """The shape (outputs, inputs, height, width) of a convolution's matrix."""
        self.raise_if_any({"missing": [name] * (name not in self.tensors)})
        shape = self.tensors[name].shape
        self.raise_if_any({"of another shape": [name] * (len(shape) != 4)})
        return shape

    def count(self, pattern: str) -> int:
        """How many tensors have a name that matches as a whole."""
        return sum(re.fullmatch(pattern, name) is not None for name in self.tensors)

    def layout_of(self, points: int, name: str) -> str:
        """The layout of as many points as the tensor ``name`` predicts."""
        if points not in LAYOUT_OF:
            raise WeightsError(
                f"{name} predicts {points} points; known are checkpoints of "
                f"{', '.join(map(str, LAYOUT_OF))} points: take one of these"
            )
        return LAYOUT_OF[points]

    def translate(
        self, architecture: str, configuration: dict[str, Any], rules: Rules
    ) -> dict[str, torch.Tensor]:
        """The tensors under our names, when they are just those of the network, in their shapes."""
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
                "unknown": sorted(tensors.keys() - official.values()),
                "of another shape": [
                    name
                    for ours, name in official.items()
                    if name in tensors and tensors[name].shape != expected[ours].shape
                ],
            }
        )
        return {ours: tensors[name] for ours, name in official.items()}

    def raise_if_any(self, faults: Mapping[str, list[str]]) -> None:
        """Raises for tensors at fault, if there are any: ten of each kind by name."""
        listed = [
            f"{len(names)} {kind}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for kind, names in faults.items()
            if names
        ]
        if listed:
            raise WeightsError(
                f"this is not a state dict of the official {self.system}; tensors "
                f"{'; '.join(listed)}. Take the checkpoint as its authors give it"
            )


def numbered_levels(stack: str, depth: int, branch: str, center: str) -> Rules:
    """Rules for hourglasses whose levels are numbered from the innermost, 1; ours nests them.

    ``stack``: pattern of the name of a stack. ``branch``: the name of a block in it, with the
    ``{level}`` and the ``{branch}``, 1 to 3; ``center``: that of the block in the middle.
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
