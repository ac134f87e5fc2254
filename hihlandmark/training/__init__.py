"""Training: annotated faces to weights. Needs the extra ``hihlandmark[train]``.

`trainer` is the loop, `config` the TOML configuration, `objectives` the losses of each
architecture. Reading data sets and augmentation are in `hihlandmark.datasets`.
"""

from __future__ import annotations

from importlib.resources import files

SHIPPED = files(__name__) / "configurations"


def shipped_configurations() -> list[str]:
    """Names of the configurations that are part of the package."""
    names = (entry.name for entry in SHIPPED.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))
