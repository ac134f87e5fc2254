"""What fixes a training run: the TOML file, its validation, and the configurations that we ship."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hihlandmark.crop import CANONICAL_SCALE, BoxMap, canonical_crop
from hihlandmark.datasets.augmentation import Augmentation
from hihlandmark.errors import ConfigurationError
from hihlandmark.models.registry import configuration_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _expand_ranges(value: Any) -> Any:
    """``["0-3", 7]`` -> ``[0, 1, 2, 3, 7]``."""
    if not isinstance(value, (list, tuple)):
        return value
    expanded: list[Any] = []
    for item in value:
        first, dash, last = str(item).partition("-")
        if dash and first.isdigit() and last.isdigit():
            expanded.extend(range(int(first), int(last) + 1))
        else:
            expanded.append(item)
    return tuple(expanded)


PointNumbers = Annotated[tuple[int, ...], BeforeValidator(_expand_ranges)]
"""Numbers of points, in TOML also as ranges: ``["4-18", 22]``."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FaceSet(_Table):
    """A split of a data set; ``folder`` lies within the folder given as ``--data``."""

    folder: str = "."
    split: str = "train"
    format: str = "auto"
    layout: str | None = None
    """Name of the layout; None takes the data set's own."""

    @property
    def title(self) -> str:
        """Names the split in logs."""
        parts = (self.folder if self.folder != "." else None, self.split, self.layout)
        return "/".join(part for part in parts if part)


class TrainingSet(FaceSet):
    """A split to learn from, how much of a batch it fills, and how its crops are cut."""

    share: float | None = Field(None, gt=0)
    """Weight among the sets; None: its number of faces."""
    box_scale: float | None = Field(None, gt=0)
    """Side of the crop, in longer sides of the tight box of ``box_points``; None: the canonical
    crop of the layout, or ``canonical_scale`` for a layout that is none of ours."""
    box_points: PointNumbers | None = None
    """None: all. For layouts that reach beyond the face's jaw and brows."""
    ignored: PointNumbers = ()
    """Points that are not learned from."""


class Stage(_Table):
    """One cycle of the learning rate at one crop size.

    Small crops first: a 128-pixel crop costs a fifth of a 256-pixel one and teaches most of what a
    face looks like; the last stage teaches the detail.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    """Instead of ``steps``: passes over all the sets' faces."""
    crop_size: int = Field(256, ge=16)
    batch_size: int = Field(16, ge=1)
    """Faces a process, a step and an accumulation."""
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "step"] = "cosine"
    """Half a cosine down to 1 %, or a drop by ``decay`` at every milestone."""
    milestones: tuple[float, ...] = ()
    """In the unit of the stage's length: epochs or steps."""
    decay: float = Field(0.1, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises to its value."""

    @model_validator(mode="after")
    def _has_one_length(self) -> Stage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give a stage either steps or epochs")
        return self


class Loss(_Table):
    """Names of `losses.HEATMAP_LOSSES` and `losses.POINT_LOSSES`, and their weights."""

    integer: str = "cross_entropy"
    """Of integer heatmaps, Adaptive Wing's heatmaps and boundary, ADNet's edge and point maps."""
    decimal: str = "cross_entropy"
    """Of HIH's decimal heatmaps."""
    point: str = "none"
    """Of the heatmaps' means; ADNet's landmarks."""
    decimal_weight: float = Field(0.5, ge=0)
    point_weight: float = Field(0.0, ge=0)
    integer_sigma: float = Field(1.25, gt=0)
    """Of the integer target, in cells. The paper's MSE takes 1.5; a cross-entropy needs no wide
    basin to find the peak."""
    sub_cell: bool = False
    """Centers the Gaussians of Adaptive Wing on the exact point instead of on its cell: without a
    decimal heatmap, the decoder has nothing else to tell the place within a cell."""
    line_sigma: float = Field(1.0, gt=0)
    """Across ADNet's edges and Adaptive Wing's boundary, in cells."""
    map_weight: float = Field(10.0, ge=0)
    """Of ADNet's edge and point maps."""
    shared_weight: float = Field(0.3, ge=0)
    """Weight of points that a face lends to another layout: annotators of two data sets agree only
    so far on where the same point is."""


class Optimizer(_Table):
    """Adam, AdamW or RMSprop."""

    name: Literal["adam", "adamw", "rmsprop"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    """Of the gradient and of its square; RMSprop takes the first for its momentum."""
    weight_decay: float = Field(1e-2, ge=0)
    gradient_clip: float = Field(5.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    accumulation: int = Field(1, ge=1)
    """Batches whose gradients are summed before a step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision by Accelerate; "no" is float32."""


class Validation(_Table):
    """Errors of the averaged weights during the run, which choose the best checkpoint."""

    every: int = Field(500, ge=1)
    """Steps between two looks."""
    sets: tuple[FaceSet, ...] = ()
    patience: int = Field(0, ge=0)
    """Looks in a row without a better mean error after which the run ends; 0 never ends it early.
    Only looks at the last stage's crop size count."""
    pictures: int = Field(8, ge=0)
    """Faces of the first set drawn with their predictions at each look."""


class SelfTraining(_Table):
    """Learning from unlabeled faces with a mean teacher (Tarvainen and Valpola, 2017).

    The averaged network labels a plain crop, the trained one learns these points on a
    augmented crop, each weighted by how sure the teacher is: ``weight * s^2 / (s^2 + v)`` with s
    the ``trusted_spread`` and v the teacher's variance.
    """

    sets: tuple[TrainingSet, ...] = Field(min_length=1)
    """Their points, of any layout, only say where to crop. `hihlandmark data label` makes them."""
    layouts: tuple[str, ...] = Field(min_length=1)
    """Layouts that the teacher labels."""
    faces: int = Field(4, ge=1)
    """Unlabeled faces added to each batch."""
    start: int = Field(1000, ge=0)
    """First step: before it the teacher knows too little."""
    weight: float = Field(0.5, gt=0)
    trusted_spread: float = Field(1.5, gt=0)
    """Standard deviation, in cells of the heatmap, at which a point counts half."""


class Distillation(_Table):
    """Learning from the heatmaps of a trained network (Hinton et al., arXiv 1503.02531).

    The teacher sees the crops of the student, labeled and unlabeled ones, in the stages whose
    crops are as large as its input. Its softmaxes over cells and bins are the targets of every
    point of every layout that it teaches, also of faces annotated in another layout. There is no
    temperature: the teacher's own targets were Gaussians and not single cells, so that its softmax
    is soft.
    """

    weights: str
    """Of the teacher: path, packaged name or Hub repository."""
    weight: float = Field(1.0, gt=0)
    """Of the divergence between both networks' distributions, a mean over points and faces."""
    layouts: tuple[str, ...] | None = None
    """Layouts to teach; None: all that both networks predict."""


class TrainingData(_Table):
    """A line of the model card about where the weights come from."""

    name: str
    license: str
    images: int


class CalibrationSet(FaceSet):
    """The faces on which the scores of one layout are fitted at export."""

    of: str
    """Name of the layout calibrated; the set may be of another one that shares points."""


class Card(_Table):
    """What the model card of the exported weights says, and what goes with them."""

    license: str = "Unknown: set card.license in the training configuration."
    training_data: tuple[TrainingData, ...] = ()
    calibration: tuple[CalibrationSet, ...] = ()
    shapes: tuple[FaceSet, ...] = ()
    """Faces whose shapes make the `ShapePrior` of their layout."""


class TrainingConfiguration(_Table):
    """Everything that fixes a training run, beside the data."""

    name: str
    """Of the weights."""
    model: str
    """Name of a model of the registry."""
    layouts: tuple[str, ...] | None = None
    """Layouts to predict; None takes the model's."""
    network: Mapping[str, Any] = {}
    """Fields of the model's configuration to change, such as ``stacks``."""
    auxiliary_layouts: Mapping[str, int] = {}
    """Further layouts that teach the backbone, and their numbers of points; not exported."""
    canonical_scale: float = Field(CANONICAL_SCALE, gt=0)
    """Side of the crop, in longer sides of the tight box of a face's 98 or 68 points. The maps from
    all other kinds of boxes grow with it."""
    init_std: float = Field(0.0, ge=0)
    """Standard deviation of the first weights of convolutions; 0 takes PyTorch's."""
    sets: tuple[TrainingSet, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    first_stage: int = Field(1, ge=1)
    """Stages before this one, counted from 1, are left out."""
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    ema_decay: float = Field(0.998, ge=0, lt=1)
    """Of the exponential moving average of the weights, which is exported; 0 takes the last."""
    freeze_bn: bool = False
    """Batch normalization keeps the statistics of the initial weights: for fine-tuning on little
    data."""
    validation: Validation = Validation()
    self_training: SelfTraining | None = None
    distillation: Distillation | None = None
    save_every: int = Field(200, ge=1)
    """Steps between two checkpoints and two lines of the log."""
    seed: int = 1
    card: Card = Card()

    @model_validator(mode="after")
    def _has_the_first_stage(self) -> TrainingConfiguration:
        if self.first_stage > len(self.stages):
            raise ValueError(f"first_stage: there are stages 1 to {len(self.stages)}")
        return self

    def network_configuration(self) -> dict[str, Any]:
        """The model's configuration with this run's layouts and changes, as it is exported."""
        return {**configuration_of(self.model, self.layouts), **self.network}

    def box_maps(self) -> dict[str, BoxMap]:
        """The crop contract: from each kind of box to this run's crop."""
        return canonical_crop(self.canonical_scale)

    def fingerprint(self) -> str:
        """What must be equal for a run to be resumed: all but what only looks at it.

        Of a teacher's weights the content counts, which the loop knows, not the place.
        """
        looks: dict[str, Any] = dict.fromkeys(("validation", "card", "save_every"), True)
        # Without a teacher the table is left out: runs begun before there was one go on.
        teacher = True if self.distillation is None else {"weights"}
        return self.model_dump_json(exclude={**looks, "distillation": teacher})


def shipped_configurations() -> list[str]:
    """Names that `read_configuration` knows without a path."""
    folder = files("hihlandmark.training") / "configurations"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def read_configuration(
    name_or_path: str | Path, overrides: Sequence[str] = ()
) -> TrainingConfiguration:
    """The configuration of a TOML file, or one that we ship by its name.

    A file may say ``extends = "hih-small"``, or the path of another file as seen from its own: what
    it does not say is then taken from there; tables are merged, lists replaced. ``overrides`` are
    "key=value" with dots into tables and numbers into lists, the value as in TOML:
    "stages.0.steps=100". Raises `ConfigurationError` that names the file and the key.
    """
    values = _read_tables(name_or_path)
    for override in overrides:
        _apply(values, override)
    try:
        return TrainingConfiguration.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{name_or_path}: {_explain(error)}") from error
    except ConfigurationError as error:  # of a table that checks itself, such as the augmentation
        raise ConfigurationError(f"{name_or_path}: {error}") from error


def _read_tables(name_or_path: str | Path, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tables of a file, upon those of the one that it extends."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in shipped_configurations():
            raise ConfigurationError(
                f"no configuration {str(name_or_path)!r}: give the path of a .toml file, or one of "
                f"{', '.join(shipped_configurations())}"
            )
        shipped = files("hihlandmark.training").joinpath("configurations", f"{path}.toml")
        text = shipped.read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{path} cannot be read: {error}; check the path, and save it as UTF-8"
            ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{name_or_path} is not TOML: {error}; mend that line") from error
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if str(name_or_path) in extended_by:
        raise ConfigurationError(f"{name_or_path} extends itself: name another one in extends")
    if str(extended).endswith(".toml"):
        extended = path.parent / str(extended)
    return _merged(_read_tables(extended, (*extended_by, str(name_or_path))), values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {**base, **changes}
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            both[key] = _merged(base[key], changes[key])
    return both


def _apply(values: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition("=")
    if not equals or not keys:
        raise ConfigurationError(f"{override!r} is not KEY=VALUE, such as stages.0.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *path, last = (int(key) if key.isdigit() else key for key in keys.split("."))
    table: Any = values
    try:
        for key in path:
            table = table.setdefault(key, {}) if isinstance(table, dict) else table[key]
        table[last] = value
    except (IndexError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"there is no {keys!r} to set: {error}; check the keys and numbers in it"
        ) from error


def _explain(error: ValidationError) -> str:
    """One line a problem: where and what."""
    problems = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"])) or "the file"
        unknown = problem["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        problems.append(f"{place}: {'unknown key' if unknown else problem['msg']}")
    return "; ".join(problems)
