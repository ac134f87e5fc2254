"""Draw the two figures of docs/research/three-systems.md.

    python docs/figures/three_systems.py --weights hih-small-v1.json

``--weights``: card of weights that `hihlandmark train hih-small-v1` gives, which are not packaged;
those of the two other systems are. Writes ``heatmaps.png`` (of scikit-image's astronaut, public
domain) and ``losses.png`` to this folder. Needs matplotlib and scikit-image.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper import astronaut_image, save

from hihlandmark import Detector
from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import cut_crop
from hihlandmark.evaluation.report import new_figure
from hihlandmark.heatmap import gaussian, to_distributions
from hihlandmark.models.adnet import ADNet
from hihlandmark.models.awing import AWing
from hihlandmark.models.base import normalize
from hihlandmark.models.hih import HIH
from hihlandmark.training.losses import adaptive_wing, direction_loss
from hihlandmark.weights import load_model

LAYOUT = 98
POINT = 64
"""The inner corner of the left eye, whose decimal heatmap is shown."""


def face_crop(detector: Detector) -> Image:
    """The crop (S, S, 3) of the astronaut's face."""
    (face,) = detector.predict(astronaut_image())
    square = detector.box_map("landmarks").squares_around(
        face.points[None].astype(float), np.zeros(1)
    )[0]
    return np.asarray(cut_crop(astronaut_image(), square, detector.landmarker.crop_size))


@torch.inference_mode()
def maps_of(weights: Path | str, crop: Image) -> dict[str, FloatArray]:
    """Maps (h, h) of a crop by their captions: the maximum over all points or contours."""
    network, card, _ = load_model(weights)
    mean, std = torch.tensor(card.normalization.mean), torch.tensor(card.normalization.std)
    batch = normalize(torch.from_numpy(crop[None]), mean, std)
    shown: dict[str, torch.Tensor] = {}
    if isinstance(network, HIH):
        integers, decimals, _ = network.forward_stacks(batch)
        integer, decimal = to_distributions(
            network.by_layout(integers[-1])["WFLW98"], network.by_layout(decimals)["WFLW98"]
        )
        assert decimal is not None
        peaks = integer / integer.amax(dim=(-2, -1), keepdim=True)
        shown["integer heatmaps"] = peaks.amax(dim=1)[0]
        shown["decimal heatmap of one point"] = decimal[0, POINT]
    elif isinstance(network, ADNet):
        stacks, _ = network.forward_stacks(batch)
        edges = len(network.configuration.edges["WFLW98"])
        shown["edge maps"] = stacks[-1].edges.sigmoid()[0, :edges].amax(dim=0)
        shown["point maps"] = network.by_layout(stacks[-1].points.sigmoid())["WFLW98"][0].amax(0)
        attended = network.by_layout(stacks[-1].attended)["WFLW98"][0]
        shown["heatmaps after attention"] = (
            attended / attended.amax(dim=(-2, -1), keepdim=True)
        ).amax(dim=0)
    elif isinstance(network, AWing):
        stacks, _ = network.forward_stacks(batch)
        shown["boundary"] = stacks[-1][0, network.configuration.points].clamp(0, 1)
        shown["heatmaps"] = network.by_layout(stacks[-1][:, : network.configuration.points])[
            "WFLW98"
        ][0].amax(dim=0)
    return {name: each.float().numpy() for name, each in shown.items()}


def draw_heatmaps(hih: Path) -> Any:
    """A row for each system: the crop overlaid with a map. ``hih``: card of its weights."""
    rows = {"HIH": hih, "ADNet": "adnet-small", "Adaptive Wing": "awing-small"}
    crop = face_crop(Detector(LAYOUT, weights=hih))
    figure = new_figure(7.6, 8)
    axes = figure.subplots(3, 3)
    for (name, weights), line in zip(rows.items(), axes, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (caption, shown) in zip(line, maps_of(weights, crop).items(), strict=False):
            if shown.shape[0] < 16:
                axis.imshow(shown, cmap="magma", vmin=0)
            else:
                axis.imshow(crop, extent=(0, 1, 1, 0))
                axis.imshow(shown, cmap="magma", alpha=0.65, extent=(0, 1, 1, 0))
            axis.set_title(f"{name}: {caption}", fontsize=8)
    return figure


def draw_losses() -> Any:
    """Adaptive Wing's loss over the error, its weights, and contours of ADNet's direction loss."""
    figure = new_figure(11, 3.6)
    curves, weights, direction = figure.subplots(1, 3)

    errors = torch.linspace(0, 1, 201)
    for label, target, style in (("at a peak", 1.0, "-"), ("on the background", 0.0, "--")):
        maps = torch.full((201, 1, 1), target)
        losses = adaptive_wing(maps - errors[:, None, None], maps) / (1 + 10 * (target > 0.2))
        curves.plot(errors, losses / 14, style, color="tab:red", label=f"Adaptive Wing {label}")
    curves.plot(errors, errors.square(), color="tab:blue", label="squared error")
    curves.set_xlabel("error of a heatmap's value")
    curves.set_ylabel("loss (Adaptive Wing: of its 14)")
    curves.legend(fontsize=8)

    target = gaussian(torch.tensor([[8.0, 8.0]]), 17, 1.5)
    dilated = torch.nn.functional.max_pool2d(target[None], 3, stride=1, padding=1)[0, 0]
    weights.imshow(1 + 10 * (dilated > 0.2), cmap="Reds")
    weights.contour(target[0], levels=[0.2, 0.5, 0.9], colors="black", linewidths=0.8)
    weights.set_title("Adaptive Wing: weights 1 and 11\naround a target (lines)", fontsize=9)
    weights.axis("off")

    axis = torch.linspace(-3, 3, 121)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).view(-1, 2)
    normal = torch.tensor([[0.0, 1.0]]).expand(len(grid), -1)
    for lambda_, color in ((1.0, "tab:blue"), (9.0, "tab:red")):
        losses = direction_loss(grid, normal, lambda_).view(121, 121)
        direction.contour(axis, axis, losses, levels=[0.5, 1.5, 2.5], colors=color)
        direction.plot([], [], color=color, label=f"λ = {lambda_:g}")
    direction.axhline(0, color="gray", linewidth=2, alpha=0.5)
    direction.set_aspect("equal")
    direction.set_title("ADNet: lines of equal loss\nat a point on a contour (gray)", fontsize=9)
    direction.set_xlabel("along the contour, cells")
    direction.set_ylabel("across, cells")
    direction.legend(fontsize=8, loc="upper right")
    return figure


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description="Draw the figures of three-systems.md.")
    parser.add_argument("--weights", type=Path, required=True, help="card of hih-small-v1")
    arguments = parser.parse_args()
    save(draw_losses(), "losses.png")
    save(draw_heatmaps(arguments.weights), "heatmaps.png")


if __name__ == "__main__":
    main()
