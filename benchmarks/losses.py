"""Compare losses on the same short training run: a Markdown table and JSON.

    python benchmarks/losses.py --data DIR --runs DIR --json OUT

The data folder has ``w300``, ``wflw98`` and ``cofw29``. Each of `SETTINGS` trains ``hih-small-v1``
from the same initial weights on the same batches; only the losses differ. The figures are
inter-ocular errors in per cent after the run, on faces that were not used for training. So short a
run shows which loss trains fast, not which one ends best. A stopped run is resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from hihlandmark.cli.options import progress_bar
from hihlandmark.training.config import read_configuration
from hihlandmark.training.trainer import train


class Setting(NamedTuple):
    """The losses of one run; see `hihlandmark.training.config.Loss`.

    Decimal weights, except the paper's, give the gradients of both maps on an untrained network the
    ratio of the first setting; point weights make the steepest slope of each loss about 1.
    """

    integer: str
    decimal: str
    decimal_weight: float
    point: str = "none"
    point_weight: float = 0.0


SETTINGS = (
    Setting("cross_entropy", "cross_entropy", 0.5),
    Setting("mse", "csc", 0.05 / 64),  # as released: their divergence is a mean over the bins
    Setting("mse", "cross_entropy", 0.0025),
    Setting("adaptive_wing", "cross_entropy", 0.25),
    Setting("csc", "cross_entropy", 0.0017),
    Setting("cross_entropy", "csc", 4.0),
    Setting("cross_entropy", "cross_entropy", 0.5, "smooth_l1", 1.0),
    Setting("cross_entropy", "cross_entropy", 0.5, "wing", 0.2),
    Setting("cross_entropy", "cross_entropy", 0.5, "direction", 1.0),
    Setting("cross_entropy", "cross_entropy", 0.5, "star", 1.0),
)

SMALL_RUN = (
    'sets=[{folder = "w300"}, {folder = "wflw98"}, {folder = "cofw29"}]',
    "auxiliary_layouts={}",
    'validation.sets=[{folder = "wflw98", split = "val"}, {folder = "cofw29", split = "val"}, '
    '{folder = "w300", split = "helen_test"}]',
)


def overrides(setting: Setting, steps: int) -> list[str]:
    """The changes to the configuration ``hih-small-v1``."""
    stage = (
        f"crop_size = 128, batch_size = 24, learning_rate = 2e-3, warmup_steps = {min(100, steps)}"
    )
    return [
        *SMALL_RUN,
        f"stages=[{{steps = {steps}, {stage}}}]",
        # One evaluation, at the end: a best checkpoint selected on these faces would be biased.
        f"validation.every={steps}",
        *(f"loss.{key}={json.dumps(value)}" for key, value in setting._asdict().items()),
    ]


def measure(setting: Setting, changes: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The setting and its errors in per cent by split."""
    run = arguments.runs / f"{setting.integer}-{setting.decimal}-{setting.point}"
    configuration = read_configuration("hih-small-v1", changes)
    with progress_bar("faces") as bar:
        summary = train(configuration, arguments.data, run, device=arguments.device, progress=bar)
    return {**setting._asdict(), "nme": {name: 100 * nme for name, nme in summary.nme.items()}}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, a column for each split."""
    splits = list(rows[0]["nme"])
    table = [["integer", "decimal", "point", *splits], ["---"] * 3 + ["---:"] * len(splits)]
    for row in rows:
        point = "" if row["point"] == "none" else f"{row['point']} × {row['point_weight']:g}"
        decimal = f"{row['decimal']} × {row['decimal_weight']:g}"
        errors = [f"{row['nme'][split]:.2f}" for split in splits]
        table.append([row["integer"], decimal, point, *errors])
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def main() -> None:
    """Parse, train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--steps", type=int, default=1200, help="length of each run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for all runs")
    arguments = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        changes = [*overrides(setting, arguments.steps), *arguments.set]
        rows.append(measure(setting, changes, arguments))
        # After every run: all of them take hours on two CPU cores.
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    Console(soft_wrap=True).print(markdown(rows), markup=False, highlight=False)


if __name__ == "__main__":
    main()
