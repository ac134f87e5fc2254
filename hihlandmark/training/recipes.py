"""Training recipes: which data, which crops, how long. A table; adding a run is adding a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hihlandmark.errors import ConfigurationError
from hihlandmark.training.augmentation import Augmentation

LossName = Literal["cross_entropy", "paper"]


@dataclass(frozen=True)
class TrainingSet:
    """One set of a data folder and how much of a batch it fills.

    ``box_points`` are the points whose tight box, times ``box_scale``, is the crop: for layouts
    that reach beyond the face's jaw and brows. ``ignored`` points are not learned from.
    """

    folder: str
    layout: str
    share: float
    box_scale: float
    box_points: tuple[int, ...] | None = None
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A cosine cycle of the learning rate at one crop size.

    Small crops first: a 128-pixel crop costs a fifth of a 256-pixel one and teaches most of what a
    face looks like; the last stage teaches the detail.
    """

    steps: int
    crop_size: int
    batch_size: int
    learning_rate: float
    warm_up: int = 100


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes a training run, beside the data folder."""

    model: str
    sets: tuple[TrainingSet, ...]
    auxiliary_layouts: Mapping[str, int]
    stages: tuple[Stage, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossName = "cross_entropy"
    integer_sigma: float = 1.25
    """Narrower than the paper's 1.5 cells: a cross-entropy needs no wide basin to find the peak."""
    decimal_weight: float = 0.5
    shared_weight: float = 0.3
    """Weight of points that a face lends to another layout: annotators of two data sets agree only
    so far on where the same point is."""
    weight_decay: float = 1e-2
    gradient_clip: float = 5.0
    average_decay: float = 0.998
    seed: int = 1

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step and the step's number within it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError(f"step beyond the {self.steps} of this recipe")


_W300_JAW = tuple(range(17))
_SCUT_FACE = (*range(4, 19), *range(22, 86))  # without the forehead
_LONDON_FACE = (*range(109), *range(125, 134))  # without ears, hair and neck

_SHARED_DATA = (
    TrainingSet("w300", "W300_68", 0.32, 1.4),
    TrainingSet("wflw98", "WFLW98", 0.26, 1.4),
    TrainingSet("cofw29", "COFW29", 0.06, 1.54),
    TrainingSet("ytf68", "W300_68", 0.08, 1.4),
    TrainingSet("scut86", "SCUT86", 0.16, 1.55, _SCUT_FACE),
    TrainingSet("london189", "LONDON189", 0.07, 1.55, _LONDON_FACE),
    # Rendered jaw points lie on the hidden side of the head, not on its outline.
    TrainingSet("synth70", "W300_68", 0.05, 1.3, ignored=_W300_JAW),
)
_AUXILIARY = {"SCUT86": 86, "LONDON189": 189}

# The packaged weights come from this recipe, run stage by stage (`--first-stage`), each starting
# from the weights of the one before with a new optimiser.
RECIPES: Mapping[str, Recipe] = {
    "hih-small": Recipe(
        model="hih-small",
        sets=_SHARED_DATA,
        auxiliary_layouts=_AUXILIARY,
        stages=(
            Stage(2400, crop_size=128, batch_size=24, learning_rate=2e-3),
            Stage(900, crop_size=192, batch_size=24, learning_rate=1.5e-3),
            Stage(450, crop_size=256, batch_size=16, learning_rate=1e-3),
            Stage(280, crop_size=256, batch_size=16, learning_rate=6e-4, warm_up=20),
        ),
    ),
}


def shortened(recipe: Recipe, share: float = 1.0, first_stage: int = 1) -> Recipe:
    """The recipe from its n-th stage on (counted from 1), with ``share`` of every stage's steps.

    Raises `ConfigurationError` when there is no such stage.
    """
    if not 1 <= first_stage <= len(recipe.stages):
        raise ConfigurationError(
            f"there is no stage {first_stage}: this recipe has stages 1 to {len(recipe.stages)}"
        )
    stages = recipe.stages[first_stage - 1 :]
    return replace(
        recipe, stages=tuple(replace(s, steps=max(1, round(s.steps * share))) for s in stages)
    )
