"""Times of the network and of whole images on this machine: what `hihlandmark bench` prints.

Whatever is compared takes turns, round by round, so that a busy machine is busy for all alike.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import read_heatmaps
from hihlandmark.models.base import Heatmaps
from hihlandmark.runtimes import RUNTIMES, Precision, make_runtime
from hihlandmark.runtimes.export import drawn_faces
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.weights import LoadedModel, load_model

PLAIN = "plain PyTorch"
"""The network as it comes out of training, in float32: no folded batch norms, channels first."""
_WARMUP_RUNS = 2
_FIRST_PREDICTION = """
import sys, time
start = time.perf_counter()
import numpy
from hihlandmark import Detector
layout, weights, device, photo = sys.argv[1:]
detector = Detector(layout, weights=weights, device=device)
ready = time.perf_counter()
detector.predict(numpy.load(photo))
print(ready - start, time.perf_counter() - ready)
"""


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median over the rounds, and the quartiles around it."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f} to {self.high:.1f})"


def time_interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, each: int = 1
) -> dict[str, Timing]:
    """Times of one of ``each`` units that a call works off, the calls taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_WARMUP_RUNS + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= _WARMUP_RUNS:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(*np.percentile(np.array(of_run) * 1000 / each, (25, 50, 75)).tolist())
        for name, of_run in seconds.items()
    }


@dataclass(frozen=True)
class NetworkRow:
    """One runtime at one batch size.

    ``times``: how often faster than `PLAIN`; ``apart``: the largest distance of its points from
    those of `PLAIN`, in crop pixels.
    """

    runtime: str
    batch: int
    milliseconds: Timing
    times: float
    apart: float


def network_rows(
    model: LoadedModel,
    layout: str,
    device: torch.device,
    batches: Sequence[int],
    rounds: int,
    precisions: Sequence[Precision] = ("fp32",),
) -> list[NetworkRow]:
    """The network alone, crops (N, S, S, 3) in and raw heatmaps out, by each installed runtime."""
    runs = {PLAIN: _plain(model, layout, device)} | _runtimes(model, layout, device, precisions)
    rows = []
    for batch in batches:
        crops = drawn_faces(layout, model.card.configuration["input_size"], batch)
        calls = {name: partial(_finished, run, crops) for name, run in runs.items()}
        times = time_interleaved(calls, rounds, each=batch)
        expected = _points(runs[PLAIN](crops), model)
        for name, run in runs.items():
            apart = np.linalg.norm(_points(run(crops), model) - expected, axis=-1).max()
            ratio = times[PLAIN].median / times[name].median
            rows.append(NetworkRow(name, batch, times[name], ratio, float(apart)))
    return rows


Network = Callable[[NDArray[np.uint8]], Heatmaps]


def _plain(model: LoadedModel, layout: str, device: torch.device) -> Network:
    graph = CropGraph(model.network, layout, model.card.normalization).to(device)

    @torch.inference_mode()
    def run(crops: NDArray[np.uint8]) -> Heatmaps:
        integer, *decimal = graph(torch.from_numpy(crops).to(device))
        return Heatmaps(integer, decimal[0] if decimal else None)

    return run


def _runtimes(
    model: LoadedModel, layout: str, device: torch.device, precisions: Sequence[Precision]
) -> dict[str, Network]:
    """Every runtime that is installed and runs on the device, by its name and precision."""
    runs: dict[str, Network] = {}
    for name in RUNTIMES:
        for precision in precisions if find_spec(name) else ():
            try:
                run = make_runtime(name, model.network, layout, model.card, device, precision)
            except ConfigurationError:
                continue  # not on this device, or not in this precision
            runs[f"{name} {precision}"] = run
    return runs


def _finished(run: Network, crops: NDArray[np.uint8]) -> float:
    """Runs and waits: a GPU returns before it is done."""
    return float(run(crops).integer.sum())


def _points(heatmaps: Heatmaps, model: LoadedModel) -> NDArray[np.floating]:
    """(N, P, 2) in crop pixels."""
    integer, decimal = heatmaps.float()
    return read_heatmaps(integer, decimal, model.card.decoding).points.cpu().numpy()


def photo_times(
    weights: str, layout: str, photo: NDArray[np.uint8], device: torch.device, rounds: int
) -> dict[str, Timing]:
    """An image (H, W, 3) to points by each installed runtime, with face detection.

    As `Detector` comes, with two crops of each face and their mirror images, and with one crop.
    """
    runs: dict[str, Callable[[], object]] = {}
    for runtime in filter(find_spec, RUNTIMES):
        make = partial(Detector, layout, weights=weights, device=device, runtime=runtime)
        try:
            runs[runtime] = partial(make().predict, photo)
        except ConfigurationError:
            continue  # not on this device
        runs[f"{runtime}, one crop a face"] = partial(
            make(refine=0, flip_test=False).predict, photo
        )
    return time_interleaved(runs, rounds)


def first_prediction(
    weights: str, layout: str, photo: NDArray[np.uint8], device: torch.device
) -> dict[str, float]:
    """Seconds that a user waits for once, in a new process.

    ``ready``: importing the package and making a `Detector`; ``first_photo``: its first `predict`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.npy"
        np.save(path, photo)
        printed = subprocess.run(
            [sys.executable, "-c", _FIRST_PREDICTION, layout, weights, str(device), path],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    ready, first_photo = map(float, printed.split())
    return {"ready": ready, "first_photo": first_photo}


def gflop(network: nn.Module, side: int) -> float:
    """GFLOP for one crop of ``side`` pixels: two for a multiplication with an addition."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side, device=device))
    return counter.get_total_flops() / 1e9


def machine() -> dict[str, str]:
    """What the figures depend on: the processor, the number of threads, the versions."""
    packages = ("hihlandmark", "torch", "openvino", "onnxruntime", "facenet-pytorch")
    facts = {"processor": _processor(), "threads": str(torch.get_num_threads())}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts | {"python": platform.python_version()}


def _processor() -> str:
    """The processor's name and what of its instructions matters here."""
    flags = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name} ({flags})"


def measure(
    weights: str,
    layout: str,
    photo: NDArray[np.uint8],
    device: torch.device,
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 15,
    precisions: Sequence[Precision] = ("fp32",),
) -> dict[str, Any]:
    """All of it, as plain values: machine, network, image, first_prediction.

    ``weights``: as of `Detector`; ``photo``: (H, W, 3).
    """
    model = load_model(weights)
    return {
        "machine": machine(),
        "model": model.card.name,
        "weights": model.card.files,
        "network": [
            asdict(row) for row in network_rows(model, layout, device, batches, rounds, precisions)
        ],
        "photo": {
            "size": photo.shape[:2],
            "milliseconds": {
                name: asdict(timing)
                for name, timing in photo_times(weights, layout, photo, device, rounds).items()
            },
        },
        "first_prediction": first_prediction(weights, layout, photo, device),
    }


def markdown(figures: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown for what `measure` returned."""
    lines = [", ".join(f"{name} {value}" for name, value in figures["machine"].items()), ""]
    lines += table(
        ["runtime", "batch", "ms a face", "times", "points apart, px"],
        [
            [
                row["runtime"],
                row["batch"],
                Timing(**row["milliseconds"]),
                f"{row['times']:.2f}",
                f"{row['apart']:.2g}",
            ]
            for row in figures["network"]
        ],
    )
    height, width = figures["photo"]["size"]
    times = figures["photo"]["milliseconds"]
    lines += [
        "",
        *table(
            [f"photo of {width} x {height} to points", "ms"],
            [[name, Timing(**timing)] for name, timing in times.items()],
        ),
    ]
    first = figures["first_prediction"]
    sentence = (
        f"a new process is ready after {first['ready']:.1f} s, "
        f"its first photo takes {first['first_photo']:.1f} s"
    )
    return [*lines, "", sentence]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table, numbers to the right."""
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(map(str, row))} |" for row in (headings, rules, *rows)]
