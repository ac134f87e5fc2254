"""Scale the channels of a nested network alike, so that INT8 rounds each of them as finely.

    python benchmarks/equalize_channels.py --data DATA --weights CARD --out FOLDER

The inputs of a convolution are rounded within one range, in which channels of small values have few
steps. Channels between convolutions can be scaled by positive factors, also through ReLU (not
ReLU6), without a change of what the network finds: the convolution before multiplies each by its
factor, the ones behind divide by it (Nagel et al., arXiv 1906.04721, without their weights'
ranges). Such are the streams of residual blocks of the encoder, and the channels within the
bottlenecks of the grid. Their largest values on 1,040 training crops become equal. Measure the
ranges for INT8 anew (fit_activation_ranges.py), then the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from fit_fine_levels import training_crops
from torch import nn

from hihlandmark import Detector
from hihlandmark.models.base import normalize
from hihlandmark.models.blocks import Bottleneck
from hihlandmark.models.efficientnet import InvertedResidual
from hihlandmark.models.nested import Nested
from hihlandmark.weights import find_weights, load_model, read_weights, save_weights

LARGEST_FACTOR = 64.0
"""Channels with values of nearly 0 stay smaller than others."""


class Stream(NamedTuple):
    """Channels that can be scaled: by names, what they come from and what sees them.

    ``norms``: batch norms whose outputs are these channels, or terms of their sum.
    ``convolutions``: those whose input they are.
    """

    norms: list[str]
    convolutions: list[str]


def streams(network: Nested) -> Iterator[Stream]:
    """The streams of a network of any size."""
    norms: list[str] = []
    convolutions: list[str] = []
    for level, blocks in enumerate(network.encoder.levels):
        for number, block in enumerate(blocks.children()):
            if not isinstance(block, InvertedResidual):
                continue  # left out
            name = f"encoder.levels.{level}.{number}"
            if isinstance(block.expand, nn.Sequential):
                convolutions.append(f"{name}.expand.0")
            if not block.has_shortcut:
                if norms:
                    yield Stream(norms, convolutions)
                norms, convolutions = [], []
            norms.append(f"{name}.project.1")
        on_grid = level - network.grid_level
        if on_grid >= 0:
            convolutions.append(f"up_path.lateral.{on_grid}")
        elif network.configuration.fine_kernel:
            convolutions.append(f"decimal_features.fine.{level}.1")
        else:
            convolutions.append(f"decimal_features.fine.{level}.0.0")
    yield Stream(norms, [*convolutions, "up_path.context.1"])
    for name, module in network.named_modules():
        if isinstance(module, Bottleneck):
            for number in range(len(module.residual) - 1):
                parts = f"{name}.residual.{number}", f"{name}.residual.{number + 1}"
                yield Stream([f"{parts[0]}.1"], [f"{parts[1]}.0"])


def largest_values(network: nn.Module, crops: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The largest absolute value (C,) of each channel that a convolution sees, by its name.

    Means over batches of crops (N, 3, S, S), as the ranges for INT8 are.
    """
    batches: dict[str, list[torch.Tensor]] = {}

    def observe(name: str, values: torch.Tensor) -> None:
        batches.setdefault(name, []).append(values.abs().amax(dim=(0, 2, 3)))

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, n=name: observe(n, inputs[0]))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        for batch in crops:
            network(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(each).mean(dim=0) for name, each in batches.items()}


def equalized(
    state: Mapping[str, torch.Tensor], of: Stream, largest: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Weights whose network finds the same, with equal largest values of a stream's channels.

    Args:
        state: the weights.
        of: the stream.
        largest: of `largest_values`.
    """
    seen = torch.stack([largest[name] for name in of.convolutions]).amax(dim=0)
    seen = seen.clamp(min=max(seen.amax().item() / LARGEST_FACTOR, 1e-6))
    scale = seen.log().mean().exp() / seen
    changed = dict(state)
    for name in of.norms:
        for part in ("weight", "bias"):
            changed[f"{name}.{part}"] = state[f"{name}.{part}"] * scale
    for name in of.convolutions:
        changed[f"{name}.weight"] = state[f"{name}.weight"] / scale[:, None, None]
    return changed


def main() -> None:
    """Measure, scale and write."""
    parser = argparse.ArgumentParser(description="Scale channels alike, for INT8.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    network = load_model(arguments.weights).network
    assert isinstance(network, Nested)
    mean, std = map(torch.tensor, files.card.normalization.model_dump().values())
    detector = Detector(68, weights=arguments.weights, runtime="torch", precision="fp32")
    batches = training_crops(arguments.data, detector)
    largest = largest_values(network, (normalize(torch.from_numpy(b), mean, std) for b in batches))
    state = {name: tensor.float() for name, tensor in read_weights(files).items()}
    for stream in streams(network):
        state = equalized(state, stream, largest)
    card = files.card.model_copy(update={"activation_ranges": {}})
    print(save_weights(arguments.out, card, state))


if __name__ == "__main__":
    main()
