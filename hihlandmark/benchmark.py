"""Times of the network and of whole images on this machine: what `hihlandmark bench` prints.

Calls that are compared are interleaved round by round, so other load affects all alike.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hihlandmark.arrays import Image
from hihlandmark.detector import Detector
from hihlandmark.errors import ConfigurationError
from hihlandmark.runtimes import (
    RUNTIMES,
    Precision,
    Runtime,
    choose_precision,
    is_installed,
    make_runtime,
)
from hihlandmark.runtimes.devices import processor_name
from hihlandmark.runtimes.export import drawn_faces
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.pytorch import run_module
from hihlandmark.tables import Table
from hihlandmark.weights import LoadedModel, load_model

PLAIN = "plain PyTorch"  # in fp32, without folded batch norms, channels first
_WARMUP_RUNS = 2
_FIRST_PREDICTION = """
import sys, time
start = time.perf_counter()
import numpy
from hihlandmark import Detector
layout, weights, device, image = sys.argv[1:]
detector = Detector(layout, weights=weights, device=device)
ready = time.perf_counter()
detector.predict(numpy.load(image))
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
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    each: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time calls, interleaved, after two warm-up rounds; ``each``: units that a call processes.

    With ``clock=time.process_time`` the times are CPU times, which other load changes little.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_WARMUP_RUNS + rounds):
        for name, run in runs.items():
            start = clock()
            run()
            if number >= _WARMUP_RUNS:
                seconds[name].append(clock() - start)
    return {
        name: Timing(*np.percentile(np.array(measured) * 1000 / each, (25, 50, 75)).tolist())
        for name, measured in seconds.items()
    }


def network_rows(
    model: LoadedModel,
    layout: str,
    device: torch.device,
    batches: Sequence[int],
    rounds: int,
    precisions: Sequence[Precision] = ("fp32",),
    default: str = "",
) -> list[dict[str, Any]]:
    """Time the network with its decoding, crops to points, in each installed runtime.

    Each runtime computes in ``precisions`` and in the one that "auto" takes.

    Returns:
        Rows with ``runtime`` and precision, ``precision``, ``is_default``, whether ``runtime`` is
        ``default``, ``batch``, ``milliseconds`` per crop, ``speedup`` over `PLAIN`, and
        ``distance``, the largest one from the points of `PLAIN` in crop pixels.
    """
    network, card, _ = model
    has_ranges = bool(card.activation_ranges)
    graph = CropGraph(network, [layout], card.normalization, card.decoding, card.crop.pixel_origin)
    plain = run_module(graph, device)

    def all_runtimes() -> dict[str, Runtime]:
        runtimes: dict[str, Runtime] = {}
        for name in filter(is_installed, RUNTIMES):
            auto = choose_precision("auto", name, device, has_ranges=has_ranges)
            for precision in dict.fromkeys((*precisions, auto)):
                try:
                    runtime = make_runtime(name, lambda: network, layout, card, device, precision)
                except ConfigurationError:
                    continue  # not on this device, or not in this precision
                runtimes[f"{name} {precision}"] = runtime
        return runtimes

    rows = []
    for batch in batches:
        runtimes = all_runtimes()  # new ones, as OpenVINO prepares the size of the first batch
        runs: dict[str, Callable[[Image], Sequence[Any]]] = {PLAIN: plain, **runtimes}
        crops = drawn_faces(layout, card.configuration["input_size"], batch)
        times = time_interleaved(
            {name: partial(run, crops) for name, run in runs.items()}, rounds, each=batch
        )
        expected = plain(crops)[0]
        for name, run in runs.items():
            distance = np.linalg.norm(run(crops)[0] - expected, axis=-1).max()
            precision = runtimes[name].precision if name in runtimes else "fp32"
            row = {"runtime": name, "precision": precision, "is_default": name == default}
            row |= {"batch": batch, "milliseconds": asdict(times[name])}
            speedup = times[PLAIN].median / times[name].median
            rows.append(row | {"speedup": speedup, "distance": float(distance)})
    return rows


def image_times(
    weights: str, layout: str, image: Image, device: torch.device, rounds: int
) -> tuple[dict[str, Timing], dict[str, Precision]]:
    """Time `Detector.predict` in each installed runtime, with and without a flip test.

    Returns:
        Times and precisions of the network by the same names.
    """
    runs: dict[str, Callable[[], object]] = {}
    precisions: dict[str, Precision] = {}
    for runtime in filter(is_installed, RUNTIMES):
        try:
            detector = Detector(layout, weights=weights, device=device, runtime=runtime)
        except ConfigurationError:
            continue  # not on this device
        has_flip_test = detector.landmarker.flip_test
        other = detector.with_options(flip_test=not has_flip_test)
        what = "one crop per face" if has_flip_test else "with flip test"
        for name, each in {runtime: detector, f"{runtime}, {what}": other}.items():
            runs[name] = partial(each.predict, image)
            precisions[name] = each.runtime.precision
    return time_interleaved(runs, rounds), precisions


def first_prediction(
    weights: str, layout: str, image: Image, device: torch.device
) -> dict[str, float]:
    """Seconds until a `Detector` is ``ready`` in a new process, and of its ``first_image``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npy"
        np.save(path, image)
        command = [sys.executable, "-c", _FIRST_PREDICTION, layout, weights, str(device), str(path)]
        printed = subprocess.check_output(command, text=True, stderr=subprocess.PIPE)
    return dict(zip(("ready", "first_image"), map(float, printed.split()), strict=True))


def machine() -> dict[str, str]:
    """What the times depend on: processor, number of threads, versions."""
    processor = processor_name()
    if torch.cuda.is_available():
        processor += f", {torch.cuda.get_device_name()}"
    processor += f" ({torch.backends.cpu.get_cpu_capability()})"
    facts = {"processor": processor, "threads": str(torch.get_num_threads())}
    for package in ("hihlandmark", "torch", "openvino", "onnxruntime", "facenet-pytorch"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts | {"python": platform.python_version()}


def measure(
    weights: str,
    layout: str | None,
    image: Image,
    device: torch.device,
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 15,
    precisions: Sequence[Precision] = ("fp32",),
) -> dict[str, Any]:
    """Measure the network for each of ``batches`` (crops per call) and an image (H, W, 3).

    Args:
        weights: path of the weights.
        layout: as `Detector` takes it.
        image: RGB uint8.
        device: to run on.
        batches: crops per call.
        rounds: how often each call is measured.
        precisions: of the network, in addition to the one that "auto" takes.

    Returns:
        Plain values for JSON: machine, model, weights, layout, default (runtime and precision of
        "auto"), network (in ``precisions``), network_auto (in other ones, which "auto" takes),
        image, first_prediction.
    """
    model = load_model(weights)
    detector = Detector(layout, weights=weights, device=device)
    name, found_in = detector.layout.name, detector.landmarker.layout.name
    default = f"{detector.runtime.name} {detector.runtime.precision}"
    times, image_precisions = image_times(weights, name, image, device, rounds)
    milliseconds = {name: asdict(timing) for name, timing in times.items()}
    network = network_rows(model, found_in, device, batches, rounds, precisions, default)
    return {
        "machine": machine(),
        "model": model.card.name,
        "weights": model.card.sha256,
        "layout": name,
        "default": default,
        "network": [row for row in network if row["precision"] in precisions],
        "network_auto": [row for row in network if row["precision"] not in precisions],
        "image": {
            "size": image.shape[:2],
            "milliseconds": milliseconds,
            "precisions": image_precisions,
        },
        "first_prediction": first_prediction(weights, name, image, device),
    }


def markdown(figures: Mapping[str, Any]) -> str:
    """What `measure` returned, as Markdown."""
    network = []
    for row in (*figures["network"], *figures["network_auto"]):
        speedup, distance = f"{row['speedup']:.2f}", f"{row['distance']:.2g}"
        timing = Timing(**row["milliseconds"])
        name = f"{row['runtime']} (default)" if row["is_default"] else row["runtime"]
        network.append([name, row["batch"], timing, speedup, distance])
    headings = ["runtime", "batch", "ms per face", "speedup", "distance of points, px"]
    height, width = figures["image"]["size"]
    image = []
    for name, timing in figures["image"]["milliseconds"].items():
        runtime, comma, variant = name.partition(",")
        run = f"{runtime} {figures['image']['precisions'][name]}{comma}{variant}"
        shown = f"{run} (default)" if run == figures["default"] else run
        image.append([shown, Timing(**timing)])
    first = figures["first_prediction"]
    return "\n\n".join(
        [
            ", ".join(f"{name} {value}" for name, value in figures["machine"].items()),
            Table("", headings, network).markdown(),
            Table("", [f"image of {width} x {height} to points", "ms"], image).markdown(),
            f"A new process is ready after {first['ready']:.1f} s; its first image takes "
            f"{first['first_image']:.1f} s.",
        ]
    )
