"""Stage, learning rate and samples of each step, from configuration and numbers of faces only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import IndexArray
from hihlandmark.datasets.augmentation import generator
from hihlandmark.training.config import Stage, TrainingConfiguration

BLOCK = 1000
"""Samples in which every set has its exact share; shares are rounded to a thousandth."""


class Moment(NamedTuple):
    """A step of the run: its stage, its index within the stage, and its first sample."""

    stage: Stage
    stage_index: int
    within: int
    first_sample: int


class Plan:
    """The steps of a run with a number of faces in an epoch.

    ``group`` is the number of batches per step: processes times accumulated batches.
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
        """Number of samples of all stages together."""
        lengths = zip(self.lengths, self.stages, strict=True)
        return sum(length * stage.batch_size * self.group for length, stage in lengths)

    def at(self, step: int) -> Moment:
        """The stage and the samples of a step, counted from 0."""
        first, within = 0, step
        for index, (length, stage) in enumerate(zip(self.lengths, self.stages, strict=True)):
            samples = stage.batch_size * self.group
            if within < length:
                return Moment(stage, index, within, first + within * samples)
            within -= length
            first += length * samples
        raise IndexError(f"step {step} of a run of {self.steps}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then the schedule of its stage."""
        stage, index, within, _ = self.at(step)
        rate = stage.learning_rate * min(1, (within + 1) / max(stage.warmup_steps, 1))
        if stage.schedule == "cosine":
            angle = math.pi * within / self.lengths[index]
            return rate * (0.99 * 0.5 * (1 + math.cos(angle)) + 0.01)
        unit = self._epoch[index] if stage.epochs else 1
        passed = sum(within >= milestone * unit for milestone in stage.milestones)
        return rate * stage.decay**passed


class Draw(NamedTuple):
    """A sample: index of its set, of its face in the set, and how often that was used before."""

    set_number: int
    face: int
    epoch: int


class MixtureSampler:
    """Stateless weighted sampling of sets: sample i is computed without samples 0..i-1.

    Each block of `BLOCK` samples is a permutation in which every set has its share. The faces of a
    set are shuffled, and reshuffled each time that all have been used.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self.sizes, self.seed = tuple(sizes), seed
        exact = np.array(shares, np.float64) / sum(shares) * BLOCK
        self.counts = np.maximum(np.floor(exact), 1).astype(int)
        while self.counts.sum() < BLOCK:
            self.counts[np.argmax(exact - self.counts)] += 1
        while self.counts.sum() > BLOCK:
            spare = np.where(self.counts > 1, self.counts - exact, -np.inf)  # every set keeps one
            self.counts[np.argmax(spare)] -= 1
        self._sets_of_block = np.repeat(np.arange(len(self.sizes)), self.counts)
        self._block = lru_cache(maxsize=4)(self._shuffled_block)
        self._order = lru_cache(maxsize=4 * len(self.sizes))(self._shuffled_faces)

    def __reduce__(self) -> tuple[type[MixtureSampler], tuple[tuple[int, ...], list[int], int]]:
        return MixtureSampler, (self.sizes, self.counts.tolist(), self.seed)

    def draw(self, sample: int) -> Draw:
        """The set and face of a sample, counted from 0."""
        block, place = divmod(sample, BLOCK)
        sets, ordinals = self._block(block)
        chosen = int(sets[place])
        ordinal = block * int(self.counts[chosen]) + int(ordinals[place])
        epoch, position = divmod(ordinal, self.sizes[chosen])
        return Draw(chosen, int(self._order(chosen, epoch)[position]), epoch)

    def _shuffled_block(self, block: int) -> tuple[IndexArray, IndexArray]:
        """The set of each sample of a block, and its samples of the same set before it."""
        sets = generator(self.seed, block).permutation(self._sets_of_block)
        ordinals = np.empty_like(sets)
        for number in range(len(self.sizes)):
            ordinals[sets == number] = np.arange(self.counts[number])
        return sets, ordinals

    def _shuffled_faces(self, set_number: int, epoch: int) -> IndexArray:
        return generator(self.seed, set_number, epoch).permutation(self.sizes[set_number])
