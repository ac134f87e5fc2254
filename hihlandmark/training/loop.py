"""The training loop: batches in, averaged weights and checkpoints out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from hihlandmark.errors import ConfigurationError
from hihlandmark.heatmap import DECIMAL_SIGMA, gaussian
from hihlandmark.models.hih import HIH, HIHConfiguration
from hihlandmark.models.registry import MODELS
from hihlandmark.runtimes.pytorch import normalise
from hihlandmark.training.datasets import Batch, TrainingBatches
from hihlandmark.training.losses import csc, heatmap_mse, soft_label_cross_entropy
from hihlandmark.training.recipes import Recipe
from hihlandmark.weights import IMAGENET_MEAN, IMAGENET_STD

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]

LOSSES = {
    "cross_entropy": (soft_label_cross_entropy, soft_label_cross_entropy),
    "paper": (heatmap_mse, csc),
}
"""Name -> loss of the integer and of the decimal heatmaps."""


def train(
    recipe: Recipe,
    data: Path,
    run: Path,
    *,
    device: torch.device,
    initial: Mapping[str, torch.Tensor] | None = None,
    save_every: int = 200,
    workers: int = 1,
    bf16: bool = False,
) -> Path:
    """Trains a recipe in the folder ``run`` and returns the path of its checkpoint.

    A run that was stopped, killed too, goes on from its last checkpoint to the same weights as
    without the stop. ``initial`` are weights to start from when there is no checkpoint; a line of
    JSON for every ``save_every`` steps goes to ``run/log.jsonl``. Raises `ConfigurationError` when
    the folder holds a run of another recipe.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = build_training_network(recipe).to(device)
    network = network.to(memory_format=torch.channels_last)
    if initial is not None:
        network.load_state_dict(initial, strict=False)  # auxiliary heads are not in shipped weights
    average = AveragedModel(
        network, multi_avg_fn=_moving_average(recipe.average_decay), use_buffers=True
    )
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    parts = {"network": network, "average": average, "optimiser": optimiser}
    checkpoint = run / "checkpoint.pt"
    start = _resume(checkpoint, parts, recipe) if checkpoint.exists() else 0

    batches = DataLoader(
        TrainingBatches(
            data, recipe, {**network.configuration.layouts, **recipe.auxiliary_layouts}
        ),
        batch_size=None,
        sampler=range(start, recipe.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
    )
    network.train()
    sums = torch.zeros(2, device=device)
    with _progress() as bar:
        task = bar.add_task(recipe.model, total=recipe.steps, completed=start, losses="")
        for step, batch in enumerate(batches, start + 1):
            batch = Batch(*(part.to(device, non_blocking=True) for part in batch))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(recipe, step - 1)
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                integer, decimal = batch_losses(network, batch, recipe)
            optimiser.zero_grad(set_to_none=True)
            (integer + recipe.decimal_weight * decimal).backward()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
            optimiser.step()
            if recipe.stage_at(step - 1)[1] == 0:
                average.n_averaged.zero_()  # weights that fit smaller crops would spoil the mean
            average.update_parameters(network)
            sums += torch.stack([integer.detach(), decimal.detach()])
            bar.advance(task)
            if step % save_every == 0 or step == recipe.steps:
                losses = (sums / ((step - 1) % save_every + 1)).tolist()
                sums.zero_()
                _save(checkpoint, parts, recipe, step)
                row = {"step": step, "integer": losses[0], "decimal": losses[1]}
                with (run / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                bar.update(task, losses=f"integer {losses[0]:.3f} decimal {losses[1]:.3f}")
    return checkpoint


def build_training_network(recipe: Recipe) -> HIH:
    """The recipe's network with its auxiliary heads, newly initialised."""
    entry = MODELS[recipe.model]
    shipped = HIHConfiguration(**entry.configuration)
    return HIH(replace(shipped, auxiliary_layouts=dict(recipe.auxiliary_layouts)))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the stage's rate, for each stage."""
    stage, within = recipe.stage_at(step)
    cosine = 0.5 * (1 + math.cos(math.pi * within / stage.steps))
    return stage.learning_rate * min(1, (within + 1) / stage.warm_up) * (0.99 * cosine + 0.01)


def batch_losses(network: HIH, batch: Batch, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means over the batch's points of the integer and of the decimal loss.

    Only maps of points with a weight are looked at: a face teaches the heads of its own layout, and
    the points that another layout shares with it.
    """
    integer_loss, decimal_loss = LOSSES[recipe.loss]
    mean = torch.tensor(IMAGENET_MEAN, device=batch.crops.device)
    std = torch.tensor(IMAGENET_STD, device=batch.crops.device)
    integers, decimals, features = network.forward_stacks(normalise(batch.crops, mean, std))
    size, bins = integers[-1].shape[-1], decimals.shape[-1]
    u = (batch.points + 0.5) * size / batch.crops.shape[1]
    cells = u.floor().clamp(0, size - 1)

    def integer_sum(
        predicted: torch.Tensor, place: slice, faces: Any = slice(None)
    ) -> torch.Tensor:
        weights = batch.weights[faces, place]
        taught = weights > 0
        targets = gaussian(cells[faces, place][taught], size, recipe.integer_sigma)
        losses = integer_loss(predicted[taught].float(), targets)
        return (losses * weights[taught]).sum()

    shipped = slice(0, network.configuration.points)
    integer = torch.stack([integer_sum(maps, shipped) for maps in integers]).sum()
    start = shipped.stop
    for name, head in network.auxiliary_heads.items():
        place = slice(start, start + network.configuration.auxiliary_layouts[name])
        start = place.stop
        faces = (batch.weights[:, place] > 0).any(dim=1)
        if faces.any():
            integer = integer + integer_sum(head(features[faces]), place, faces)

    weights = batch.weights[:, shipped]
    taught = weights > 0
    fractions = (u - cells)[:, shipped][taught]
    targets = gaussian(fractions * bins - 0.5, bins, DECIMAL_SIGMA)
    decimal = (decimal_loss(decimals[taught].float(), targets) * weights[taught]).sum()
    return integer / batch.weights.sum(), decimal / weights.sum().clamp(min=1)


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    """An exponential moving average that looks back less far while it is young.

    A stage may be shorter than the average's memory: its first weights must not outweigh its last.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: torch.Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    return update


def read_average(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, without the auxiliary heads: what is shipped."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    prefix = "module."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.startswith(prefix + "auxiliary_heads.")
    }


def _resume(checkpoint: Path, parts: Mapping[str, Any], recipe: Recipe) -> int:
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if saved["recipe"] != _fingerprint(recipe):
        raise ConfigurationError(
            f"{checkpoint} is of another recipe; give the run a new folder, or remove the old one"
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]


def _save(checkpoint: Path, parts: Mapping[str, Any], recipe: Recipe, step: int) -> None:
    saved = {name: part.state_dict() for name, part in parts.items()}
    temporary = checkpoint.with_suffix(".part")
    torch.save({**saved, "step": step, "recipe": _fingerprint(recipe)}, temporary)
    temporary.replace(checkpoint)  # a kill leaves the old checkpoint or the new one


def _fingerprint(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)


def _progress() -> Progress:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True))
