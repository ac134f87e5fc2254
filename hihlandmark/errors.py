"""The error classes of this package.

A message says what is wrong, with which input, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
    """Turn the failing import of an optional package into an error that says what to install.

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


def abbreviate(names: Iterable[str], count: int = 3) -> str:
    """The first ``count`` names in alphabetical order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return (", ".join(ordered[:count]) or "none") + more
