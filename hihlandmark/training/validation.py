"""Measure a network during training, on crops around the true points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import BoxMap, crop_matrix, cut_crop, invert, tight_boxes, transform_points
from hihlandmark.datasets.contact_sheet import Tile, contact_sheet
from hihlandmark.datasets.faces import AnnotatedFaces
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


class _Crops(NamedTuple):
    """Crops (N, S, S, 3), true points (N, P, 2), matrices (N, 2, 3) from image to crop, names."""

    crops: Image
    points: FloatArray
    matrices: FloatArray
    names: list[str]


class Validator:
    """Measures a network on splits.

    Args:
        sets: the splits by their names.
        layouts: names of the layouts that the network predicts.
        box_maps: from each kind of box to the crop.
        images: crops of each split to draw.

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
                    f"predicts {', '.join(layouts)}; leave that set out"
                )
        self.sets, self.box_maps, self.images = sets, box_maps, images

    def measure(
        self, network: LandmarkNetwork, decoding: Decoding, crop_size: int
    ) -> dict[str, Measured]:
        """The error on each split by its name, in float32.

        Args:
            network: put into evaluation mode.
            decoding: how its heatmaps are decoded.
            crop_size: side of the crops in pixels.

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
        errors: list[FloatArray] = []
        tiles: list[Tile] = []
        for batch in self._crops(faces, landmarker.crop_size):
            found = landmarker.predict(batch.crops).points
            points = transform_points(invert(batch.matrices), found)
            pair = landmarker.layout.ocular_pair
            errors.append(face_errors(normalized_errors(points, batch.points, pair)))
            for crop, place, error, name in zip(
                batch.crops, found, errors[-1], batch.names, strict=True
            ):
                if len(tiles) < self.images:
                    tiles.append(Tile(crop, place, f"{name} {100 * error:.1f} %"))
        if not errors or np.isnan(every := np.concatenate(errors)).all():
            raise DataError(
                f"no face of {faces.name} can be validated on: no image can be read. Is the folder "
                "complete?"
            )
        return Measured(mean_error(every), tiles)

    def _crops(self, faces: AnnotatedFaces, size: int) -> Iterator[_Crops]:
        """Batches of the faces whose images can be read; `hihlandmark data info` lists others."""
        box_map = self.box_maps[f"landmarks:{faces.layout}"]
        rows = []
        for number, face in enumerate(faces, 1):
            known = face.points[np.isfinite(face.points).all(axis=-1)]
            square = box_map.squares(tight_boxes(known))[0]
            try:
                crop = cut_crop(face.load_image(), square, size)
            except ImageError:
                crop = None
            if crop is not None:
                rows.append((crop, face.points, crop_matrix(square, size), face.name))
            if rows and (len(rows) == BATCH_SIZE or number == len(faces)):
                crops, points, matrices, names = zip(*rows, strict=True)
                yield _Crops(np.stack(crops), np.stack(points), np.stack(matrices), list(names))
                rows = []


def draw_predictions(measured: Measured) -> Image:
    """The crops of a split with the predicted points, as one image (H, W, 3)."""
    return contact_sheet(measured.tiles, columns=4)
