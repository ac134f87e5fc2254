"""The table of models: name -> architecture and configuration. A new model is a new row.

Programs add rows of their own with `register_architecture` and `register_model`:
docs/extending/model.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from hihlandmark.errors import ConfigurationError
from hihlandmark.layouts import LAYOUTS, get_layout
from hihlandmark.models.adnet import ADNet, ADNetConfiguration
from hihlandmark.models.awing import AWing, AWingConfiguration
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.models.hih import HIH, HIHConfiguration
from hihlandmark.models.nested import Nested, NestedConfiguration

Row = TypeVar("Row")

LAYOUT_POINTS: dict[str, int] = {"WFLW98": 98, "W300_68": 68, "COFW29": 29}
"""The layouts of the packaged small models, and their numbers of points."""


class Architecture(NamedTuple):
    """A network and the dataclass that configures it."""

    configuration: type[Any]
    network: Callable[[Any], LandmarkNetwork]


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be asked for by name: what `build_model` takes."""

    architecture: str
    configuration: Mapping[str, Any]


ARCHITECTURES: dict[str, Architecture] = {
    "hih": Architecture(HIHConfiguration, HIH),
    "adnet": Architecture(ADNetConfiguration, ADNet),
    "awing": Architecture(AWingConfiguration, AWing),
    "nested": Architecture(NestedConfiguration, Nested),
}
"""By the name that a model card gives."""

# The four stacks of all three papers.
_PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "stacks": 4,
        "features": 256,
        "depth": 4,
        "input_size": 256,
        "layouts": {"WFLW98": 98},
        "auxiliary_layouts": {},
    }
)
# One set of features for all layouts.
_SMALL: Mapping[str, Any] = MappingProxyType(
    {**_PAPER, "stacks": 1, "features": 128, "layouts": dict(LAYOUT_POINTS)}
)

MODELS: dict[str, ModelEntry] = {
    # The network of the paper (Lan et al., arXiv 2104.03100, section 4.2), as released.
    "hih": ModelEntry(
        "hih", {**_PAPER, "decimal_features": 384, "decimal_bins": 8, "unused_shortcuts": True}
    ),
    "hih-small-v1": ModelEntry(
        "hih", {**_SMALL, "decimal_features": 128, "decimal_bins": 8, "unused_shortcuts": False}
    ),
    # The second generation: cells of 8 pixels, with decimals read at the best ones. The packaged
    # weights have one stack, and fewer blocks.
    "hih-small": ModelEntry(
        "nested",
        {
            **_SMALL,
            "encoder": "efficientnet-lite0",
            "input_size": 192,
            "stride": 8,
            "stacks": 2,
            "depth": 2,
            "decimal_features": 256,
            "fine_rank": 32,
        },
    ),
    # Every ingredient of its weights allows commercial use. The other layouts follow from this one.
    "hih-open": ModelEntry(
        "nested",
        {
            **_SMALL,
            "layouts": {"MESH478": 478},
            "encoder": "efficientnet-lite0",
            "input_size": 192,
            "stride": 8,
            "stacks": 2,
            "depth": 2,
            "decimal_features": 128,
            "decimal_rank": 64,
            "fine_rank": 32,
        },
    ),
    # ADNet (Huang et al., arXiv 2109.05721), as released.
    "adnet": ModelEntry("adnet", {**_PAPER, "unused_shortcuts": True}),
    "adnet-small": ModelEntry("adnet", {**_SMALL, "unused_shortcuts": False}),
    # Adaptive Wing (Wang et al., arXiv 1904.07399), as released.
    "awing": ModelEntry("awing", _PAPER),
    # Two stacks, because it is the second one that sees a boundary.
    "awing-small": ModelEntry("awing", {**_SMALL, "stacks": 2, "features": 80}),
}
"""By the name used by `Detector` and training configurations."""


def register_architecture(
    name: str, configuration: type[Any], network: Callable[[Any], LandmarkNetwork]
) -> None:
    """Add an architecture under the name that model cards give.

    Args:
        name: of the architecture.
        configuration: a dataclass, such as a subclass of `NetworkConfiguration`.
        network: builds the network of a configuration.
    """
    ARCHITECTURES[name] = Architecture(configuration, network)


def register_model(name: str, architecture: str, configuration: Mapping[str, Any]) -> None:
    """Add a model under the name used by `Detector` and training configurations."""
    MODELS[name] = ModelEntry(architecture, configuration)


def architecture_of(model: str) -> str:
    """The architecture of a model of `MODELS`. Raises `ConfigurationError` for an unknown one."""
    return _row(MODELS, model, "model").architecture


def configuration_of(model: str, layouts: Iterable[str] | None = None) -> dict[str, Any]:
    """The configuration of a model of `MODELS`: a new dict that JSON can hold.

    ``layouts`` names the layouts to predict, in the order of the channels; None keeps the model's
    own. Raises `ConfigurationError` for an unknown model or layout.
    """
    entry = _row(MODELS, model, "model")
    configuration = dict(deepcopy(dict(entry.configuration)))
    if layouts is not None:
        configuration["layouts"] = {name: _row(LAYOUTS, name, "layout").size for name in layouts}
    if entry.architecture == "adnet":
        configuration["edges"] = {
            name: [list(edge.indices) for edge in get_layout(name).edges]
            for name in configuration["layouts"]
        }
    return configuration


def build_model(architecture: str, configuration: Mapping[str, object]) -> LandmarkNetwork:
    """A network of `ARCHITECTURES` with random weights, in training mode, on the default device.

    Raises `ConfigurationError` for an unknown architecture, for missing or unknown fields of its
    configuration, and for values that no network can have.
    """
    known = _row(ARCHITECTURES, architecture, "architecture")
    names = {field.name for field in fields(known.configuration) if field.init}
    required = {
        field.name
        for field in fields(known.configuration)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    }
    problems = {
        "missing": sorted(required - configuration.keys()),
        "unknown": sorted(configuration.keys() - names),
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(n)}" for kind, n in problems.items() if n)
        raise ConfigurationError(
            f"the configuration does not fit architecture {architecture!r} ({listed}); "
            f"its fields are {', '.join(sorted(names))}"
        )
    return known.network(known.configuration(**configuration))


def _row(table: Mapping[str, Row], name: str, what: str) -> Row:
    if name not in table:
        raise ConfigurationError(f"unknown {what} {name!r}; there are {', '.join(table)}")
    return table[name]
