"""Ways to run a network: a batch of crops in, raw heatmaps out."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hihlandmark.errors import ConfigurationError
from hihlandmark.runtimes.base import Precision, Run, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from hihlandmark.runtimes.graph import PixelGraph
    from hihlandmark.weights.card import ModelCard

logger = logging.getLogger(__name__)

RUNTIMES: dict[str, str | None] = {
    "torch": None,
    "openvino": "openvino",
    "onnxruntime": "onnx",
}
"""Names, each with the extra that installs it; `converted.CONVERTERS` has all but PyTorch."""
RUNTIME_VARIABLE = "HIHLANDMARK_RUNTIME"
"""Environment variable that says what "auto" stands for."""


def choose_runtime(name: str, device: torch.device) -> str:
    """The runtime that a name stands for; "auto" takes the fastest that is installed.

    That is OpenVINO on a CPU (docs/speed.md), then ONNX Runtime, and PyTorch elsewhere.
    Raises `ConfigurationError` for one that there is not, that is not installed, or that does not
    run on the device.
    """
    asked = name
    if name == "auto":
        name = os.environ.get(RUNTIME_VARIABLE, "auto")
    if name == "auto":
        installed = [each for each in ("openvino", "onnxruntime") if find_spec(each)]
        name = installed[0] if device.type == "cpu" and installed else "torch"
    if name not in RUNTIMES:
        raise ConfigurationError(
            f"there is no runtime {name!r}; there is auto, {', '.join(RUNTIMES)}"
        )
    extra = RUNTIMES[name]
    if extra and not find_spec(name):
        raise ConfigurationError(
            f"runtime {name!r} is not installed: pip install 'hihlandmark[{extra}]', or take "
            "runtime='torch'"
        )
    if name == "openvino" and device.type != "cpu":
        raise ConfigurationError(
            f"runtime 'openvino' runs on a CPU, not on {device}: take device='cpu', or "
            "runtime='torch'"
        )
    if asked == "auto":
        logger.info("runtime: %s", name)
    return name


def is_exported_model(name: str) -> bool:
    """Whether a runtime's name is the path of a file that `export` wrote."""
    return bool(Path(name).suffix)


def make_runtime(
    name: str,
    network: nn.Module,
    layout: str,
    card: ModelCard,
    device: torch.device,
    precision: Precision = "fp32",
    *,
    compiled: bool = False,
) -> Runtime:
    """A network of a card for one layout, run by ``name`` or, with "auto", by the fastest.

    ``name`` may also be the path of a file that `export` wrote. ``precision`` "bf16" is for PyTorch
    and for OpenVINO, ``compiled`` for PyTorch, which "auto" then takes. Raises
    `ConfigurationError`.
    """
    from hihlandmark.runtimes.pytorch import TorchRuntime

    if is_exported_model(name):
        from hihlandmark.runtimes.converted import exported_runtime

        return exported_runtime(Path(name), layout, card, device)
    name = choose_runtime("torch" if compiled and name == "auto" else name, device)
    if compiled and name != "torch":
        raise ConfigurationError(f"compile is for runtime 'torch', not for {name!r}")
    if precision not in ("fp32", "bf16"):
        raise ConfigurationError(f"precision must be 'fp32' or 'bf16', not {precision!r}")
    if name == "torch":
        return TorchRuntime(
            network, layout, card.normalization, device, precision, compiled=compiled
        )
    from hihlandmark.runtimes.converted import ConvertedRuntime, converted_run
    from hihlandmark.runtimes.graph import CropGraph, folded

    def make_graph() -> PixelGraph:
        graph = CropGraph(folded(network), layout, card.normalization)
        return graph.on_pixels(card.configuration["input_size"])

    key = f"{layout} {' '.join(card.files.values())}"
    run = converted_run(name, make_graph, key, device, precision)
    return ConvertedRuntime(name, run, precision)


def make_run(
    name: str, make_graph: Callable[[], PixelGraph], key: str, device: torch.device
) -> Run:
    """A graph run in fp32 by ``name`` or, with "auto", by the fastest.

    ``key`` tells the graph from others, for what is converted is kept, and the graph is only made
    where it has to be. Raises `ConfigurationError`.
    """
    name = choose_runtime(name, device)
    if name == "torch":
        from hihlandmark.runtimes.formats import run_module

        return run_module(make_graph().module, device)
    from hihlandmark.runtimes.converted import converted_run

    return converted_run(name, make_graph, key, device, "fp32")


__all__ = [
    "RUNTIMES",
    "Precision",
    "Run",
    "Runtime",
    "choose_runtime",
    "is_exported_model",
    "make_run",
    "make_runtime",
]
