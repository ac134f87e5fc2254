"""OpenVINO files: how they are written, and run by OpenVINO."""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.errors import missing_extra
from hihlandmark.runtimes.base import Backend, FileFormat, Outputs, PixelGraph, Precision, Run
from hihlandmark.runtimes.devices import CPU, AnyDevice, default_threads, has_native_bf16
from hihlandmark.runtimes.forks import ReopenedRun, keep_for_ever
from hihlandmark.torch_state import default_torch_state, is_forked


def import_openvino() -> Any:
    """The module, without telemetry. Needs the extra ``openvino``.

    Its import would send events over the network and write to ``~/intel``; it does without the
    package for that where it is not installed.
    """
    name = "openvino_telemetry"
    is_free = name not in sys.modules
    if is_free:
        sys.modules[name] = None  # type: ignore[assignment]  # not installed
    try:
        with missing_extra("openvino"):
            import openvino
    finally:
        if is_free:
            sys.modules.pop(name, None)
    return openvino


def write_openvino(graph: PixelGraph, path: Path) -> None:
    """Write a graph as OpenVINO's XML, with the weights in a .bin beside it."""
    from hihlandmark.runtimes.graph import without_tracer_warnings

    openvino = import_openvino()
    with default_torch_state(), without_tracer_warnings():
        model = openvino.convert_model(
            graph.module, example_input=graph.example(), input=list(graph.shape)
        )
    model.inputs[0].get_tensor().set_names({graph.input})
    for name, output in zip(graph.outputs, model.outputs, strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def run_openvino(
    path: Path,
    device: AnyDevice | None = None,
    precision: Precision = "fp32",
    *,
    shape: tuple[int, ...] | None = None,
) -> Run:
    """An OpenVINO or ONNX file on the CPU.

    Args:
        path: of the file.
        device: the CPU.
        precision: "fp32" or "bf16"; "int8" for a graph with quantized convolutions, whose other
            layers are computed in bf16 where that is native, else in fp32.
        shape: of the input, where the file's is wrong; -1 for any number.
    """

    def open_() -> Run:
        core = _openvino_core()
        model = core.read_model(path)
        if shape:
            model.reshape(list(shape))
        is_bf16 = precision == "bf16" or (precision == "int8" and has_native_bf16(CPU))
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",
            "INFERENCE_NUM_THREADS": default_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if is_forked():  # in the caller's thread: OpenVINO takes over idle threads of the parent
            settings["NUM_STREAMS"] = 0
        compiled = core.compile_model(model, "CPU", settings)
        request, lock = compiled.create_infer_request(), threading.Lock()

        def run(pixels: Image) -> Outputs:
            # One inference uses all threads, so concurrent calls lose little by waiting; with one
            # request a call, the plugin failed once within 12,000 images (2026.4).
            with lock:
                found = request.infer({0: np.ascontiguousarray(pixels)})
                return [np.array(found[output]) for output in compiled.outputs]

        return run

    return ReopenedRun(open_)


_core_lock = threading.Lock()


def _after_fork() -> None:
    global _core_lock
    _core_lock = threading.Lock()
    keep_for_ever(_make_core)  # with the core


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _openvino_core() -> Any:
    """OpenVINO's core, one for the life of the process. Needs the extra ``openvino``."""
    with _core_lock:
        return _make_core()


@cache
def _make_core() -> Any:
    """Kept for ever, and used once before other threads, because of two faults of OpenVINO.

    It installs a stack for signal handlers in the thread that compiles first and frees it with its
    last object: if another thread drops that, the next signal of the first thread, such as Ctrl-C,
    is a segmentation fault. And its type tables are built at first use without regard to Python's
    lock: two threads at once deadlock.
    """
    openvino = import_openvino()
    from openvino import opset13

    core = openvino.Core()
    pixel = opset13.parameter([1], np.uint8)
    model = openvino.Model([opset13.convert(pixel, "f32")], [pixel], "first")
    found = core.compile_model(model, "CPU").create_infer_request().infer({0: np.ones(1, np.uint8)})
    np.array(found[0])
    return core


BACKEND = Backend(
    "OpenVINO",
    extra="openvino",
    devices=("cpu",),
    precisions=("fp32", "bf16", "int8"),
    file=FileFormat("openvino", ".xml", "openvino", write_openvino, run_openvino),
)
