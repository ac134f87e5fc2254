"""The model card: the facts about weights that running and using them needs, as a JSON file.

`files` reads and writes the card with its weights; `find` looks for both.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import from_json

from hihlandmark.arrays import FloatArray
from hihlandmark.crop import BoxMap
from hihlandmark.errors import WeightsError
from hihlandmark.layouts import Contour, Layout
from hihlandmark.logits import sigmoid
from hihlandmark.reliability import Reliability
from hihlandmark.uncertainty import ErrorCorrelation

SCHEMA = 2
"""Version of the card's fields. Cards of schema 1 are also read."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NEAR = 0.05
"""A point counts as found within this share of the inter-ocular distance."""
MAX_KNOTS = 20
"""More knots would follow the noise of a validation split of some hundred faces."""

MAX_NAME = 200
"""Characters of a name: file systems take no more than 255 bytes."""
MAX_NUMBER = 1e6
"""Larger numbers, of whatever field, are a mistake or an attack."""
MAX_BOX_MAP = 100
"""The largest scale and shift of a crop, in sides of the box."""
CONFIGURATION_LIMITS = {"stacks": 100, "depth": 16, "input_size": 4096}
"""The largest values of fields that loading and running a network would follow for hours."""

Decoder = Literal["argmax", "soft", "local_soft_argmax", "quarter_shift", "mean"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
NESTED_DECODERS: tuple[Decoder, ...] = ("soft", "argmax", "mean")
"""Those of nested networks; `HEATMAP_DECODERS` are those of the others."""
HEATMAP_DECODERS: tuple[Decoder, ...] = ("local_soft_argmax", "argmax", "quarter_shift", "mean")
Activation = Literal["softmax", "linear"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of models, and of owners and repositories on the Hub."""
WEIGHT_FILE = re.compile(rf"(?P<name>{NAME.pattern})\.safetensors")

_NUMBERS = re.compile(r"(?<=\[)\s+(?:-?[\d.e+-]+,?\s+)+(?=\])")

Text = Annotated[str, StringConstraints(pattern=r"\S")]
PositiveNumber = Annotated[StrictFloat, Field(ge=1e-6, le=MAX_NUMBER)]
Number = Annotated[StrictFloat, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Low = Annotated[StrictFloat, Field(ge=-MAX_NUMBER, le=0)]
High = Annotated[StrictFloat, Field(ge=0, le=MAX_NUMBER)]
Probability = Annotated[StrictFloat, Field(ge=0, le=1)]
Count = Annotated[StrictInt, Field(ge=0)]
Knots = tuple[tuple[Probability, Probability], ...]

_SCHEMA_1_KEYS = {
    "aligned_corners": "align_corners",
    "bin_centre": "bin_center",
    "idle_skips": "unused_shortcuts",
    "licence": "license",  # codespell:ignore licence
    "mirror": "flip_test",
    "normalisation": "normalization",  # codespell:ignore normalisation
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normalization(_Part):
    """Mean and standard deviation of R, G and B in 0..1, applied before the network."""

    mean: tuple[Number, Number, Number]
    std: tuple[PositiveNumber, PositiveNumber, PositiveNumber]


def _check_box_map(box_map: BoxMap) -> BoxMap:
    if not 0 < box_map.scale <= MAX_BOX_MAP:
        raise ValueError(f"the scale must be above 0 and at most {MAX_BOX_MAP}")
    if not all(abs(part) <= MAX_BOX_MAP for part in box_map.shift):
        raise ValueError(f"the shift must be within {MAX_BOX_MAP} of 0")
    return box_map


class CropContract(_Part):
    """The crop that a model was trained on.

    Attributes:
        pixel_origin: the half-pixel offset added to a position in crop pixels before it is divided
            by the stride: 0.5 for our weights, 0 for converted ones. The center of the top-left
            pixel is (0, 0) in both cases.
        boxes: the map to the crop for each kind of box, such as "mtcnn" or "landmarks:WFLW98".
    """

    pixel_origin: Number
    boxes: dict[str, Annotated[BoxMap, AfterValidator(_check_box_map)]]


class Decoding(_Part):
    """How heatmaps become points: the arguments of `heatmap.decode`, and the activation before.

    Attributes:
        decoder: how the position is read from a heatmap.
        activation: applied to the raw heatmaps.
        stride: crop pixels a side of a cell of the integer heatmap.
        bin_center: position of a decimal bin's center within the bin, in bins.
        align_corners: whether the corner cells' centers lie on the crop's corners.
    """

    decoder: Decoder
    activation: Activation
    stride: StrictInt = Field(ge=1, le=256)
    bin_center: Number = 0.5
    align_corners: StrictBool = False


def _check_rising(knots: Knots) -> Knots:
    steps = np.diff(np.array(knots).reshape(-1, 2), axis=0)
    if not ((steps[:, 0] > 0).all() and (steps[:, 1] >= 0).all()):
        raise ValueError("knots must be rising pairs")
    return knots


class Correlation(_Part):
    """The numbers of an `ErrorCorrelation` of P points, across and down the face in turn.

    Attributes:
        std: 2 P standard deviations.
        loadings: 2 P rows of K loadings.
    """

    std: tuple[PositiveNumber, ...]
    loadings: tuple[tuple[Annotated[StrictFloat, Field(ge=-1, le=1)], ...], ...]

    @model_validator(mode="after")
    def _check_shape(self) -> Correlation:
        if len({len(row) for row in self.loadings}) != 1 or len(self.loadings) != len(self.std):
            raise ValueError("loadings must have a row of equal length for each std")
        if len(self.std) % 2:
            raise ValueError("std must have two numbers for each point")
        return self


class Calibration(_Part):
    """Corrects the over- or underconfidence of a layout's heatmaps; `hihlandmark.calibration` fits.

    The score of a point is the probability that it is within `NEAR`, by a logistic model:
    ``p = sigmoid(bias + b + spread * log(s) + mass * log(m / (1 - m)))`` where s is the standard
    deviation of the point in inter-ocular distances, m the mass of `CropLandmarks`, and b its
    number in ``point_bias`` (P numbers; empty: 0). Without ``knots`` the score is p. ``knots`` are
    up to `MAX_KNOTS` rising pairs (p, score): the score is interpolated between them, and constant
    beyond the first and the last.

    ``correlation``: how the errors of points vary together; None: unknown. ``reliability``: model
    of `Face.reliability`; None: it is NaN. ``visibility``: a and b of the probability
    ``sigmoid(a + b x)`` that a point is visible, from the network's logit x (Platt scaling); None:
    `Face.visibility` is NaN. ``reference``: whose points the errors were measured against, where
    that was not a person.
    """

    bias: Number = 0.0
    spread: Number = -1.0
    mass: Number = 1.0
    point_bias: tuple[Number, ...] = ()
    covariance_scale: PositiveNumber = 1.0
    knots: Annotated[Knots, Field(max_length=MAX_KNOTS), AfterValidator(_check_rising)] = ()
    correlation: Correlation | None = None
    reliability: Reliability | None = None
    visibility: tuple[Number, Number] | None = None
    reference: str | None = None

    @cached_property
    def error_correlation(self) -> ErrorCorrelation | None:
        """`correlation` as arrays."""
        if self.correlation is None:
            return None
        points = len(self.correlation.std) // 2
        return ErrorCorrelation(
            np.reshape(self.correlation.std, (points, 2)),
            np.reshape(self.correlation.loadings, (points, 2, -1)),
        )

    def scores(
        self, covariance: FloatArray, mass: FloatArray, interocular: FloatArray
    ) -> FloatArray:
        """Calibrated scores (N, P) in 0..1; the arguments are those of `calibration_features`."""
        return self.scores_of(calibration_features(covariance, mass, interocular))

    def scores_of(self, features: FloatArray) -> FloatArray:
        """Scores (..., P) in 0..1 of the features (..., P, 3) from `calibration_features`."""
        logit = features @ np.array([self.bias, self.spread, self.mass])
        score = sigmoid(logit + np.array(self.point_bias) if self.point_bias else logit)
        return np.interp(score, *np.transpose(self.knots)) if self.knots else score

    def visibilities(self, logits: FloatArray | None, shape: tuple[int, ...]) -> FloatArray:
        """Calibrated probabilities of being visible, of a shape; NaN where they are unknown."""
        if logits is None or self.visibility is None:
            return np.full(shape, np.nan)
        bias, slope = self.visibility
        return sigmoid(bias + slope * logits)


def calibration_features(
    covariance: FloatArray, mass: FloatArray, interocular: FloatArray
) -> FloatArray:
    """The inputs (N, P, 3) of the logistic model: (1, log spread, log odds of mass).

    They follow from the raw covariance (N, P, 2, 2), the mass (N, P) in 0..1, and the distance (N,)
    of the outer eye corners in the unit of the covariance.
    """
    trace = np.trace(covariance, axis1=-2, axis2=-1)
    spread = np.sqrt(trace / 2) / np.maximum(interocular[:, None], 1e-6)
    mass = np.clip(mass, 1e-4, 1 - 1e-4)
    return np.stack(
        [np.ones_like(mass), np.log(np.maximum(spread, 1e-6)), np.log(mass / (1 - mass))], axis=-1
    )


class DataSource(_Part):
    """A data set that the weights were trained on, with its license and its number of images."""

    name: Text
    license: Text
    images: Count


class Figure(_Part, extra="allow"):
    """A measured figure with the command that measures it. More fields are allowed."""

    split: Text
    points: Count
    metric: Text
    value: StrictFloat
    command: Text


class LayoutDefinition(_Part):
    """A layout that is not built in, as the weights hold it: the fields of `layouts.Layout`.

    Attributes:
        point_names: P unique names.
        mirror: (P,), see `Layout.mirror`.
        contours: lines, each as indices of points and whether it is closed.
        ocular_pair: the points whose distance normalizes errors.
        pupils: two sets of points, left and right in the image.
        mean_shape: (P, 2), an upright frontal face.
        parts: indices of points by part of the face.
    """

    point_names: Annotated[tuple[Text, ...], Field(min_length=1)]
    mirror: tuple[Count, ...]
    contours: tuple[tuple[Annotated[tuple[Count, ...], Field(min_length=1)], StrictBool], ...] = ()
    ocular_pair: tuple[Count, Count]
    pupils: tuple[tuple[Count, ...], tuple[Count, ...]]
    mean_shape: tuple[tuple[Number, Number], ...]
    parts: dict[str, tuple[Count, ...]] = {}

    @model_validator(mode="after")
    def _check_points(self) -> LayoutDefinition:
        count = len(self.point_names)
        if len(set(self.point_names)) != count:
            raise ValueError("point_names must be unique")
        if len(self.mean_shape) != count:
            raise ValueError(f"mean_shape must have {count} points")
        if sorted(self.mirror) != list(range(count)) or any(
            self.mirror[other] != index for index, other in enumerate(self.mirror)
        ):
            raise ValueError(f"mirror must be a permutation of {count} and its own inverse")
        lists = [indices for indices, _ in self.contours]
        lists += [self.ocular_pair, *self.pupils, *self.parts.values()]
        if any(index >= count for indices in lists for index in indices):
            raise ValueError(f"an index is not below the number of points, {count}")
        if self.ocular_pair[0] == self.ocular_pair[1]:
            raise ValueError("ocular_pair must be two points")
        return self

    @classmethod
    def of(cls, layout: Layout) -> LayoutDefinition:
        """The definition of a layout."""
        return cls(
            point_names=layout.point_names,
            mirror=tuple(layout.mirror.tolist()),
            contours=tuple((tuple(each.indices), each.closed) for each in layout.contours),
            ocular_pair=layout.ocular_pair,
            pupils=layout.pupils,
            mean_shape=tuple((float(x), float(y)) for x, y in layout.mean_shape),
            parts={name: tuple(indices) for name, indices in layout.parts.items()},
        )

    def layout(self, name: str) -> Layout:
        """The layout of this definition; it is not registered."""
        return Layout(
            name=name,
            aliases=(),
            point_names=self.point_names,
            parts=self.parts,
            contours=tuple(Contour(indices, closed) for indices, closed in self.contours),
            ocular_pair=self.ocular_pair,
            pupils=self.pupils,
            mean_shape=np.array(self.mean_shape, np.float64),
            mirror_table=self.mirror,
        )


class ModelCard(_Part):
    """The facts about weights.

    Attributes:
        name: of the model, and of its files.
        architecture: a name in `models.registry.ARCHITECTURES`.
        configuration: the fields of the architecture's configuration class.
        calibration: by name of the layout.
        flip_test: whether `Detector` has a flip test by default, as the scores were calibrated;
            None: where `is_symmetric`, without which there is none.
        layouts: those of the predicted layouts that are not built in, by name. Loading the weights
            registers them.
        activation_ranges: lowest and highest value of the input of convolutions by their name, for
            INT8 (`runtimes.int8`); empty where they were not measured.
        file: name of the weights file; like its ``sha256`` empty until `save_weights` fills it.

    Raises:
        WeightsError: a field is missing, unknown or wrong. The message names it.
    """

    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$", max_length=MAX_NAME)]
    architecture: Text
    configuration: dict[str, Any]
    normalization: Normalization
    crop: CropContract
    decoding: Decoding
    training_data: tuple[DataSource, ...]
    license: Text
    calibration: dict[str, Calibration] = {}
    flip_test: StrictBool | None = None
    figures: tuple[Figure, ...] = ()
    activation_ranges: dict[str, tuple[Low, High]] = {}
    layouts: dict[str, LayoutDefinition] = {}
    # A name with a folder in it could lead outside of the folder of the card.
    file: Annotated[
        str, StringConstraints(pattern=rf"^({NAME.pattern}\.safetensors)?$", max_length=MAX_NAME)
    ] = ""
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""

    @field_validator("configuration")
    @classmethod
    def _check_configuration(cls, configuration: dict[str, Any]) -> dict[str, Any]:
        layouts = configuration.get("layouts"), configuration.get("auxiliary_layouts", {})
        if not all(isinstance(each, dict) for each in layouts):
            raise ValueError("layouts must map names to numbers of points")
        counts = [count for each in layouts if each for count in each.values()]
        if not layouts[0] or not all(type(count) is int and count > 0 for count in counts):
            raise ValueError("layouts must map one name or more to whole numbers of points")
        for name, limit in CONFIGURATION_LIMITS.items():
            value = configuration.get(name, 1)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} must be a whole number from 1 to {limit}")
        return configuration

    @field_validator("decoding")
    @classmethod
    def _check_decoding(cls, decoding: Decoding, info: ValidationInfo) -> Decoding:
        own = info.data.get("configuration", {}).get("stride", decoding.stride)
        if decoding.stride != own:
            raise ValueError(f"its stride must be that of the configuration, {own}")
        return decoding

    @field_validator("calibration")
    @classmethod
    def _check_calibration(
        cls, calibration: dict[str, Calibration], info: ValidationInfo
    ) -> dict[str, Calibration]:
        configuration = info.data.get("configuration", {})
        heads = {**configuration.get("layouts", {}), **configuration.get("auxiliary_layouts", {})}
        for name, own in calibration.items():
            lengths = {len(own.point_bias), len(own.correlation.std) // 2 if own.correlation else 0}
            if name in heads and lengths - {0, heads[name]}:
                raise ValueError(f"{name} must have as many points as configuration.layouts")
        return calibration

    @field_validator("layouts")
    @classmethod
    def _check_layouts(
        cls, layouts: dict[str, LayoutDefinition], info: ValidationInfo
    ) -> dict[str, LayoutDefinition]:
        predicted = info.data.get("configuration", {}).get("layouts", {})
        for name, definition in layouts.items():
            if predicted.get(name) != len(definition.point_names):
                raise ValueError(f"{name} must be in configuration.layouts with as many points")
        return layouts

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_field(
        cls, values: Any, handler: ModelWrapValidatorHandler[ModelCard]
    ) -> ModelCard:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise WeightsError(
                f"The model card's field {field!r} is wrong: {first['msg']}, not "
                f"{first['input']!r:.80}"
            ) from error

    @property
    def heads(self) -> list[str]:
        """Names of the layouts that the network predicts, auxiliary ones last."""
        return [
            *self.configuration["layouts"],
            *self.configuration.get("auxiliary_layouts", ()),
        ]

    @property
    def decoders(self) -> tuple[Decoder, ...]:
        """How the heatmaps of this architecture can be decoded."""
        return NESTED_DECODERS if self.architecture == "nested" else HEATMAP_DECODERS

    @property
    def digest(self) -> str:
        """Changes with what results depend on beside the weights, such as a calibration."""
        parts = {"calibration", "crop", "decoding", "normalization", "activation_ranges"}
        return hashlib.sha256(self.model_dump_json(include=parts).encode()).hexdigest()[:16]

    @property
    def is_symmetric(self) -> bool:
        """Whether a mirrored crop has mirrored heatmaps, so that a flip test makes sense."""
        return self.crop.pixel_origin == self.decoding.bin_center == 0.5

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parse a card of schema 1 or 2. Raises `WeightsError` for anything else."""
        try:
            values = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise WeightsError(f"The model card is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise WeightsError("The model card is not valid JSON: not an object")
        schema = values.pop("schema", None)
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise WeightsError(
                f"The model card has schema {schema!r}, not 1 to {SCHEMA}: update hihlandmark."
            )
        card = cls.model_validate(_from_schema_1(values) if schema == 1 else values)
        if not card.file or not card.sha256:
            raise WeightsError(f"The model card {card.name!r} must name one weights file.")
        return card

    def to_json(self) -> str:
        """The card as indented JSON, as `from_json` reads it."""
        excluded = {name for name in ("activation_ranges", "layouts") if not getattr(self, name)}
        values = {"schema": SCHEMA, **self.model_dump(mode="json", exclude=excluded)}
        text = json.dumps(values, indent=2, ensure_ascii=False)
        # Lists of numbers on one line: the loadings of a correlation are thousands.
        return _NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def _from_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a card of schema 1 as those of schema 2."""
    values = _renamed(values)
    decoding, files = values.get("decoding"), values.pop("files", None)
    if isinstance(decoding, dict):
        values["decoding"] = {"stride": 4, **decoding}
        if decoding.get("decoder") == "expectation":
            values["decoding"]["decoder"] = "local_soft_argmax"
    if isinstance(files, dict) and len(files) == 1:
        ((values["file"], values["sha256"]),) = files.items()
    return values


def _renamed(value: Any) -> Any:
    """A JSON value with the keys of schema 2 in place of those of schema 1."""
    if isinstance(value, dict):
        return {_SCHEMA_1_KEYS.get(key, key): _renamed(item) for key, item in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value
