"""ONNX files: how they are written, and run by ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hihlandmark.errors import ConfigurationError, missing_extra
from hihlandmark.runtimes.base import ANY, Backend, FileFormat, PixelGraph, Precision, Run
from hihlandmark.runtimes.devices import AnyDevice, default_threads
from hihlandmark.runtimes.forks import ReopenedRun
from hihlandmark.torch_state import default_torch_state


def write_onnx(graph: PixelGraph, path: Path) -> None:
    """Write a graph as ONNX, of any size where the graph is. Needs the extra ``onnx``."""
    import torch

    from hihlandmark.runtimes.graph import without_tracer_warnings

    with missing_extra("onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    any_size = {axis: torch.export.Dim.AUTO for axis, n in enumerate(graph.shape) if n == ANY}
    with default_torch_state(), without_tracer_warnings(), _errors_only():
        program = torch.onnx.export(
            graph.module,
            (graph.example(),),
            dynamo=True,
            dynamic_shapes=(any_size,),
            input_names=[graph.input],
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    program.save(str(path))


@contextmanager
def _errors_only() -> Iterator[None]:
    """Without what the exporter logs below errors."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def run_onnx(path: Path, device: AnyDevice, precision: Precision = "fp32") -> Run:
    """An ONNX file in ONNX Runtime, on the CPU or by its CUDA provider."""
    onnxruntime = import_onnxruntime()
    name, provider_options = provider_of(device)
    if name not in onnxruntime.get_available_providers():
        raise ConfigurationError(
            f"this ONNX Runtime has no {name}: pip install onnxruntime-gpu, or device='cpu'"
        )

    def open_() -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = default_threads()
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from the other steps of an image, which
        # then takes 0.42 s instead of 0.29 s; the network alone takes 39 ms instead of 32 ms.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(name, provider_options)]
        )
        if name not in session.get_providers():
            raise ConfigurationError(
                f"the {name} of ONNX Runtime does not start: look for missing libraries of CUDA or "
                "cuDNN in its log, or use runtime='torch' or device='cpu'"
            )
        (only,) = session.get_inputs()
        return lambda pixels: session.run(None, {only.name: pixels})

    return ReopenedRun(open_)


def provider_of(device: AnyDevice) -> tuple[str, dict[str, str]]:
    """The execution provider of a device, and its options."""
    if device.type == "cuda":
        return "CUDAExecutionProvider", {"device_id": str(device.index or 0)}
    return "CPUExecutionProvider", {}


def import_onnxruntime() -> Any:
    """The module, without telemetry.

    Its thread starts with the import and sends data over the network; a forked process waits for it
    for ever when it ends. Needs the extra ``onnx``.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with missing_extra("onnx"):
        import onnxruntime
    return onnxruntime


BACKEND = Backend(
    "ONNX Runtime",
    extra="onnx",
    devices=("cpu", "cuda"),
    file=FileFormat("onnx", ".onnx", "onnxruntime", write_onnx, run_onnx),
)
