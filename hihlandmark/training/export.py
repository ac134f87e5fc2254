"""Export a checkpoint as weights with card, corrections by the shape, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.calibration.fit import fit, labeled_crops, measure_points
from hihlandmark.crop import BoxMap
from hihlandmark.datasets import AnnotatedFaces
from hihlandmark.detector import Detector
from hihlandmark.errors import DataError
from hihlandmark.evaluation.protocol import evaluate
from hihlandmark.landmarker import Landmarker, in_turn
from hihlandmark.layouts import BUILT_IN, get_conversion, get_layout, mirror_points
from hihlandmark.measures import eye_contours
from hihlandmark.models.registry import MODELS
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.runtimes.int8 import Ranges, observed_ranges
from hihlandmark.runtimes.pytorch import TorchRuntime
from hihlandmark.shape_prior import fit_shape_prior
from hihlandmark.shape_regression import Strays, fit_shape_regression
from hihlandmark.training.checkpoint import read_average
from hihlandmark.training.config import TrainingConfiguration
from hihlandmark.training.data import read_face_set
from hihlandmark.training.objectives import NORMALIZATION, decoding_of
from hihlandmark.training.trainer import with_sizes_of
from hihlandmark.weights import Calibration, correction_tensors, save_weights
from hihlandmark.weights.card import CropContract, LayoutDefinition, ModelCard

MOVES = 4
"""How often each crop is moved to see how points stray."""
LARGEST_MOVE = 0.5
"""In pixels of the crop, along both axes."""
FACES_OF_RANGES = 300
"""Faces of a set on which the ranges of activations are measured. With 100, chance in their choice
changed the NME of `wflw98 val` by up to 1.7 %."""


def export(
    checkpoint: str | Path,
    configuration: TrainingConfiguration,
    data: str | Path,
    folder: str | Path,
) -> Path:
    """Write the averaged weights of a checkpoint with their model card. Returns the card's path.

    Scores are calibrated on the splits of ``card.calibration``; layouts without one stay
    uncalibrated. ``card.shapes`` gives the shape priors, ``card.regressions`` the regressions,
    ``card.activation_ranges`` the ranges for INT8.

    Args:
        checkpoint: of a run.
        configuration: of that run.
        data: the folder that the run was trained on.
        folder: where weights and card are written.

    Raises:
        TrainingError: the checkpoint cannot be read.
        DataError: a split cannot be read or has too few faces.
    """
    checkpoint, data, folder = Path(checkpoint), Path(data), Path(folder)
    state = read_average(checkpoint, configuration.exported_auxiliary)
    configuration = with_sizes_of(configuration, state)
    card = ModelCard(
        name=configuration.name,
        architecture=MODELS[configuration.model].architecture,
        configuration=configuration.network_configuration(),
        normalization=NORMALIZATION,
        crop=CropContract(
            pixel_origin=0.5, boxes=_own_box_maps(configuration) | dict(configuration.card.boxes)
        ),
        decoding=decoding_of(configuration),
        flip_test=configuration.card.flip_test,
        training_data=configuration.card.training_data,
        license=configuration.card.license,
        layouts={
            name: LayoutDefinition.of(get_layout(name))
            for name in configuration.network_configuration()["layouts"]
            if name not in BUILT_IN
        },
    )
    path = save_weights(folder, card, state)
    # First: regressions and scores are fitted to points in the precision of "auto".
    ranges = activation_ranges(path, configuration, data)
    card = card.model_copy(update={"activation_ranges": ranges})
    path = save_weights(folder, card, state)
    if configuration.card.shapes:
        without = _calibrations(path, configuration, data)
        state |= _shape_priors(configuration, data, without)
        path = save_weights(folder, card, state)
    if configuration.card.regressions:
        state |= shape_regressions(path, configuration, data)
        path = save_weights(folder, card, state)
    calibrations = _calibrations(path, configuration, data)
    return save_weights(folder, card.model_copy(update={"calibration": calibrations}), state)


def _own_box_maps(configuration: TrainingConfiguration) -> dict[str, BoxMap]:
    """Those that `crop.complete_box_maps` cannot derive."""
    return {
        kind: box_map
        for kind, box_map in configuration.box_maps().items()
        if kind in configuration.boxes or kind.startswith("landmarks:")
    }


def _calibrations(
    weights: Path, configuration: TrainingConfiguration, data: Path
) -> dict[str, Calibration]:
    """The calibration of each layout of ``card.calibration``, fitted to the weights."""
    calibrations = {}
    for faces in configuration.card.calibration:
        detector = Detector(faces.of, configuration.model, weights=weights)
        fitted = fit(
            measure_points(detector, read_face_set(data, faces, configuration.mesh), mirrored=True)
        )
        name = detector.landmarker.layout.name  # of the network: others are converted from it
        calibrations[name] = fitted.model_copy(update={"reference": faces.reference})
    return calibrations


def activation_ranges(weights: Path, configuration: TrainingConfiguration, data: Path) -> Ranges:
    """The ranges that the network's activations have on the faces of ``card.activation_ranges``.

    Raises:
        DataError: a split cannot be read, or has no readable face.
    """
    found: list[Ranges] = []
    for face_set in configuration.card.activation_ranges:
        faces = read_face_set(data, face_set, configuration.mesh)
        if len(faces) > FACES_OF_RANGES:
            _, faces = faces.split(FACES_OF_RANGES)
        detector = Detector(
            faces.layout, configuration.model, weights=weights, runtime="torch", precision="fp32",
            batch_size=8, flip_test=False,
        )  # fmt: skip
        with observed_ranges(network_of(detector)) as ranges:
            evaluate(detector, faces)
        found.append(ranges)
    names = {name for ranges in found for name in ranges}
    extremes = {name: [each[name] for each in found if name in each] for name in names}
    return {
        name: (min(low for low, _ in extremes[name]), max(high for _, high in extremes[name]))
        for name in sorted(names)
    }


def network_of(detector: Detector) -> nn.Module:
    """The network that a detector with the runtime "torch" runs."""
    assert isinstance(detector.runtime, TorchRuntime)
    return detector.runtime.graph.network


def _shape_priors(
    configuration: TrainingConfiguration, data: Path, calibrations: Mapping[str, Calibration]
) -> dict[str, torch.Tensor]:
    """The tensors of the priors of ``card.shapes``; the calibrations are those without priors."""
    tensors: dict[str, torch.Tensor] = {}
    for face_set in configuration.card.shapes:
        faces = read_face_set(data, face_set, configuration.mesh)
        prior = fit_shape_prior(faces_and_mirror_images(faces))
        scale = calibrations.get(faces.layout, Calibration()).covariance_scale
        tensors |= correction_tensors(faces.layout, replace(prior, covariance_scale=scale))
    return tensors


def shape_regressions(
    weights: Path, configuration: TrainingConfiguration, data: Path
) -> dict[str, torch.Tensor]:
    """The tensors of the regressions of ``card.regressions``, fitted to what the weights find.

    A crop and its mirror image are two views of a face, which are also moved by less than a pixel,
    for steadier points. Faces that cannot be used are left out.

    Raises:
        DataError: a split cannot be read, or has no completely annotated face.
    """
    tensors: dict[str, torch.Tensor] = {}
    for face_set in configuration.card.regressions:
        faces = read_face_set(data, face_set, configuration.mesh)
        complete = [face for face in faces if np.isfinite(face.points).all()]
        detector = Detector(faces.layout, configuration.model, weights=weights)
        conversion = get_conversion(faces.layout, faces.layout)
        rng = np.random.default_rng(0)
        views, annotated, strays = [], [], []
        for crops, truth, *_ in labeled_crops(
            detector, replace(faces, faces=complete), conversion, skipped=[]
        ):
            views.append(in_turn(*detector.landmarker.decode_views(crops)))
            annotated.append(np.repeat(truth, 2, axis=0))
            strays.append(_strays(detector.landmarker, crops, views[-1], rng))
        if not views:
            raise DataError(f"{faces.name} has no completely annotated face for card.regressions")
        fitted = fit_shape_regression(
            np.concatenate([each.points for each in views]),
            np.concatenate(annotated),
            faces.mirror,
            _joined([each.integer_offset for each in views]),
            views=2,
            strays=Strays(
                np.concatenate([each.points for each in strays]),
                _joined([each.integer_offset for each in strays]),
            ),
            independent=_points_of_eyes(faces.layout),
        )
        tensors |= correction_tensors(faces.layout, fitted)
    return tensors


def _strays(
    landmarker: Landmarker, crops: Image, views: CropLandmarks, rng: np.random.Generator
) -> Strays:
    """How the points in both views of each crop stray when the crop is moved, `MOVES` times."""
    points, offsets = [], []
    for _ in range(MOVES):
        moves = rng.uniform(-LARGEST_MOVE, LARGEST_MOVE, (len(crops), 2))
        moved = np.stack([_moved(*each) for each in zip(crops, moves, strict=True)])
        found = in_turn(*landmarker.decode_views(moved))
        points.append(found.points - np.repeat(moves, 2, axis=0)[:, None] - views.points)
        if found.integer_offset is not None and views.integer_offset is not None:
            offsets.append(found.integer_offset - views.integer_offset)
    return Strays(np.stack(points, axis=1), np.stack(offsets, axis=1) if offsets else None)


def _points_of_eyes(layout: str) -> list[int]:
    """Lids, corners and pupils, which tell how open an eye is and where it looks."""
    known = get_layout(layout)
    return [index for part in (*eye_contours(known), *known.pupils) for index in part]


def _moved(crop: Image, by: FloatArray) -> Image:
    """A crop (S, S, 3) moved by (x, y) pixels."""
    matrix = np.column_stack([np.eye(2), by])
    moved = cv2.warpAffine(crop, matrix, crop.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def _joined(parts: Sequence[FloatArray | None]) -> FloatArray | None:
    """The arrays of all batches, None without any."""
    arrays = [each for each in parts if each is not None]
    return np.concatenate(arrays) if arrays else None


def faces_and_mirror_images(faces: AnnotatedFaces) -> FloatArray:
    """The shapes (2N, P, 2) of the N completely annotated faces and of their mirror images.

    Raises:
        DataError: fewer than two faces are annotated completely.
    """
    points = np.array([face.points for face in faces])
    complete = points[np.isfinite(points).all(axis=(1, 2))]
    if len(complete) < 2:
        raise DataError(
            f"{faces.name} has {len(complete)} completely annotated faces, too few for card.shapes"
        )
    return np.concatenate([complete, mirror_points(complete, faces.mirror, width=0)])
