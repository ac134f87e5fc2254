"""What is installed and whether it works: the report of `hihlandmark doctor`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from rich.console import Console

import hihlandmark
from hihlandmark.tables import Table
from hihlandmark.weights import list_models


def report() -> bool:
    """Print versions, the device, the packaged weights, and what each extra lacks.

    Returns:
        Whether everything that the core needs is installed and works.
    """
    console = Console(highlight=False)
    console.print(
        f"hihlandmark {hihlandmark.__version__}, Python {platform.python_version()}, {sys.platform}"
    )
    try:
        requirements = [Requirement(text) for text in requires("hihlandmark") or []]
        names = metadata("hihlandmark").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        requirements, names = [], []
        console.print("Its metadata is missing, so requirements and extras are not known.")
    versions = {each.name: _version(each.name) for each in requirements if _is_core(each)}
    rows = [(name, found or f"missing: pip install {name}") for name, found in versions.items()]
    Table("Core packages", ("package", "version"), rows).print(console)
    console.print(_device())
    models = list_models()
    states = [(each.name, ", ".join(each.layouts), each.problem or "verified") for each in models]
    if states:
        Table("Packaged weights", ("name", "layouts", "state"), states).print(console)
    else:
        console.print("No packaged weights: reinstall hihlandmark.")
    extras = [(extra, _missing(extra, requirements)) for extra in names]
    Table("Extras", ("extra", "missing"), extras).print(console)
    return all(versions.values()) and bool(models) and not any(each.problem for each in models)


def _device() -> str:
    if find_spec("torch") is None:
        return "Device: none, PyTorch is missing"
    import torch

    from hihlandmark.runtimes.torch_devices import resolve_device

    device = resolve_device()
    works = torch.ones(8, device=device).sum().item() == 8
    threads = f"threads: {torch.get_num_threads()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    return f"Device: {device} ({name}), {'works' if works else 'computes wrong sums'}"


def _missing(extra: str, requirements: Sequence[Requirement]) -> str:
    """The packages of an extra that are not installed, and the command that installs them."""
    missing = [
        each.name
        for each in requirements
        if each.marker and each.marker.evaluate({"extra": extra}) and not _is_core(each)
        if _version(each.name) is None
    ]
    return f"{', '.join(missing)}: pip install 'hihlandmark[{extra}]'" if missing else "nothing"


def _is_core(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
