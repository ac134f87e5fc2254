"""Give a nested network convolutions of low rank at its fine levels: about a tenth cheaper.

    python benchmarks/reduce_rank.py --data DATA --weights CARD --rank 32 --out FOLDER

A convolution becomes one of ``rank`` channels and a 1x1 convolution, which span the principal
components of what it gives on 520 training crops, after the scale of its batch norm. The training
configuration ``hih-small-low-rank`` then teaches them what the convolutions of full rank gave.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hihlandmark import Detector
from hihlandmark.arrays import Image
from hihlandmark.crop import cut_crop, tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.models.base import normalize
from hihlandmark.models.nested import Nested
from hihlandmark.weights import find_weights, load_model, read_weights, save_weights

FACES = {"w300": 260, "wflw98": 200, "cofw29": 60}
HELD_OUT = 100
"""Faces of 300-W train that the packaged weights were not trained on."""
AT_ONCE = 20


def training_crops(data: Path, detector: Detector) -> Iterator[Image]:
    """Crops (S, S, 3) around the labels of faces of `FACES`."""
    for folder, count in FACES.items():
        faces = read_faces(data / folder, "train")
        if folder == "w300":
            faces, _ = faces.split(HELD_OUT)
        box_map = detector.box_map(f"landmarks:{faces.layout}")
        for index in np.random.default_rng(0).permutation(len(faces))[:count]:
            face = faces.faces[index]
            (square,) = box_map.squares(tight_boxes(face.points))
            yield cut_crop(face.load_image(), square, detector.landmarker.crop_size)


class Moments:
    """The mean (C,) and covariance (C, C) of what a convolution of C channels gives."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        """A forward hook."""
        rows = output.permute(0, 2, 3, 1).flatten(0, 2).double()
        self.count += len(rows)
        self.first, self.second = self.first + rows.sum(dim=0), self.second + rows.T @ rows

    @property
    def mean(self) -> torch.Tensor:
        """(C,)."""
        return self.first / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """(C, C)."""
        return self.second / self.count - torch.outer(self.mean, self.mean)


def reduce(state: dict[str, torch.Tensor], prefix: str, moments: Moments, rank: int) -> float:
    """Replace the tensors of one level; returns the share of the variance that is kept."""
    scale = state[f"{prefix}2.weight"] / (state[f"{prefix}2.running_var"] + 1e-5).sqrt()
    scale = scale.double()
    scale = torch.where(scale.abs() < 1e-6, 1e-6, scale)
    variances, directions = torch.linalg.eigh(scale[:, None] * moments.covariance * scale)
    kept = directions[:, -rank:]
    weight = state.pop(f"{prefix}1.weight").double()
    basis, mix = kept.T @ (scale[:, None] * weight.flatten(1)), kept / scale[:, None]
    size = basis.norm(dim=1).sqrt()
    for name in [name for name in state if name.startswith(f"{prefix}2.")]:
        state[name.replace(f"{prefix}2.", f"{prefix}3.")] = state.pop(name)
    state[f"{prefix}1.weight"] = (basis / size[:, None]).view(rank, *weight.shape[1:]).float()
    state[f"{prefix}2.weight"] = (mix * size)[..., None, None].float()
    left_out = moments.mean - mix @ (kept.T @ (scale * moments.mean))
    state[f"{prefix}3.running_mean"] = state[f"{prefix}3.running_mean"] - left_out.float()
    return float(variances[-rank:].sum() / variances.sum())


def main() -> None:
    """Measure, reduce and write."""
    parser = argparse.ArgumentParser(description="Reduce the rank of convolutions.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    network = load_model(arguments.weights).network.eval()
    assert isinstance(network, Nested)
    if rank := network.configuration.fine_rank:
        parser.error(f"{files.card_path} is of low rank already: fine_rank is {rank}")
    moments = [Moments() for _ in network.decimal_features.fine]
    for level, found in zip(network.decimal_features.fine, moments, strict=True):
        assert isinstance(level, torch.nn.Sequential)
        level[1].register_forward_hook(found.add)
    detector = Detector(68, weights=arguments.weights, runtime="torch", precision="fp32")
    crops = torch.from_numpy(np.stack(list(training_crops(arguments.data, detector))))
    mean, std = (torch.tensor(each) for each in files.card.normalization.model_dump().values())
    with torch.no_grad():
        for part in crops.split(AT_ONCE):
            network(normalize(part, mean, std), [])
    # Shape regressions are of what these weights find.
    state = {
        name: tensor.float()
        for name, tensor in read_weights(files).items()
        if not name.startswith("shape_regression.")
    }
    for number, found in enumerate(moments):
        share = reduce(state, f"decimal_features.fine.{number}.", found, arguments.rank)
        print(f"level {number}: {100 * share:.1f} % of the variance is kept")
    sizes = {**files.card.configuration, "fine_rank": arguments.rank}
    card = files.card.model_copy(update={"configuration": sizes, "activation_ranges": {}})
    print(save_weights(arguments.out, card, {n: t.contiguous() for n, t in state.items()}))


if __name__ == "__main__":
    main()
