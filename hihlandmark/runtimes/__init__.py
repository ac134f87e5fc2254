"""Ways to run a network: a batch of crops in, decoded points out.

A runtime is a file in this folder and a row of `RUNTIMES`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hihlandmark.errors import ConfigurationError
from hihlandmark.runtimes import onnxruntime, openvino
from hihlandmark.runtimes.base import (
    Backend,
    CropLandmarks,
    FileFormat,
    PixelGraph,
    Precision,
    PrecisionChoice,
    Run,
    Runtime,
)
from hihlandmark.runtimes.devices import AnyDevice, has_native_bf16, has_native_int8
from hihlandmark.runtimes.forks import ReopenedRun
from hihlandmark.runtimes.kept import hash_of, kept_file
from hihlandmark.threads import after_fork
from hihlandmark.torch_state import default_torch_state
from hihlandmark.versions import version_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from hihlandmark.arrays import Image
    from hihlandmark.runtimes.graph import CropGraph
    from hihlandmark.runtimes.int8 import Ranges
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


def choose_runtime(name: str, device: AnyDevice) -> str:
    """The runtime of a name; "auto" takes the fastest that is installed.

    On a CPU that is OpenVINO (docs/research/speed.md), then ONNX Runtime; elsewhere PyTorch.

    Raises:
        ConfigurationError: the runtime is unknown, not installed, or does not run on the device.
    """
    given = name
    if name == "auto":
        name = os.environ.get(RUNTIME_VARIABLE) or "auto"
    if name == "auto":
        installed = [each for each in _FASTEST_ON_CPU if find_spec(each)]
        name = installed[0] if device.type == "cpu" and installed else "torch"
    if name not in RUNTIMES:
        where = "" if name == given else f", which {RUNTIME_VARIABLE} names"
        raise ConfigurationError(
            f"there is no runtime {name!r}{where}; there are auto, {', '.join(RUNTIMES)}"
        )
    backend = RUNTIMES[name]
    if not is_installed(name):
        raise ConfigurationError(
            f"runtime {name!r} is not installed: pip install 'hihlandmark[{backend.extra}]', or "
            "use runtime='torch'"
        )
    if backend.devices and device.type not in backend.devices:
        raise ConfigurationError(
            f"runtime {name!r} runs on {', '.join(backend.devices)}, not on {device}: use "
            "runtime='torch', or another device"
        )
    if given == "auto":
        logger.info("runtime: %s", name)
    return name


def is_installed(name: str) -> bool:
    """Whether the package of a runtime in `RUNTIMES` can be imported, where it needs an extra."""
    return RUNTIMES[name].extra is None or find_spec(name) is not None


def choose_precision(
    precision: PrecisionChoice, runtime: str, device: AnyDevice, *, has_ranges: bool = False
) -> Precision:
    """The precision of a name; "auto" takes INT8, else bf16, if it is native and available.

    Args:
        precision: "auto", "fp32", "bf16" or "int8".
        runtime: a name in `RUNTIMES`.
        device: where it runs.
        has_ranges: whether the weights hold the ranges that INT8 needs.

    Raises:
        ConfigurationError: the runtime does not compute in the precision, or the weights hold no
            ranges.
    """
    backend = RUNTIMES[runtime]
    if precision == "auto":
        if "int8" in backend.precisions and has_ranges and has_native_int8(device):
            return "int8"
        is_faster = "bf16" in backend.precisions and has_native_bf16(device)
        return "bf16" if is_faster else "fp32"
    if precision not in backend.precisions:
        raise ConfigurationError(
            f"{backend.title} computes in {' or '.join(backend.precisions)}, not in {precision!r}"
        )
    if precision == "int8" and not has_ranges:
        raise ConfigurationError(
            "precision='int8' needs weights that hold the ranges of their activations: those of "
            "hih-small and of the face detector mtcnn do; use precision='auto'"
        )
    return precision


def available_precision(
    precision: PrecisionChoice, runtime: str, device: AnyDevice, *, has_ranges: bool = False
) -> Precision:
    """`choose_precision` for a graph; fp32 in PyTorch and where the runtime has no other.

    Without ranges, "int8" is taken as "auto".
    """
    if runtime == "torch" or RUNTIMES[runtime].precisions == ("fp32",):
        return "fp32"
    if precision == "int8" and not has_ranges:
        precision = "auto"
    return choose_precision(precision, runtime, device, has_ranges=has_ranges)


def is_exported_model(name: str) -> bool:
    """Whether a runtime's name is the path of a file that `export` wrote."""
    return name not in RUNTIMES and bool(Path(name).suffix)


class ConvertedRuntime:
    """A converted network; see `Runtime`."""

    def __init__(self, name: str, run: Run, precision: Precision) -> None:
        self.name, self.precision, self._run = name, precision, run

    def __call__(self, crops: Image) -> CropLandmarks:
        """Crops (N, S, S, 3) uint8 RGB -> `CropLandmarks` in float32."""
        return CropLandmarks(*self._run(crops))


def make_runtime(
    name: str,
    make_network: Callable[[], nn.Module],
    layout: str,
    card: ModelCard,
    device: AnyDevice,
    precision: PrecisionChoice | None = None,
    *,
    decoding: Decoding | None = None,
    compiled: bool = False,
) -> Runtime:
    """Prepare a network to be run.

    Args:
        name: of `RUNTIMES`, "auto" for the fastest, or the path of a file that `export` wrote.
        make_network: makes the network, as `weights.open_model` gives it; called only where no
            earlier conversion is kept.
        layout: name of the layout whose points are wanted.
        card: of the network.
        device: where it runs.
        precision: "auto": see `choose_precision`. None: fp32, or that of the exported file.
        decoding: None: the card's.
        compiled: by ``torch.compile``; for PyTorch, which "auto" then takes.

    Raises:
        ConfigurationError: the combination is not available.
    """
    decoding = decoding or card.decoding
    if is_exported_model(name):
        from hihlandmark.runtimes.export import exported_runtime

        if compiled:
            raise ConfigurationError(f"{name} runs as it was exported: leave compile at False")
        made = exported_runtime(Path(name), layout, card, decoding, device)
        if precision not in (None, "auto", made.precision):
            raise ConfigurationError(
                f"{name} runs as it was exported, in {made.precision}, not in {precision}: leave "
                "precision at 'auto'"
            )
        return made
    name = choose_runtime("torch" if compiled and name == "auto" else name, device)
    if compiled and name != "torch":
        raise ConfigurationError(f"compile is for runtime 'torch', not for {name!r}")
    ranges = card.activation_ranges
    precision = choose_precision(precision or "fp32", name, device, has_ranges=bool(ranges))
    logger.info("precision: %s", precision)

    def make_graph() -> CropGraph:
        from hihlandmark.runtimes.graph import graph_of_card

        return graph_of_card(make_network(), layout, card, decoding, precision)

    if name == "torch":
        from hihlandmark.runtimes.pytorch import TorchRuntime

        with default_torch_state():
            return TorchRuntime(make_graph(), device, precision, compiled=compiled)
    size = card.configuration["input_size"]
    # Everything that `make_graph` puts into the file.
    parts = (layout, card.normalization, decoding, card.crop.pixel_origin, card.architecture)
    key = f"{parts} {card.configuration} {card.sha256}"
    if precision == "int8":
        key += f" {ranges}"
    run = _converted_run(name, lambda: make_graph().on_pixels(size), key, device, precision)
    return ConvertedRuntime(name, run, precision)


def make_run(
    name: str,
    make_graph: Callable[[], PixelGraph],
    key: str,
    device: AnyDevice,
    precision: PrecisionChoice = "auto",
    ranges: Ranges | None = None,
) -> Run:
    """A graph run by ``name`` or, with "auto", by the fastest.

    Args:
        name: as of `choose_runtime`.
        make_graph: makes the graph; called only where no earlier conversion is kept.
        key: distinguishes the graph from others in the cache of converted graphs.
        device: where it runs.
        precision: as of `available_precision`.
        ranges: of the activations of the graph's module, which INT8 needs.

    Raises:
        ConfigurationError: the runtime or the precision is not available.
    """
    name = choose_runtime(name, device)
    if name == "torch":
        from hihlandmark.runtimes.pytorch import run_module

        with default_torch_state():
            return run_module(make_graph().module, device)
    precision = available_precision(precision, name, device, has_ranges=bool(ranges))
    if precision != "int8" or ranges is None:
        return _converted_run(name, make_graph, key, device, precision)

    def make_quantized() -> PixelGraph:
        from hihlandmark.runtimes.int8 import quantize

        graph = make_graph()
        return graph._replace(module=quantize(graph.module, ranges))

    return _converted_run(name, make_quantized, f"{key} {ranges}", device, precision)


def _converted_run(
    name: str,
    make_graph: Callable[[], PixelGraph],
    key: str,
    device: AnyDevice,
    precision: Precision,
) -> Run:
    file = RUNTIMES[name].file
    if file is None:
        raise ConfigurationError(f"runtime {name!r} reads no files: its row states none")
    folder = _cache_folder(file.package)
    if folder is not None:
        try:
            path = _converted_file(file, make_graph, key, folder)
        except OSError as error:
            logger.warning("converted networks cannot be kept: %s", error)
        else:
            return (file.run_kept or file.run)(path, device, precision)
    with tempfile.TemporaryDirectory(prefix="hihlandmark-") as place:
        path = _converted_file(file, make_graph, key, Path(place))
        content = {each.name: each.read_bytes() for each in Path(place).iterdir()}

    def open_() -> Run:
        # Windows does not remove a file that is in use.
        with tempfile.TemporaryDirectory(
            prefix="hihlandmark-", ignore_cleanup_errors=True
        ) as place:
            for part, data in content.items():
                (Path(place) / part).write_bytes(data)
            return file.run(Path(place) / path.name, device, precision)

    return ReopenedRun(open_)  # what `file.run` opens again in a forked process is gone by then


def _converted_file(
    file: FileFormat, make_graph: Callable[[], PixelGraph], key: str, folder: Path
) -> Path:
    """The file of a converted graph, written unless an earlier conversion is kept in the folder."""

    def write(path: Path) -> None:
        logger.info("converting the network for %s, once: %s", file.package, folder / path.name)
        with default_torch_state():
            file.write(make_graph(), path)

    # Another release of the converter may write other files.
    versions = [version_of(name) for name in ("hihlandmark", "torch", file.package)]
    key = " ".join([key, *versions, _hash_of_code()])
    with _converting:  # PyTorch mixes up the graphs of two threads
        return kept_file(folder, file.suffix, key, write)


_converting = threading.RLock()


@after_fork
def _after_fork() -> None:
    global _converting
    _converting = threading.RLock()


@cache
def _hash_of_code() -> str:
    """Hashes of the source that makes the graphs: between releases, it changes without a version.

    Applications that are frozen to one file have no source; there the version has to do.
    """
    package = Path(__file__).parents[1]
    files = [package / "heatmap.py", *sorted((package / "models").glob("*.py"))]
    files += [package / "runtimes" / name for name in ("graph.py", "int8.py", "openvino.py")]
    return " ".join(hash_of(file) for file in files if file.exists())


def _cache_folder(package: str) -> Path | None:
    """Where converted networks are kept, writable or not; None where there can be no cache."""
    from huggingface_hub import cached_assets_path

    try:
        return cached_assets_path("hihlandmark", namespace="converted", subfolder=package)
    # It has a ValueError for a file in place of a folder, a RuntimeError for a user without home.
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning("converted networks cannot be kept: %s", error)
        return None


__all__ = [
    "RUNTIMES",
    "Backend",
    "CropLandmarks",
    "FileFormat",
    "Precision",
    "PrecisionChoice",
    "Run",
    "Runtime",
    "available_precision",
    "choose_precision",
    "choose_runtime",
    "is_exported_model",
    "make_run",
    "make_runtime",
    "register_runtime",
]
