"""hihlandmark, MediaPipe 0.10.21 and dlib on the same images: accuracy, recall, cost.

    python benchmarks/compare.py --data DIR --json OUT [--only accuracy recall cost]

DIR holds ``w300``, ``wflw98``, ``scenes`` and ``clips``. MediaPipe and dlib are installed into
environments of their own (--environments; MediaPipe needs --python 3.9 to 3.12) and run by
`compare_worker.py`. What cannot be installed or started is named and left out.

- accuracy: NME in per cent of the inter-ocular distance, on the crops of ``w300`` helen_test and
  ``wflw98`` val; each system searches the face itself. The mean over the faces that all find.
  "map": after a linear map (ridge regression, `training.mesh.fit_mesh_map`) that is fitted on the
  train splits. MediaPipe's points as they come: by the usual table of vertices for 68 points.
  dlib's model was trained on the faces of 300-W, those of helen_test included.
- recall: faces of ``scenes/boxes.jsonl`` that are found, see `hihlandmark.evaluation.detection`.
- cost: all systems in turn on blocks of images or frames, pinned to one or two processors. "image":
  to points, search included, over images of ``scenes`` in which each finds one face. "crop": the
  points again, without a search, from one run of the network. "frame": of the clip ``d3``, from
  memory, tracked. Medians, of frames the mean: it includes the searches. Of one image also: a new
  process, from its start to the first points, and the cost by size.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice, product
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from huggingface_hub import cached_assets_path

from hihlandmark import load_image
from hihlandmark.arrays import FloatArray, Image
from hihlandmark.benchmark import machine
from hihlandmark.datasets import read_faces
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.evaluation.detection import evaluate_face_detector, read_boxes
from hihlandmark.evaluation.metrics import normalized_errors
from hihlandmark.face_detection import Detections
from hihlandmark.layouts import MESH478, W300_68, get_conversion, get_layout
from hihlandmark.tables import Table
from hihlandmark.training.mesh import fit_mesh_map
from hihlandmark.video import read_frames
from hihlandmark.weights import load_model

PACKAGES = {
    "mediapipe": ("mediapipe==0.10.21",),
    "dlib": ("dlib-bin==20.0.1", "face_recognition_models", "numpy"),
}
SETS = (("w300", "helen_test", "68", 1e-4), ("wflw98", "val", "98", 3e-3))
"""Data set, split, layout, and the ridge of the linear map."""
REGIONS = ("jaw", "brow", "nose", "eye", "lip")
SEARCHES = {
    "hihlandmark": ("mtcnn",),
    "mediapipe": ("short range", "full range"),
    "dlib": ("as it is", "enlarged twice"),
}
KINDS = ("image", "crop", "frame")
SIZES = (320, 640, 1280, 2560)
WORKER = Path(__file__).with_name("compare_worker.py")
Pythons = Mapping[str, Path]


class Worker:
    """A system in a process of its own, pinned to the first processors."""

    def __init__(
        self, python: Path, system: str, errors: IO[bytes], layout: str = "", threads: int = 1
    ) -> None:
        processors = sorted(os.sched_getaffinity(0))[:threads]
        self.system, self.errors = system, errors
        command = [python, WORKER, system]
        self.process = subprocess.Popen(
            [*map(str, command), *filter(None, [layout])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            preexec_fn=lambda: os.sched_setaffinity(0, processors),
        )

    def ask(self, method: str, image: Image, *arguments: str) -> dict[str, Any]:
        """Call a method of the system: points or boxes, and what it cost.

        Raises:
            RuntimeError: the process has ended; with what it printed last.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = method, image.shape[:2], image.tobytes(), arguments
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            answer: dict[str, Any] = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError) as error:
            self.errors.seek(0)
            raise RuntimeError(f"{self.system}: {end_of(self.errors.read().decode())}") from error
        points = np.frombuffer(answer["points"]).reshape(answer["shape"])
        return answer | {"points": points}


@contextmanager
def workers(pythons: Pythons, layout: str = "68", threads: int = 1) -> Iterator[dict[str, Worker]]:
    """A worker of each system."""
    with ExitStack() as stack:
        found = {}
        for name, python in pythons.items():
            own = layout if name == "hihlandmark" else ""
            errors = stack.enter_context(tempfile.TemporaryFile())
            found[name] = worker = Worker(python, name, errors, own, threads)
            stack.callback(worker.process.wait)
            stack.callback(worker.process.terminate)
        yield found


def environments(folder: Path, python: str) -> Iterator[tuple[str, Path]]:
    """The Python of each system, in an environment that is made where it is missing."""
    yield "hihlandmark", Path(sys.executable)
    for name, packages in PACKAGES.items():
        own = folder / name / "bin" / "python"
        try:
            if not own.exists():
                run([python, "-m", "venv", str(folder / name)])
            run([str(own), "-m", "pip", "install", "--quiet", *packages])
            run([str(own), str(WORKER), name])  # ends with its input
        except subprocess.CalledProcessError as error:
            reason = end_of(error.stderr) or end_of(error.stdout)  # venv prints to stdout
            print(f"left out: {name} cannot be installed or started: {reason}")
            continue
        yield name, own


def run(command: Sequence[str]) -> None:
    """Run a command without input. Raises `CalledProcessError` with what it printed."""
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def end_of(text: str) -> str:
    """The last lines of what a process printed."""
    return text.strip()[-300:]


def predictions(worker: Worker, faces: AnnotatedFaces) -> list[FloatArray | None]:
    """The points of each annotated face; None where none is found within an eye distance."""
    layout, found = get_layout(faces.layout), []
    for face in faces:
        points = worker.ask("faces", face.load_image())["points"]
        near: list[tuple[float, FloatArray]] = [
            (float(np.linalg.norm(each.mean(axis=0) - face.points.mean(axis=0))), each)
            for each in points
        ]
        distance, best = min(near, key=lambda each: each[0], default=(np.inf, None))
        found.append(best if distance < layout.interocular(face.points) else None)
    return found


def accuracy(pythons: Pythons, data: Path) -> list[dict[str, Any]]:
    """A row for each set, system and kind of points."""
    rows = []
    for name, split, layout, ridge in SETS:
        test, train = read_faces(data / name, split), read_faces(data / name, "train")
        results: dict[tuple[str, str], list[FloatArray | None]] = {}
        with workers(pythons, layout) as systems:
            for system, worker in systems.items():
                found = predictions(worker, test)
                if system == "hihlandmark":
                    results[system, "as they come"] = found
                    continue
                if layout == "68":
                    table = get_conversion(MESH478, W300_68).matrix
                    own = found if system == "dlib" else each_of(lambda p, t=table: t @ p, found)
                    results[system, "as they come"] = own
                pairs = list(zip(predictions(worker, train), train, strict=True))
                sources = np.array([each for each, _ in pairs if each is not None])
                targets = np.array([face.points for each, face in pairs if each is not None])
                results[system, "map"] = each_of(fit_mesh_map(sources, targets, ridge), found)
        shared = [i for i in range(len(test)) if all(r[i] is not None for r in results.values())]
        truth = np.array([face.points for face in test])[shared]
        scheme = get_layout(test.layout)
        for (system, kind), points in results.items():
            errors = 100 * normalized_errors(
                np.array([points[i] for i in shared]), truth, scheme.ocular_pair
            )
            parts = {
                region: float(np.mean(errors[:, part_indices(scheme.parts, region)]))
                for region in REGIONS
            }
            missed = sum(each is None for each in points)
            row = {"set": f"{name} {split}", "system": system, "points": kind, "missed": missed}
            rows.append(row | {"faces": len(shared), "nme": float(errors.mean()), "parts": parts})
    return rows


def each_of(call: Any, found: Iterable[FloatArray | None]) -> list[FloatArray | None]:
    """The results of a call for what is found."""
    return [None if points is None else call(points) for points in found]


def part_indices(parts: Mapping[str, Sequence[int]], region: str) -> list[int]:
    """The points of the parts that belong to a region."""
    chosen = (part for name, part in parts.items() if region in name.replace("eyebrow", "brow"))
    return sorted({index for part in chosen for index in part})


class Search:
    """A search of a worker as a `FaceDetector`, with its own times."""

    def __init__(self, worker: Worker, number: str) -> None:
        self.name, self.worker = number, worker
        self.milliseconds: list[float] = []

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """The boxes of images."""
        answers = [self.worker.ask("search", image, self.name) for image in images]
        self.milliseconds += [each["CPU-ms"] for each in answers]
        boxes = [each["points"].reshape(-1, 4) for each in answers]
        return [Detections(each, np.ones(len(each))) for each in boxes]


def recall(pythons: Pythons, data: Path) -> list[dict[str, Any]]:
    """A row for each search of each system."""
    rows, images = [], read_boxes(data / "scenes")
    with workers(pythons) as systems:
        for system, worker in systems.items():
            for number, which in enumerate(SEARCHES[system]):
                search = Search(worker, str(number))
                report = evaluate_face_detector(search, images)
                row = {"system": system, "search": which, "boxes": report.boxes_per_image}
                row["cpu_ms"] = float(np.median(search.milliseconds))
                found = {str(r.min_side): f"{r.found}/{r.faces}" for r in report.recalls}
                rows.append(row | {"found": found})
    return rows


def cost(pythons: Pythons, data: Path, count: int) -> dict[str, Any]:
    """Rows of times and memory, by threads and by size; empty where no image is suitable."""
    paths = sorted((data / "scenes" / "images").glob("helen_*"))[:count]
    images = [load_image(path) for path in paths]
    clip = islice(read_frames(data / "clips" / "d3.mp4"), 100)
    frames = [frame.image for frame in clip]
    rows, sizes = [], []
    for threads in (1, 2):
        with workers(pythons, threads=threads) as systems:
            found = [{n: w.ask("faces", image) for n, w in systems.items()} for image in images]
            single = [
                image
                for image, each in zip(images, found, strict=True)
                if all(len(answer["points"]) == 1 for answer in each.values())
            ]
            if not single:
                print(f"left out: cost: none of {len(images)} images has one face in every system")
                return {}
            answers: dict[tuple[str, str], list[dict[str, Any]]] = {
                (name, kind): [] for name in systems for kind in KINDS
            }
            for some, (name, worker) in product(blocks(single), systems.items()):
                for image in some:
                    worker.ask("crop", image)  # MediaPipe searches in it
                    answers[name, "image"].append(worker.ask("faces", image))
                    answers[name, "crop"].append(worker.ask("crop", image))
            for worker in systems.values():
                worker.ask("frame", frames[0])
            for some, (name, worker) in product(blocks(frames), systems.items()):
                answers[name, "frame"] += [worker.ask("frame", frame) for frame in some]
            for name in systems:
                row: dict[str, Any] = {"system": name, "threads": threads, "images": len(single)}
                for kind, clock in product(KINDS, ("CPU-ms", "wall ms")):
                    average = np.mean if kind == "frame" else np.median
                    row[f"{kind} {clock}"] = float(average([a[clock] for a in answers[name, kind]]))
                last = answers[name, "frame"][-1]
                rows.append(row | {m: last[m] for m in ("resident MB", "peak MB")})
            for side in SIZES if threads == 1 else ():
                scaled = resized(single[0], side)
                timed = {
                    name: [worker.ask("faces", scaled)["CPU-ms"] for _ in range(6)][1:]
                    for name, worker in systems.items()
                }
                sizes.append({"side": side} | {n: float(np.median(t)) for n, t in timed.items()})
    return {"times": rows, "sizes": sizes, "first": first_images(pythons, single[0])}


def blocks(images: list[Image], size: int = 10) -> list[list[Image]]:
    """The images in blocks: a system that comes after another one finds the caches cold."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def resized(image: Image, side: int) -> Image:
    """An image whose longer side is of so many pixels."""
    factor = side / max(image.shape[:2])
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=kind), np.uint8)


def first_images(pythons: Pythons, image: Image) -> list[dict[str, Any]]:
    """From the start of a process to the points of its first image: the median of three."""
    rows = []
    for name in pythons:
        found = []
        for _ in range(3):
            start = time.perf_counter()
            with workers({name: pythons[name]}) as systems:
                answer = systems[name].ask("faces", image)
                wall = time.perf_counter() - start
            found.append((answer["CPU-s"], wall, answer["peak MB"]))
        cpu, wall, peak = np.median(found, axis=0).tolist()
        rows.append({"system": name, "CPU-s": cpu, "wall s": wall, "peak MB": peak})
    return rows


def tables(record: Mapping[str, Any]) -> Iterator[Table]:
    """The figures as tables."""
    if rows := record.get("accuracy"):
        heads = ["set", "system", "points", "missed", "faces"]
        cells = [
            [*(r[head] for head in heads), *fixed(2, r["nme"], *r["parts"].values())] for r in rows
        ]
        yield Table("", [*heads, "NME, %", *REGIONS], cells)
    if rows := record.get("recall"):
        sides = [f"recall >= {side} px" for side in rows[0]["found"]]
        cells = [
            [r["system"], r["search"], *r["found"].values(), *fixed(1, r["boxes"], r["cpu_ms"])]
            for r in rows
        ]
        yield Table("", ["system", "search", *sides, "boxes per image", "CPU-ms"], cells)
    if found := record.get("cost"):
        clocks = [f"{kind} {clock}" for clock in ("CPU-ms", "wall ms") for kind in KINDS]
        heads, memory = ["system", "threads", "images"], ("resident MB", "peak MB")
        cells = [
            [*(r[h] for h in heads), *fixed(1, *map(r.get, clocks)), *fixed(0, *map(r.get, memory))]
            for r in found["times"]
        ]
        yield Table("", [*heads, *clocks, *memory], cells)
        systems = list(found["sizes"][0])[1:]
        cells = [[r["side"], *fixed(1, *(r[name] for name in systems))] for r in found["sizes"]]
        yield Table("", ["longer side, pixels", *(f"{n}, CPU-ms" for n in systems)], cells)
        heads = ["CPU-s", "wall s", "peak MB"]
        cells = [[r["system"], *fixed(2, *(r[head] for head in heads))] for r in found["first"]]
        yield Table("", ["new process, to the first points", *heads], cells)


def fixed(digits: int, *values: float) -> list[str]:
    """Numbers with so many digits after the point."""
    return [f"{value:.{digits}f}" for value in values]


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--environments", type=Path, help="folder; default: in the user's cache")
    parser.add_argument("--python", default=sys.executable, help="makes the environments")
    parser.add_argument("--images", type=int, default=60, help="images whose cost is measured")
    sections = ("accuracy", "recall", "cost")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    arguments = parser.parse_args()
    if shutil.which(arguments.python) is None:
        parser.error(f"--python: {arguments.python} is no program")
    folder = arguments.environments or cached_assets_path("hihlandmark", namespace="compare")
    pythons = dict(environments(folder, arguments.python))
    record: dict[str, Any] = {"machine": machine(), "weights": load_model("hih-small").card.sha256}
    if "accuracy" in arguments.only:
        record["accuracy"] = accuracy(pythons, arguments.data)
    if "recall" in arguments.only:
        record["recall"] = recall(pythons, arguments.data)
    if "cost" in arguments.only:
        record["cost"] = cost(pythons, arguments.data, arguments.images)
    arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n\n".join(table.markdown() for table in tables(record)))


if __name__ == "__main__":
    main()
