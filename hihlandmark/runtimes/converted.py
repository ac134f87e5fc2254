"""OpenVINO and ONNX Runtime: networks converted at first use, and kept for the next time.

Another runtime of that kind is a row in `CONVERTERS` and one in `runtimes.RUNTIMES`, also of a
program of your own: docs/extending/runtime.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.base import Heatmaps
from hihlandmark.runtimes.base import Precision, Run
from hihlandmark.runtimes.formats import (
    TARGETS,
    run_onnx,
    run_openvino,
    write_onnx,
    write_openvino,
)
from hihlandmark.runtimes.graph import PixelGraph
from hihlandmark.weights.card import ModelCard

logger = logging.getLogger(__name__)


class ConvertedRuntime:
    """A converted network; see `Runtime`."""

    def __init__(self, name: str, run: Run, precision: Precision) -> None:
        self.name, self.precision, self._run = name, precision, run

    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps` on the CPU, float32."""
        integer, *decimal = (torch.from_numpy(np.asarray(each)) for each in self._run(crops))
        return Heatmaps(integer, decimal[0] if decimal else None)


class Converter(NamedTuple):
    """How a runtime gets a network and runs it."""

    title: str
    """The runtime's name as its makers write it."""
    package: str
    """Distribution whose releases may convert differently."""
    suffix: str
    """Of the file that is run."""
    write: Callable[[PixelGraph, Path], None]
    run: Callable[[Path, torch.device, Precision], Run]
    precisions: tuple[Precision, ...] = ("fp32",)


CONVERTERS: dict[str, Converter] = {
    "openvino": Converter(
        "OpenVINO",
        "openvino",
        ".xml",
        write_openvino,
        lambda path, device, precision: run_openvino(path, precision=precision),
        ("fp32", "bf16"),
    ),
    "onnxruntime": Converter(
        "ONNX Runtime",
        "onnxruntime",
        ".onnx",
        write_onnx,
        lambda path, device, precision: run_onnx(path, device=device.type),
    ),
}
"""By names of `runtimes.RUNTIMES`."""


def converted_run(
    name: str,
    make_graph: Callable[[], PixelGraph],
    key: str,
    device: torch.device,
    precision: Precision,
) -> Run:
    """A graph run by a runtime of `CONVERTERS` on a device that it knows.

    ``key``: what tells this graph from others, which is made only where no earlier conversion is
    kept. Raises `ConfigurationError` for a precision that the runtime does not have.
    """
    converter = CONVERTERS[name]
    if precision not in converter.precisions:
        raise ConfigurationError(
            f"{converter.title} computes in {', '.join(converter.precisions)}: take "
            f"runtime='openvino' for {precision}"
        )
    path = _converted(
        converter.package, key, converter.suffix, lambda path: converter.write(make_graph(), path)
    )
    return converter.run(path, device, precision)


def exported_runtime(
    path: Path, layout: str, card: ModelCard, device: torch.device
) -> ConvertedRuntime:
    """A file that `export` wrote of the weights of a card, for a layout.

    Raises `ConfigurationError` for another file, and one of other weights or another layout.
    """
    targets = {target.suffix: target for target in TARGETS.values()}
    if path.suffix not in targets or not path.exists():
        raise ConfigurationError(
            f"runtime {str(path)!r} is neither a runtime nor an exported file "
            f"({', '.join(targets)}) that is there"
        )
    target = targets[path.suffix]
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        weights, of_layout, decoded = facts["card"]["files"], facts["layout"], facts["decoded"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be run: the .json that `hihlandmark export` writes beside it is not "
            f"there or not whole ({error})"
        ) from error
    problem = None
    if of_layout != layout:
        problem = f"it finds the points of {of_layout}, not of {layout}: give that layout"
    elif weights != card.files:
        problem = f"it holds other weights than {card.name}: export it anew, or give its weights"
    elif decoded:
        problem = "it gives points instead of heatmaps: export it without --decode"
    elif target.runtime != "onnxruntime" and device.type != "cpu":
        problem = f"it runs on a CPU, not on {device}: take device='cpu'"
    if problem:
        raise ConfigurationError(f"{path} cannot be run: {problem}")
    run = run_onnx(path, device.type) if target.suffix == ".onnx" else target.run(path)
    return ConvertedRuntime(target.runtime, run, "fp32")


def _converted(package: str, key: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """The file of a converted network in Hugging Face's cache, written unless it is there."""
    # Another release of the converter may write other files.
    versions = [version(name) for name in ("hihlandmark", "torch", package)]
    digest = hashlib.sha256(" ".join([key, *versions]).encode()).hexdigest()[:16]
    folder = _cache_folder(package)
    path = folder / f"{digest}{suffix}"
    if path.exists():
        return path
    logger.info("converting the network for %s, once: %s", package, path)
    # Under another name until it is whole: another process may look for it, and this one be killed.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write(Path(temporary) / path.name)
        # OpenVINO's weights lie beside the .xml, which must not be found before them.
        for part in sorted(Path(temporary).iterdir(), key=lambda each: each.suffix == suffix):
            part.replace(folder / part.name)
    return path


def _cache_folder(package: str) -> Path:
    """Where converted networks are kept; a temporary folder where nothing can be written."""
    from huggingface_hub import cached_assets_path

    try:
        folder = cached_assets_path("hihlandmark", namespace="converted", subfolder=package)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logger.warning("converted networks cannot be kept: %s", error)
        return Path(tempfile.mkdtemp(prefix="hihlandmark-"))
