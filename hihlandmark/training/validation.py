"""Measure a network during training, on crops around the true points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hihlandmark.arrays import FloatArray
from hihlandmark.crop import (
    BoxMap,
    crop_matrix,
    cut_crop,
    invert,
    known_points,
    tight_boxes,
    transform_points,
)
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.datasets.inspection import Tile
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.evaluation.metrics import face_errors, mean_error, normalized_errors
from hihlandmark.landmarker import Landmarker
from hihlandmark.layouts import get_layout
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.pytorch import TorchRuntime
from hihlandmark.training.objectives import NORMALIZATION
from hihlandmark.weights.card import Decoding

BATCH_SIZE = 16


@dataclass(frozen=True)
class Measured:
    """Inter-ocular NME (0..1) on a split, and its first crops with the predicted points."""

    nme: float
    tiles: list[Tile]


class Validator:
    """Measures a network that predicts ``layouts`` on splits; keeps ``images`` crops of each.

    Raises:
        ConfigurationError: a split has a layout that the network does not predict.
    """

    def __init__(
        self,
        sets: Mapping[str, AnnotatedFaces],
        layouts: Sequence[str],
        box_maps: Mapping[str, BoxMap],
        images: int,
    ) -> None:
        for name, faces in sets.items():
            if faces.layout not in layouts:
                raise ConfigurationError(
                    f"cannot validate on {name}: it has layout {faces.layout}, the network "
                    f"predicts {', '.join(layouts)}"
                )
        self.sets, self.box_maps, self.images = sets, box_maps, images

    def measure(
        self, network: LandmarkNetwork, decoding: Decoding, crop_size: int
    ) -> dict[str, Measured]:
        """The error on each split by its name, in float32; puts the network into eval mode.

        Raises:
            DataError: a split has no readable image.
        """
        device = next(network.parameters()).device
        measured = {}
        for name, faces in self.sets.items():
            graph = CropGraph(network, [faces.layout], NORMALIZATION, decoding)
            runtime = TorchRuntime(graph, device)
            landmarker = Landmarker(runtime, get_layout(faces.layout), crop_size)
            measured[name] = self._measure(landmarker, faces)
        return measured

    def _measure(self, landmarker: Landmarker, faces: AnnotatedFaces) -> Measured:
        box_map = self.box_maps[f"landmarks:{faces.layout}"]
        size, pair = landmarker.crop_size, landmarker.layout.ocular_pair
        errors: list[FloatArray] = []
        tiles: list[Tile] = []
        for first in range(0, len(faces), BATCH_SIZE):
            rows = []
            for face in faces.faces[first : first + BATCH_SIZE]:
                square = box_map.squares(tight_boxes(known_points(face.points)))[0]
                try:
                    crop = cut_crop(face.load_image(), square, size)
                except ImageError:
                    continue  # `hihlandmark data info` lists it
                rows.append((crop, face.points, crop_matrix(square, size), face.name))
            if not rows:
                continue
            crops, truth, matrices, names = zip(*rows, strict=True)
            found = landmarker.predict(np.stack(crops)).points
            points = transform_points(invert(np.stack(matrices)), found)
            errors.append(face_errors(normalized_errors(points, np.stack(truth), pair)))
            for crop, place, error, name in zip(crops, found, errors[-1], names, strict=True):
                if len(tiles) < self.images:
                    tiles.append(Tile(crop, place, f"{name} {100 * error:.1f} %"))
        if not errors:
            raise DataError(f"no image of {faces.name} can be read. Is the folder complete?")
        if np.isnan(every := np.concatenate(errors)).all():
            raise DataError(
                f"no face of {faces.name} can be measured: annotate both outer eye corners"
            )
        return Measured(mean_error(every), tiles)
