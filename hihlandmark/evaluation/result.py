"""`Evaluation`: what a detector said of annotated faces, and the errors that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
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
        truth: (N, P, 2) in pixels of each image; NaN where a point is not known, or not the same
            point in the layouts of detector and data set.
        predicted: (N, P, 2) likewise; NaN in the rows of faces that were not found.
        scores: (N, P) in 0..1; NaN likewise.
        units: name of a normalization -> lengths (N,) in pixels of the true faces.
        normalization: the one in use.
        subsets: names of the parts of the split that each face belongs to.
        skipped: a message for every sample that could not be used.
        remarks: what a reader must know of how this was measured.
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

        Raises `ConfigurationError` for an unknown one.
        """
        if normalization not in self.units:
            raise ConfigurationError(
                f"unknown normalization {normalization!r}; choose one of "
                f"{', '.join(NORMALIZATIONS)}"
            )
        return replace(self, normalization=normalization)

    def subset(self, name: str) -> NDArray[np.bool_]:
        """(N,): which faces belong to a subset."""
        return np.array([name in names for names in self.subsets], bool)

    @property
    def subset_names(self) -> list[str]:
        """Names of all subsets, sorted."""
        return sorted(frozenset[str]().union(*self.subsets))

    @property
    def missed(self) -> NDArray[np.bool_]:
        """(N,): faces that the face detector did not find. Failures, but not part of the NME."""
        return ~np.isfinite(self.predicted.sum(axis=(1, 2)))

    @property
    def distances(self) -> FloatArray:
        """(N, P) in pixels: NaN where the truth is not known, infinite where a face was missed."""
        return point_distances(self.predicted, self.truth)

    @property
    def errors(self) -> FloatArray:
        """(N, P) in the chosen unit; NaN and infinity as in ``distances``."""
        return self.errors_by(self.normalization)

    def errors_by(self, normalization: str) -> FloatArray:
        """(N, P) in another unit; NaN where the truth that makes the unit is not known."""
        distances = self.distances
        # A missed face is a failure in any unit, even in one that its labels do not give.
        return np.where(np.isinf(distances), np.inf, distances / self.units[normalization][:, None])

    @property
    def face_errors(self) -> FloatArray:
        """(N,): mean over the known points; infinite where missed, NaN where nothing is known."""
        return face_errors(self.errors)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (0..1) of the scores, which speak of inter-ocular errors."""
        return calibration_error(self.scores, self.errors_by("interocular"))
