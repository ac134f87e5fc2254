"""The model card: what must be known about weights to run them, and what should be to use them.

A JSON file beside the weights; `files` reads and writes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hihlandmark.crop import BoxMap
from hihlandmark.errors import WeightsError
from hihlandmark.weights.calibration import Calibration

SCHEMA = 2
"""Version of the card's fields; a card of a higher one is refused, one of schema 1 is translated."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Decoder = Literal["argmax", "local_soft_argmax", "quarter_shift", "mean"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
Activation = Literal["softmax", "linear"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of models, and of owners and repositories on the Hub."""
WEIGHT_FILE = re.compile(rf"(?P<name>{NAME.pattern})\.safetensors")

Text = Annotated[str, StringConstraints(strip_whitespace=False, pattern=r"\S")]
Channels = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normalization(_Part):
    """Mean and standard deviation of R, G, B in 0..1, applied to crops before the network."""

    mean: Channels
    std: tuple[Positive, Positive, Positive]


class CropContract(_Part):
    """The crop that a model was trained on.

    ``pixel_origin``: the offset added to a position in crop pixels before it is divided by the
    stride, 0.5 for our weights and 0 for converted ones. The center of the top-left pixel is (0, 0)
    in either case. ``boxes``: the map to the crop for each kind of box, such as "mtcnn" or
    "landmarks:WFLW98".
    """

    pixel_origin: float
    boxes: dict[str, BoxMap]


class Decoding(_Part):
    """How heatmaps become points: the arguments of these names of `heatmap.decode`."""

    decoder: Decoder
    activation: Activation
    stride: int = Field(ge=1, le=256)
    bin_center: float = 0.5
    align_corners: bool = False


class DataSource(_Part):
    """A data set that the weights were trained on, with its license and its number of images."""

    name: Text
    license: Text
    images: int = Field(ge=0)


class Figure(BaseModel):
    """A measured figure, with the command that measures it; more fields are allowed."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    split: str
    points: Any
    metric: str
    value: float
    command: str


class ModelCard(_Part):
    """What must be known about weights to run them, and what should be known to use them.

    ``configuration`` holds the fields of the architecture's configuration class, ``calibration``
    the `Calibration` of each layout that has one. ``license`` states the terms of the weights.
    ``file`` and ``sha256`` name the weights file; they are empty until `save_weights` fills them.
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
    file: Annotated[str, StringConstraints(pattern=rf"^({WEIGHT_FILE.pattern})?$")] = ""
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] = ""

    @property
    def is_symmetric(self) -> bool:
        """Whether a mirrored crop has the mirrored heatmaps."""
        return self.crop.pixel_origin == self.decoding.bin_center == 0.5

    @property
    def files(self) -> dict[str, str]:  # TODO: gone when `weights.files` knows one file
        return {self.file: self.sha256}

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parse a card.

        Raises:
            WeightsError: names the first field that is missing, unknown or wrong.
        """
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"The model card is not valid JSON: {error}. Fetch it again."
            ) from error
        if not isinstance(values, dict):
            raise WeightsError("The model card is not a JSON object: fetch it again.")
        schema = values.pop("schema", None)
        if type(schema) is not int or schema not in range(1, SCHEMA + 1):
            raise WeightsError(
                f"The model card has schema {schema!r}, this version of hihlandmark reads 1 to "
                f"{SCHEMA}: update hihlandmark, or fetch the card again."
            )
        if schema == 1:
            values = _from_schema_1(values)
        card = _validated(cls, values)
        if not card.file or not card.sha256:
            raise WeightsError(f"The model card {card.name!r} names no weights file: fetch it again.")
        return card

    def to_json(self) -> str:
        """The card as indented JSON, as `from_json` reads it."""
        values = {"schema": SCHEMA, **self.model_dump(mode="json")}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _validated(cls: type[ModelCard], values: dict[str, Any]) -> ModelCard:
    try:
        return cls.model_validate(values)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise WeightsError("The model card is nested too deeply: fetch it again.") from error
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise WeightsError(
            f"The model card's field {field!r}: {first['msg']}. Fetch the card again."
        ) from error


def _from_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a card of schema 1, which has British keys and several weight files."""
    try:
        decoding = dict(values["decoding"])
        configuration = dict(values["configuration"])
        files = dict(values.get("files", {}))
        values = {
            **values,
            "normalization": values["normalisation"],
            "license": values["licence"],
            "training_data": [
                {"name": each["name"], "license": each["licence"], "images": each["images"]}
                for each in values["training_data"]
            ],
        }
        decoding["bin_center"] = decoding.pop("bin_centre")
        decoding["align_corners"] = decoding.pop("aligned_corners", False)
        decoding["stride"] = 4
        if decoding["decoder"] == "expectation":
            decoding["decoder"] = "local_soft_argmax"
        if "idle_skips" in configuration:
            configuration["unused_shortcuts"] = configuration.pop("idle_skips")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The model card of schema 1 lacks a field or has a wrong one: {error}. Fetch it again."
        ) from error
    if len(files) > 1:
        raise WeightsError(
            f"The model card {values.get('name')!r} names {len(files)} weight files, one is "
            "supported: export the weights again."
        )
    for old in ("normalisation", "licence", "files"):
        values.pop(old, None)
    file, sha256 = next(iter(files.items()), ("", ""))
    return values | {
        "decoding": decoding,
        "configuration": configuration,
        "file": file,
        "sha256": sha256,
    }


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def abbreviate(names: Iterable[str], count: int = 3) -> str:
    """Up to ``count`` names in alphabetical order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return (", ".join(ordered[:count]) or "none") + more
