"""Puts a calibration into a model card on disk, and never leaves a card broken or half written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import hihlandmark
from hihlandmark.calibration.model import Calibration
from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.layouts import Layout
from hihlandmark.weights import WeightFiles, find_weights, verify_weights
from hihlandmark.weights.card import ModelCard
from hihlandmark.writing import write_atomically

METRIC = "expected calibration error, per cent, cross-validated over faces"
"""Metric of the figure that a calibrated card states."""


def card_to_write(files: WeightFiles, folder: Path | None) -> Path | None:
    """The card that a calibration of these weights goes to; None where none may be changed.

    With a ``folder`` it is a card there. Without one it is the card beside the weights, when they
    were given as a path. Cards of the installed package and of the Hugging Face cache are not the
    user's to change. Raises `ConfigurationError` when the folder is none or has other weights of
    that name, `WeightsError` when it has a broken card.
    """
    found = Path(files.source)  # of a card only where the weights were given as a path
    if folder is None:
        package = Path(hihlandmark.__file__).resolve().parent
        # A link leads into a store that others read, as in the Hugging Face cache.
        own = found.is_file() and not found.is_symlink() and package not in found.resolve().parents
        return found if own else None
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: choose another --out")
    target = folder / (found.name if found.is_file() else f"{files.card.name}.json")
    _current_card(target, files)
    return target


def store_calibration(
    files: WeightFiles,
    target: Path,
    layout: Layout,
    calibration: Calibration,
    figure: dict[str, Any],
) -> None:
    """Writes the calibration of one layout into the card ``target``, with the weights beside it.

    A card that is there keeps all else that it says, also the calibrations of other layouts.
    ``figure`` states the calibration error; older ones of the same number of points no longer hold
    and are removed. Weights are verified, and the card is replaced in one step, last. Raises as
    `card_to_write`, and `WeightsError` when a file cannot be read or written.
    """
    verify_weights(files)
    card = _current_card(target, files)
    card = replace(
        card,
        calibration={**card.calibration, layout.name: calibration.to_dict()},
        figures=[*_still_true(card.figures, layout), figure],
    )
    try:
        for path in files.paths:
            copy = target.with_name(path.name)
            if not copy.exists():
                write_atomically(copy, path.read_bytes())
        write_atomically(target, card.to_json().encode())
    except OSError as error:
        raise WeightsError(
            f"{target} could not be written, it is as it was: {error}; make room, or choose "
            "another --out"
        ) from error
    verify_weights(find_weights(target))


def _current_card(target: Path, files: WeightFiles) -> ModelCard:
    """The card to change: the one on disk now, which may have been calibrated for other layouts.

    Where there is none, that of the weights.
    """
    card = find_weights(target).card if target.exists() else files.card
    if card.files != files.card.files:
        raise ConfigurationError(
            f"{target} is the card of other weights than {files.source}: choose another --out"
        )
    for path in files.paths:
        copy = target.with_name(path.name)
        if copy.exists() and copy.read_bytes() != path.read_bytes():
            raise ConfigurationError(f"{copy} is another file than {path}: choose another --out")
    return card


def _still_true(figures: list[dict[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    kept = []
    for figure in figures:
        if figure["points"] == layout.size:
            if figure["metric"] == METRIC:
                continue
            figure = {key: value for key, value in figure.items() if key != "calibration_error"}
        kept.append(figure)
    return kept
