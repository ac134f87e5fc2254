"""Fit the shape regressions of weights to faces of a configuration (``card.regressions``).

    python benchmarks/fit_shape_regression.py --data DATA --weights CARD --out FOLDER

Everything else in the weights stays as it is; ranges of activations are measured before. Scores
have to be calibrated again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hihlandmark.training.config import read_configuration
from hihlandmark.training.export import shape_regressions
from hihlandmark.weights import find_weights, read_weights, save_weights


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description="Fit shape regressions.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, required=True, help="card of the weights")
    parser.add_argument("--configuration", default="hih-small")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new weights")
    arguments = parser.parse_args()
    files = find_weights(arguments.weights)
    configuration = read_configuration(arguments.configuration)
    fitted = shape_regressions(arguments.weights, configuration, arguments.data)
    path = save_weights(arguments.out, files.card, {**read_weights(files), **fitted})
    print(path, find_weights(path).card.sha256)


if __name__ == "__main__":
    main()
