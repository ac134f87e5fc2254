"""The model card: what must be known about weights to run them, and what should be to use them.

A JSON file beside the weights; `weights` finds and writes both.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from hihlandmark.errors import WeightsError

if TYPE_CHECKING:
    from hihlandmark import crop
    from hihlandmark.heatmap import Activation, Decoder

SCHEMA = 1
"""Version of the card's fields; a card of a higher one is refused."""
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]

DECODERS = ("argmax", "local_soft_argmax", "quarter_shift", "mean")
"""Those of ``heatmap.Decoder``, which cannot be imported here without torch."""
ACTIVATIONS = ("linear", "softmax")
"""Those of ``heatmap.Activation``, likewise."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of models, and of owners and repositories on the Hub."""
WEIGHT_FILE = re.compile(rf"(?P<name>{NAME.pattern}?)(-\d{{5}}-of-\d{{5}})?\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Normalization(TypedDict):
    """Mean and standard deviation of R, G, B in 0..1, subtracted and divided before the network."""

    mean: list[float]
    std: list[float]


class BoxMap(TypedDict):
    """From a box to its crop square: ``shift`` (dx, dy) of the center and ``scale`` of the side.

    Both are in units of the box's longer side.
    """

    shift: list[float]
    scale: float


class CropContract(TypedDict):
    """The crop that a model was trained on.

    ``pixel_origin``: where the center of the top-left pixel lies, 0.5 in this package and 0.0 in
    networks of projects that take x / stride for the heatmap position. ``boxes``: a `BoxMap` for
    each kind of box, "mtcnn" or "landmarks:WFLW98".
    """

    pixel_origin: float
    boxes: dict[str, BoxMap]


class _RequiredDecoding(TypedDict):
    decoder: Decoder
    bin_center: float
    activation: Activation


class Decoding(_RequiredDecoding, total=False):
    """How heatmaps become points: the arguments of these names in ``heatmap``.

    ``align_corners`` may be left out, for False.
    """

    align_corners: bool


class TrainingData(TypedDict):
    """A data set that the weights were trained on, with its license and its number of images."""

    name: str
    license: str
    images: int


@dataclass(frozen=True)
class ModelCard:
    """What must be known about weights to run them, and what should be known to use them.

    ``configuration`` holds the fields of the architecture's configuration class, ``calibration``
    a mapping for each layout that has one. ``files`` maps the name of each weight file to its
    SHA-256, in the order of the shards; it is empty until `save_weights` fills it. ``license``
    states the terms of the weights. Each of ``figures`` has at least "split", "points", "metric",
    "value" and the "command" that measures it. Raises `WeightsError` when a field is not as stated.
    """

    name: str
    architecture: str
    configuration: dict[str, Any]
    normalization: Normalization
    crop: CropContract
    decoding: Decoding
    training_data: list[TrainingData]
    license: str
    calibration: dict[str, Any] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_card(self)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Parse a card; `WeightsError` names the first field that is missing, unknown or wrong."""
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise WeightsError(
                f"The model card is not valid JSON: {error}. Fetch it again."
            ) from error
        if not isinstance(values, dict):
            raise WeightsError("The model card is not a JSON object: fetch it again.")
        schema = values.pop("schema", None)
        if isinstance(schema, int) and schema > SCHEMA:
            raise WeightsError(
                f"The model card has schema {schema}, this version of hihlandmark reads {SCHEMA}: "
                "update hihlandmark."
            )
        if schema != SCHEMA or isinstance(schema, bool):
            raise WeightsError(
                f"The model card's schema is {schema!r}, expected {SCHEMA}: fetch it again."
            )
        names = {entry.name for entry in fields(cls)}
        for trouble, keys in (("lacks", names - set(values)), ("has unknown", set(values) - names)):
            if keys:
                raise WeightsError(
                    f"The model card {trouble} fields: {abbreviate(keys)}. Fetch it again."
                )
        card = cls(**values)
        if not card.files:
            raise WeightsError(
                f"The model card {card.name!r} names no weight files: fetch it again."
            )
        return card

    def to_json(self) -> str:
        """The card as indented JSON, as `from_json` reads it."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def boxes_of(maps: Mapping[str, crop.BoxMap]) -> dict[str, BoxMap]:
    """Maps from boxes to crops as a card holds them."""
    return {kind: {"shift": list(m.shift), "scale": round(m.scale, 4)} for kind, m in maps.items()}


def _check_card(card: ModelCard) -> None:
    _expect(_is_name(card.name), "name", "letters, digits and . _ -", card.name)
    _expect(_is_text(card.architecture), "architecture", "a text", card.architecture)
    _expect(_is_text(card.license), "license", "a text", card.license)
    for name in ("configuration", "calibration", "files"):
        value = getattr(card, name)
        _expect(_is_mapping(value), name, "an object", value)
    _expect_fields(card.normalization, "normalization", {"mean", "std"})
    mean, std = card.normalization["mean"], card.normalization["std"]
    _expect(_are_numbers(mean, 3), "normalization.mean", "three numbers", mean)
    positive = _are_numbers(std, 3) and min(std) > 0
    _expect(positive, "normalization.std", "three numbers above 0", std)
    _check_decoding(card.decoding)
    _check_crop(card.crop)
    for name, digest in card.files.items():
        # A name with a folder in it could lead outside of the folder of the card.
        _expect(WEIGHT_FILE.fullmatch(name), "files", "names as NAME.safetensors", name)
        hexadecimal = isinstance(digest, str) and _SHA256.fullmatch(digest)
        _expect(hexadecimal, f"files.{name}", "a SHA-256 in small hexadecimal digits", digest)
    _check_provenance(card)


def _check_decoding(decoding: Decoding) -> None:
    _expect_fields(decoding, "decoding", {"decoder", "bin_center", "activation"}, {"align_corners"})
    decoder, activation = decoding["decoder"], decoding["activation"]
    named = f"one of {abbreviate(DECODERS, len(DECODERS))}"
    _expect(decoder in DECODERS, "decoding.decoder", named, decoder)
    known = activation in ACTIVATIONS
    _expect(known, "decoding.activation", f"one of {abbreviate(ACTIVATIONS)}", activation)
    center = decoding["bin_center"]
    _expect(_is_number(center), "decoding.bin_center", "a number", center)
    aligned = decoding.get("align_corners", False)
    _expect(isinstance(aligned, bool), "decoding.align_corners", "true or false", aligned)


def _check_crop(crop: CropContract) -> None:
    _expect_fields(crop, "crop", {"pixel_origin", "boxes"})
    _expect(_is_number(crop["pixel_origin"]), "crop.pixel_origin", "a number", crop["pixel_origin"])
    _expect(_is_mapping(crop["boxes"]), "crop.boxes", "an object", crop["boxes"])
    for kind, box in crop["boxes"].items():
        where = f"crop.boxes.{kind}"
        _expect_fields(box, where, {"shift", "scale"})
        _expect(_are_numbers(box["shift"], 2), f"{where}.shift", "two numbers", box["shift"])
        positive = _is_number(box["scale"]) and box["scale"] > 0
        _expect(positive, f"{where}.scale", "a number above 0", box["scale"])


def _check_provenance(card: ModelCard) -> None:
    _expect(isinstance(card.training_data, list), "training_data", "a list", card.training_data)
    for i, data in enumerate(card.training_data):
        where = f"training_data[{i}]"
        _expect_fields(data, where, {"name", "license", "images"})
        texts = _is_text(data["name"]) and _is_text(data["license"])
        _expect(texts, where, "name and license as texts", data)
        count = data["images"]
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        _expect(whole, f"{where}.images", "a whole number", count)
    _expect(isinstance(card.figures, list), "figures", "a list", card.figures)
    for i, figure in enumerate(card.figures):
        where, needed = f"figures[{i}]", {"split", "points", "metric", "value", "command"}
        _expect(_is_mapping(figure), where, "an object", figure)
        missing = needed - figure.keys()
        _expect(not missing, where, f"the fields {abbreviate(needed, 5)}", figure)
        _expect(_is_number(figure["value"]), f"{where}.value", "a number", figure["value"])


def _expect(holds: object, name: str, expected: str, value: object) -> None:
    if not holds:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise WeightsError(f"The model card's field {name!r} must be {expected}, not {shown}.")


def _expect_fields(
    value: object, name: str, names: set[str], optional: Set[str] = frozenset()
) -> None:
    fits = isinstance(value, dict) and value.keys() - optional == names
    _expect(fits, name, f"an object with the fields {abbreviate(names)}", value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


def _are_numbers(value: object, count: int) -> bool:
    return isinstance(value, Sequence) and len(value) == count and all(map(_is_number, value))


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def abbreviate(names: Iterable[str], count: int = 3) -> str:
    """Up to ``count`` names in alphabetical order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - count} more" if len(ordered) > count else ""
    return (", ".join(ordered[:count]) or "none") + more
