"""The `hihlandmark` command: parse arguments, call the package, print. No other logic lives here.

One file per command or group of commands. Exit codes: 0 all done; 1 some inputs failed, each named
on stderr; 2 wrong usage, or another error that ends the command; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from hihlandmark.cli import data, weights
from hihlandmark.cli.bench import bench
from hihlandmark.cli.calibrate import calibrate
from hihlandmark.cli.demo import demo
from hihlandmark.cli.evaluate import evaluate_split
from hihlandmark.cli.export import export
from hihlandmark.cli.finetune import finetune
from hihlandmark.cli.predict import predict
from hihlandmark.cli.train import train
from hihlandmark.cli.video import video
from hihlandmark.errors import HihlandmarkError, ImageError
from hihlandmark.writing import FULL_DISK

app = typer.Typer(
    help="Sub-pixel face landmarks with Heatmap-in-Heatmap networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


_VERBOSE = typer.Option("--verbose", "-v", help="Log choices and progress on stderr.")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from hihlandmark import __version__

        print(f"hihlandmark {__version__}")
        raise typer.Exit


_VERSION = typer.Option(
    "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
)


@app.callback()
def configure(
    verbose: Annotated[bool, _VERBOSE] = False, version: Annotated[bool, _VERSION] = False
) -> None:
    """Sub-pixel face landmarks with Heatmap-in-Heatmap networks."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def doctor() -> None:
    """Show versions, the device, the packaged weights, and what is missing."""
    from hihlandmark.doctor import report

    raise typer.Exit(0 if report() else 1)


app.command()(predict)
app.command()(video)
app.command()(demo)
app.command("eval")(evaluate_split)
for command in (train, finetune, calibrate, export, bench, doctor):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


def _stop_without_terminal(number: int, frame: FrameType | None) -> None:
    """Stop as Ctrl-C does after the terminal was closed: writing to it would be an error."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end
    signal.default_int_handler(number, frame)


def main() -> None:
    """Entry point of the console script: prints errors of the package as one line on stderr."""
    # A shell may have closed them (`>&-`): no file that is opened later shall take their place.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # Paths may hold characters that the encoding of the terminal lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Such as that of `docker stop`: as Ctrl-C, it keeps what is finished.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Windows lacks it, and nohup ignores it.
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:
        signal.signal(hang_up, _stop_without_terminal)
    try:
        app()
    except HihlandmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, ImageError) else 2)
    except BrokenPipeError:
        # The reader of stdout has closed the pipe (`| head`).
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in FULL_DISK:
            raise
        # Such as a folder without write permission, or a full disk.
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
