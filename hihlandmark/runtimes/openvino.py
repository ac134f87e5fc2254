"""OpenVINO files: how they are written, and run by OpenVINO."""

from __future__ import annotations

import errno
import io
import locale
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from hihlandmark.arrays import Image
from hihlandmark.errors import missing_extra
from hihlandmark.runtimes.base import Backend, FileFormat, Outputs, PixelGraph, Precision, Run
from hihlandmark.runtimes.devices import CPU, AnyDevice, default_threads, has_native_bf16
from hihlandmark.runtimes.forks import ReopenedRun, keep_for_ever
from hihlandmark.runtimes.kept import kept_file
from hihlandmark.threads import after_fork
from hihlandmark.torch_state import default_torch_state, is_forked
from hihlandmark.versions import version_of

logger = logging.getLogger(__name__)


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
    _openvino_core()  # before other threads use OpenVINO
    with default_torch_state(), without_tracer_warnings():
        model = openvino.convert_model(
            graph.module, example_input=graph.example(), input=list(graph.shape)
        )
    model.inputs[0].get_tensor().set_names({graph.input})
    for name, output in zip(graph.outputs, model.outputs, strict=True):
        output.get_tensor().set_names({name})
    try:
        with _decimal_points():
            openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # of a C++ stream
        reason = f"OpenVINO cannot write it ({error}); is the disk full?"
        raise OSError(errno.EIO, reason, str(path)) from error


@contextmanager
def _decimal_points() -> Iterator[None]:
    """Write numbers with decimal points, whatever locale the program has set.

    OpenVINO would write those of the locale, "1,5", and read another number from them.
    """
    with _locale_lock:
        before = locale.setlocale(locale.LC_NUMERIC)
        locale.setlocale(locale.LC_NUMERIC, "C")
        try:
            yield
        finally:
            locale.setlocale(locale.LC_NUMERIC, before)


_locale_lock = threading.Lock()


def run_openvino(
    path: Path,
    device: AnyDevice | None = None,
    precision: Precision = "fp32",
    *,
    cache_compiled: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Run:
    """An OpenVINO or ONNX file on the CPU.

    Args:
        path: of the file.
        device: the CPU.
        precision: "fp32" or "bf16"; "int8" for a graph with quantized convolutions, whose other
            layers are computed in bf16 where that is native, else in fp32.
        cache_compiled: keep the compiled network beside the file: it opens in a third of the time.
        shape: of the input, where the file's is wrong; -1 for any number.
    """

    def open_() -> Run:
        core = _openvino_core()
        # Users may change their own files while these are open.
        model = core.read_model(path, config={"ENABLE_MMAP": cache_compiled})
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

        def open_model(model: Any) -> Run:
            with _core_lock:
                return _run_of(_compiled(core, model, settings, path if cache_compiled else None))

        def open_size(size: int) -> Run:
            sized = model.clone()
            sized.reshape([size, *list(sized.inputs[0].partial_shape)[1:]])
            return open_model(sized)

        any_count, *others = model.inputs[0].partial_shape
        is_sized = any_count.is_dynamic and all(each.is_static for each in others)
        run = FixedBatches(open_size) if is_sized else open_model(model)
        lock = threading.Lock()

        def run_alone(pixels: Image) -> Outputs:
            # One inference uses all threads, so concurrent calls lose little by waiting; with one
            # request a call, the plugin failed once within 12,000 images (2026.4).
            with lock:
                return run(pixels)

        return run_alone

    return ReopenedRun(open_)


class FixedBatches:
    """Runs batches of any size as batches of fixed sizes.

    OpenVINO needs a tenth to a fifth less time for a network whose sizes are all fixed, but half a
    second to prepare it, and 50 MB. So the sizes are powers of two; the first batch opens its
    largest one, and others are opened when they have been wanted `WORTH_OPENING` times. Until then
    batches are split, and filled up with zeros. May be called from one thread at a time.

    Args:
        open_size: opens the network for one size.
    """

    WORTH_OPENING = 3
    MOST_FILLED_UP = 4
    """A batch that would be filled up to more than this many times its size opens its own."""

    def __init__(self, open_size: Callable[[int], Run]) -> None:
        self._open = open_size
        self._runs: dict[int, Run] = {}
        self._wanted: Counter[int] = Counter()
        self._failed: set[int] = set()

    def __call__(self, pixels: Image) -> Outputs:
        """See `base.Run`."""
        count = max(len(pixels), 1)
        sizes = [1 << bit for bit in reversed(range(count.bit_length())) if count & (1 << bit)]
        if self._runs and len(pixels):  # the first batch opens what it wants
            self._wanted.update(sizes)
        for size in sizes:
            if self._is_worth_opening(size):
                self._try_to_open(size)
        found, start = [], 0
        while start < count:
            fitting = [size for size in self._runs if size <= count - start]
            size = max(fitting, default=min(self._runs))
            part = pixels[start : start + size]
            if len(part) < size:
                rest = np.zeros((size - len(part), *pixels.shape[1:]), pixels.dtype)
                part = np.concatenate([part, rest])
            found.append(self._runs[size](part))
            start += size
        return [np.concatenate(parts)[: len(pixels)] for parts in zip(*found, strict=True)]

    def _is_worth_opening(self, size: int) -> bool:
        if not self._runs:
            return True
        is_wasteful = min(self._runs) > self.MOST_FILLED_UP * size
        is_wanted = is_wasteful or self._wanted[size] >= self.WORTH_OPENING
        return is_wanted and size not in self._runs and size not in self._failed

    def _try_to_open(self, size: int) -> None:
        try:
            self._runs[size] = self._open(size)
        except (MemoryError, RuntimeError) as error:
            if not self._runs:
                raise
            self._failed.add(size)
            logger.warning("batches of %d are run in other sizes: %s", size, error)


def _run_of(compiled: Any) -> Run:
    request = compiled.create_infer_request()

    def run(pixels: Image) -> Outputs:
        found = request.infer(np.ascontiguousarray(pixels), share_inputs=True, share_outputs=True)
        return [np.array(output) for output in found.to_tuple()]

    return run


def _compiled(core: Any, model: Any, settings: dict[str, Any], path: Path | None) -> Any:
    """A compiled model, from the one that is kept beside the file at ``path`` if that is given."""
    if path is None:
        return core.compile_model(model, "CPU", settings)
    compiled = None

    def write(kept: Path) -> None:
        nonlocal compiled
        compiled = core.compile_model(model, "CPU", settings)
        content = io.BytesIO()
        with _decimal_points():
            compiled.export_model(content)
        kept.write_bytes(content.getvalue())

    # What it depends on; with other versions or processors it may not be readable.
    parts = [path.name, model.inputs[0].partial_shape, settings, version_of("openvino")]
    parts += [core.get_property("CPU", name) for name in _PROCESSOR]
    key = " ".join(map(str, parts))
    try:
        kept = kept_file(path.parent, ".blob", key, write)
        if compiled is None:
            try:
                compiled = core.import_model(io.BytesIO(kept.read_bytes()), "CPU", settings)
            except RuntimeError:
                kept.unlink(missing_ok=True)
                kept_file(path.parent, ".blob", key, write)
    except OSError as error:
        logger.warning("the compiled network is not kept beside %s: %s", path, error)
    return core.compile_model(model, "CPU", settings) if compiled is None else compiled


_PROCESSOR = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
_core_lock = threading.Lock()


@after_fork
def _after_fork() -> None:
    global _core_lock, _locale_lock
    _core_lock, _locale_lock = threading.Lock(), threading.Lock()
    keep_for_ever(_make_core)  # with the core


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
    file=FileFormat(
        "openvino",
        ".xml",
        "openvino",
        write_openvino,
        run_openvino,
        partial(run_openvino, cache_compiled=True),
    ),
)
