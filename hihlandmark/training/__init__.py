"""From annotated faces to weights. Needs the extra ``hihlandmark[train]``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hihlandmark.errors import ConfigurationError


@contextmanager
def missing_extra() -> Iterator[None]:
    """Turns a failing import of an optional package into an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"this needs {error.name}, which is not installed: pip install 'hihlandmark[train]'"
        ) from error
