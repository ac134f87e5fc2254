"""The model card: the facts about weights that running and using them needs, as a JSON file.

`files` reads and writes the card with its weights; `find` looks for both.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from hihlandmark.crop import BoxMap
from hihlandmark.errors import WeightsError
from hihlandmark.weights.calibration import Calibration

SCHEMA = 2
"""Version of the card's fields. Cards of schema 1 are read too."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Decoder = Literal["argmax", "local_soft_argmax", "quarter_shift", "mean"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
Activation = Literal["softmax", "linear"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of models, and of owners and repositories on the Hub."""
WEIGHT_FILE = re.compile(rf"(?P<name>{NAME.pattern})\.safetensors")

Text = Annotated[str, StringConstraints(pattern=r"\S")]
PositiveNumber = Annotated[StrictFloat, Field(gt=0)]
Count = Annotated[StrictInt, Field(ge=0)]

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

    mean: tuple[StrictFloat, StrictFloat, StrictFloat]
    std: tuple[PositiveNumber, PositiveNumber, PositiveNumber]


class CropContract(_Part):
    """The crop that a model was trained on.

    Attributes:
        pixel_origin: the half-pixel offset added to a position in crop pixels before it is divided
            by the stride: 0.5 for our weights, 0 for converted ones. The center of the top-left
            pixel is (0, 0) in both cases.
        boxes: the map to the crop for each kind of box, such as "mtcnn" or "landmarks:WFLW98".
    """

    pixel_origin: StrictFloat
    boxes: dict[str, BoxMap]

    @field_validator("boxes")
    @classmethod
    def _check_scales(cls, boxes: dict[str, BoxMap]) -> dict[str, BoxMap]:
        for kind, box_map in boxes.items():
            if box_map.scale <= 0:
                raise ValueError(f"the scale of {kind} must be above 0")
        return boxes


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
    bin_center: StrictFloat = 0.5
    align_corners: StrictBool = False


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


class ModelCard(_Part):
    """The facts about weights.

    Attributes:
        name: of the model, and of its files.
        architecture: a name in `models.registry.ARCHITECTURES`.
        configuration: the fields of the architecture's configuration class.
        normalization: of the crop's colors.
        crop: the crop that the model was trained on.
        decoding: how its heatmaps become points.
        training_data: the data sets that it was trained on.
        license: the terms of the weights.
        calibration: by name of the layout.
        figures: measured errors.
        file: name of the weights file; empty until `save_weights` fills it.
        sha256: hash of the weights file, likewise.

    Raises:
        WeightsError: a field is missing, unknown or wrong. The message names it.
    """

    name: Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}$")]
    architecture: Text
    configuration: dict[str, Any]
    normalization: Normalization
    crop: CropContract
    decoding: Decoding
    training_data: tuple[DataSource, ...]
    license: Text
    calibration: dict[str, Calibration] = {}
    figures: tuple[Figure, ...] = ()
    # A name with a folder in it could lead outside of the folder of the card.
    file: Annotated[str, StringConstraints(pattern=rf"^({NAME.pattern}\.safetensors)?$")] = ""
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""

    @field_validator("configuration")
    @classmethod
    def _check_layouts(cls, configuration: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(configuration.get("layouts"), dict):
            raise ValueError("layouts must map names to numbers of points")
        return configuration

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
            value = repr(first["input"])
            value = value if len(value) <= 80 else f"{value[:77]}..."
            raise WeightsError(
                f"The model card's field {field!r} is wrong: {first['msg']}, not {value}. "
                "Correct it, or fetch the card again."
            ) from error

    @property
    def is_symmetric(self) -> bool:
        """Whether a mirrored crop has mirrored heatmaps, so that a flip test makes sense."""
        return self.crop.pixel_origin == self.decoding.bin_center == 0.5

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parse a card of schema 1 or 2.

        Raises:
            WeightsError: the text is no JSON object, or a field is missing, unknown or wrong.
        """
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
            if not isinstance(values, dict):
                raise ValueError("not an object")
            schema = values.pop("schema", None)
            values = _from_schema_1(values) if schema == 1 else values
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"The model card is not valid JSON: {error}. Fetch it again."
            ) from error
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise WeightsError(
                f"The model card has schema {schema!r}, this version of hihlandmark reads 1 to "
                f"{SCHEMA}: update hihlandmark, or fetch the card again."
            )
        card = cls.model_validate(values)
        if not card.file or not card.sha256:
            raise WeightsError(
                f"The model card {card.name!r} names no weights file: fetch it again."
            )
        return card

    def to_json(self) -> str:
        """The card as indented JSON, as `from_json` reads it."""
        values = {"schema": SCHEMA, **self.model_dump(mode="json")}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _from_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a card of schema 1 as those of schema 2."""
    values = _renamed(values)
    decoding, files = values.get("decoding"), values.pop("files", None)
    if isinstance(decoding, dict):
        values["decoding"] = {"stride": 4, **decoding}
        if decoding.get("decoder") == "expectation":
            values["decoding"]["decoder"] = "local_soft_argmax"
    if isinstance(files, dict) and files:
        if len(files) > 1:
            raise WeightsError(
                f"The model card {values.get('name')!r} names {len(files)} weights files, only one "
                "is supported: export the weights again."
            )
        ((values["file"], values["sha256"]),) = files.items()
    return values


def _renamed(value: Any) -> Any:
    """A JSON value with the keys of schema 2 in place of those of schema 1."""
    if isinstance(value, dict):
        return {_SCHEMA_1_KEYS.get(key, key): _renamed(item) for key, item in value.items()}
    return [_renamed(item) for item in value] if isinstance(value, list) else value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
