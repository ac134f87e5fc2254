"""Leave a residual block out of a nested network's encoder, and fit the block before it instead.

    python benchmarks/leave_out_block.py --data DATA --weights CARD --block NAME --out FOLDER

The last convolution of the block before becomes the linear regression of what both blocks gave, on
1,040 training crops. Train the result further with the configuration ``hih-small-one-stack``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fit_fine_levels import Moments, training_crops
from torch import nn

from hihlandmark import Detector
from hihlandmark.models.base import normalize
from hihlandmark.models.efficientnet import InvertedResidual
from hihlandmark.models.nested import Nested, without_blocks
from hihlandmark.weights import find_weights, load_model, read_weights, save_weights


def projection_of_both(
    before: InvertedResidual, moments: Moments
) -> tuple[dict[str, torch.Tensor], float]:
    """The projection of the first of two blocks, fitted to the output of both.

    Args:
        before: the first block.
        moments: of the input of its projection, and of the output of both less its shortcut.

    Returns:
        The tensors by their names within ``before.project``, and the share of the variance that
        they explain.
    """
    convolution, norm = before.project
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    channels = convolution.out_channels
    found, share = moments.fit(channels, channels)
    weight = found["2.weight"].flatten(1) @ found["1.weight"].flatten(1)
    tensors = {"0.weight": weight[..., None, None]}
    for name in ("bias", "running_mean", "running_var"):
        tensors[f"1.{name}"] = found[f"3.{name}"]
    tensors["1.weight"] = (found["3.running_var"] + norm.eps).sqrt()
    return tensors, share


def main() -> None:
    """Measure, fit and write."""
    parser = argparse.ArgumentParser(description="Leave out a residual block of the encoder.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument(
        "--block", required=True, help="name of the block, such as encoder.levels.1.1"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    network = load_model(arguments.weights).network
    assert isinstance(network, Nested)
    level, _, number = arguments.block.rpartition(".")
    first = f"{level}.{int(number) - 1}" if number.isdigit() else level
    modules = dict(network.named_modules())
    before, block = modules.get(first), modules.get(arguments.block)
    if not isinstance(before, InvertedResidual) or not isinstance(block, InvertedResidual):
        parser.error(f"{arguments.block} is no inverted residual block that follows another one")
    moments, latest = Moments(1), {}

    def remember(name: str) -> None:
        modules[name].register_forward_pre_hook(lambda _, inputs: latest.update({name: inputs[0]}))

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        shortcut = latest[first] if before.has_shortcut else 0
        moments.add(module, (latest[f"{first}.project"],), output - shortcut)

    remember(first)
    remember(f"{first}.project")
    block.register_forward_hook(add)
    mean, std = map(torch.tensor, files.card.normalization.model_dump().values())
    detector = Detector(68, weights=arguments.weights, runtime="torch", precision="fp32")
    with torch.inference_mode():
        for crops in training_crops(arguments.data, detector):
            network.encoder(normalize(torch.from_numpy(crops), mean, std))
    tensors, share = projection_of_both(before, moments)
    print(f"{100 * share:.1f} % of the variance is explained")
    state = {name: tensor.float() for name, tensor in read_weights(files).items()}
    # Shape regressions are of what these weights find.
    state = {n: t for n, t in state.items() if not n.startswith("shape_regression.")}
    state = without_blocks(state, [arguments.block])
    state |= {f"{first}.project.{name}": tensor for name, tensor in tensors.items()}
    pruned = sorted([*files.card.configuration.get("pruned", ()), arguments.block])
    sizes = {**files.card.configuration, "pruned": pruned}
    card = files.card.model_copy(update={"configuration": sizes, "activation_ranges": {}})
    print(save_weights(arguments.out, card, state))


if __name__ == "__main__":
    main()
