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

from hihlandmark.models.network import Heatmaps
from hihlandmark.runtimes.export import Run, run_onnx, run_openvino, write_onnx, write_openvino
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.protocol import Precision

logger = logging.getLogger(__name__)


class ConvertedRuntime:
    """A converted network; see `Runtime`."""

    def __init__(self, name: str, run: Run, precision: Precision) -> None:
        self.name, self.precision, self._run = name, precision, run

    def __call__(self, crops: NDArray[np.uint8]) -> Heatmaps:
        """Crops (N, S, S, 3) RGB -> raw `Heatmaps` on the CPU, float32."""
        integer, *decimal = (torch.from_numpy(np.asarray(each)) for each in self._run(crops))
        return Heatmaps(integer, decimal[0] if decimal else None)


def openvino_runtime(
    graph: CropGraph, size: int, key: str, precision: Precision
) -> ConvertedRuntime:
    """OpenVINO on the CPU. ``key``: what tells this network's weights and layout from others'."""
    path = _converted("openvino", key, ".xml", lambda path: write_openvino(graph, size, path))
    return ConvertedRuntime("openvino", run_openvino(path, precision=precision), precision)


def onnx_runtime(graph: CropGraph, size: int, key: str, device: torch.device) -> ConvertedRuntime:
    """ONNX Runtime on the CPU or a CUDA device; ``key`` as of `openvino_runtime`."""
    path = _converted("onnxruntime", key, ".onnx", lambda path: write_onnx(graph, size, path))
    return ConvertedRuntime("onnxruntime", run_onnx(path, device=device.type), "fp32")


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
