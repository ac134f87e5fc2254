"""What every runtime offers, and what a row of the table of runtimes holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from hihlandmark.arrays import FloatArray, Image
from hihlandmark.runtimes.devices import AnyDevice

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["fp32", "bf16", "int8"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "int8"]
Outputs = list[FloatArray]
Run = Callable[[Image], Outputs]
"""Runs a graph: pixels -> the arrays that it returns. May be called from several threads."""


class CropLandmarks(NamedTuple):
    """The decoded points of N crops, before calibration.

    ``points``: (N, P, 2) in crop pixels, the center of the top-left pixel is (0, 0).
    ``covariance``: (N, P, 2, 2) in squared crop pixels. ``mass``: (N, P) in 0..1, the share of the
    integer heatmap around its peak, of nested networks the probability within 5 % of the crop's
    side of the point; 0 where the heatmap is empty. ``visibility``: (N, P), logits of the point
    being seen; None of networks that do not predict it. ``integer_offset``: (N, P, 2) in crop
    pixels, from the points to those of the integer heatmap alone; None: unknown.
    """

    points: FloatArray
    covariance: FloatArray
    mass: FloatArray
    visibility: FloatArray | None = None
    integer_offset: FloatArray | None = None

    def arrays(self) -> tuple[FloatArray, ...]:
        """Those that there are."""
        return tuple(each for each in self if each is not None)

    def select(self, index: Any) -> CropLandmarks:
        """The same NumPy index applied to all arrays."""
        return CropLandmarks._make(None if each is None else each[index] for each in self)


ANY = -1
"""In shapes: any number."""


class PixelGraph(NamedTuple):
    """A module over pixels, with what is needed to convert it.

    ``input``: name of the input, uint8 (N, H, W, 3). ``shape``: its shape, with `ANY` where a
    number is not fixed. ``outputs``: names of the float32 tensors that it returns.
    """

    module: nn.Module
    input: str
    shape: tuple[int, ...]
    outputs: Sequence[str]

    def example(self) -> torch.Tensor:
        """Black pixels of a shape in which no number happens to be special."""
        import torch

        return torch.zeros(
            [(37 if axis else 2) if n == ANY else n for axis, n in enumerate(self.shape)],
            dtype=torch.uint8,
            device="cpu",
        )


class Runtime(Protocol):
    """Runs one network with its decoding. May be called from several threads."""

    name: str
    """As in `runtimes.RUNTIMES`."""
    precision: Precision
    """The precision of the network; inputs, decoding and outputs do not depend on it."""

    def __call__(self, crops: Image) -> CropLandmarks:
        """Crops (N, S, S, 3) uint8 RGB -> `CropLandmarks` in float32."""
        ...


@dataclass(frozen=True)
class FileFormat:
    """A file that a runtime reads.

    Attributes:
        name: what `hihlandmark export --to` calls it.
        suffix: of the file, such as ".onnx".
        package: distribution whose releases may convert differently.
        write: writes a graph to a path.
        run: loads a path for a device and a precision.
        run_kept: the same for a path in the cache of conversions, beside which it may keep what
            makes it faster to load again; None: `run`.
    """

    name: str
    suffix: str
    package: str
    write: Callable[[PixelGraph, Path], None]
    run: Callable[[Path, AnyDevice, Precision], Run]
    run_kept: Callable[[Path, AnyDevice, Precision], Run] | None = None


@dataclass(frozen=True)
class Backend:
    """A program that runs networks: a row of `runtimes.RUNTIMES`.

    Attributes:
        title: its name as its makers write it.
        extra: the extra of this package that installs it; None where it is always installed.
        devices: types of devices that it runs on; None: all of PyTorch's.
        precisions: the precisions that it computes in.
        file: the file that it runs; None for PyTorch, which runs the network itself.
    """

    title: str
    extra: str | None = None
    devices: tuple[str, ...] | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    file: FileFormat | None = None
