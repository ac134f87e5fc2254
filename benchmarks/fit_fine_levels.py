"""Give a nested network cheaper convolutions at its fine levels, fitted to what these give now.

    python benchmarks/fit_fine_levels.py --data DATA --weights CARD --out FOLDER

Each level becomes a convolution of ``--rank`` channels with a side of ``--kernel``, which sees the
encoder's features as they are, and a 1x1 convolution: the reduced-rank regression of what the level
gives on 1,040 training crops. Training then teaches the network to do with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hihlandmark import Detector
from hihlandmark.arrays import Image
from hihlandmark.crop import cut_crop, tight_boxes
from hihlandmark.datasets import read_faces
from hihlandmark.models.base import normalize
from hihlandmark.models.nested import Nested
from hihlandmark.weights import find_weights, load_model, read_weights, save_weights

FACES = {"w300": 640, "wflw98": 340, "cofw29": 60}
HELD_OUT = 100
"""Faces of 300-W train that the packaged weights were not trained on."""
AT_ONCE = 20
RIDGE = 1e-4
"""Of the regression, in mean variances of its inputs."""


def training_crops(data: Path, detector: Detector) -> Iterator[Image]:
    """Crops (S, S, 3) around the labels of faces of `FACES`, each second one mirrored."""
    for folder, count in FACES.items():
        faces = read_faces(data / folder, "train")
        if folder == "w300":
            faces, _ = faces.split(HELD_OUT)
        box_map = detector.box_map(f"landmarks:{faces.layout}")
        for number, index in enumerate(np.random.default_rng(0).permutation(len(faces))[:count]):
            face = faces.faces[index]
            (square,) = box_map.squares(tight_boxes(face.points))
            crop = cut_crop(face.load_image(), square, detector.landmarker.crop_size)
            yield np.ascontiguousarray(crop[:, ::-1]) if number % 2 else crop


class Moments:
    """The second moments of windows of features, of 1, and of what a level gives for them."""

    def __init__(self, kernel: int) -> None:
        self.kernel = kernel
        self.sums: Any = 0.0

    def add(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """A forward hook."""
        (features,), ratio = inputs, inputs[0].shape[-1] // output.shape[-1]
        windows = nn.functional.unfold(
            features, self.kernel, padding=(self.kernel - ratio) // 2, stride=ratio
        )
        rows = torch.cat([windows, windows.new_ones(len(windows), 1, windows.shape[-1])], dim=1)
        rows = torch.cat([rows, output.flatten(2)], dim=1).transpose(1, 2).flatten(0, 1)
        self.sums = self.sums + (rows.T @ rows).double()

    def fit(self, channels: int, rank: int) -> tuple[dict[str, torch.Tensor], float]:
        """The tensors of the level for `fine_kernel`, and the share of the variance they give.

        Args:
            channels: of what the level gives.
            rank: of the convolution.
        """
        inputs = len(self.sums) - channels
        count = self.sums[inputs - 1, inputs - 1]
        moments = self.sums / count
        means = moments[inputs - 1]
        covariance = moments - torch.outer(means, means)
        xx, xy = covariance[: inputs - 1, : inputs - 1], covariance[: inputs - 1, inputs:]
        ridge = RIDGE * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype)
        weight = torch.linalg.solve(xx + ridge, xy).T
        fitted = weight @ xy
        _, directions = torch.linalg.eigh((fitted + fitted.T) / 2)
        mix = directions[:, -rank:]
        basis = mix.T @ weight
        shares = mix @ (basis @ xy)
        variance = (mix @ (basis @ xx @ basis.T) @ mix.T).diagonal()
        size = basis.norm(dim=1).sqrt()
        tensors = {
            "1.weight": (basis / size[:, None]).view(rank, -1, self.kernel, self.kernel),
            "2.weight": (mix * size)[..., None, None],
            # The batch norm gives back what is normalized, and the mean of the level.
            "3.weight": (variance + 1e-5).sqrt(),
            "3.bias": means[inputs:],
            "3.running_mean": mix @ (basis @ means[: inputs - 1]),
            "3.running_var": variance,
        }
        share = float(shares.trace() / covariance[inputs:, inputs:].trace())
        return {name: tensor.float().contiguous() for name, tensor in tensors.items()}, share


def main() -> None:
    """Measure, fit and write."""
    parser = argparse.ArgumentParser(description="Fit cheaper convolutions of fine levels.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--kernel", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    network = load_model(arguments.weights).network.eval()
    assert isinstance(network, Nested)
    moments = [Moments(arguments.kernel) for _ in network.decimal_features.fine]
    for level, found in zip(network.decimal_features.fine, moments, strict=True):
        level.register_forward_hook(found.add)
    detector = Detector(68, weights=arguments.weights, runtime="torch", precision="fp32")
    crops = torch.from_numpy(np.stack(list(training_crops(arguments.data, detector))))
    mean, std = (torch.tensor(each) for each in files.card.normalization.model_dump().values())
    with torch.no_grad():
        for part in crops.split(AT_ONCE):
            network(normalize(part, mean, std), [])
    # Shape regressions are of what these weights find.
    left_out = ("shape_regression.", "decimal_features.fine.")
    state = {
        name: tensor.float()
        for name, tensor in read_weights(files).items()
        if not name.startswith(left_out)
    }
    for number, found in enumerate(moments):
        tensors, share = found.fit(network.configuration.features, arguments.rank)
        state |= {f"decimal_features.fine.{number}.{name}": t for name, t in tensors.items()}
        state[f"decimal_features.fine.{number}.3.num_batches_tracked"] = torch.tensor(0)
        print(f"level {number}: {100 * share:.1f} % of the variance is kept")
    sizes = {"fine_rank": arguments.rank, "fine_kernel": arguments.kernel}
    sizes = {**files.card.configuration, **sizes}
    card = files.card.model_copy(update={"configuration": sizes, "activation_ranges": {}})
    print(save_weights(arguments.out, card, state))


if __name__ == "__main__":
    main()
