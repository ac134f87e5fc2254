"""`hihlandmark data`: inspect annotated faces, and pack them for training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.cli.options import (
    DataFormatOption,
    DefaultLayoutOption,
    DetectionSizeOption,
    DeviceOption,
    FaceDetectorOption,
    FlipTestOption,
    MinBoxScoreOption,
    MinFaceOption,
    ModelOption,
    PrecisionOption,
    RefineOption,
    RuntimeOption,
    WeightsOption,
    counted,
    make_detector,
    progress_bar,
)
from hihlandmark.errors import ConfigurationError, DataError, ImageError, missing_extra
from hihlandmark.writing import check_local

if TYPE_CHECKING:
    from hihlandmark.arrays import Image
    from hihlandmark.datasets import AnnotatedFaces
    from hihlandmark.datasets.inspection import SplitContent
    from hihlandmark.io import Source

app = typer.Typer(
    help="Inspect data sets of annotated faces, and pack them for training.", no_args_is_help=True
)

MESSAGES_SHOWN = 10  # per split and kind; --all shows the rest

FolderArgument = Annotated[Path, typer.Argument(help="Folder of a data set.", metavar="DIR")]
LayoutNameOption = Annotated[
    str | None,
    typer.Option("--layout", help="Layout of the points, such as WFLW98; default: auto."),
]
LayoutOrFileOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Layout of the points, such as WFLW98, or a .toml or .json file that describes points "
        "of your own; default: auto.",
    ),
]


def _read_faces(folder: Path, split: str, data_format: str, layout: str | None) -> AnnotatedFaces:
    """The faces of a split, in a layout by its name or file."""
    from hihlandmark.datasets import read_faces

    if layout is not None and Path(layout).suffix.lower() in (".toml", ".json"):
        layout = _register_layout(Path(layout), folder, split, data_format)
    return read_faces(folder, split, format=data_format, layout=layout)


def _register_layout(path: Path, folder: Path, split: str, data_format: str) -> str:
    """Register the layout of a file, completed by the faces of a split. Returns its name."""
    import numpy as np

    from hihlandmark.datasets import read_faces
    from hihlandmark.layouts import BUILT_IN, LAYOUTS, find_or_register

    with missing_extra("train"):
        from hihlandmark.training.layout_file import describe, read_layout_file
    name, _ = read_layout_file(path)
    if name in LAYOUTS and name not in BUILT_IN:  # registered for an earlier split
        return name
    faces = read_faces(folder, split, format=data_format, needs_mirror=False)
    described = describe(path, np.stack([face.points for face in faces]))
    for line in described.guessed:
        print(f"guessed {line}")
    return find_or_register(described.layout).name


@app.command()
def info(
    folder: FolderArgument,
    data_format: DataFormatOption = "auto",
    layout: LayoutOrFileOption = None,
    images: Annotated[bool, typer.Option(help="Read every image to find problems.")] = True,
    every_message: Annotated[
        bool, typer.Option("--all", help="Name every skipped sample.")
    ] = False,
) -> None:
    """Describe a data set: format, splits, faces, points, subsets, and unusable samples."""
    from hihlandmark.datasets import dataset_splits
    from hihlandmark.datasets.inspection import inspect_split, split_layouts

    found, splits = dataset_splits(folder, data_format)
    print(f"{folder}: format {found}, splits {', '.join(splits) or 'none'}")
    unusable = 0
    parts = [
        (split, each)
        for split in splits or ["train"]  # without a split, the error says why
        if "/" not in split  # subsets are counted within their split
        for each in ([layout] if layout else split_layouts(folder, found, split))
    ]
    for split, part_layout in parts:
        try:
            faces = _read_faces(folder, split, found, part_layout)
        except DataError as error:
            unusable += 1
            print(f"\n{split}: {error}", file=sys.stderr)
            continue
        with progress_bar(split) as progress:
            content = inspect_split(faces, images, progress)
        _print_content(split, content, faces.published, every_message)
    raise typer.Exit(1 if unusable else 0)


def _print_content(
    split: str, content: SplitContent, published: int | None, every_message: bool
) -> None:
    count = counted(content.faces, "face")
    if published is not None and published != content.faces:
        count += f" (published: {published})"
    print(f"\n{split}: {count} of {content.points} points, {content.layout or 'layout unknown'}")
    if content.subsets:
        print("  subsets: " + ", ".join(f"{name} {n}" for name, n in content.subsets.items()))
    counts = {
        "not annotated": content.unknown,
        "annotated as hidden": content.hidden,
        "outside of the image": content.outside,
    }
    print("  points " + ", ".join(f"{what}: {n}" for what, n in counts.items() if n is not None))
    problems = {"left out": content.skipped, "with unreadable images": content.unreadable or ()}
    for what, messages in problems.items():
        if not messages:
            continue
        shown = len(messages) if every_message else MESSAGES_SHOWN
        print(f"  {counted(len(messages), 'sample')} {what}:", *messages[:shown], sep="\n    ")
        if len(messages) > shown:
            print(f"    and {len(messages) - shown} more (--all names them)")


@app.command()
def show(
    folder: FolderArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", callback=check_local, help="Image to write: a .png, .jpg or .webp file."
        ),
    ],
    split: Annotated[str, typer.Option(help="Name; `data info` lists the splits.")] = "train",
    count: Annotated[int, typer.Option("--faces", min=1, help="Random faces, one per row.")] = 12,
    augment: Annotated[bool, typer.Option(help="Also show 5 augmented crops of each face.")] = True,
    configuration: Annotated[
        str | None,
        typer.Option("--config", help="Training configuration of crops and augmentation."),
    ] = None,
    crop_size: Annotated[
        int, typer.Option(min=16, max=1024, help="Side of crops in pixels.")
    ] = 256,
    data_format: DataFormatOption = "auto",
    layout: LayoutOrFileOption = None,
) -> None:
    """Draw faces with their points onto one contact sheet.

    Of a result folder of `hihlandmark predict` (json, jsonl, csv or parquet): the faces with the
    lowest mean scores, lowest first. Of a data set: random faces, before and after augmentation.

    In the latter, a row is a face: the stored image, its crop, and augmented crops. Blue points
    belong to the left side, pink ones to the right, white ones to the middle; red ones are
    annotated as hidden, or lie outside (drawn at the edge). Points off their features, or blue ones
    on the right, mean that the annotations or their layout are wrong.
    """
    import numpy as np

    from hihlandmark.crop import CANONICAL_CROP
    from hihlandmark.datasets.augmentation import Augmentation, generator
    from hihlandmark.datasets.inspection import (
        Tile,
        before_and_after,
        contact_sheet,
        find_unreadable,
    )
    from hihlandmark.io.results import is_result_folder, worst_faces
    from hihlandmark.writing import refuse_existing

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigurationError(f"--out {out} must end with .png, .jpg or .webp")
    refuse_existing(out)
    if is_result_folder(folder):
        worst = worst_faces(folder, count, crop_size)
        tiles = [Tile(each.image, np.zeros((0, 2)), each.caption) for each in worst]
        _write_image(contact_sheet(tiles, columns=4, tile_size=crop_size), out)
        print(f"{counted(len(worst), 'face')} with the lowest scores: {out}")
        return
    augmentation, box_maps = Augmentation(), CANONICAL_CROP
    if configuration is not None:
        with missing_extra("train"):
            from hihlandmark.training.config import read_configuration
        settings = read_configuration(configuration)
        augmentation, box_maps = settings.augmentation, settings.box_maps()
    faces = _read_faces(folder, split, data_format, layout)
    drawn = generator(0).permutation(len(faces))[:count].tolist()
    unreadable = dict(find_unreadable(faces, drawn))
    for message in unreadable.values():
        print(f"left out: {message}", file=sys.stderr)
    chosen = [index for index in drawn if index not in unreadable]
    if not chosen:
        raise ImageError(f"{folder}: none of the {len(drawn)} images can be read: repair them")
    changes = augmentation if augment else None
    sheet = before_and_after(faces, chosen, changes, box_maps=box_maps, crop_size=crop_size)
    _write_image(sheet, out)
    print(f"{len(chosen)} of {counted(len(faces), 'face')}: {out}")
    if faces.skipped:
        print(
            f"{counted(len(faces.skipped), 'sample')} left out; `hihlandmark data info` names them"
        )


def _write_image(sheet: Image, path: Path) -> None:
    import io

    from PIL import Image as PillowImage

    from hihlandmark.writing import write_atomically

    encoded = io.BytesIO()
    file_format = PillowImage.registered_extensions()[path.suffix.lower()]
    PillowImage.fromarray(sheet).save(encoded, file_format)
    write_atomically(path, encoded.getvalue())


@app.command()
def prepare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of data sets.", metavar="DIR")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            callback=check_local,
            help="Folder for the packed data set, for training.",
        ),
    ],
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split of every DIR to pack, repeatable; default: train."),
    ] = None,
    side: Annotated[
        float, typer.Option(min=1, help="Side of a crop in longer sides of the points' box.")
    ] = 2.0,
    max_side: Annotated[int, typer.Option(min=16, help="Largest side of crops in pixels.")] = 384,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of crops.")] = 95,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a packed data set at --out.")
    ] = False,
    data_format: DataFormatOption = "auto",
    layout: LayoutOrFileOption = None,
) -> None:
    """Pack data sets into one shuffled set of crops that training reads quickly.

    Unusable samples are left out, named and counted. Images are not changed.
    """
    from hihlandmark.datasets.packed import pack

    sets = [
        _read_faces(folder, split, data_format, layout)
        for folder in folders
        for split in splits or ["train"]
    ]
    with progress_bar("faces") as progress:
        sizes: dict[str, Any] = {"side": side, "max_side": max_side, "quality": quality}
        report = pack(sets, out, **sizes, overwrite=overwrite, progress=progress)
    print(report)
    if splits is None:
        for folder in folders:
            _print_other_splits(folder, data_format)


def _print_other_splits(folder: Path, data_format: str) -> None:
    """Name the splits of a folder that the default does not pack."""
    from hihlandmark.datasets import dataset_splits

    _, found = dataset_splits(folder, data_format)
    # Subsets are within their split.
    if others := [split for split in found if split != "train" and "/" not in split]:
        print(f"{folder} also has {', '.join(others)}: pack them by --split NAME, which repeats")


@app.command()
def label(
    paths: Annotated[
        list[str], typer.Argument(help="Image files, folders or globs.", metavar="PATH...")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", callback=check_local, help="Folder for annotations.jsonl."),
    ],
    layout: DefaultLayoutOption = None,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "auto",
    refine: RefineOption = 0,
    flip_test: FlipTestOption = None,
    min_box_score: MinBoxScoreOption = None,
    face_detector: FaceDetectorOption = "mtcnn",
    min_face: MinFaceOption = None,
    detection_size: DetectionSizeOption = None,
    cut: Annotated[
        float | None,
        typer.Option(
            min=1, help="Images are crops of one face, larger by this factor than its box."
        ),
    ] = None,
) -> None:
    """Label the faces of images with a network, for self-training or to be corrected by hand.

    Faces with a box score below 0.95 are left out, unless --min-box-score is given.
    """
    from hihlandmark.datasets import project
    from hihlandmark.io import find_images

    options: dict[str, Any] = {"min_face": min_face, "detection_size": detection_size}
    if cut is not None:
        if any(each is not None for each in (min_face, min_box_score, detection_size)):
            raise typer.BadParameter(
                "--cut searches no faces: omit --min-face, --min-box-score and --detection-size"
            )
        options = {"face_detector": project.CenteredFaceDetector(cut, face_detector)}
    else:
        options["face_detector"] = face_detector
        options["min_box_score"] = 0.95 if min_box_score is None else min_box_score
    options |= {"weights": weights, "device": device, "runtime": runtime, "precision": precision}
    options |= {"refine": refine, "flip_test": flip_test}
    detector = make_detector(layout, model, **options)
    images: list[Path] = []
    problems: list[str] = []
    for source in find_images(paths):
        if problem := source.problem or _not_on_disk(source):
            problems.append(problem)
        else:
            images.append(Path(source.path))
    try:
        done = project.label(images, detector, out, problems=problems)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    for problem in done.failed:
        print(f"failed: {problem}", file=sys.stderr)
    print(
        f"{counted(done.faces, 'face')} in {counted(done.images, 'image')}, "
        f"{done.without_face} without a face, "
        f"{len(done.failed)} failed; list in {out}"
    )
    raise typer.Exit(1 if done.failed else 0)


def _not_on_disk(source: Source) -> str | None:
    """Why ``annotations.jsonl`` cannot name an image by a path; None: it can."""
    if source.content is None and "://" not in source.path:
        return None
    return f"{source.path}: not an image file on disk: unpack or download it, and label that"


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="'CVAT for images 1.1' (XML), or the JSON export of Label Studio.", metavar="FILE"
        ),
    ],
    images: Annotated[Path, typer.Option("--images", help="Folder of the images.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", callback=check_local, help="Folder for annotations.jsonl."),
    ],
    split: Annotated[str, typer.Option(help="Split of the faces.")] = "train",
    layout: LayoutNameOption = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add to an annotations.jsonl that exists.")
    ] = False,
) -> None:
    """Read faces that were corrected in CVAT or Label Studio back into annotations.jsonl."""
    from hihlandmark.datasets.corrections import import_corrections

    done = import_corrections(file, images, out, layout=layout, split=split, append=append)
    for message in done.left_out:
        print(f"left out: {message}", file=sys.stderr)
    print(f"{counted(done.faces, 'face')} in {counted(done.images, 'image')}; list in {out}")
    raise typer.Exit(1 if done.left_out else 0)


@app.command("next")
def next_(
    results: Annotated[
        Path,
        typer.Argument(
            help="Folder or file of `hihlandmark predict` or `data label`.", metavar="RESULTS"
        ),
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images to list.")] = 20,
    paths: Annotated[
        bool, typer.Option("--paths", help="Print only the paths, one a line.")
    ] = False,
) -> None:
    """List the images worth labeling first: lowest reliability, then lowest mean score."""
    from hihlandmark.datasets.corrections import images_to_label
    from hihlandmark.tables import Table

    found = images_to_label(results)[:count]
    if paths:
        print(*(each.image for each in found), sep="\n")
        return
    rows = [
        (each.image, each.faces, f"{each.reliability:.3f}", f"{each.score:.3f}") for each in found
    ]
    Table("", ("image", "faces", "reliability", "mean score"), rows).print()
