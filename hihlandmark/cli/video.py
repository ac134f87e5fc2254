"""`hihlandmark video`: faces followed through a video, drawn and written."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hihlandmark.cli.options import (
    DeviceOption,
    FaceDetectorOption,
    FlipTestOption,
    LayoutName,
    LayoutOption,
    ModelOption,
    RuntimeOption,
    WeightsOption,
    make_detector,
)

if TYPE_CHECKING:
    from hihlandmark.video.writing import FaceWriter


def video(
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a URL (rtsp://, http://), camera:0, or a folder, glob or archive "
            "of images.",
            metavar="VIDEO",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Annotated video to write, .mp4 or .mkv, with the sound."),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option("--points", help="Faces of every frame, .jsonl or .parquet."),
    ] = None,
    layout: LayoutOption = LayoutName.WFLW98,
    model: ModelOption = "hih-small",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    face_detector: FaceDetectorOption = "mtcnn",
    flip_test: FlipTestOption = True,
    detect_every: Annotated[
        int, typer.Option("--detect-every", min=1, help="Frames from one search to the next.")
    ] = 10,
    smooth: Annotated[bool, typer.Option("--smooth/--no-smooth", help="Steady the points.")] = True,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Steady the points by what comes after, too: no lag. Reads the video twice.",
        ),
    ] = False,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Stop after so many frames.")
    ] = None,
) -> None:
    """Follow the faces of a video; draw them, and write their points.

    Without --out and --points a line of JSON a frame goes to stdout. A camera or a stream is
    watched until Ctrl-C, which ends the files as they should be.
    """
    from hihlandmark.draw import draw_faces
    from hihlandmark.video import AnnotatedVideo, track, track_offline
    from hihlandmark.video.writing import JsonLinesFaces, open_faces

    detector = make_detector(
        layout,
        model,
        weights=weights,
        device=device,
        runtime=runtime,
        face_detector=face_detector,
        flip_test=flip_test,
    )
    if offline:
        followed = track_offline(source, detector, detect_every=detect_every, frames=frames)
    else:
        followed = track(source, detector, detect_every=detect_every, smooth=smooth)
    seen = 0
    tracks: set[int | None] = set()
    with ExitStack() as opened:
        picture = opened.enter_context(AnnotatedVideo(out, source)) if out else None
        if points:
            writer: FaceWriter | None = opened.enter_context(open_faces(points))
        else:
            writer = None if out else JsonLinesFaces(sys.stdout)
        try:
            for frame, faces in islice(followed, frames):
                seen, tracks = seen + 1, tracks | {face.track_id for face in faces}
                if writer:
                    writer.add(frame, faces)
                if picture:
                    picture.add(draw_faces(frame.image, faces, boxes=True), frame.time)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
    written = [str(path) for path in (out, points) if path]
    where = f"; results in {' and '.join(written)}" if written else ""
    print(f"{seen} frames, {len(tracks)} faces followed{where}", file=sys.stderr)
