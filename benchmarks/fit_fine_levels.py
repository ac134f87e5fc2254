"""Replace the convolutions of a nested network's fine levels by cheaper ones, fitted to them.

    python benchmarks/fit_fine_levels.py --data DATA --weights CARD --out FOLDER

Each level becomes a convolution of `RANK` channels with the smallest kernel that
`NestedConfiguration.fine_kernel` may have, which sees the encoder's features as they are, and a 1x1
convolution: the reduced-rank regression of the level's output on 1,040 training crops. Train the
result further with the configuration ``hih-small-one-stack``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hihlandmark import Detector
from hihlandmark.arrays import Image
from hihlandmark.calibration.fit import labeled_crops
from hihlandmark.datasets import read_faces
from hihlandmark.layouts import get_conversion
from hihlandmark.models.base import normalize
from hihlandmark.models.nested import Nested
from hihlandmark.training.export import network_of
from hihlandmark.weights import find_weights, read_weights, save_weights

FACES = {"w300": 640, "wflw98": 340, "cofw29": 60}
HELD_OUT = 100
"""Faces of 300-W train that the packaged weights were not trained on."""
RANK = 32
RIDGE = 1e-4
"""Penalty of the regression, relative to the mean variance of its inputs."""


def training_crops(data: Path, detector: Detector) -> Iterator[Image]:
    """Batches (N, S, S, 3) of crops of faces of `FACES`, each second one mirrored."""
    for folder, count in FACES.items():
        faces = read_faces(data / folder, "train")
        if folder == "w300":
            faces, _ = faces.split(HELD_OUT)
        if count < len(faces):
            _, faces = faces.split(count)
        same = get_conversion(faces.layout, faces.layout)
        for crops, *_ in labeled_crops(detector, faces, same, skipped=[]):
            crops[1::2] = crops[1::2, :, ::-1]
            yield crops


class Moments:
    """Second moments of rows that hold a window of features, 1, and the level's output for it.

    Args:
        kernel_size: side of the windows, in pixels of the level.
    """

    def __init__(self, kernel_size: int) -> None:
        self.kernel_size = kernel_size
        self.sums: Any = 0.0

    def add(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """A forward hook."""
        (features,), ratio = inputs, inputs[0].shape[-1] // output.shape[-1]
        padding = (self.kernel_size - ratio) // 2
        windows = nn.functional.unfold(features, self.kernel_size, padding=padding, stride=ratio)
        ones = windows.new_ones(len(windows), 1, windows.shape[-1])
        rows = torch.cat([windows, ones, output.flatten(2)], dim=1).transpose(1, 2).flatten(0, 1)
        self.sums = self.sums + (rows.T @ rows).double()

    def fit(self, channels: int, rank: int) -> tuple[dict[str, torch.Tensor], float]:
        """The cheaper level.

        Args:
            channels: of the level's output.
            rank: of the convolution.

        Returns:
            Its tensors, by their names within the level, and the share of the variance of the
            output that it explains.
        """
        size = len(self.sums) - channels - 1  # of a window
        moments = self.sums / self.sums[size, size]
        means = moments[size]
        covariance = moments - torch.outer(means, means)
        xx, xy = covariance[:size, :size], covariance[:size, size + 1 :]
        ridge = RIDGE * xx.diagonal().mean() * torch.eye(size, dtype=xx.dtype)
        weight = torch.linalg.solve(xx + ridge, xy).T
        fitted = weight @ xy
        _, directions = torch.linalg.eigh((fitted + fitted.T) / 2)
        mix = directions[:, -rank:]
        basis = mix.T @ weight
        variance = (mix @ (basis @ xx @ basis.T) @ mix.T).diagonal()
        scale = basis.norm(dim=1).sqrt()
        tensors = {
            "1.weight": (basis / scale[:, None]).unflatten(1, (-1, *2 * (self.kernel_size,))),
            "2.weight": (mix * scale)[..., None, None],
            # The batch norm undoes its own normalization, and adds the mean of the level.
            "3.weight": (variance + 1e-5).sqrt(),
            "3.bias": means[size + 1 :],
            "3.running_mean": mix @ (basis @ means[:size]),
            "3.running_var": variance,
        }
        explained = (mix @ (basis @ xy)).trace() / covariance[size + 1 :, size + 1 :].trace()
        return {n: tensor.float().contiguous() for n, tensor in tensors.items()}, float(explained)


def main() -> None:
    """Measure, fit and write."""
    parser = argparse.ArgumentParser(description="Fit cheaper convolutions of fine levels.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    detector = Detector(68, weights=arguments.weights, runtime="torch", precision="fp32")
    network = network_of(detector)
    assert isinstance(network, Nested)
    if kernel := network.configuration.fine_kernel:
        parser.error(f"{files.card_path} has cheaper fine levels already: fine_kernel is {kernel}")
    kernel_size = network.configuration.stride // 2
    moments = [Moments(kernel_size) for _ in network.decimal_features.fine]
    for level, found in zip(network.decimal_features.fine, moments, strict=True):
        level.register_forward_hook(found.add)
    mean, std = map(torch.tensor, files.card.normalization.model_dump().values())
    with torch.inference_mode():
        for crops in training_crops(arguments.data, detector):
            network.features(normalize(torch.from_numpy(crops), mean, std))
    # Shape regressions are of what these weights find.
    left_out = ("shape_regression.", "decimal_features.fine.")
    state = {
        name: tensor.float()
        for name, tensor in read_weights(files).items()
        if not name.startswith(left_out)
    }
    for number, found in enumerate(moments):
        tensors, share = found.fit(network.configuration.features, RANK)
        state |= {f"decimal_features.fine.{number}.{name}": t for name, t in tensors.items()}
        state[f"decimal_features.fine.{number}.3.num_batches_tracked"] = torch.tensor(0)
        print(f"level {number}: {100 * share:.1f} % of the variance is explained")
    sizes = {**files.card.configuration, "fine_rank": RANK, "fine_kernel": kernel_size}
    card = files.card.model_copy(update={"configuration": sizes, "activation_ranges": {}})
    print(save_weights(arguments.out, card, state))


if __name__ == "__main__":
    main()
