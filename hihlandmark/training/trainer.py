"""The training loop: resumable to the same weights, on one device or many through Accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from hihlandmark.errors import ConfigurationError, TrainingError, WeightsError
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.models.registry import MODELS, build_model
from hihlandmark.runtimes.pytorch import resolve_device
from hihlandmark.training.checkpoint import (
    BEST,
    LAST,
    disk_errors,
    load_checkpoint,
    save_checkpoint,
)
from hihlandmark.training.config import (
    Optimizer,
    Stage,
    TrainingConfiguration,
    TrainingSet,
)
from hihlandmark.training.data import (
    Batch,
    TrainingBatches,
    UnlabeledBatch,
    read_face_set,
    usable_faces,
)
from hihlandmark.training.distillation import Teacher, read_teacher
from hihlandmark.training.distributed import freeze_batch_norm, summed, synchronize_statistics
from hihlandmark.training.log import RunLog, progress_bar
from hihlandmark.training.objectives import Objective, decoding_of, make_objective
from hihlandmark.training.schedule import Plan
from hihlandmark.training.self_training import join, teach
from hihlandmark.training.validation import Validator, draw_pictures

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]

OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], Optimizer], torch.optim.Optimizer]] = {
    "adam": lambda parameters, settings: torch.optim.Adam(
        parameters, betas=settings.betas, weight_decay=settings.weight_decay
    ),
    "adamw": lambda parameters, settings: torch.optim.AdamW(
        parameters, betas=settings.betas, weight_decay=settings.weight_decay
    ),
    "rmsprop": lambda parameters, settings: torch.optim.RMSprop(
        parameters,
        momentum=settings.betas[0],
        alpha=settings.betas[1],
        weight_decay=settings.weight_decay,
    ),
}


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    ``checkpoint``: the best one, or the last where nothing was validated; ``nme``: its
    inter-ocular errors (0..1) by split; ``stand_ins``: how often since the last resume another
    face stood in for an unreadable image; ``skipped``: samples left out from the start, and why.
    """

    checkpoint: Path
    steps: int
    nme: Mapping[str, float]
    stand_ins: int
    skipped: Sequence[str]


@dataclass
class _Run:
    """What changes while a run goes on."""

    objective: Objective
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: Any
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    looks_since_best: int = 0

    def state(self, fingerprint: str) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "step": self.step,
            "fingerprint": fingerprint,
            "network": self.objective.network.state_dict(),
            "average": self.average.module.state_dict(),
            "averaged": int(self.average.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "best": self.best,
            "looks_since_best": self.looks_since_best,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.objective.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        self.average.n_averaged.fill_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], dict(state["best"])
        self.looks_since_best = state["looks_since_best"]


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
        ConfigurationError: the configuration does not fit the data or the teacher, or the folder
            holds a run of another one.
        DataError: a data set is not what its format says.
        WeightsError: the initial weights are of another network, or the teacher's cannot be read.
        TrainingError: the checkpoint is damaged, cannot be written, or the loss is not finite.
    """
    accelerator = _accelerator(configuration.optimizer, device, run)
    sets = [usable_faces(each, read_face_set(data, each)) for each in configuration.sets]
    settings = configuration.self_training
    unlabeled = [usable_faces(s, read_face_set(data, s)) for s in settings.sets] if settings else []
    network = build_training_network(configuration)
    validator = Validator(
        {
            each.title: usable_faces(TrainingSet(), read_face_set(data, each))
            for each in configuration.validation.sets
        },
        list(network.configuration.layouts),
        configuration.box_maps(),
        configuration.validation.pictures,
    )
    group = accelerator.num_processes * configuration.optimizer.accumulation
    plan = Plan(configuration, sum(map(len, sets)), group)
    layouts = {**network.configuration.layouts, **network.configuration.auxiliary_layouts}
    batches = TrainingBatches(
        configuration,
        plan,
        layouts,
        sets,
        unlabeled,
        accelerator.process_index,
        accelerator.num_processes,
    )

    distillation = configuration.distillation
    teacher = (
        read_teacher(distillation, configuration, network.configuration, accelerator.device)
        if distillation
        else None
    )
    state = _start(configuration, network, accelerator, initial, teacher)
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    sizes = [len(each) for each in (*sets, *unlabeled)]
    fingerprint = f"{configuration.fingerprint()} group {group} faces {sizes}"
    fingerprint += f" teacher {teacher.digest}" if teacher else ""
    if (run / LAST).exists():
        _resume(state, run, fingerprint)
    log = RunLog(run, state.step, accelerator)
    trainer = _Trainer(configuration, plan, state, accelerator, validator, log, fingerprint)
    trainer.train(batches, workers)
    log.close()
    return RunSummary(
        run / (BEST if state.best else LAST),
        state.step,
        {name: nme for name, nme in state.best.items() if name != "mean"},
        trainer.stand_ins,
        [message for each in (*sets, *unlabeled) for message in each.skipped],
    )


def build_training_network(configuration: TrainingConfiguration) -> LandmarkNetwork:
    """The configuration's network with its auxiliary heads, newly initialized."""
    torch.manual_seed(configuration.seed)
    fields = configuration.network_configuration()  # raises for a model that there is not
    fields["auxiliary_layouts"] = dict(configuration.auxiliary_layouts)
    network = build_model(MODELS[configuration.model].architecture, fields)
    _check_fit(configuration, network)
    if configuration.init_std:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=configuration.init_std)
    return network


def _check_fit(configuration: TrainingConfiguration, network: LandmarkNetwork) -> None:
    """Raises `ConfigurationError` for settings that this network cannot follow."""
    own = network.configuration
    if both := own.layouts.keys() & own.auxiliary_layouts.keys():
        raise ConfigurationError(
            f"auxiliary_layouts: {', '.join(both)} is predicted already, leave it out there"
        )
    settings = configuration.self_training
    if settings and (unknown := set(settings.layouts) - own.layouts.keys()):
        raise ConfigurationError(
            f"self_training.layouts: the network does not predict {', '.join(sorted(unknown))}, "
            "leave it out there"
        )
    multiple = 4 * 2**own.depth
    for number, stage in enumerate(configuration.stages):
        if stage.crop_size % multiple:
            raise ConfigurationError(
                f"stages.{number}.crop_size={stage.crop_size} is not a multiple of {multiple}, "
                "the stride of the network at its coarsest"
            )


class _Trainer:
    """The steps of a run: optimize, look, save."""

    def __init__(
        self,
        configuration: TrainingConfiguration,
        plan: Plan,
        run: _Run,
        accelerator: Accelerator,
        validator: Validator,
        log: RunLog,
        fingerprint: str,
    ) -> None:
        self.configuration, self.plan, self.run = configuration, plan, run
        self.accelerator, self.validator, self.log = accelerator, validator, log
        self.fingerprint = fingerprint
        self.losses = torch.zeros(len(run.objective.names), device=accelerator.device)
        self.steps_in_losses = 0
        self.stand_ins = 0

    def train(self, batches: TrainingBatches, workers: int) -> None:
        """All steps that are left, or fewer where the validation's patience ends."""
        run, plan, accelerator = self.run, self.plan, self.accelerator
        model, run.optimizer = accelerator.prepare(run.objective, run.optimizer)
        step = _Step(self.configuration, model, run, accelerator, sum(batches.layouts.values()))
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(run.step, plan.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=accelerator.device.type == "cuda",
        )
        done = plan.at(run.step).first_sample if run.step < plan.steps else plan.samples
        with progress_bar(accelerator.is_main_process) as bar:
            task = bar.add_task(
                self.configuration.name, total=plan.samples, completed=done, losses=""
            )
            for batch, extra in () if self._out_of_patience() else loader:
                self.stand_ins += int(batch.unreadable.sum())
                moment = plan.at(run.step)
                for parameters in run.optimizer.param_groups:
                    parameters["lr"] = plan.learning_rate(run.step)
                self.losses += step(batch, extra)
                self.steps_in_losses += 1
                if moment.within == 0:
                    run.average.n_averaged.zero_()  # weights for other crops would spoil the mean
                run.average.update_parameters(run.objective.network)
                run.step += 1
                bar.advance(task, len(batch.crops) * accelerator.num_processes)
                means = self._look_and_save(moment.stage)
                if means:
                    name, mean = next(iter(means.items()))
                    bar.update(task, losses=f"{name} {mean:.3f}")
                if self._out_of_patience():
                    break
        self.stand_ins = int(summed(torch.tensor(self.stand_ins, device=accelerator.device)))

    def _out_of_patience(self) -> bool:
        return 0 < self.configuration.validation.patience <= self.run.looks_since_best

    def _look_and_save(self, stage: Stage) -> dict[str, float]:
        """What is due after a step; the mean losses where they were logged."""
        run, configuration, last = self.run, self.configuration, self.run.step == self.plan.steps
        looks = bool(self.validator.sets) and (
            run.step % configuration.validation.every == 0 or last
        )
        if looks:
            if self.accelerator.is_main_process:
                self._validate(stage)
            # What the main process has seen, all must know: they stop together.
            mine = run.looks_since_best if self.accelerator.is_main_process else 0
            run.looks_since_best = int(summed(torch.tensor(mine, device=self.accelerator.device)))
        saves = run.step % configuration.save_every == 0 or last or self._out_of_patience()
        means = self._log_losses() if saves else {}
        if saves and self.accelerator.is_main_process:
            save_checkpoint(self.log.folder / LAST, run.state(self.fingerprint))
        if looks or saves:
            self.accelerator.wait_for_everyone()
        return means

    def _log_losses(self) -> dict[str, float]:
        mean = (self.losses / self.steps_in_losses).tolist()
        means = dict(zip(self.run.objective.names, mean, strict=True))
        self.losses.zero_()
        self.steps_in_losses = 0
        _require_finite(means, self.run, self.log.folder)
        rate = self.plan.learning_rate(self.run.step - 1)
        self.log.write(self.run.step, {**means, "learning_rate": rate})
        return means

    def _validate(self, stage: Stage) -> None:
        """Measures the averaged weights; keeps them as the best where no others did better.

        Errors at another crop size than the last stage's are not compared: the weights are for it.
        """
        run = self.run
        network = run.average.module
        assert isinstance(network, LandmarkNetwork)
        decoding = decoding_of(self.configuration)
        measured = self.validator.measure(network.eval(), decoding, stage.crop_size)
        errors = {name: each.nme for name, each in measured.items()}
        errors["mean"] = sum(errors.values()) / len(errors)
        self.log.write(run.step, {f"nme/{name}": error for name, error in errors.items()})
        if self.configuration.validation.pictures:
            self.log.picture(run.step, draw_pictures(next(iter(measured.values()))))
        comparable = run.best.keys() == errors.keys()
        better = not comparable or errors["mean"] < run.best["mean"]
        if stage.crop_size != self.configuration.stages[-1].crop_size:
            return
        run.looks_since_best = 0 if better else run.looks_since_best + 1
        if better:
            run.best = errors
            save_checkpoint(self.log.folder / BEST, run.state(self.fingerprint))


class _Step:
    """One step of the optimizer; gives its losses, detached, in the order of `Objective.names`."""

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

    def __call__(self, batch: Batch, extra: UnlabeledBatch | None) -> torch.Tensor:
        optimizer, accelerator = self.configuration.optimizer, self.accelerator
        self.model.train()
        if self.configuration.freeze_bn:
            freeze_batch_norm(self.model)
        parts = self._parts(Batch(*_to(batch, accelerator.device)), extra)
        objective = self.run.objective
        totals = summed(torch.stack([objective.totals(part) for part in parts]).sum(dim=0))
        losses = torch.zeros(len(objective.names), device=accelerator.device)
        for number, part in enumerate(parts, 1):
            waits = number < len(parts)  # gradients of processes meet once a step
            with accelerator.no_sync(self.model) if waits else nullcontext():
                # Processes' gradients are averaged, but all their losses are to be summed.
                found = self.model(part, totals) * accelerator.num_processes
                accelerator.backward(objective.weigh(found))
            losses += found.detach() / accelerator.num_processes
        if optimizer.gradient_clip:
            accelerator.clip_grad_norm_(self.model.parameters(), optimizer.gradient_clip)
        self.run.optimizer.step()
        self.run.optimizer.zero_grad(set_to_none=True)
        return summed(losses)

    def _parts(self, batch: Batch, extra: UnlabeledBatch | None) -> list[Batch]:
        """The batches whose gradients are accumulated, with what the teacher says."""
        count = self.configuration.optimizer.accumulation
        chunks = zip(*(part.chunk(count) for part in batch), strict=True)
        parts = [Batch(*chunk) for chunk in chunks]
        settings = self.configuration.self_training
        if extra is not None and settings is not None:
            teacher = self.run.average.module.eval()
            assert isinstance(teacher, LandmarkNetwork)
            taught = teach(
                teacher,
                UnlabeledBatch(*_to(extra, self.accelerator.device)),
                settings,
                decoding_of(self.configuration),
                self.row,
                self.accelerator.autocast(),
            )
            parts[-1] = join([parts[-1], taught])
        return parts


def _to(batch: Batch | UnlabeledBatch, device: torch.device) -> Iterator[torch.Tensor]:
    return (part.to(device, non_blocking=True) for part in batch)


def _accelerator(optimizer: Optimizer, device: str | torch.device, run: Path) -> Accelerator:
    chosen = resolve_device(device)
    if chosen.index:
        raise ConfigurationError(
            f"training does not take device={str(chosen)!r}: choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if chosen.type == "cpu" and optimizer.precision == "fp16":
        raise ConfigurationError(
            "optimizer.precision='fp16' needs a GPU; a CPU has 'no' and 'bf16'"
        )
    AcceleratorState._reset_state()  # the program may have trained before, in another precision
    try:
        accelerator = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=optimizer.precision,
            log_with="tensorboard",
            project_dir=str(run),
            # The others wait while the main process validates.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
    except ValueError as error:
        raise ConfigurationError(
            f"optimizer.precision={optimizer.precision!r}: {error}; take 'no'"
        ) from error
    if accelerator.device.type != chosen.type:
        raise ConfigurationError(
            f"this program has trained on {accelerator.device.type} before; start another one to "
            f"train on {chosen.type}"
        )
    return accelerator


def _start(
    configuration: TrainingConfiguration,
    network: LandmarkNetwork,
    accelerator: Accelerator,
    initial: Mapping[str, torch.Tensor] | None,
    teacher: Teacher | None,
) -> _Run:
    if initial is not None:
        _load_initial(network, initial)
    network = network.to(accelerator.device).to(memory_format=torch.channels_last)
    average = AveragedModel(
        network, multi_avg_fn=_moving_average(configuration.ema_decay), use_buffers=True
    )
    synchronized = synchronize_statistics(network, accelerator.device)
    assert isinstance(synchronized, LandmarkNetwork)
    for name, parameter in network.named_parameters():
        if (
            ".unused_shortcut." in name
        ):  # never used: other processes would wait for their gradients
            parameter.requires_grad_(False)
    objective = make_objective(configuration, synchronized, teacher)
    settings = configuration.optimizer
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[settings.name](learned, settings)
    return _Run(objective.to(accelerator.device), average, optimizer, accelerator.scaler)


def _load_initial(network: LandmarkNetwork, initial: Mapping[str, torch.Tensor]) -> None:
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


def _resume(run: _Run, folder: Path, fingerprint: str) -> None:
    saved = load_checkpoint(folder / LAST)
    if saved.get("fingerprint") != fingerprint:
        raise ConfigurationError(
            f"{folder / LAST} is of another configuration, of other data, of another teacher, or "
            "of another number of processes; give the run a new folder, or remove the old one"
        )
    run.load(saved)


def _require_finite(losses: Mapping[str, float], run: _Run, folder: Path) -> None:
    wrong = [f"{name} loss" for name, loss in losses.items() if not math.isfinite(loss)]
    if not all(bool(p.isfinite().all()) for p in run.objective.network.parameters()):
        wrong.append("network")
    if wrong:
        kept = (
            f"{folder / LAST} is from before" if (folder / LAST).exists() else "nothing was saved"
        )
        raise TrainingError(
            f"the {wrong[0]} is not finite up to step {run.step}; {kept}. Lower the learning "
            "rate, lengthen the warm-up, or turn mixed precision off"
        )


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    """An exponential moving average that looks back less far while it is young.

    A stage may be shorter than the average's memory: its first weights must not outweigh its last.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: torch.Tensor | int) -> None:
        counted = torch.as_tensor(count)  # stays on its device: reading it would make a GPU wait
        share = 1 - ((1 + counted) / (10 + counted)).clamp(max=decay)
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share.to(mean.dtype))
            else:
                mean.copy_(value)

    return update
