"""Ways to run a network: a batch of crops in, decoded points out.

A runtime is a file in this folder and a row of `RUNTIMES`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hihlandmark.errors import ConfigurationError
from hihlandmark.runtimes import onnxruntime, openvino
from hihlandmark.runtimes.base import Backend, CropLandmarks, FileFormat, Precision, Run, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from hihlandmark.arrays import Image
    from hihlandmark.runtimes.graph import CropGraph, PixelGraph
    from hihlandmark.weights.card import Decoding, ModelCard

logger = logging.getLogger(__name__)

RUNTIMES: dict[str, Backend] = {
    "torch": Backend("PyTorch", precisions=("fp32", "bf16")),
    "openvino": openvino.BACKEND,
    "onnxruntime": onnxruntime.BACKEND,
}
"""By the name of the package that has to be installed."""
_FASTEST_ON_CPU = ("openvino", "onnxruntime")
RUNTIME_VARIABLE = "HIHLANDMARK_RUNTIME"
"""Environment variable that replaces "auto" by a runtime's name."""


def register_runtime(name: str, backend: Backend) -> None:
    """Add a runtime of your own under the name of the package that it needs."""
    RUNTIMES[name] = backend


def choose_runtime(name: str, device: torch.device) -> str:
    """The runtime of a name; "auto" takes the fastest that is installed.

    On a CPU that is OpenVINO (docs/speed.md), then ONNX Runtime; elsewhere PyTorch.

    Raises:
        ConfigurationError: the runtime is unknown, not installed, or does not run on the device.
    """
    asked = name
    if name == "auto":
        name = os.environ.get(RUNTIME_VARIABLE, "auto")
    if name == "auto":
        installed = [each for each in _FASTEST_ON_CPU if find_spec(each)]
        name = installed[0] if device.type == "cpu" and installed else "torch"
    if name not in RUNTIMES:
        raise ConfigurationError(
            f"there is no runtime {name!r}; there are auto, {', '.join(RUNTIMES)}"
        )
    backend = RUNTIMES[name]
    if backend.extra and not find_spec(name):
        raise ConfigurationError(
            f"runtime {name!r} is not installed: pip install 'hihlandmark[{backend.extra}]', or "
            "use runtime='torch'"
        )
    if backend.devices and device.type not in backend.devices:
        raise ConfigurationError(
            f"runtime {name!r} runs on {', '.join(backend.devices)}, not on {device}: use "
            "runtime='torch', or another device"
        )
    if asked == "auto":
        logger.info("runtime: %s", name)
    return name


def is_exported_model(name: str) -> bool:
    """Whether a runtime's name is the path of a file that `export` wrote."""
    return bool(Path(name).suffix)


class ConvertedRuntime:
    """A converted network; see `Runtime`."""

    def __init__(self, name: str, run: Run, precision: Precision) -> None:
        self.name, self.precision, self._run = name, precision, run

    def __call__(self, crops: Image) -> CropLandmarks:
        """Crops (N, S, S, 3) uint8 RGB -> `CropLandmarks` in float32."""
        return CropLandmarks(*self._run(crops))


def make_runtime(
    name: str,
    network: nn.Module,
    layout: str,
    card: ModelCard,
    device: torch.device,
    precision: Precision = "fp32",
    *,
    decoding: Decoding | None = None,
    compiled: bool = False,
) -> Runtime:
    """Prepare a network to be run.

    Args:
        name: of `RUNTIMES`, "auto" for the fastest, or the path of a file that `export` wrote.
        network: as `weights.load_model` gives it.
        layout: name of the layout whose points are wanted.
        card: of the network.
        device: where it runs.
        precision: "bf16" is for PyTorch and OpenVINO.
        decoding: None: the card's.
        compiled: by ``torch.compile``; for PyTorch, which "auto" then takes.

    Raises:
        ConfigurationError: the combination is not available.
    """
    decoding = decoding or card.decoding
    if is_exported_model(name):
        from hihlandmark.runtimes.export import exported_runtime

        return exported_runtime(Path(name), layout, card, decoding, device)
    name = choose_runtime("torch" if compiled and name == "auto" else name, device)
    backend = RUNTIMES[name]
    if compiled and name != "torch":
        raise ConfigurationError(f"compile is for runtime 'torch', not for {name!r}")
    if precision not in backend.precisions:
        raise ConfigurationError(
            f"{backend.title} computes in {' or '.join(backend.precisions)}, not in {precision!r}"
        )

    def make_graph() -> CropGraph:
        from hihlandmark.runtimes.graph import CropGraph, folded

        return CropGraph(
            folded(network), [layout], card.normalization, decoding, card.crop.pixel_origin
        )

    if name == "torch":
        from hihlandmark.runtimes.pytorch import TorchRuntime

        return TorchRuntime(make_graph(), device, precision, compiled=compiled)
    size = card.configuration["input_size"]
    # Everything that `make_graph` puts into the file.
    key = f"{layout} {card.normalization!r} {decoding!r} {card.crop.pixel_origin} {card.sha256}"
    run = _converted_run(name, lambda: make_graph().on_pixels(size), key, device, precision)
    return ConvertedRuntime(name, run, precision)


def make_run(
    name: str, make_graph: Callable[[], PixelGraph], key: str, device: torch.device
) -> Run:
    """A graph run in fp32 by ``name`` or, with "auto", by the fastest.

    Args:
        name: as of `choose_runtime`.
        make_graph: makes the graph; called only where no earlier conversion is kept.
        key: distinguishes the graph from others in the cache of converted graphs.
        device: where it runs.

    Raises:
        ConfigurationError: the runtime is not available.
    """
    name = choose_runtime(name, device)
    if name == "torch":
        from hihlandmark.runtimes.pytorch import run_module

        return run_module(make_graph().module, device)
    return _converted_run(name, make_graph, key, device, "fp32")


def _converted_run(
    name: str,
    make_graph: Callable[[], PixelGraph],
    key: str,
    device: torch.device,
    precision: Precision,
) -> Run:
    file = RUNTIMES[name].file
    if file is None:
        raise ConfigurationError(f"runtime {name!r} reads no files: its row states none")
    return file.run(_converted_file(file, make_graph, key), device, precision)


def _converted_file(file: FileFormat, make_graph: Callable[[], PixelGraph], key: str) -> Path:
    """The file of a converted graph, written unless an earlier conversion is kept."""
    # Another release of the converter may write other files.
    versions = [version(name) for name in ("hihlandmark", "torch", file.package)]
    digest = hashlib.sha256(" ".join([key, *versions]).encode()).hexdigest()[:16]
    folder = _cache_folder(file.package)
    path = folder / f"{digest}{file.suffix}"
    if path.exists():
        return path
    logger.info("converting the network for %s, once: %s", file.package, path)
    # Under another name until it is complete: another process may look for it, or kill this one.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file.write(make_graph(), Path(temporary) / path.name)
        # OpenVINO's weights lie beside the .xml, which must not be found before them.
        parts = Path(temporary).iterdir()
        for part in sorted(parts, key=lambda each: each.suffix == file.suffix):
            part.replace(folder / part.name)
    return path


def _cache_folder(package: str) -> Path:
    """Where converted networks are kept; a temporary folder where the cache is not writable."""
    from huggingface_hub import cached_assets_path

    try:
        folder = cached_assets_path("hihlandmark", namespace="converted", subfolder=package)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logger.warning("converted networks cannot be kept: %s", error)
        return Path(tempfile.mkdtemp(prefix="hihlandmark-"))


__all__ = [
    "RUNTIMES",
    "Backend",
    "CropLandmarks",
    "FileFormat",
    "Precision",
    "Run",
    "Runtime",
    "choose_runtime",
    "is_exported_model",
    "make_run",
    "make_runtime",
    "register_runtime",
]
