"""What is installed and whether it works: the report of `hihlandmark doctor`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import hihlandmark
from hihlandmark.weights import list_weights

CORE = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "huggingface-hub",
    "safetensors",
    "facenet-pytorch",
)


def report() -> bool:
    """Prints versions, the device used, the packaged weights and what each extra lacks.

    Returns whether everything that the core needs is there.
    """
    console = Console(highlight=False)
    console.print(
        f"hihlandmark {hihlandmark.__version__}, Python {platform.python_version()}, {sys.platform}"
    )
    healthy = True

    packages = Table("package", "version", title="Core packages", title_justify="left")
    for name in CORE:
        installed = _version(name)
        healthy &= installed is not None
        packages.add_row(name, installed or f"missing: pip install {name}")
    console.print(packages)

    console.print(_device())

    weights = Table("name", "layouts", "state", title="Packaged weights", title_justify="left")
    rows = list_weights()
    for row in rows:
        healthy &= row.problem is None
        layouts = row.files.card.configuration["layouts"] if row.files else {}
        weights.add_row(row.name, ", ".join(layouts), row.problem or "verified")
    console.print(weights if rows else "No packaged weights: reinstall hihlandmark.")

    extras = Table("extra", "missing", title="Extras", title_justify="left")
    for extra, missing in _missing_by_extra():
        hint = f"{', '.join(missing)}: pip install 'hihlandmark[{extra}]'" if missing else "nothing"
        extras.add_row(extra, escape(hint))  # else [demo] is taken for a style
    console.print(extras)
    return healthy and bool(rows)


def _device() -> str:
    if find_spec("torch") is None:
        return "Device: none, PyTorch is missing"
    import torch

    from hihlandmark.runtimes.pytorch import resolve_device

    device = resolve_device()
    # Ask the device for a sum rather than believe that it is there.
    works = torch.ones(8, device=device).sum().item() == 8
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{(threads := torch.get_num_threads())} thread{'s' * (threads != 1)}"
    )
    return f"Device: {device} ({name}), {'works' if works else 'gives wrong sums'}"


def _missing_by_extra() -> Iterator[tuple[str, list[str]]]:
    """Each extra of this package and those of its requirements that are not installed."""
    needed = [Requirement(text) for text in requires("hihlandmark") or []]
    for extra in metadata("hihlandmark").get_all("Provides-Extra") or []:
        names = [
            each.name
            for each in needed
            if each.marker and each.marker.evaluate({"extra": extra}) and not _is_core(each)
        ]
        yield extra, [name for name in names if _version(name) is None]


def _is_core(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
