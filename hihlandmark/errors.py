"""The error classes of this package.

A message states what is wrong, with which input, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any


class HihlandmarkError(Exception):
    """Base class of all errors that hihlandmark raises on purpose."""


class ImageError(HihlandmarkError):
    """An image or video cannot be read, has an unsupported type, or is too large."""


class WeightsError(HihlandmarkError):
    """Weights are missing, corrupt, unsafe to load, or of another architecture."""


class ConfigurationError(HihlandmarkError):
    """An argument or a combination of arguments is invalid, or an extra is not installed."""


class DataError(HihlandmarkError):
    """A data set is incomplete, or one of its files does not follow its format."""


class TrainingError(HihlandmarkError):
    """Training cannot continue: a checkpoint is corrupt or not writable, or the loss is NaN."""


class ExportError(HihlandmarkError):
    """An exported network does not reproduce the points of the original."""


@contextmanager
def missing_extra(extra: str) -> Iterator[None]:
    """Turn the failing import of an optional package into an error that names what to install.

    Args:
        extra: the extra of this package that installs it.

    Raises:
        ConfigurationError: a package that is imported within the block is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed: pip install 'hihlandmark[{extra}]'"
        ) from error


def is_number(value: object) -> bool:
    """Whether a value is a finite real number, of Python or NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(**arguments: Any) -> None:
    """Raise `ConfigurationError` for an argument that is not a positive, finite number."""
    for name, value in arguments.items():
        if not is_number(value) or value <= 0:
            shown = repr(value)[:100]
            raise ConfigurationError(f"{name} must be a positive, finite number, not {shown}")


def check_share(**arguments: Any) -> None:
    """Raise `ConfigurationError` for an argument that is not a number from 0 to 1."""
    for name, value in arguments.items():
        if not (is_number(value) and 0 <= value <= 1):
            raise ConfigurationError(f"{name} must lie in 0..1, not {value!r:.100}")


def check_integer(at_least: int = 1, **arguments: Any) -> None:
    """Raise `ConfigurationError` for an argument that is no integer or below ``at_least``."""
    for name, value in arguments.items():
        is_integer = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_integer or value < at_least:
            shown = repr(value)[:100]
            raise ConfigurationError(f"{name} must be an integer of {at_least} or more: {shown}")


def abbreviate(names: Iterable[str], count: int = 3) -> str:
    """The first ``count`` names in alphabetical order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return (", ".join(ordered[:count]) or "none") + more
