"""The errors of a network in training, on crops around the true points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.crop import (
    BoxMap,
    crop_matrix,
    cut_crop,
    invert,
    tight_boxes,
    transform_points,
)
from hihlandmark.datasets.contact_sheet import Tile, contact_sheet
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.errors import ConfigurationError, DataError, ImageError
from hihlandmark.evaluation import mean_error, normalized_errors
from hihlandmark.evaluation.metrics import face_errors
from hihlandmark.heatmap import read_heatmaps
from hihlandmark.layouts import get_layout
from hihlandmark.models.base import LandmarkNetwork
from hihlandmark.runtimes.graph import normalize
from hihlandmark.weights.card import IMAGENET_MEAN, IMAGENET_STD, Decoding

BATCH_SIZE = 16


@dataclass(frozen=True)
class Measured:
    """Inter-ocular NME (0..1) on a split, and its first crops with the points found."""

    nme: float
    pictures: list[Tile]


class Validator:
    """Measures a network on splits of known layouts. Raises `ConfigurationError` for others."""

    def __init__(
        self,
        sets: Mapping[str, AnnotatedFaces],
        layouts: Sequence[str],
        box_maps: Mapping[str, BoxMap],
        pictures: int,
    ) -> None:
        for name, faces in sets.items():
            if faces.layout not in layouts:
                raise ConfigurationError(
                    f"cannot validate on {name}: it is of layout {faces.layout}, the network "
                    f"predicts {', '.join(layouts)}; leave that set out"
                )
        self.sets, self.box_maps, self.pictures = sets, box_maps, pictures

    def measure(
        self, network: LandmarkNetwork, decoding: Decoding, crop_size: int
    ) -> dict[str, Measured]:
        """The error on each split by its name, of a network in eval mode."""
        return {
            name: self._measure(network, faces, decoding, crop_size)
            for name, faces in self.sets.items()
        }

    @torch.no_grad()
    def _measure(
        self, network: LandmarkNetwork, faces: AnnotatedFaces, decoding: Decoding, size: int
    ) -> Measured:
        device = next(network.parameters()).device
        mean = torch.tensor(IMAGENET_MEAN, device=device)
        std = torch.tensor(IMAGENET_STD, device=device)
        errors: list[NDArray[np.floating]] = []
        pictures: list[Tile] = []
        for crops, truths, matrices, names in self._crops(faces, size):
            heatmaps = network(normalize(torch.from_numpy(crops).to(device), mean, std))
            integer, decimal = heatmaps[faces.layout].float()
            stride = size // integer.shape[-1]
            read = read_heatmaps(integer, decimal, decoding, stride=stride)
            found = read.points.cpu().double().numpy()
            # A point without heatmap is in the middle, so that finding nothing earns nothing.
            found = np.where(np.isfinite(found), found, (size - 1) / 2)
            points = transform_points(invert(matrices), found)
            pair = get_layout(faces.layout).ocular_pair
            errors.append(face_errors(normalized_errors(points, truths, pair)))
            for crop, crop_points, error, name in zip(crops, found, errors[-1], names, strict=True):
                if len(pictures) < self.pictures:
                    pictures.append(Tile(crop, crop_points, f"{name} {100 * error:.1f} %"))
        if not errors or np.isnan(every := np.concatenate(errors)).all():
            raise DataError(
                f"no face of {faces.name} can be validated on: no image can be read, is the folder "
                "complete?"
            )
        return Measured(mean_error(every), pictures)

    def _crops(
        self, faces: AnnotatedFaces, size: int
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], list[str]]]:
        """Batches of crops (N, S, S, 3), true points (N, P, 2), matrices (N, 2, 3) and names."""
        box_map = self.box_maps[f"landmarks:{faces.layout}"]
        rows = []
        for number, face in enumerate(faces, 1):
            known = face.points[np.isfinite(face.points).all(axis=-1)]
            square = box_map.squares(tight_boxes(known))[0]
            try:
                crop = cut_crop(face.load_image(), square, size)
            except ImageError:
                crop = None  # `data info` names it
            if crop is not None:
                rows.append((crop, face.points, crop_matrix(square, size), face.name))
            if rows and (len(rows) == BATCH_SIZE or number == len(faces)):
                crops, points, matrices, names = zip(*rows, strict=True)
                yield np.stack(crops), np.stack(points), np.stack(matrices), list(names)
                rows = []


def draw_pictures(measured: Measured) -> NDArray[np.uint8]:
    """The crops of a split with the points found, as one image (H, W, 3)."""
    return contact_sheet(measured.pictures, columns=4)
