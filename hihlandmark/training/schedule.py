"""Which step belongs to which stage, at which learning rate, and which faces it shows.

Everything here follows from the configuration and numbers of faces alone, so that a resumed run and
one on more processes see what the first would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hihlandmark.datasets.augmentation import generator
from hihlandmark.training.config import Stage, TrainingConfiguration

DECK = 1000
"""Cards a deck: shares are kept to a thousandth."""


class Moment(NamedTuple):
    """A step of the run: its stage, its number within the stage, and the first of its samples."""

    stage: Stage
    within: int
    first_sample: int


class Plan:
    """The steps of a run.

    ``faces``: number of faces that an epoch counts; ``group``: batches a step, over processes and
    accumulations.
    """

    def __init__(self, configuration: TrainingConfiguration, faces: int, group: int = 1) -> None:
        self.stages = configuration.stages[configuration.first_stage - 1 :]
        self.group = group
        self._epoch = [faces / (stage.batch_size * group) for stage in self.stages]
        self.lengths = [
            stage.steps or max(1, round((stage.epochs or 0) * epoch))
            for stage, epoch in zip(self.stages, self._epoch, strict=True)
        ]

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return sum(self.lengths)

    @property
    def samples(self) -> int:
        """Faces shown in all stages together."""
        return sum(
            length * stage.batch_size * self.group
            for length, stage in zip(self.lengths, self.stages, strict=True)
        )

    def at(self, step: int) -> Moment:
        """The moment of a step, counted from 0."""
        index, within, first = self._locate(step)
        stage = self.stages[index]
        return Moment(stage, within, first + within * stage.batch_size * self.group)

    def learning_rate(self, step: int) -> float:
        """Of a step: a linear warm-up, and the stage's schedule."""
        index, within, _ = self._locate(step)
        stage, length = self.stages[index], self.lengths[index]
        rate = stage.learning_rate * min(1, (within + 1) / max(stage.warmup_steps, 1))
        if stage.schedule == "cosine":
            return rate * (0.99 * 0.5 * (1 + math.cos(math.pi * within / length)) + 0.01)
        unit = self._epoch[index] if stage.epochs else 1
        passed = sum(within >= milestone * unit for milestone in stage.milestones)
        return rate * stage.decay**passed

    def _locate(self, step: int) -> tuple[int, int, int]:
        """Index of the stage, step within it, and the first sample of the stage."""
        first = 0
        for index, (length, stage) in enumerate(zip(self.lengths, self.stages, strict=True)):
            if step < length:
                return index, step, first
            step -= length
            first += length * stage.batch_size * self.group
        raise IndexError(f"step beyond the {self.steps} of this run")


class Draw(NamedTuple):
    """What one sample of the run shows: a ``face`` of a set by its number, for the n-th time."""

    set_number: int
    face: int
    epoch: int


class Sampler:
    """Sample number -> `Draw`, every set shuffled anew each time that it has been seen whole.

    ``sizes``: faces a set; ``shares``: weights of the sets. Cards with the numbers of the sets, as
    many as their shares, are shuffled and dealt; what a set deals is its next shuffled face. Any
    sample can be asked for without those before it.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self.sizes, self.seed = tuple(sizes), seed
        exact = np.array(shares, np.float64) / sum(shares) * DECK
        self.counts = np.maximum(np.floor(exact), 1).astype(int)
        while self.counts.sum() < DECK:
            self.counts[np.argmax(exact - self.counts)] += 1
        while self.counts.sum() > DECK:
            spare = np.where(self.counts > 1, self.counts - exact, -np.inf)  # every set is shown
            self.counts[np.argmax(spare)] -= 1
        self._cards = np.repeat(np.arange(len(self.sizes)), self.counts)
        self._deck = lru_cache(maxsize=4)(self._shuffled_deck)
        self._order = lru_cache(maxsize=4 * len(self.sizes))(self._shuffled_faces)

    def __reduce__(self) -> tuple[type[Sampler], tuple[tuple[int, ...], list[int], int]]:
        return Sampler, (self.sizes, self.counts.tolist(), self.seed)

    def draw(self, sample: int) -> Draw:
        """The face that a sample of the run, counted from 0, shows."""
        dealt, place = divmod(sample, DECK)
        deck, ordinals = self._deck(dealt)
        chosen = int(deck[place])
        ordinal = dealt * int(self.counts[chosen]) + int(ordinals[place])
        epoch, position = divmod(ordinal, self.sizes[chosen])
        return Draw(chosen, int(self._order(chosen, epoch)[position]), epoch)

    def _shuffled_deck(self, dealt: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """A deck, and how many cards of the same set lie before each."""
        deck = generator(self.seed, dealt).permutation(self._cards)
        ordinals = np.empty_like(deck)
        for number in range(len(self.sizes)):
            ordinals[deck == number] = np.arange(self.counts[number])
        return deck, ordinals

    def _shuffled_faces(self, set_number: int, epoch: int) -> NDArray[np.intp]:
        return generator(self.seed, set_number, epoch).permutation(self.sizes[set_number])
