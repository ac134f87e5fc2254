"""OpenVINO and ONNX Runtime: networks converted at first use, and kept for the next time."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.errors import ConfigurationError
from hihlandmark.models.network import Heatmaps
from hihlandmark.runtimes.export import run_onnx, run_openvino, write_onnx, write_openvino
from hihlandmark.runtimes.graph import PixelGraph
from hihlandmark.runtimes.protocol import Precision, Run

logger = logging.getLogger(__name__)


class ConvertedRuntime:
    """A converted network; see `Runtime`."""

    def __init__(self, name: str, run: Run, precision: Precision) -> None:
        self.name, self.precision, self._run = name, precision, run

    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps` on the CPU, float32."""
        integer, *decimal = (torch.from_numpy(np.asarray(each)) for each in self._run(crops))
        return Heatmaps(integer, decimal[0] if decimal else None)


def converted_run(
    package: str, graph: PixelGraph, key: str, device: torch.device, precision: Precision
) -> Run:
    """A graph run by OpenVINO on the CPU, or by ONNX Runtime on the CPU or a CUDA device.

    ``package``: "openvino" or "onnxruntime"; ``key``: what tells this graph from others.
    """
    if package == "openvino":
        path = _converted(package, key, ".xml", lambda path: write_openvino(graph, path))
        return run_openvino(path, precision=precision)
    if precision != "fp32":
        raise ConfigurationError("ONNX Runtime computes in fp32: take runtime='openvino' for bf16")
    path = _converted(package, key, ".onnx", lambda path: write_onnx(graph, path))
    return run_onnx(path, device=device.type)


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
