"""What the decimal heatmaps of a nested network have learned: their loss on held-back faces.

    python benchmarks/decimal_loss.py --data DIR [--weights CARD]

The Kullback-Leibler divergence, in nats, from the decimal heatmap at the true cell of each point to
its target, on crops around the true points, and as a share of that of an even guess. DIR holds
``w300`` (split helen_test), ``wflw98`` (val) and ``cofw29`` (val).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from hihlandmark import Detector
from hihlandmark.calibration.fit import labeled_crops
from hihlandmark.datasets import AnnotatedFaces, read_faces
from hihlandmark.heatmap import encode_nested
from hihlandmark.layouts import get_conversion
from hihlandmark.models.base import normalize
from hihlandmark.models.nested import Nested
from hihlandmark.tables import Table
from hihlandmark.training.export import network_of
from hihlandmark.training.objectives.nested import training_cells

SPLITS = {"w300": "helen_test", "wflw98": "val", "cofw29": "val"}


def decimal_losses(detector: Detector, faces: AnnotatedFaces) -> tuple[float, float]:
    """The mean divergences of the network and of an even guess, for the points of a split."""
    network = network_of(detector)
    assert isinstance(network, Nested)
    stride = network.configuration.stride
    cells_a_side = detector.landmarker.crop_size // stride
    mean, std = map(torch.tensor, detector.card.normalization.model_dump().values())
    conversion = get_conversion(faces.layout, faces.layout)
    found = torch.zeros(2)
    count = 0.0
    for crops, truth, *_ in labeled_crops(detector, faces, conversion, skipped=[]):
        points = torch.from_numpy(truth).float()
        cells = training_cells(points, cells_a_side, stride)
        targets = encode_nested(points, cells, cells_a_side, stride=stride)
        features = network.features(normalize(torch.from_numpy(crops), mean, std))
        scores = network.decimal(faces.layout, features, cells).float()
        for number, each in enumerate((scores, torch.zeros_like(scores))):
            divergences = nn.functional.kl_div(
                each.log_softmax(dim=-1), targets.decimal, reduction="none"
            ).sum(dim=(-2, -1))
            found[number] += (divergences * targets.reachable)[..., 0].sum()
        count += float(targets.reachable[..., 0].sum())
    own, even = (found / count).tolist()
    return own, even


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="hih-small", help="name or card")
    arguments = parser.parse_args()
    rows = []
    for folder, split in SPLITS.items():
        faces = read_faces(arguments.data / folder, split)
        detector = Detector(
            faces.layout, weights=arguments.weights, runtime="torch", precision="fp32",
            device="cpu", flip_test=False,
        )  # fmt: skip
        own, even = decimal_losses(detector, faces)
        rows.append([f"{folder} {split}", f"{own:.3f}", f"{even:.3f}", f"{own / even:.2f}"])
    print(Table("", ["split", "loss", "even guess", "share"], rows).markdown())


if __name__ == "__main__":
    main()
