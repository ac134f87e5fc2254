"""The `hihlandmark` command: parse arguments, call the package, print. No other logic lives here.

Exit codes: 0 all done; 1 some inputs failed, each named on stderr; 2 wrong usage.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.errors import ConfigurationError, HihlandmarkError, ImageError

if TYPE_CHECKING:
    from hihlandmark.detector import Detector
    from hihlandmark.face import Face
    from hihlandmark.folder import Source

app = typer.Typer(
    help="Sub-pixel face landmarks with Heatmap-in-Heatmap networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
weights_app = typer.Typer(help="List, fetch, check and convert weight files.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")


class LayoutName(str, Enum):
    """The landmark layouts by their number of points."""

    WFLW98 = "98"
    W300_68 = "68"
    COFW29 = "29"


class OutputFormat(str, Enum):
    """Keys of `folder.FORMATS`."""

    JSON = "json"
    CSV = "csv"
    PTS = "pts"


class BoxOrigin(str, Enum):
    """Where the boxes of an evaluation come from; see `evaluate.evaluate`."""

    LANDMARKS = "landmarks"
    DETECTED = "detected"


LayoutOption = Annotated[
    LayoutName, typer.Option("--layout", help="98 (WFLW), 68 (300-W) or 29 (COFW) points.")
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the model.")]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="Path, packaged name or Hub repository; default: the model's."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
RefineOption = Annotated[
    int, typer.Option("--refine", min=0, help="How often to cut the crop anew around the points.")
]
MirrorOption = Annotated[
    bool, typer.Option("--mirror/--no-mirror", help="Twice the network's time for better points.")
]


@app.callback()
def configure(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is chosen and done, on stderr.")
    ] = False,
) -> None:
    """Sub-pixel face landmarks with Heatmap-in-Heatmap networks."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


@app.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(help="Image files, folders, globs or http(s) URLs.", metavar="PATH..."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the results, one file an image; default: JSON lines on stdout.",
        ),
    ] = None,
    layout: LayoutOption = LayoutName.WFLW98,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="What to write.")
    ] = OutputFormat.JSON,
    draw: Annotated[
        bool, typer.Option("--draw", help="Write a PNG with the landmarks drawn, too. Needs --out.")
    ] = False,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    refine: RefineOption = 1,
    min_face: Annotated[
        int | None,
        typer.Option("--min-face", min=1, help="Side in pixels of the smallest face to look for."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Faces a batch.")] = 32,
    mirror: MirrorOption = True,
) -> None:
    """Find the landmarks of every face in images, folders, globs and URLs."""
    if draw and out is None:
        raise typer.BadParameter("--draw needs --out DIR to write the pictures to")
    if output_format is not OutputFormat.JSON and out is None:
        raise typer.BadParameter(f"--format {output_format.value} needs --out DIR to write to")
    detector = _detector(
        layout,
        model,
        weights=weights,
        device=device,
        refine=refine,
        min_face=min_face,
        batch_size=batch_size,
        mirror=None if mirror else False,
    )
    images, faces, failures = 0, 0, 0
    for source, result in _predict_sources(detector, paths):
        if source is None or isinstance(result, ImageError):
            failures += 1
            print(f"failed: {result}", file=sys.stderr)
            continue
        images, faces = images + 1, faces + len(result)
        _write(source, result, out, output_format, draw)
    counts = (
        f"{images} image{'s' * (images != 1)}, {faces} face{'s' * (faces != 1)}, {failures} failed"
    )
    print(counts + (f"; results in {out}" if out and images else ""), file=sys.stderr)
    raise typer.Exit(1 if failures else 0)


def _predict_sources(
    detector: Detector, paths: list[str]
) -> Iterator[tuple[Source | None, list[Face] | ImageError]]:
    """Each image with its faces or its error, in order; what is no image at all has no source."""
    from hihlandmark.folder import find_images

    waiting: deque[Source | ImageError] = deque()

    def readable() -> Iterator[str]:
        for item in find_images(paths):
            waiting.append(item)
            if not isinstance(item, ImageError):
                yield item.path

    for result in detector.predict_many(readable(), on_error="yield"):
        while isinstance(item := waiting.popleft(), ImageError):
            yield None, item
        yield item, result
    for item in waiting:
        assert isinstance(item, ImageError)  # every source has got its result
        yield None, item


def _write(
    source: Source, faces: list[Face], out: Path | None, output_format: OutputFormat, draw: bool
) -> None:
    from hihlandmark.folder import FORMATS
    from hihlandmark.writing import write_atomically

    texts = FORMATS[output_format.value](faces, source)
    if out is None:
        print(*texts.values(), sep="", end="", flush=True)
        return
    target = out / source.name
    for suffix, text in texts.items():
        write_atomically(target.with_name(target.name + suffix), text.encode())
    if draw:
        picture = _png(source.path, faces)
        write_atomically(target.with_name(target.name + ".landmarks.png"), picture)


def _png(path: Any, faces: list[Face]) -> bytes:
    import io

    from PIL import Image

    from hihlandmark.draw import draw_faces
    from hihlandmark.image import load_image

    buffer = io.BytesIO()
    Image.fromarray(draw_faces(load_image(path), faces)).save(buffer, "PNG")
    return buffer.getvalue()


@app.command()
def demo(
    image: Annotated[
        str | None,
        typer.Argument(help="A photo of your own; default: the astronaut of scikit-image."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the picture and the JSON.")] = Path(
        "demo"
    ),
    layout: LayoutOption = LayoutName.WFLW98,
    device: DeviceOption = "auto",
) -> None:
    """Run on a real photo; write the picture with landmarks and the JSON, and say where."""
    from hihlandmark.folder import FORMATS, Source
    from hihlandmark.writing import write_atomically

    photo, name = (image, Path(image).stem) if image else (_astronaut(), "astronaut")
    faces = _detector(layout, "hih-small", device=device).predict(photo)
    picture, record = out / f"{name}.landmarks.png", out / f"{name}.json"
    write_atomically(picture, _png(photo, faces))
    source = Source(image or "skimage.data.astronaut()", name)
    write_atomically(record, FORMATS["json"](faces, source)[".json"].encode())
    print(f"{len(faces)} face{'s' * (len(faces) != 1)} found")
    for face in faces:
        print(f"  {face!r}")
    print(f"picture: {picture}\nlandmarks: {record}")


def _astronaut() -> Any:
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise ConfigurationError(
            "the demo photo comes with scikit-image: pip install 'hihlandmark[demo]', "
            "or give a photo of your own: hihlandmark demo PHOTO"
        ) from error
    return astronaut()


@app.command("eval")
def evaluate_split(
    data: Annotated[
        Path, typer.Option("--data", help="Folder with annotations.jsonl and pictures.")
    ],
    split: Annotated[str, typer.Option("--split", help="Name of the split.")],
    layout: Annotated[
        LayoutName | None,
        typer.Option("--layout", help="Default: by the number of points annotated."),
    ] = None,
    boxes: Annotated[
        BoxOrigin,
        typer.Option("--boxes", help="Crop around the true points or around detected faces."),
    ] = BoxOrigin.LANDMARKS,
    refine: Annotated[
        int | None,
        typer.Option("--refine", min=0, help="Default: 0 with true points, 1 with detected faces."),
    ] = None,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    mirror: MirrorOption = True,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", help="argmax or expectation; default: the model card's."),
    ] = None,
) -> None:
    """Measure NME, FR and AUC on a split of a data folder, and print them as JSON."""
    import json

    from hihlandmark.evaluate import evaluate, read_annotations

    points = len(read_annotations(data, split)[0]["points"])
    refine = refine if refine is not None else int(boxes is BoxOrigin.DETECTED)
    detector = _detector(
        layout or points,
        model,
        weights=weights,
        device=device,
        refine=refine,
        decoder=decoder,
        mirror=None if mirror else False,
    )
    summary = evaluate(detector, data, split, boxes.value).summary()
    used = {"model": detector.card.name, "weights": detector.card.files, "boxes": boxes.value}
    print(
        json.dumps(
            {
                **summary,
                **used,
                "refine": refine,
                "decoder": detector.decoder,
                "mirror": detector.mirror,
            },
            indent=2,
        )
    )


@app.command()
def doctor() -> None:
    """Say what is installed, which device is used, which weights are there, what is missing."""
    from hihlandmark.doctor import report

    healthy = report()
    raise typer.Exit(0 if healthy else 1)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as hih-small.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of annotated sets.")],
    run: Annotated[
        Path, typer.Option("--run", help="Folder for checkpoint and log; goes on if it has one.")
    ],
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Folder to write weights and card to when training is done."),
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            "--initial", help="Weights to start from: path, packaged name or Hub repository."
        ),
    ] = None,
    first_stage: Annotated[
        int, typer.Option("--first-stage", min=1, help="Skip the stages before, with --initial.")
    ] = 1,
    steps: Annotated[
        float, typer.Option("--steps", min=0, help="Share of the recipe's steps, for a short run.")
    ] = 1.0,
    device: DeviceOption = "auto",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that prepare data.")
    ] = 1,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="bfloat16 autocast, where the machine is fast at it.")
    ] = False,
) -> None:
    """Train a network on annotated faces, resuming where a stopped run was."""
    from hihlandmark.runtimes.pytorch import resolve_device
    from hihlandmark.training.export import export as export_weights
    from hihlandmark.training.loop import train as run_training
    from hihlandmark.training.recipes import RECIPES, shortened
    from hihlandmark.weights import find_weights, read_weights

    if recipe not in RECIPES:
        raise ConfigurationError(f"no recipe {recipe!r}; there is {', '.join(RECIPES)}")
    chosen = shortened(RECIPES[recipe], steps, first_stage)
    start = read_weights(find_weights(initial)) if initial else None
    checkpoint = run_training(
        chosen, data, run, device=resolve_device(device), initial=start, workers=workers, bf16=bf16
    )
    print(f"checkpoint: {checkpoint}")
    if export is not None:
        print(f"weights: {export_weights(checkpoint, chosen, data, export)}")


@weights_app.command("list")
def list_packaged() -> None:
    """List the weights that come with the package and whether they are whole."""
    from hihlandmark.weights import list_weights

    rows = list_weights()
    for row in rows:
        layouts = ", ".join(row.files.card.configuration["layouts"]) if row.files else "?"
        print(f"{row.name}  {layouts}  {row.problem or 'verified'}")
    raise typer.Exit(1 if any(row.problem for row in rows) else 0)


@weights_app.command()
def pull(
    repository: Annotated[
        str, typer.Argument(help="owner/name or owner/name@revision on the Hub.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.")
    ] = None,
) -> None:
    """Download weights from the Hugging Face Hub into its cache, and verify them."""
    from hihlandmark.weights import pull_weights, verify_weights

    files = pull_weights(repository, revision=revision)
    verify_weights(files)
    print(f"{files.card.name}: {files.source}, verified")


@weights_app.command()
def verify(
    weights: Annotated[
        str | None, typer.Argument(help="Path, packaged name or Hub repository.")
    ] = None,
) -> None:
    """Check the SHA-256 of weight files against their card."""
    from hihlandmark.weights import find_weights, verify_weights

    files = find_weights(weights)
    verify_weights(files)
    print(f"{files.card.name}: {files.source}, verified")


@weights_app.command()
def path(
    weights: Annotated[
        str | None, typer.Argument(help="Path, packaged name or Hub repository.")
    ] = None,
) -> None:
    """Print where weight files are."""
    from hihlandmark.weights import find_weights

    print(*find_weights(weights).paths, sep="\n")


@weights_app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the HIH authors' code (.pth).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the safetensors and the card.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Default: the checkpoint's name.")
    ] = None,
) -> None:
    """Convert a checkpoint of the official HIH code to safetensors with a model card."""
    from hihlandmark.weights import convert_checkpoint

    print(convert_checkpoint(checkpoint, out, name or checkpoint.stem))


def _detector(layout: Any, model: str, **options: Any) -> Detector:
    from hihlandmark.detector import Detector

    value = layout.value if isinstance(layout, Enum) else layout
    return Detector(layout=value, model=model, **options)


def main() -> None:
    """Entry point of the console script: our own errors become a line on stderr and exit code 2."""
    try:
        app()
    except HihlandmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, ImageError) else 2)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell.
        sys.stderr.close()
        sys.exit(1)
