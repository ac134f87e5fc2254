"""The training loop: resumes to the same weights; runs on one or many devices by Accelerate."""

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
from hihlandmark.training.config import Optimizer, Stage, TrainingConfiguration, TrainingSet
from hihlandmark.training.data import (
    Batch,
    TrainingBatches,
    UnlabeledBatch,
    read_face_set,
    usable_faces,
)
from hihlandmark.training.distillation import PseudoLabeler, join, read_teacher
from hihlandmark.training.distributed import freeze_batch_norm, summed, synchronize_statistics
from hihlandmark.training.log import RunLog
from hihlandmark.training.objectives import Objective, Teacher, decoding_of, make_objective
from hihlandmark.training.schedule import Plan
from hihlandmark.training.validation import Validator, draw_predictions

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]
TrainingProgress = Callable[[int, int, str], None]
"""Called with the samples done, all samples, and a text with the last loss."""


@dataclass(frozen=True)
class RunSummary:
    """The result of a run.

    Attributes:
        checkpoint: the best one, or the last one without validation.
        steps: done.
        nme: inter-ocular errors (0..1) of the checkpoint by split.
        replaced: how often since the last resume an unreadable image was replaced by another face.
        skipped: a message for each sample that could not be used.
    """

    checkpoint: Path
    steps: int
    nme: Mapping[str, float]
    replaced: int
    skipped: Sequence[str]


@dataclass
class _Run:
    """The state that changes during a run."""

    objective: Objective
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: Any
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0

    def state(self, fingerprint: str) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {
            "step": self.step,
            "fingerprint": fingerprint,
            "network": self.objective.network.state_dict(),
            "average": self.average.module.state_dict(),
            "averaged": int(self.average.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the content of a checkpoint."""
        self.objective.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        self.average.n_averaged.fill_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best = state["step"], dict(state["best"])
        self.evaluations_since_best = state["evaluations_since_best"]


def train(
    configuration: TrainingConfiguration,
    data: Path,
    run: Path,
    *,
    device: str | torch.device = "auto",
    initial: Mapping[str, torch.Tensor] | None = None,
    workers: int = 1,
    progress: TrainingProgress | None = None,
) -> RunSummary:
    """Train a network.

    A run that was stopped or killed resumes from its last checkpoint and ends with the same weights
    as without the stop. On several processes, started by ``torchrun`` or ``accelerate launch``, it
    computes what one process with the batches of all would; on a CPU only with ``freeze_bn``,
    because batch norms use the batch of their own process there.

    Args:
        configuration: of the run.
        data: folder of the data sets.
        run: folder for ``last.pt``, ``best.pt`` (with validation), ``log.jsonl``, the files of
            TensorBoard and ``images/``.
        device: "auto", "cpu", "cuda" or "mps".
        initial: weights to start from when there is no checkpoint.
        workers: processes that prepare data.
        progress: called after each step of the main process.

    Raises:
        ConfigurationError: the configuration does not fit the data or the teacher, or the folder
            has a run of another configuration.
        DataError: a data set does not follow its format.
        WeightsError: the initial weights are of another network, or the teacher's cannot be read.
        TrainingError: a checkpoint is damaged or cannot be written, or the loss is not finite.
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
        configuration.validation.images,
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
    trainer = _Trainer(
        configuration, plan, state, accelerator, validator, log, fingerprint, progress
    )
    trainer.train(batches, workers)
    log.close()
    return RunSummary(
        run / (BEST if state.best else LAST),
        state.step,
        {name: nme for name, nme in state.best.items() if name != "mean"},
        trainer.replaced,
        [message for each in (*sets, *unlabeled) for message in each.skipped],
    )


def build_training_network(configuration: TrainingConfiguration) -> LandmarkNetwork:
    """The network of a configuration with its auxiliary heads, newly initialized.

    Raises:
        ConfigurationError: the network cannot be built, or a setting does not fit it.
    """
    torch.manual_seed(configuration.seed)
    fields = configuration.network_configuration()
    fields["auxiliary_layouts"] = dict(configuration.auxiliary_layouts)
    network = build_model(MODELS[configuration.model].architecture, fields)
    _check_fit(configuration, network)
    if configuration.init_std:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=configuration.init_std)
    return network


def _check_fit(configuration: TrainingConfiguration, network: LandmarkNetwork) -> None:
    """Raise `ConfigurationError` for settings that do not fit the network."""
    own = network.configuration
    if both := own.layouts.keys() & own.auxiliary_layouts.keys():
        raise ConfigurationError(
            f"auxiliary_layouts: {', '.join(both)} is predicted already, remove it there"
        )
    settings = configuration.self_training
    if settings and (unknown := set(settings.layouts) - own.layouts.keys()):
        raise ConfigurationError(
            f"self_training.layouts: the network does not predict {', '.join(sorted(unknown))}, "
            "remove it there"
        )
    multiple = own.stride * 2**own.depth
    for number, stage in enumerate(configuration.stages):
        if stage.crop_size % multiple:
            raise ConfigurationError(
                f"stages.{number}.crop_size={stage.crop_size} is not a multiple of {multiple}, "
                "the largest stride of the network"
            )


@dataclass
class _Trainer:
    """The steps of a run: optimize, evaluate, save."""

    configuration: TrainingConfiguration
    plan: Plan
    run: _Run
    accelerator: Accelerator
    validator: Validator
    log: RunLog
    fingerprint: str
    progress: TrainingProgress | None

    def __post_init__(self) -> None:
        self.losses = torch.zeros(len(self.run.objective.names), device=self.accelerator.device)
        self.steps_in_losses = 0
        self.replaced = 0

    def train(self, batches: TrainingBatches, workers: int) -> None:
        """Do all remaining steps, or fewer when the patience of the validation ends."""
        run, plan, accelerator = self.run, self.plan, self.accelerator
        model, run.optimizer = accelerator.prepare(run.objective, run.optimizer)
        settings, labeler = self.configuration.self_training, None
        if settings:
            teacher = run.average.module
            assert isinstance(teacher, LandmarkNetwork)
            labeler = PseudoLabeler(teacher, settings, self.configuration)
        step = _Step(self.configuration, model, run, accelerator, labeler)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(run.step, plan.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=accelerator.device.type == "cuda",
        )
        done = plan.at(run.step).first_sample if run.step < plan.steps else plan.samples
        note = ""
        for batch, extra in () if self._out_of_patience() else loader:
            self.replaced += int(batch.unreadable.sum())
            moment = plan.at(run.step)
            for parameters in run.optimizer.param_groups:
                parameters["lr"] = plan.learning_rate(run.step)
            self.losses += step(batch, extra)
            self.steps_in_losses += 1
            if moment.within == 0:
                run.average.n_averaged.zero_()  # weights for another crop size would spoil the mean
            run.average.update_parameters(run.objective.network)
            run.step += 1
            if means := self._evaluate_and_save(moment.stage):
                name, mean = next(iter(means.items()))
                note = f"{name} {mean:.3f}"
            done += len(batch.crops) * accelerator.num_processes
            if self.progress and accelerator.is_main_process:
                self.progress(done, plan.samples, note)
            if self._out_of_patience():
                break
        self.replaced = int(summed(torch.tensor(self.replaced, device=accelerator.device)))

    def _out_of_patience(self) -> bool:
        return 0 < self.configuration.validation.patience <= self.run.evaluations_since_best

    def _evaluate_and_save(self, stage: Stage) -> dict[str, float]:
        """Evaluate and save when due. Returns the mean losses if they were logged."""
        run, configuration, last = self.run, self.configuration, self.run.step == self.plan.steps
        evaluates = bool(self.validator.sets) and (
            run.step % configuration.validation.every == 0 or last
        )
        if evaluates:
            if self.accelerator.is_main_process:
                self._validate(stage)
            # All processes get the count of the main process, so that they stop together.
            own = run.evaluations_since_best if self.accelerator.is_main_process else 0
            count = summed(torch.tensor(own, device=self.accelerator.device))
            run.evaluations_since_best = int(count)
        saves = run.step % configuration.save_every == 0 or last or self._out_of_patience()
        means = self._log_losses() if saves else {}
        if saves and self.accelerator.is_main_process:
            save_checkpoint(self.log.folder / LAST, run.state(self.fingerprint))
        if evaluates or saves:
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
        """Evaluate the averaged weights and save them if they are the best so far.

        Errors at another crop size than that of the last stage are logged but not compared.
        """
        run = self.run
        network = run.average.module
        assert isinstance(network, LandmarkNetwork)
        decoding = decoding_of(self.configuration)
        measured = self.validator.measure(network.eval(), decoding, stage.crop_size)
        errors = {name: each.nme for name, each in measured.items()}
        errors["mean"] = sum(errors.values()) / len(errors)
        self.log.write(run.step, {f"nme/{name}": error for name, error in errors.items()})
        if self.configuration.validation.images:
            self.log.write_image(run.step, draw_predictions(next(iter(measured.values()))))
        comparable = run.best.keys() == errors.keys()
        better = not comparable or errors["mean"] < run.best["mean"]
        if stage.crop_size != self.configuration.stages[-1].crop_size:
            return
        run.evaluations_since_best = 0 if better else run.evaluations_since_best + 1
        if better:
            run.best = errors
            save_checkpoint(self.log.folder / BEST, run.state(self.fingerprint))


@dataclass
class _Step:
    """One step of the optimizer. Returns its losses, in the order of `Objective.names`."""

    configuration: TrainingConfiguration
    model: nn.Module
    run: _Run
    accelerator: Accelerator
    labeler: PseudoLabeler | None

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
            waits = number < len(parts)  # processes exchange gradients once a step
            with accelerator.no_sync(self.model) if waits else nullcontext():
                # Gradients are averaged over processes, but losses must be summed.
                found = self.model(part, totals) * accelerator.num_processes
                accelerator.backward(objective.weigh(found))
            losses += found.detach() / accelerator.num_processes
        if optimizer.gradient_clip:
            accelerator.clip_grad_norm_(self.model.parameters(), optimizer.gradient_clip)
        self.run.optimizer.step()
        self.run.optimizer.zero_grad(set_to_none=True)
        return summed(losses)

    def _parts(self, batch: Batch, extra: UnlabeledBatch | None) -> list[Batch]:
        """The batches whose gradients are accumulated, with the pseudo-labeled faces."""
        count = self.configuration.optimizer.accumulation
        chunks = zip(*(part.chunk(count) for part in batch), strict=True)
        parts = [Batch(*chunk) for chunk in chunks]
        if extra is not None and self.labeler is not None:
            unlabeled = UnlabeledBatch(*_to(extra, self.accelerator.device))
            parts[-1] = join([parts[-1], self.labeler(unlabeled, self.accelerator.autocast())])
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
    AcceleratorState._reset_state()  # this process may have trained in another precision
    try:
        accelerator = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=optimizer.precision,
            log_with="tensorboard",
            project_dir=str(run),
            # Other processes wait while the main process validates.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
    except ValueError as error:
        raise ConfigurationError(
            f"optimizer.precision={optimizer.precision!r}: {error}; use 'no'"
        ) from error
    if accelerator.device.type != chosen.type:
        raise ConfigurationError(
            f"this process has trained on {accelerator.device.type} before; start a new one to "
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
        if ".unused_shortcut." in name:  # other processes would wait for their gradients
            parameter.requires_grad_(False)
    objective = make_objective(configuration, synchronized, teacher)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = _make_optimizer(configuration.optimizer, trained)
    return _Run(objective.to(accelerator.device), average, optimizer, accelerator.scaler)


def _make_optimizer(settings: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    if settings.name == "rmsprop":
        momentum, alpha = settings.betas
        return torch.optim.RMSprop(parameters, momentum=momentum, alpha=alpha, weight_decay=decay)
    adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return adam(parameters, betas=settings.betas, weight_decay=decay)


def _load_initial(network: LandmarkNetwork, initial: Mapping[str, torch.Tensor]) -> None:
    """Load weights that must fit, except for auxiliary heads, which are not exported."""
    own = network.state_dict()
    missing = [n for n in own if n not in initial and not n.startswith("auxiliary_heads.")]
    unknown = [name for name in initial if name not in own]
    reshaped = [n for n, t in initial.items() if n in own and own[n].shape != t.shape]
    if missing or unknown or reshaped:
        name = (missing + unknown + reshaped)[0]
        raise WeightsError(
            f"the initial weights are of another network: {len(missing)} tensors missing, "
            f"{len(unknown)} unknown, {len(reshaped)} of another shape, such as {name}. Use "
            "weights of the same model and layouts"
        )
    network.load_state_dict(initial, strict=False)


def _resume(run: _Run, folder: Path, fingerprint: str) -> None:
    saved = load_checkpoint(folder / LAST)
    if saved.get("fingerprint") != fingerprint:
        raise ConfigurationError(
            f"{folder / LAST} has another configuration, other data, another teacher or another "
            "number of processes; choose a new folder, or remove this one"
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
            "rate, lengthen the warm-up, or switch mixed precision off"
        )


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    """An exponential moving average with a smaller decay at the start of a stage.

    A stage may be shorter than the memory of the average: its first weights must not dominate.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: torch.Tensor | int) -> None:
        counted = torch.as_tensor(
            count
        )  # stays on its device: reading it would synchronize the GPU
        share = 1 - ((1 + counted) / (10 + counted)).clamp(max=decay)
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share.to(mean.dtype))
            else:
                mean.copy_(value)

    return update
