"""`hihlandmark bench`: the speed of this machine, runtime by runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from hihlandmark.cli import options


def bench(
    image: options.ImageArgument = None,
    layout: options.DefaultLayoutOption = None,
    model: options.ModelOption = "hih-small",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = "auto",
    batch: Annotated[
        list[int] | None, Option(min=1, help="Faces per batch; can be repeated.")
    ] = None,
    rounds: Annotated[int, Option(min=1, help="How often each call is measured.")] = 15,
    all_precisions: Annotated[
        bool, Option("--all-precisions", help="All, not only fp32 and the default: may be slow.")
    ] = False,
    json_file: Annotated[
        Path | None, Option("--json", help="File for the times, with machine and versions.")
    ] = None,
) -> None:
    """Measure the network and a whole image on this machine, in every installed runtime."""
    from hihlandmark import benchmark
    from hihlandmark.image import load_image
    from hihlandmark.runtimes.torch_devices import resolve_device
    from hihlandmark.weights import find_weights
    from hihlandmark.writing import refuse_existing, write_atomically

    refuse_existing(json_file)
    figures = benchmark.measure(
        str(find_weights(weights, model=model).card_path), layout,
        load_image(image or options.astronaut()), resolve_device(device),
        batches=batch or (1, 8), rounds=rounds,
        precisions=("fp32", "bf16", "int8") if all_precisions else ("fp32",),
    )  # fmt: skip
    print(benchmark.markdown(figures))
    if json_file:
        write_atomically(json_file, (json.dumps(figures, indent=2) + "\n").encode())
