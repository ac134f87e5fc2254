"""`hihlandmark data`: look at annotated faces, and pack them for training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.cli.options import (
    DeviceOption,
    FlipTestOption,
    LayoutName,
    LayoutOption,
    ModelOption,
    RefineOption,
    WeightsOption,
    make_detector,
)
from hihlandmark.errors import ConfigurationError, DataError, ImageError

if TYPE_CHECKING:
    from hihlandmark.datasets.inspection import SplitContent

app = typer.Typer(
    help="Look at data sets of annotated faces, and pack them for training.",
    no_args_is_help=True,
)

MESSAGES_SHOWN = 10
"""Of what was left out of a split; --all shows the rest."""

FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help="wflw, w300, cofw, lists, project or packed; auto: by the files that are there.",
    ),
]
LayoutNameOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Name of the points' layout, such as WFLW98; default: by the format and their number.",
    ),
]


@app.command()
def info(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a data set, as its authors publish it.", metavar="DIR"),
    ],
    data_format: FormatOption = "auto",
    layout: LayoutNameOption = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Open every picture, to find unreadable ones and points outside of them.",
        ),
    ] = True,
    every_message: Annotated[
        bool, typer.Option("--all", help="Name every sample left out, not only the first ten.")
    ] = False,
) -> None:
    """Say what a data set holds: format, splits, faces, points, subsets, and what is left out."""
    from hihlandmark.cli.progress import progress_bar
    from hihlandmark.datasets import dataset_splits, read_faces
    from hihlandmark.datasets.inspection import inspect_split, split_layouts

    found, splits = dataset_splits(folder, data_format)
    print(f"{folder}: format {found}, splits {', '.join(splits) or 'none'}")
    unusable = 0
    parts = [
        (split, each)
        for split in splits
        if "/" not in split  # subsets are counted within their split
        for each in ([layout] if layout else split_layouts(folder, found, split))
    ]
    for split, part_layout in parts:
        try:
            faces = read_faces(folder, split, format=found, layout=part_layout)
        except DataError as error:
            unusable += 1
            print(f"\n{split}: {error}", file=sys.stderr)
            continue
        with progress_bar(split) as progress:
            content = inspect_split(faces, pictures, progress)
        _print_content(split, content, faces.published, every_message)
    raise typer.Exit(1 if unusable else 0)


def _print_content(
    split: str, content: SplitContent, published: int | None, every_message: bool
) -> None:
    count = f"{content.faces} faces"
    if published is not None and published != content.faces:
        count += f" (published: {published})"
    print(f"\n{split}: {count} of {content.points} points, {content.layout or 'layout unknown'}")
    if content.subsets:
        print("  subsets: " + ", ".join(f"{name} {n}" for name, n in content.subsets.items()))
    counts = {
        "not annotated": content.unknown,
        "annotated as hidden": content.hidden,
        "outside of the picture": content.outside,
    }
    print("  points " + ", ".join(f"{what}: {n}" for what, n in counts.items() if n is not None))
    for what, messages in (
        ("left out", content.skipped),
        ("with unreadable pictures", content.unreadable or ()),
    ):
        if messages:
            print(f"  {len(messages)} samples {what}:")
            _print_messages(messages, None if every_message else MESSAGES_SHOWN)


def _print_messages(messages: Sequence[str], most: int | None) -> None:
    for message in messages[:most]:
        print(f"    {message}")
    if most is not None and len(messages) > most:
        print(f"    and {len(messages) - most} more (--all names them)")


@app.command()
def show(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a data set, as its authors publish it.", metavar="DIR"),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Picture to write: a .png, .jpg or .webp file.")
    ],
    split: Annotated[
        str, typer.Option("--split", help="Name of the split; `data info` lists them.")
    ] = "train",
    count: Annotated[
        int, typer.Option("--faces", min=1, help="How many faces, drawn by lot; one a row.")
    ] = 12,
    augment: Annotated[
        bool,
        typer.Option("--augment/--no-augment", help="Show five augmented crops of each face, too."),
    ] = True,
    configuration: Annotated[
        str | None,
        typer.Option(
            "--config",
            help="Crops and augmentation of this training configuration: a name or a .toml file.",
        ),
    ] = None,
    crop_size: Annotated[
        int, typer.Option("--crop-size", min=16, max=1024, help="Side of the crops in pixels.")
    ] = 256,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Another seed draws other faces and changes.")
    ] = 0,
    data_format: FormatOption = "auto",
    layout: LayoutNameOption = None,
) -> None:
    """Draw faces with their points, before and after augmentation, onto one contact sheet.

    A row is a face: the image as stored, its crop, and crops as training sees them. Blue points
    belong to the left side, pink ones to the right, white ones to the middle; red ones are
    annotated as hidden, or lie outside (drawn at the edge). Points off their features, or blue ones
    on the right, mean that something is wrong with the annotations or their layout.
    """
    from hihlandmark.crop import CANONICAL_CROP
    from hihlandmark.datasets import read_faces
    from hihlandmark.datasets.augmentation import Augmentation, generator
    from hihlandmark.datasets.contact_sheet import before_and_after

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigurationError(f"--out {out} must end with .png, .jpg or .webp")
    augmentation, box_maps = Augmentation(), CANONICAL_CROP
    if configuration is not None:
        from hihlandmark.training import missing_extra

        with missing_extra():
            from hihlandmark.training.config import read_configuration

        settings = read_configuration(configuration)
        augmentation, box_maps = settings.augmentation, settings.box_maps()
    faces = read_faces(folder, split, format=data_format, layout=layout)
    chosen = generator(seed).permutation(len(faces))[:count].tolist()
    sheet = before_and_after(
        faces,
        chosen,
        augmentation if augment else None,
        box_maps=box_maps,
        crop_size=crop_size,
        seed=seed,
    )
    _write_picture(out, sheet)
    print(f"{len(chosen)} of {len(faces)} faces: {out}")
    if faces.skipped:
        print(f"{len(faces.skipped)} samples left out; `hihlandmark data info` says why")


@app.command()
def prepare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of data sets, as their authors publish them.", metavar="DIR"),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the packed data set; give it to `train` as data."),
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            help="Split to pack, of every DIR; may be given several times. Default: train.",
        ),
    ] = None,
    side: Annotated[
        float,
        typer.Option(
            "--side",
            min=1,
            help="Side of the stored crop, in longer sides of the points' box. 2 leaves room for "
            "turned and shifted crops.",
        ),
    ] = 2.0,
    max_side: Annotated[
        int, typer.Option("--max-side", min=16, help="Larger crops are shrunk to this, in pixels.")
    ] = 384,
    quality: Annotated[
        int, typer.Option("--quality", min=1, max=100, help="JPEG quality of the stored crops.")
    ] = 95,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a packed data set that is at --out.")
    ] = False,
    data_format: FormatOption = "auto",
    layout: LayoutNameOption = None,
) -> None:
    """Pack data sets into one shuffled set of crops, which training reads quickly.

    Samples that cannot be used are left out, named and counted. Images are not changed.
    """
    from hihlandmark.cli.progress import progress_bar
    from hihlandmark.datasets import read_faces
    from hihlandmark.datasets.packing import pack

    sets = [
        read_faces(folder, split, format=data_format, layout=layout)
        for folder in folders
        for split in splits or ["train"]
    ]
    with progress_bar("faces") as progress:
        report = pack(
            sets,
            out,
            side=side,
            max_side=max_side,
            quality=quality,
            overwrite=overwrite,
            progress=progress,
        )
    print(report)


def _write_picture(path: Path, picture: Any) -> None:
    import io

    from PIL import Image

    from hihlandmark.writing import write_atomically

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, Image.registered_extensions()[path.suffix.lower()])
    write_atomically(path, buffer.getvalue())


@app.command()
def label(
    paths: Annotated[
        list[str], typer.Argument(help="Image files, folders or globs.", metavar="PATH...")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for annotations.jsonl.")],
    layout: LayoutOption = LayoutName.WFLW98,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    refine: RefineOption = 1,
    flip_test: FlipTestOption = True,
    min_score: Annotated[
        float,
        typer.Option("--min-score", min=0, max=1, help="Leave out boxes less sure than this."),
    ] = 0.95,
    cut: Annotated[
        float | None,
        typer.Option(
            "--cut",
            min=1,
            help="The pictures are crops around one face each, so many times as large as the box "
            "of the face detector: look for none.",
        ),
    ] = None,
) -> None:
    """Label the faces of images with a network, for self-training or to be corrected by hand.

    Self-training only wants to know where to crop: --refine 0 --no-flip-test is twice as fast or more.
    """
    from hihlandmark.datasets.labeling import FaceInTheMiddle
    from hihlandmark.datasets.labeling import label as label_images
    from hihlandmark.face_detection import MTCNNFaceDetector
    from hihlandmark.io import find_images

    options: dict[str, Any] = {"min_box_score": min_score}
    if cut is not None:
        options = {"face_detector": FaceInTheMiddle(cut, MTCNNFaceDetector.name)}
    detector = make_detector(
        layout,
        model,
        weights=weights,
        device=device,
        refine=refine,
        flip_test=flip_test,
        **options,
    )
    sources = list(find_images(paths))
    problems = [str(item) for item in sources if isinstance(item, ImageError)]
    images = [Path(item.path) for item in sources if not isinstance(item, ImageError)]
    done = label_images(images, detector, out)
    problems += done.unreadable
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    print(
        f"{done.faces} faces in {done.images} images, {done.without_face} without a face, "
        f"{len(problems)} failed; list in {out}"
    )
    raise typer.Exit(1 if problems else 0)
