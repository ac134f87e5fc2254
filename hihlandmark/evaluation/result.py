"""`Evaluation`: predicted and annotated points of faces, and their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hihlandmark.arrays import BoolArray, FloatArray
from hihlandmark.errors import ConfigurationError
from hihlandmark.evaluation.metrics import (
    NORMALIZATIONS,
    calibration_error,
    face_errors,
    point_distances,
)
from hihlandmark.layouts import Layout


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The predicted and the true points of the N faces of a split.

    Attributes:
        names: of the faces.
        layout: of the P points that are compared.
        truth: (N, P, 2) in pixels of each image; NaN where a point is not annotated, or differs
            between the layouts of detector and data set.
        predicted: (N, P, 2) likewise; NaN for faces that were not found.
        scores: (N, P) in 0..1; NaN likewise.
        units: name of a normalization -> lengths (N,) in pixels.
        normalization: the one in use.
        subsets: names of the subsets that each face belongs to.
        skipped: a message for every sample that could not be used.
        remarks: notes on how this was measured.
    """

    names: tuple[str, ...]
    layout: Layout
    truth: FloatArray
    predicted: FloatArray
    scores: FloatArray
    units: Mapping[str, FloatArray]
    normalization: str = "interocular"
    subsets: tuple[frozenset[str], ...] = ()
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def normalized(self, normalization: str) -> Evaluation:
        """The same faces with errors in another unit of `NORMALIZATIONS`.

        Raises:
            ConfigurationError: the unit is unknown.
        """
        if normalization not in self.units:
            raise ConfigurationError(
                f"unknown normalization {normalization!r}; choose one of "
                f"{', '.join(NORMALIZATIONS)}"
            )
        return replace(self, normalization=normalization)

    def subset(self, name: str) -> BoolArray:
        """Mask (N,) of the faces that belong to a subset."""
        return np.array([name in names for names in self.subsets], bool)

    @property
    def subset_names(self) -> list[str]:
        """Names of all subsets, sorted."""
        return sorted(frozenset[str]().union(*self.subsets))

    @property
    def missed(self) -> BoolArray:
        """Mask (N,) of the faces that were not found: failures, but not part of the NME."""
        return ~np.isfinite(self.predicted.sum(axis=(1, 2)))

    @property
    def distances(self) -> FloatArray:
        """(N, P) in pixels: NaN where there is no annotation, infinite for missed faces."""
        return point_distances(self.predicted, self.truth)

    @property
    def errors(self) -> FloatArray:
        """(N, P) in the unit in use; NaN and infinity as in ``distances``."""
        return self.errors_by(self.normalization)

    def errors_by(self, normalization: str) -> FloatArray:
        """(N, P) in another unit; NaN where the points that define the unit are not annotated."""
        distances = self.distances
        # A missed face is a failure in any unit, even where its labels do not define the unit.
        return np.where(np.isinf(distances), np.inf, distances / self.units[normalization][:, None])

    @property
    def face_errors(self) -> FloatArray:
        """(N,): mean over the known points; infinite for missed faces, NaN without annotation."""
        return face_errors(self.errors)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (0..1) of the scores, by inter-ocular errors."""
        return calibration_error(self.scores, self.errors_by("interocular"))
