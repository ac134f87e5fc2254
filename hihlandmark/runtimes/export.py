"""Writes a network for one layout as ONNX, OpenVINO or TorchScript, and proves it equal."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hihlandmark.errors import ConfigurationError, ExportError
from hihlandmark.heatmap import read_heatmaps
from hihlandmark.layouts import get_layout
from hihlandmark.runtimes.graph import ANY, CropGraph, PixelGraph, folded
from hihlandmark.runtimes.protocol import Outputs, Run
from hihlandmark.weights import Decoding, LoadedModel

LARGEST_DIFFERENCE = 0.05
"""Crop pixels by which a point of an exported network may differ from PyTorch's in float32."""
USUAL_DIFFERENCE = 0.01
"""Likewise of all but one point in a thousand."""
_PARITY_CROPS = 16


@dataclass(frozen=True)
class Parity:
    """How far an exported network's points lie from PyTorch's in float32, in crop pixels."""

    points: int
    largest: float
    usual: float
    """The 99.9th percentile."""


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
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ConfigurationError(
            f"this ONNX Runtime has no {provider}: pip install onnxruntime-gpu, or device='cpu'"
        )
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    (only,) = session.get_inputs()
    return lambda pixels: session.run(None, {only.name: pixels})


def run_openvino(path: Path, precision: str = "fp32") -> Run:
    """An OpenVINO file on the CPU."""
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino", error) from error
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(pixels: NDArray[np.uint8]) -> Outputs:
        # A request of its own, so that threads do not meet.
        found = compiled.create_infer_request().infer({0: np.ascontiguousarray(pixels)})
        return [np.array(found[output]) for output in compiled.outputs]

    return run


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
    write: Callable[[PixelGraph, Path], None]
    run: Callable[[Path], Run]


TARGETS: Mapping[str, Target] = {
    "onnx": Target(".onnx", write_onnx, run_onnx),
    "openvino": Target(".xml", write_openvino, run_openvino),
    "torchscript": Target(".torchscript", write_torchscript, run_torchscript),
}
"""By what `hihlandmark export --to` calls it."""


def export(
    weights: LoadedModel, layout: str, to: str, folder: Path, *, decoded: bool = False
) -> tuple[Path, Parity]:
    """Writes a loaded model for one layout as ``to``, one of `TARGETS`, and compares it.

    The graph takes crops (N, S, S, 3) uint8 RGB, any number of them, and returns what
    `CropGraph.outputs` names: raw heatmaps, or with ``decoded`` points in crop pixels, their masses
    and covariances. A JSON file beside it says so, with the model card. Returns the path and how
    far its points lie from PyTorch's. Raises `ExportError`, and leaves nothing behind, when that is
    further than rounding explains, and `ConfigurationError` for what cannot be exported.
    """
    network, card, _ = weights
    if to not in TARGETS:
        raise ConfigurationError(f"cannot export to {to!r}; there is {', '.join(TARGETS)}")
    if layout not in card.configuration["layouts"]:
        raise ConfigurationError(
            f"{card.name} has no head for {layout}, only for "
            f"{', '.join(card.configuration['layouts'])}"
        )
    target, size = TARGETS[to], card.configuration["input_size"]
    decoding = card.decoding if decoded else None
    graph = CropGraph(folded(network), layout, card.normalisation, decoding).on_pixels(size)
    name = f"{card.name}-{get_layout(layout).size}{'-decoded' if decoded else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        written = Path(temporary) / f"{name}{target.suffix}"
        target.write(graph, written)
        reference = CropGraph(network, layout, card.normalisation, decoding)
        crops = drawn_faces(layout, size)
        parity = compare(target.run(written), reference, card.decoding, crops)
        require_parity(parity, f"{card.name} as {to}")
        facts = {
            "input": f"crops (N, {size}, {size}, 3) uint8 RGB",
            "outputs": graph.outputs,
            "layout": layout,
            "parity": asdict(parity),
            "card": json.loads(card.to_json()),
        }
        (Path(temporary) / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        for part in Path(temporary).iterdir():
            part.replace(folder / part.name)
    return folder / f"{name}{target.suffix}", parity


# Comparing


def compare(
    exported: Run, graph: CropGraph, decoding: Decoding, crops: NDArray[np.uint8]
) -> Parity:
    """`Parity` of an exported graph on crops (N, S, S, 3)."""
    ours = _points(run_module(graph)(crops), graph, decoding)
    theirs = _points(exported(crops), graph, decoding)
    distances = np.linalg.norm(ours - theirs, axis=-1).ravel()
    # A point that both do not find is equal; one that only one finds is infinitely far.
    neither = (np.isnan(ours) & np.isnan(theirs)).any(axis=-1).ravel()
    distances = np.where(neither, 0, np.nan_to_num(distances, nan=np.inf))
    return Parity(distances.size, float(distances.max()), float(np.percentile(distances, 99.9)))


def require_parity(parity: Parity, what: str) -> None:
    """Raises `ExportError` when points lie further apart than rounding explains."""
    if parity.largest > LARGEST_DIFFERENCE or parity.usual > USUAL_DIFFERENCE:
        raise ExportError(
            f"{what} does not give the points of PyTorch: {parity.largest:.3g} crop pixels off at "
            f"most, {parity.usual:.3g} in all but one of a thousand points; allowed are "
            f"{LARGEST_DIFFERENCE} and {USUAL_DIFFERENCE}. Nothing was written. Please report it "
            "with the versions that `hihlandmark doctor` prints"
        )


def drawn_faces(layout: str, size: int, count: int = _PARITY_CROPS) -> NDArray[np.uint8]:
    """Crops (count, size, size, 3) of line drawings of faces, the same ones every time.

    Networks find points in them as they do in photos, where noise would leave every heatmap flat
    and every point to chance.
    """
    shape, lines = get_layout(layout).mean_shape, get_layout(layout).contours
    rng = np.random.default_rng(98)
    crops = rng.integers(90, 200, (count, size, size, 3), dtype=np.uint8)
    for crop in crops:
        points = shape * size * rng.uniform(0.6, 0.75) + size / 2 + rng.normal(0, size / 40, 2)
        points = points + rng.normal(0, size / 150, points.shape)
        cv2.GaussianBlur(crop, (0, 0), size / 40, dst=crop)
        for line in lines:
            places = np.round(points[list(line.indices)]).astype(np.int32)
            colour = [int(each) for each in rng.integers(0, 90, 3)]
            cv2.polylines(crop, [places], line.closed, colour, max(1, size // 85), cv2.LINE_AA)
    return crops


def _points(outputs: Outputs, graph: CropGraph, decoding: Decoding) -> NDArray[np.floating]:
    """Points (N, P, 2) in crop pixels of what a graph returned, decoded unless they are."""
    if graph.decoding is not None:
        return outputs[0]
    integer, *decimal = (torch.from_numpy(np.asarray(each)) for each in outputs)
    return read_heatmaps(integer, decimal[0] if decimal else None, decoding).points.numpy()


def _missing(extra: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f"{error.name} is not installed: pip install 'hihlandmark[{extra}]'")
