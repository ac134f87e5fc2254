"""`hihlandmark weights`: list, download, verify, convert and publish weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hihlandmark.cli.options import ModelOption
from hihlandmark.writing import check_local

app = typer.Typer(help="List, download, verify, convert, publish weights.", no_args_is_help=True)

WeightsArgument = Annotated[
    str | None, typer.Argument(help="Path, packaged name or Hub repository.")
]


@app.command("list")
def list_packaged() -> None:
    """List the packaged weights, verified, with their errors and licenses."""
    from hihlandmark import list_models

    rows = list_models()
    for row in rows:
        size = f"{row.size / 1e6:.1f} MB"
        print(f"{row.name}  {', '.join(row.layouts)}  {size}  {row.problem or 'verified'}")
        for figure in row.nme:
            facts = figure.model_dump()
            boxes = "detected boxes" if facts.get("boxes") == "detected" else None
            how = ", ".join(each for each in (boxes, facts.get("precision")) if each)
            faces = f"{figure.split}, {figure.points} points" + (f" ({how})" if how else "")
            print(f"  {faces}: {figure.metric}: {figure.value}")
        print(f"  {row.license}")
    raise typer.Exit(1 if any(row.problem for row in rows) else 0)


@app.command()
def pull(
    repository: Annotated[
        str, typer.Argument(help="owner/name or owner/name@revision on the Hub.")
    ],
    model: ModelOption = "hih-small",
) -> None:
    """Download weights from the Hugging Face Hub into its cache, and verify them."""
    from hihlandmark.weights import pull_weights, verify_weights

    files = pull_weights(repository, model=model)
    verify_weights(files)
    print(f"{files.card.name}: {files.source}, verified")


@app.command()
def push(
    weights: Annotated[str, typer.Argument(help="Path, packaged name or Hub repository.")],
    repository: Annotated[
        str, typer.Argument(help="owner/name or owner/name@branch, created if missing.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository a private one.")
    ] = False,
    model: ModelOption = "hih-small",
) -> None:
    """Upload weights, their card and a page about them to the Hugging Face Hub."""
    from hihlandmark.weights.publish import push_weights

    print(f"uploaded: {push_weights(weights, repository, model=model, private=private)}")


@app.command()
def verify(weights: WeightsArgument = None, model: ModelOption = "hih-small") -> None:
    """Check the SHA-256 of a weights file against its card."""
    from hihlandmark.weights import find_weights, verify_weights

    files = find_weights(weights, model=model)
    verify_weights(files)
    print(f"{files.card.name}: {files.source}, verified")


@app.command()
def path(weights: WeightsArgument = None, model: ModelOption = "hih-small") -> None:
    """Print the path of a weights file."""
    from hihlandmark.weights import find_weights

    print(find_weights(weights, model=model).path)


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of the authors of HIH, ADNet or Adaptive Wing (.pth, .pkl)."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", callback=check_local, help="Folder for the safetensors and the card."
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Default: the checkpoint's name.")
    ] = None,
) -> None:
    """Convert an official checkpoint of HIH, ADNet or Adaptive Wing to safetensors with a card."""
    from hihlandmark.weights.convert import convert_checkpoint

    print(convert_checkpoint(checkpoint, out, name or checkpoint.stem))
