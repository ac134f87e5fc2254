"""A head for a further layout in a trained nested network, made from the heads that it has.

The features see the crops that they were trained on, so the map from the new points' boxes to the
crop is fitted first. Each new point starts with the weights of the known point that lies nearest to
it on annotated faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from hihlandmark.arrays import BoolArray, FloatArray, Image
from hihlandmark.crop import (
    BoxMap,
    crop_matrix,
    cut_crop,
    fit_box_map,
    known_points,
    tight_boxes,
    transform_points,
)
from hihlandmark.datasets.faces import AnnotatedFaces
from hihlandmark.detector import Detector
from hihlandmark.errors import DataError, ImageError
from hihlandmark.models.nested import Nested, NestedHead, low_rank
from hihlandmark.models.registry import build_model
from hihlandmark.runtimes.graph import CropGraph
from hihlandmark.runtimes.pytorch import TorchRuntime
from hihlandmark.weights import LoadedModel
from hihlandmark.weights.card import ModelCard

MOST_FACES = 60
"""Faces that boxes and nearest points are measured on: more hardly change them."""
LEAST_INSIDE = 0.5
"""Share of the faces in whose crops a point must lie to be learned."""
BATCH_SIZE = 8
MERGE = "merge_predictions.weight"


class LocatedFace(NamedTuple):
    """A face's image (H, W, 3), its points (A, 2), and the crop square (4,) of known features."""

    image: Image
    points: FloatArray
    square: FloatArray


def locate(detector: Detector, faces: AnnotatedFaces) -> list[LocatedFace]:
    """The crop squares of annotated faces, around the points of a layout that is known.

    Faces come from the face detector; where it finds less than half of them, also from the boxes of
    the annotated points. At most `MOST_FACES` are used, the same ones every time.

    Raises:
        DataError: no face can be located.
    """
    order = np.random.default_rng(0).permutation(len(faces))[:MOST_FACES]
    box_map = detector.box_map("landmarks")
    found: list[LocatedFace] = []
    missed: list[tuple[Image, FloatArray]] = []
    for index in np.sort(order):
        face = faces[int(index)]
        try:
            image = face.load_image()
        except ImageError:
            continue  # training names it
        known = known_points(face.points)
        squares = [box_map.squares(tight_boxes(each.points))[0] for each in detector.predict(image)]
        shares = [_share_inside(known, square) for square in squares]
        if shares and max(shares) >= LEAST_INSIDE:
            found.append(LocatedFace(image, face.points, squares[int(np.argmax(shares))]))
        else:
            missed.append((image, face.points))
    if len(found) < len(missed):
        for image, points in missed:
            box = tight_boxes(known_points(points))
            (face_found,) = detector.predict(image, boxes=[box], box_kind="landmarks")
            square = box_map.squares(tight_boxes(face_found.points))[0]
            found.append(LocatedFace(image, points, square))
    if not found:
        raise DataError(f"no image of {faces.name} can be read: check the folder")
    return found


def points_inside(located: Sequence[LocatedFace]) -> BoolArray:
    """(A,): whether the points lie in the crops of at least `LEAST_INSIDE` of the faces."""
    points = np.stack([each.points for each in located])
    squares = np.stack([each.square for each in located])
    known = np.isfinite(points).all(axis=-1)
    offsets = np.abs(np.nan_to_num(points) - squares[:, None, :2]).max(axis=-1)
    inside = known & (offsets < squares[:, None, 2] / 2)
    return np.asarray(inside.sum(axis=0) >= np.maximum(known.sum(axis=0), 1) * LEAST_INSIDE)


def fit_crop(located: Sequence[LocatedFace]) -> BoxMap:
    """The map from the tight boxes of the faces' points to their crop squares."""
    boxes = [tight_boxes(known_points(each.points)) for each in located]
    return fit_box_map(np.array(boxes), np.array([each.square[:3] for each in located]))


def add_head(
    model: LoadedModel,
    layout: str,
    located: Sequence[LocatedFace],
    device: torch.device,
) -> tuple[Nested, float]:
    """A copy of a network with a head for a layout of P points, and how near the known points are.

    Heatmaps of the other layouts stay the same: the features do not see the new predictions.

    Args:
        model: the network with its card.
        layout: name of the new layout.
        located: faces with P points.
        device: to predict on.

    Returns:
        The network, and the median distance of a new point from its known one, in crop pixels.
    """
    network, card = model.network, model.card
    assert isinstance(network, Nested)
    points = len(located[0].points)
    layouts = {**card.configuration["layouts"], layout: points}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        grown = build_model(card.architecture, {**card.configuration, "layouts": layouts})
    assert isinstance(grown, Nested)
    state = dict(network.state_dict())
    for name, own in grown.state_dict().items():
        if name.endswith(MERGE):
            state[name] = torch.cat([state[name], torch.zeros_like(own[:, -points:])], dim=1)
        elif name not in state:
            state[name] = own
    grown.load_state_dict(state)
    distances = _distances(model, located, device)
    nearest = distances.argmin(axis=1)
    names = [(name, i) for name, count in _known_layouts(card).items() for i in range(count)]
    every = {**network.heads, **network.auxiliary_heads}
    heads = {n: head for n, head in every.items() if isinstance(head, NestedHead)}
    head = grown.heads[layout]
    assert isinstance(head, NestedHead)
    _copy_points(head, [(heads[names[j][0]], names[j][1]) for j in nearest])
    return grown.eval(), float(np.median(distances.min(axis=1)))


def _known_layouts(card: ModelCard) -> dict[str, int]:
    """Numbers of points of all layouts that a network predicts, auxiliary ones included."""
    return {**card.configuration["layouts"], **card.configuration["auxiliary_layouts"]}


def _distances(
    model: LoadedModel, located: Sequence[LocatedFace], device: torch.device
) -> FloatArray:
    """Mean distances (P, K) of the points of faces from all predicted points, in crop pixels."""
    card, size = model.card, model.card.configuration["input_size"]
    graph = CropGraph(model.network, list(_known_layouts(card)), card.normalization, card.decoding)
    runtime = TorchRuntime(graph, device)
    total: FloatArray = np.zeros(())
    counts: FloatArray = np.zeros(())
    for first in range(0, len(located), BATCH_SIZE):
        part = located[first : first + BATCH_SIZE]
        crops = np.stack([cut_crop(each.image, each.square, size) for each in part])
        predicted = runtime(crops).points.astype(np.float64)
        matrices = np.stack([crop_matrix(each.square, size) for each in part])
        truth = transform_points(matrices, np.stack([each.points for each in part]))
        apart = np.linalg.norm(truth[:, :, None] - predicted[:, None], axis=-1)
        total = total + np.nansum(apart, axis=0)
        counts = counts + np.isfinite(apart).sum(axis=0)
    return np.where(counts > 0, total / np.maximum(counts, 1), size)


@torch.no_grad()
def _copy_points(head: NestedHead, sources: Sequence[tuple[NestedHead, int]]) -> None:
    """Give each point of a head the weights of a point of another head."""
    read_outs = {source: source.read_out() for source, _ in sources}
    for point, (source, index) in enumerate(sources):
        own_maps, other_maps = head.integer.parameters(), source.integer.parameters()
        for own, other in zip(own_maps, other_maps, strict=True):
            own[point] = other[index]
        head.embedding[point] = source.embedding[index]
        head.bias[point] = source.bias[index]
        if head.visibility is not None and source.visibility is not None:
            seen = zip(head.visibility.parameters(), source.visibility.parameters(), strict=True)
            for own, other in seen:
                own[point] = other[index]
    weights = torch.stack([read_outs[source][index] for source, index in sources])
    if hasattr(head, "weight"):
        head.weight.copy_(weights)
        return
    mix, basis = low_rank(weights, len(head.basis))
    head.mix.copy_(mix)
    head.basis.copy_(basis)


def select(located: Sequence[LocatedFace], kept: Sequence[int]) -> list[LocatedFace]:
    """The faces with some of their points; those without two known ones are left out."""
    chosen = [each._replace(points=each.points[list(kept)]) for each in located]
    return [each for each in chosen if len(known_points(each.points)) > 1]


def _share_inside(points: FloatArray, square: FloatArray) -> float:
    """Share of points (K, 2) that lie in a crop square (4,)."""
    return float((np.abs(points - square[:2]).max(axis=-1) < square[2] / 2).mean())
