"""Measure the ranges of activations of weights (``card.activation_ranges``), for INT8.

    python benchmarks/fit_activation_ranges.py --data DATA --weights CARD --out FOLDER

Everything else in the weights stays as it is. Shape regressions have to be fitted again, and scores
calibrated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hihlandmark.training.config import read_configuration
from hihlandmark.training.export import activation_ranges
from hihlandmark.weights import find_weights, read_weights, save_weights


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure ranges of activations.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--configuration", default="hih-small")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    configuration = read_configuration(arguments.configuration)
    ranges = activation_ranges(arguments.weights, configuration, arguments.data)
    card = files.card.model_copy(update={"activation_ranges": ranges})
    print(save_weights(arguments.out, card, read_weights(files)), len(ranges))


if __name__ == "__main__":
    main()
