"""What each option of `Detector` costs and gains: NME and CPU time, a table and JSON.

    python benchmarks/defaults.py --data DIR --json OUT [--weights WEIGHTS] [--crop-size PIXELS]

DIR holds ``w300`` (split helen_test), ``wflw98`` (val), ``cofw29`` (val) and ``scenes``. Crops of
the first three are cut around the annotated points, without refinement; in the scenes faces are
detected.

- NME: in per cent of the inter-ocular distance, mean over the faces.
- "crop": CPU milliseconds of one thread for one crop, network and decoding, flip test included; the
  median over the crops of helen_test, with all combinations in turn on the same crop.
- "image": likewise from the scenes' decoded images to points, face detection included.

With --crop-size the same weights see crops of another size, for which they are not trained.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hihlandmark import Detector, load_image
from hihlandmark.arrays import Image
from hihlandmark.crop import cut_crop, tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.evaluation.metrics import mean_error
from hihlandmark.evaluation.protocol import evaluate
from hihlandmark.runtimes import PrecisionChoice
from hihlandmark.tables import Table
from hihlandmark.weights import find_weights, read_weights, save_weights
from hihlandmark.weights.card import Decoder

SPLITS = {"w300": "helen_test", "wflw98": "val", "cofw29": "val"}
PRECISIONS: tuple[PrecisionChoice, ...] = ("fp32", "bf16", "int8")
DECODERS: tuple[Decoder, ...] = ("argmax", "soft", "mean")
FLIPS = (False, True)
SHAPES = (True, False)
CROPS, IMAGES = 60, 60


def median_times(calls: dict[Any, Callable[[Any], Any]], inputs: list[Any]) -> dict[Any, float]:
    """The median CPU milliseconds of each call over the inputs, all calls in turn on each."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for value in inputs:
        for name, call in calls.items():
            began = time.process_time()
            call(value)
            times[name].append(1000 * (time.process_time() - began))
    return {name: float(np.median(found)) for name, found in times.items()}


def crops_of(detector: Detector, faces: Any, count: int) -> list[Image]:
    """The first crops (1, S, S, 3) of annotated faces."""
    box_map, size = detector.box_map("landmarks"), detector.landmarker.crop_size
    return [
        cut_crop(f.load_image(), box_map.squares(tight_boxes(f.points))[0], size)[None]
        for f in list(faces)[:count]
    ]


def at_crop_size(weights: str, size: int, folder: Path) -> Path:
    """The card of the same weights with crops of another size, written into a folder."""
    found = find_weights(weights)
    configuration = {**found.card.configuration, "input_size": size}
    card = found.card.model_copy(update={"configuration": configuration})
    return save_weights(folder, card, read_weights(found))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--weights", default="hih-small")
    parser.add_argument("--crop-size", type=int)
    arguments = parser.parse_args()
    if arguments.crop_size:
        resized = Path(tempfile.mkdtemp())
        arguments.weights = at_crop_size(arguments.weights, arguments.crop_size, resized)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sets = {name: read_faces(arguments.data / name, split) for name, split in SPLITS.items()}
    scenes = read_faces(arguments.data / "scenes", "scene")

    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    timed: dict[Any, Callable[[Any], Any]] = {}
    for precision, decoder in product(PRECISIONS, DECODERS):
        for name, faces in sets.items():
            base = Detector(
                faces.layout, weights=arguments.weights, precision=precision, decoder=decoder
            )
            for flip, shape in product(FLIPS, SHAPES):
                detector = base.with_options(refine=0, flip_test=flip, shape_prior=shape)
                nme = mean_error(evaluate(detector, faces).face_errors)
                key = precision, decoder, flip, shape
                rows.setdefault(key, {})[name] = 100 * nme
                if name == "w300":
                    timed[key] = detector.predict_crops
                print(*key, name, f"{100 * nme:.3f}", flush=True)
    crops = crops_of(Detector(68, weights=arguments.weights), sets["w300"], CROPS)
    for key, milliseconds in median_times(timed, crops).items():
        rows[key]["crop"] = milliseconds

    whole: dict[tuple[Any, ...], dict[str, float]] = {}
    timed = {}
    base = Detector(68, weights=arguments.weights)
    for options in product((0, 1), FLIPS, SHAPES):
        refine, flip, shape = options
        detector = base.with_options(refine=refine, flip_test=flip, shape_prior=shape)
        evaluation = evaluate(detector, scenes, boxes="detected")
        whole[options] = {"scenes": 100 * mean_error(evaluation.face_errors)}
        timed[options] = detector.predict
    images = [load_image(path) for path in sorted((arguments.data / "scenes/images").iterdir())]
    for key, milliseconds in median_times(timed, images[:: len(images) // IMAGES]).items():
        whole[key]["image"] = milliseconds

    corrected = "shape regression"
    headers = ("precision", "decoder", "flip test", corrected, *SPLITS, "crop, CPU-ms")
    cells = [
        [*map(str, key), *(f"{values[n]:.3f}" for n in SPLITS), f"{values['crop']:.1f}"]
        for key, values in rows.items()
    ]
    print(Table("", headers, cells).markdown())
    headers = ("refine", "flip test", corrected, "scenes", "image, CPU-ms")
    cells = [
        [*map(str, key), f"{values['scenes']:.3f}", f"{values['image']:.1f}"]
        for key, values in whole.items()
    ]
    print(Table("", headers, cells).markdown())
    report = {
        "weights": base.card.sha256,
        "runtime": base.runtime.name,
        "auto precision": base.runtime.precision,
        "crop": [{"setting": key, **values} for key, values in rows.items()],
        "image": [{"setting": key, **values} for key, values in whole.items()],
    }
    arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
