"""The training loop: resumable to the same weights, on one device or many through Accelerate."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from hihlandmark.errors import ConfigurationError, TrainingError, WeightsError
from hihlandmark.models.hih import HIH
from hihlandmark.models.registry import MODELS, build_model
from hihlandmark.runtimes.pytorch import resolve_device
from hihlandmark.training.batches import Batch, TrainingBatches, UnlabelledBatch
from hihlandmark.training.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from hihlandmark.training.configuration import FaceSet, Optimiser, TrainingConfiguration
from hihlandmark.training.datasets import AnnotatedFaces, read_faces
from hihlandmark.training.distributed import freeze_statistics, summed, synchronise_statistics
from hihlandmark.training.objective import LOSS_NAMES, Objective, decoding_of, join, teach
from hihlandmark.training.plan import Plan
from hihlandmark.training.validation import Validator, draw_pictures

logger = logging.getLogger(__name__)

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]

OPTIMISERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    ``checkpoint``: the best one, or the last where nothing was validated; ``nme``: its
    inter-ocular errors (0..1) by split; ``unreadable``: images that others stood in for, counted
    since the last resume; ``skipped``: what the data sets' readers left out, and why.
    """

    checkpoint: Path
    steps: int
    nme: Mapping[str, float]
    unreadable: int
    skipped: Sequence[str]


@dataclass
class _Run:
    """What changes while a run goes on."""

    objective: Objective
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    scaler: Any
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def state(self, fingerprint: str) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "step": self.step,
            "fingerprint": fingerprint,
            "network": self.objective.network.state_dict(),
            "average": self.average.module.state_dict(),
            "averaged": int(self.average.n_averaged),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "best": self.best,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.objective.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        self.average.n_averaged.fill_(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], dict(state["best"])


def train(
    configuration: TrainingConfiguration,
    data: Path,
    run: Path,
    *,
    device: str | torch.device = "auto",
    initial: Mapping[str, torch.Tensor] | None = None,
    workers: int = 1,
) -> RunSummary:
    """Trains in the folder ``run`` on the data sets within the folder ``data``.

    A run that was stopped, killed too, goes on from its last checkpoint to the same weights as
    without the stop. Started by ``torchrun`` or ``accelerate launch`` on several processes, it
    gives what one process with batches as large as theirs together would. ``initial``: weights to
    start from when there is no checkpoint. ``workers``: processes that prepare data.

    The folder gets ``last.pt``, ``best.pt`` where the configuration validates, ``log.jsonl``,
    TensorBoard's files and ``pictures/``.

    Raises:
        ConfigurationError: the configuration does not fit the data, or the folder holds a run of
            another one.
        DataError: a data set is not what its format says.
        WeightsError: the initial weights are of another network.
        TrainingError: the checkpoint is damaged, cannot be written, or the loss is not finite.
    """
    accelerator = _accelerator(configuration.optimiser, device, run)
    sets = [_read(data, each) for each in configuration.sets]
    settings = configuration.self_training
    unlabelled = [_read(data, each) for each in settings.sets] if settings else []
    network = build_training_network(configuration)
    validator = Validator(
        {
            f"{each.folder}/{each.split}": _read(data, each)
            for each in configuration.validation.sets
        },
        list(network.configuration.layouts),
        configuration.box_maps(),
        configuration.validation.pictures,
    )
    group = accelerator.num_processes * configuration.optimiser.accumulation
    plan = Plan(configuration, sum(map(len, sets)), group)
    layouts = {**network.configuration.layouts, **network.configuration.auxiliary_layouts}
    batches = TrainingBatches(
        configuration,
        plan,
        layouts,
        sets,
        unlabelled,
        accelerator.process_index,
        accelerator.num_processes,
    )

    torch.manual_seed(configuration.seed)
    state = _start(configuration, network, accelerator, initial)
    run.mkdir(parents=True, exist_ok=True)
    if (run / LAST).exists():
        _resume(state, run, configuration)
    log = _Log(run, state.step, accelerator)
    model = _prepared(accelerator, state)
    step_losses = _StepLosses(configuration, model, state, accelerator, sum(layouts.values()))

    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(state.step, plan.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    unreadable = 0
    losses = torch.zeros(len(LOSS_NAMES), device=accelerator.device)
    with _progress(accelerator.is_main_process) as bar:
        done = plan.at(state.step).first_sample if state.step < plan.steps else plan.samples
        task = bar.add_task(configuration.name, total=plan.samples, completed=done, losses="")
        for batch, extra in loader:
            unreadable += int(batch.unreadable.sum())
            moment = plan.at(state.step)
            for parameters in state.optimiser.param_groups:
                parameters["lr"] = plan.learning_rate(state.step)
            losses += step_losses(batch, extra)
            if moment.within == 0:
                state.average.n_averaged.zero_()  # weights for smaller crops would spoil the mean
            state.average.update_parameters(state.objective.network)
            state.step += 1
            bar.advance(task, len(batch.crops) * accelerator.num_processes)

            last = state.step == plan.steps
            if state.step % configuration.save_every == 0 or last:
                steps = (state.step - 1) % configuration.save_every + 1
                means = dict(zip(LOSS_NAMES, (losses / steps).tolist(), strict=True))
                losses.zero_()
                _require_finite(means, state.step, run)
                log.write(
                    state.step, {**means, "learning_rate": plan.learning_rate(state.step - 1)}
                )
                bar.update(task, losses=f"integer {means['integer']:.3f}")
            looks = state.step % configuration.validation.every == 0 or last
            if looks and validator.sets and accelerator.is_main_process:
                _validate(validator, state, configuration, moment.stage.crop_size, run, log)
            if (state.step % configuration.save_every == 0 or last) and accelerator.is_main_process:
                save_checkpoint(run / LAST, state.state(configuration.fingerprint()))
            accelerator.wait_for_everyone()
    log.close()
    return RunSummary(
        run / (BEST if (run / BEST).exists() else LAST),
        state.step,
        {name: nme for name, nme in state.best.items() if name != "mean"},
        unreadable,
        [message for each in sets for message in each.skipped],
    )


def build_training_network(configuration: TrainingConfiguration) -> HIH:
    """The configuration's network with its auxiliary heads, newly initialised."""
    torch.manual_seed(configuration.seed)
    fields = configuration.network_configuration()  # raises for a model that there is not
    fields["auxiliary_layouts"] = dict(configuration.auxiliary_layouts)
    network = build_model(MODELS[configuration.model].architecture, fields)
    if not isinstance(network, HIH):
        raise ConfigurationError(f"{configuration.model} is not trained by this loop")
    if configuration.initial_spread:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=configuration.initial_spread)
    return network


class _StepLosses:
    """One step of the optimiser; gives its losses (3,), detached."""

    def __init__(
        self,
        configuration: TrainingConfiguration,
        model: nn.Module,
        run: _Run,
        accelerator: Accelerator,
        row: int,
    ) -> None:
        self.configuration, self.model, self.run = configuration, model, run
        self.accelerator, self.row = accelerator, row

    def __call__(self, batch: Batch, extra: UnlabelledBatch | None) -> torch.Tensor:
        optimiser, accelerator = self.configuration.optimiser, self.accelerator
        self.model.train()
        if self.configuration.frozen_statistics:
            freeze_statistics(self.model)
        parts = self._parts(_to(batch, accelerator.device), extra)
        objective = self.run.objective
        totals = summed(torch.stack([objective.totals(part) for part in parts]).sum(dim=0))
        losses = torch.zeros(len(LOSS_NAMES), device=accelerator.device)
        for number, part in enumerate(parts, 1):
            waits = number < len(parts)  # gradients of processes meet once a step
            with accelerator.no_sync(self.model) if waits else nullcontext():
                # Processes' gradients are averaged, but all their losses are to be summed.
                found = self.model(part, totals) * accelerator.num_processes
                accelerator.backward(objective.weigh(found))
            losses += found.detach() / accelerator.num_processes
        if optimiser.gradient_clip:
            accelerator.clip_grad_norm_(self.model.parameters(), optimiser.gradient_clip)
        self.run.optimiser.step()
        self.run.optimiser.zero_grad(set_to_none=True)
        return summed(losses)

    def _parts(self, batch: Batch, extra: UnlabelledBatch | None) -> list[Batch]:
        """The batches whose gradients are accumulated, with what the teacher says."""
        count = self.configuration.optimiser.accumulation
        chunks = zip(*(part.chunk(count) for part in batch), strict=True)
        parts = [Batch(*chunk) for chunk in chunks]
        settings = self.configuration.self_training
        if extra is not None and settings is not None:
            teacher = self.run.average.module.eval()
            assert isinstance(teacher, HIH)
            with self.accelerator.autocast():
                taught = teach(
                    teacher,
                    UnlabelledBatch(*(t.to(self.accelerator.device) for t in extra)),
                    settings,
                    decoding_of(self.configuration.loss),
                    self.row,
                )
            parts[-1] = join([parts[-1], taught])
        return parts


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(part.to(device, non_blocking=True) for part in batch))


def _read(data: Path, face_set: FaceSet) -> AnnotatedFaces:
    folder = data / face_set.folder
    return read_faces(folder, face_set.split, format=face_set.format, layout=face_set.layout)


def _accelerator(optimiser: Optimiser, device: str | torch.device, run: Path) -> Accelerator:
    chosen = resolve_device(device)
    if chosen.index:
        raise ConfigurationError(
            f"training does not take device={str(chosen)!r}: choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    AcceleratorState._reset_state()  # the program may have trained before, in another precision
    return Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=optimiser.precision,
        log_with="tensorboard",
        project_dir=str(run),
    )


def _start(
    configuration: TrainingConfiguration,
    network: HIH,
    accelerator: Accelerator,
    initial: Mapping[str, torch.Tensor] | None,
) -> _Run:
    if initial is not None:
        _load_initial(network, initial)
    network = network.to(accelerator.device).to(memory_format=torch.channels_last)
    average = AveragedModel(
        network, multi_avg_fn=_moving_average(configuration.average_decay), use_buffers=True
    )
    synchronised = synchronise_statistics(network, accelerator.device)
    assert isinstance(synchronised, HIH)
    objective = Objective(synchronised, configuration.loss).to(accelerator.device)
    settings = configuration.optimiser
    optimiser = OPTIMISERS[settings.name](
        network.parameters(), betas=settings.betas, weight_decay=settings.weight_decay
    )
    return _Run(objective, average, optimiser, accelerator.scaler)


def _load_initial(network: HIH, initial: Mapping[str, torch.Tensor]) -> None:
    """Takes weights that must fit, but for auxiliary heads, which exported weights lack."""
    own = network.state_dict()
    missing = [n for n in own if n not in initial and not n.startswith("auxiliary_heads.")]
    unknown = [name for name in initial if name not in own]
    reshaped = [n for n, t in initial.items() if n in own and own[n].shape != t.shape]
    if missing or unknown or reshaped:
        name = (missing + unknown + reshaped)[0]
        raise WeightsError(
            f"the initial weights are of another network: {len(missing)} tensors missing, "
            f"{len(unknown)} unknown, {len(reshaped)} of another shape, such as {name}. Take "
            "weights of the same model and layouts"
        )
    network.load_state_dict(initial, strict=False)


def _prepared(accelerator: Accelerator, run: _Run) -> nn.Module:
    model, run.optimiser = accelerator.prepare(run.objective, run.optimiser)
    return model


def _resume(run: _Run, folder: Path, configuration: TrainingConfiguration) -> None:
    saved = load_checkpoint(folder / LAST)
    if saved.get("fingerprint") != configuration.fingerprint():
        raise ConfigurationError(
            f"{folder / LAST} is of another configuration; give the run a new folder, or remove "
            "the old one"
        )
    run.load(saved)


def _require_finite(losses: Mapping[str, float], step: int, run: Path) -> None:
    wrong = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if wrong:
        kept = f"{run / LAST} is from before" if (run / LAST).exists() else "nothing was saved yet"
        raise TrainingError(
            f"the {wrong[0]} loss is not finite up to step {step}; {kept}. Lower the learning "
            "rate, lengthen the warm-up, or turn mixed precision off"
        )


def _validate(
    validator: Validator,
    run: _Run,
    configuration: TrainingConfiguration,
    crop_size: int,
    folder: Path,
    log: _Log,
) -> None:
    """Measures the averaged weights; keeps them as the best where no others did better."""
    network = run.average.module
    assert isinstance(network, HIH)
    measured = validator.measure(network.eval(), decoding_of(configuration.loss), crop_size)
    errors = {name: each.nme for name, each in measured.items()}
    errors["mean"] = sum(errors.values()) / len(errors)
    log.write(run.step, {f"nme/{name}": error for name, error in errors.items()})
    if configuration.validation.pictures:
        log.picture(run.step, draw_pictures(next(iter(measured.values()))))
    if errors["mean"] < run.best.get("mean", math.inf):
        run.best = errors
        best = {"step": run.step, "average": network.state_dict(), "nme": errors}
        save_checkpoint(folder / BEST, {**best, "fingerprint": configuration.fingerprint()})


class _Log:
    """Lines of JSON, TensorBoard, and pictures; of the main process alone."""

    def __init__(self, run: Path, step: int, accelerator: Accelerator) -> None:
        self.accelerator, self.folder = accelerator, run
        self.path = run / "log.jsonl"
        if not accelerator.is_main_process:
            return
        if self.path.exists():  # a run killed after its last checkpoint repeats what came after
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            self.path.write_text("".join(kept), encoding="utf-8")
        accelerator.init_trackers("tensorboard")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A row of values."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(dict(values), step=step)

    def picture(self, step: int, picture: Any) -> None:
        """A picture (H, W, 3), as PNG and in TensorBoard."""
        from PIL import Image

        path = self.folder / "pictures" / f"{step:07}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        for tracker in self.accelerator.trackers:
            tracker.log_images({"predictions": picture[None]}, step=step, dataformats="NHWC")

    def close(self) -> None:
        """Flushes TensorBoard's files."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


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


def _progress(shown: bool) -> Progress:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _FacesASecond(),
        TextColumn("{task.fields[losses]}"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


class _FacesASecond(ProgressColumn):
    """Speed of the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} faces/s" if task.speed else "", style="progress.data.speed")
