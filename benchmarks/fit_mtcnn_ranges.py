"""Measure the ranges of MTCNN's activations, for INT8: `face_detection.mtcnn.ACTIVATION_RANGES`.

    python benchmarks/fit_mtcnn_ranges.py --data DATA

MTCNN searches 200 images of training sets in PyTorch. The ranges are printed; those of pixels are
known, the others are rounded to tenths.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from hihlandmark.datasets import read_faces
from hihlandmark.face_detection import MTCNNFaceDetector
from hihlandmark.models import mtcnn
from hihlandmark.runtimes.int8 import observed_ranges

FACES = {"w300": 120, "wflw98": 80}
COVERED = {"PNet": 0.2, "RNet": 0.9}
"""See `observed_ranges`: of those that were tried, those with the smallest errors of scores."""


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description="Measure the ranges of MTCNN's activations.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    arguments = parser.parse_args()
    networks = {name: mtcnn.mtcnn_network(name) for name in ("PNet", "RNet", "ONet")}
    with mock.patch.object(mtcnn, "mtcnn_network", networks.__getitem__):
        detector = MTCNNFaceDetector("cpu", runtime="torch")
    with ExitStack() as stack:
        ranges = {
            name: stack.enter_context(observed_ranges(networks[name], share))
            for name, share in COVERED.items()
        }
        for folder, count in FACES.items():
            _, faces = read_faces(arguments.data / folder, "train").split(count)
            detector.detect([face.load_image() for face in faces])
    for name, found in ranges.items():
        print(name, found)


if __name__ == "__main__":
    main()
