"""Write a calibration into a model card on disk, in one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import hihlandmark
from hihlandmark.errors import ConfigurationError, WeightsError
from hihlandmark.layouts import Layout
from hihlandmark.weights import (
    Calibration,
    ModelCard,
    WeightFiles,
    find_weights,
    verify_weights,
)
from hihlandmark.weights.card import Figure
from hihlandmark.writing import write_atomically

METRIC = "expected calibration error, per cent, cross-validated over faces"
"""Metric of the figure that `store_calibration` adds."""


def card_to_write(files: WeightFiles, folder: Path | None) -> Path | None:
    """The card that a calibration of these weights is written to.

    Args:
        files: the weights.
        folder: for a copy; None: the card beside the weights.

    Returns:
        The path of the card. None without a folder when the card must not be changed: those of the
        installed package and of the Hugging Face cache.

    Raises:
        ConfigurationError: the folder is no folder, or holds other weights of that name.
        WeightsError: the folder holds a broken card.
    """
    found = Path(files.source)  # a card only where the weights were given as a path
    if folder is None:
        package = Path(hihlandmark.__file__).resolve().parent
        # A link leads into a shared store, as in the Hugging Face cache.
        own = found.is_file() and not found.is_symlink() and package not in found.resolve().parents
        return found if own else None
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder: choose another --out")
    target = folder / (found.name if found.is_file() else f"{files.card.name}.json")
    _current_card(target, files)
    return target


def store_calibration(
    files: WeightFiles,
    target: Path,
    layout: Layout,
    calibration: Calibration,
    figure: Figure,
) -> None:
    """Write the calibration of one layout into the card ``target``, with the weights beside it.

    An existing card keeps its other content, including the calibrations of other layouts. The card
    is replaced in one step, after the weights were verified.

    Args:
        files: the weights.
        target: from `card_to_write`.
        layout: of the calibration.
        calibration: the calibration.
        figure: its calibration error. Older calibration errors of the same number of points are
            removed, because they no longer hold.

    Raises:
        ConfigurationError: as `card_to_write`.
        WeightsError: a file is damaged, or cannot be read or written.
    """
    verify_weights(files)
    card = _current_card(target, files)
    calibrations = {**card.calibration, layout.name: calibration}
    figures = (*_without_calibration_errors(card.figures, layout), figure)
    card = card.model_copy(update={"calibration": calibrations, "figures": figures})
    try:
        copy = target.with_name(files.path.name)
        if not copy.exists():
            write_atomically(copy, files.path.read_bytes())
        write_atomically(target, card.to_json().encode())
    except OSError as error:
        raise WeightsError(
            f"{target} cannot be written and is unchanged: {error}; free some space, or choose "
            "another --out"
        ) from error
    verify_weights(find_weights(target))


def _current_card(target: Path, files: WeightFiles) -> ModelCard:
    """The card to change: the existing one, which may hold other calibrations, or the weights'."""
    card = find_weights(target).card if target.exists() else files.card
    copy = target.with_name(files.path.name)
    same = not copy.exists() or copy.read_bytes() == files.path.read_bytes()
    if card.sha256 != files.card.sha256 or not same:
        raise ConfigurationError(
            f"{target.parent} has other weights named {files.card.name} than {files.source}: "
            "choose another --out"
        )
    return card


def _without_calibration_errors(figures: Iterable[Figure], layout: Layout) -> Iterator[Figure]:
    for figure in figures:
        if figure.points != layout.size:
            yield figure
        elif figure.metric != METRIC:
            yield Figure(**figure.model_dump(exclude={"calibration_error"}))
