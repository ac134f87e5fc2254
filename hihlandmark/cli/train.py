"""`hihlandmark train`: from annotated faces to weights."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from hihlandmark.cli.options import DataWorkersOption, DeviceOption, counted, progress_bar
from hihlandmark.training import shipped_configurations
from hihlandmark.writing import check_local


def train(
    configuration: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help=f"A TOML file, or a shipped configuration: {', '.join(shipped_configurations())}.",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of the configuration's data sets.")],
    run: Annotated[
        Path,
        typer.Option(
            "--out", "-o", callback=check_local, help="Folder of the run; resumes a run in it."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as stages.0.steps=100; repeatable."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", callback=check_local, help="Folder for weights and card of the result."
        ),
    ] = None,
    initial: Annotated[
        str | None, typer.Option("--initial", help="Path or name of the weights to start from.")
    ] = None,
    device: DeviceOption = "auto",
    workers: DataWorkersOption = 1,
) -> None:
    """Train a network on annotated faces, or resume a stopped run.

    On several GPUs or processes: torchrun --nproc-per-node N -m hihlandmark train ...
    """
    from hihlandmark.errors import WeightsError, missing_extra

    with missing_extra("train"):
        from accelerate import PartialState

        from hihlandmark.training.checkpoint import LAST
        from hihlandmark.training.config import read_configuration
        from hihlandmark.training.export import export as export_weights
        from hihlandmark.training.trainer import train as run_training
    from hihlandmark.models.registry import architecture_of
    from hihlandmark.weights import find_weights, load_model, register_layouts
    from hihlandmark.weights.files import refuse_existing_weights
    from hihlandmark.writing import write_atomically

    chosen = read_configuration(configuration, settings or ())
    exported = run / "exported.txt"  # where to: a run that is repeated replaces its own weights
    if export is not None and not (
        exported.exists() and exported.read_text(encoding="utf-8") == str(export.resolve())
    ):
        refuse_existing_weights(export, chosen.name)
    start = None
    if initial and (run / LAST).exists():
        print(f"{run} is resumed: --initial is where it started, or of no effect", file=sys.stderr)
        with suppress(WeightsError):
            register_layouts(find_weights(initial).card)  # for the readers of the faces
    elif initial:
        loaded = load_model(initial)
        if (own := loaded.card.architecture) != (needed := architecture_of(chosen.model)):
            raise WeightsError(
                f"--initial {initial} has architecture {own!r}, this run trains {needed!r}"
            )
        start = loaded.network.state_dict()
    with progress_bar("faces") as bar:
        summary = run_training(
            chosen, data, run, device=device, initial=start, workers=workers, progress=bar
        )
    state = PartialState()
    # A process that leaves while another still talks to it would end both with an error.
    state.wait_for_everyone()
    state.destroy_process_group()
    if not state.is_main_process:
        return
    print(f"{counted(summary.steps, 'step')}; checkpoint: {summary.checkpoint}")
    for name, nme in summary.nme.items():
        print(f"  {name}: NME {100 * nme:.2f} %")
    if summary.skipped:
        print(f"{counted(len(summary.skipped), 'sample')} skipped, the first: {summary.skipped[0]}")
    if summary.replaced:
        times = counted(summary.replaced, "time")
        print(f"unreadable images were replaced by another face {times}")
    if export is not None:
        write_atomically(exported, str(export.resolve()).encode())
        print(f"weights: {export_weights(summary.checkpoint, chosen, data, export)}")
