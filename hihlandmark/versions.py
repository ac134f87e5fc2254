"""Versions of installed packages, also where their metadata is missing."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version


def version_of(distribution: str) -> str:
    """The version of an installed package; "unknown" where nothing states it.

    Programs that bundle packages, such as PyInstaller, leave their metadata out.
    """
    try:
        return version(distribution)
    except PackageNotFoundError:
        module = import_module(distribution.replace("-", "_"))
        return str(getattr(module, "__version__", "unknown"))
