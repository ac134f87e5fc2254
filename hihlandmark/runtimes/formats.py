"""File formats that other runtimes read: how each is written, and how it is run."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hihlandmark.errors import ConfigurationError
from hihlandmark.runtimes.base import Outputs, Run
from hihlandmark.runtimes.graph import ANY, PixelGraph

# Writing


def write_onnx(graph: PixelGraph, path: Path) -> None:
    """ONNX, of any size where the graph is. Needs the extra ``onnx``."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _missing("onnx", error) from error
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    any_size = {axis: torch.export.Dim.AUTO for axis, n in enumerate(graph.shape) if n == ANY}
    with _without_warnings():
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


def write_openvino(graph: PixelGraph, path: Path) -> None:
    """OpenVINO's XML, with the weights in a .bin beside it. Needs the extra ``openvino``."""
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino", error) from error
    with _without_warnings():
        model = openvino.convert_model(
            graph.module, example_input=graph.example(), input=list(graph.shape)
        )
    model.inputs[0].get_tensor().set_names({graph.input})
    for name, output in zip(graph.outputs, model.outputs, strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def write_torchscript(graph: PixelGraph, path: Path) -> None:
    """A traced TorchScript module."""
    with _without_warnings():
        torch.jit.trace(graph.module, (graph.example(),), check_trace=False).save(str(path))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Without what tracing has to say of shapes that are fixed: they are, but for the number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Running


def run_onnx(path: Path, device: str = "cpu") -> Run:
    """An ONNX file in ONNX Runtime, on the CPU or by its CUDA provider."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnx", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait for their next work at full speed are in the way of what else an image needs:
    # it takes 0.29 s instead of 0.42 s without, the network alone 39 ms instead of 32 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ConfigurationError(
            f"this ONNX Runtime has no {provider}: pip install onnxruntime-gpu, or device='cpu'"
        )
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    (only,) = session.get_inputs()
    return lambda pixels: session.run(None, {only.name: pixels})


def run_openvino(path: Path, precision: str = "fp32", shape: tuple[int, ...] | None = None) -> Run:
    """An OpenVINO or ONNX file on the CPU; ``shape``: that of its input, where the file's is wrong.

    `ANY` in a shape is any number.
    """
    core = _openvino_core()
    model = core.read_model(path)
    if shape:
        model.reshape(list(shape))
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(model, "CPU", settings)
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(pixels: NDArray[np.uint8]) -> Outputs:
        # One inference uses all threads, so those that come meanwhile lose little by waiting; with
        # requests of their own, the plugin failed once within 12,000 images (2026.4).
        with lock:
            found = request.infer({0: np.ascontiguousarray(pixels)})
            return [np.array(found[output]) for output in compiled.outputs]

    return run


_core_lock = threading.Lock()


def _openvino_core() -> Any:
    """OpenVINO's core, one for the life of the process. Needs the extra ``openvino``."""
    with _core_lock:
        return _make_core()


@cache
def _make_core() -> Any:
    """Never dropped, and used once before any other thread has it, for two faults of OpenVINO.

    It gives the thread that compiles first a stack for signal handlers, and takes the memory away
    with its last object: where another thread dropped that, the next signal of the first one, such
    as Ctrl-C, was a segmentation fault. And the tables of its types are made at first use without
    regard to Python's lock: two threads that came together waited for each other for ever.
    """
    try:
        import openvino
        from openvino import opset13
    except ImportError as error:
        raise _missing("openvino", error) from error
    core = openvino.Core()
    pixel = opset13.parameter([1], np.uint8)
    model = openvino.Model([opset13.convert(pixel, "f32")], [pixel], "first")
    found = core.compile_model(model, "CPU").create_infer_request().infer({0: np.ones(1, np.uint8)})
    np.array(found[0])
    return core


def run_torchscript(path: Path) -> Run:
    """A TorchScript file on the CPU."""
    with _without_warnings():
        module = torch.jit.load(str(path))

    def run(pixels: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in module(torch.from_numpy(pixels))]

    return run


def run_module(module: nn.Module, device: torch.device | str = "cpu") -> Run:
    """A module itself, in PyTorch."""
    module = module.to(device)

    def run(pixels: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            return [each.cpu().numpy() for each in module(torch.from_numpy(pixels).to(device))]

    return run


@dataclass(frozen=True)
class Target:
    """A format to export to."""

    suffix: str
    runtime: str
    """What runs it, of `RUNTIMES`."""
    write: Callable[[PixelGraph, Path], None]
    run: Callable[[Path], Run]


TARGETS: Mapping[str, Target] = {
    "onnx": Target(".onnx", "onnxruntime", write_onnx, run_onnx),
    "openvino": Target(".xml", "openvino", write_openvino, run_openvino),
    "torchscript": Target(".torchscript", "torch", write_torchscript, run_torchscript),
}
"""By what `hihlandmark export --to` calls it."""


def _missing(extra: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f"{error.name} is not installed: pip install 'hihlandmark[{extra}]'")
