"""`hihlandmark video`: track the faces of a video, draw and write them."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Exit, Option

from hihlandmark.cli import options
from hihlandmark.writing import check_local

if TYPE_CHECKING:
    from hihlandmark.video.writing import FaceWriter

_SOURCE = (
    "A video file, a URL (rtsp://, http://), camera:0 (a webcam), or a folder, glob or archive of "
    "images."
)
_OFFLINE = "Smooth with later frames as well: no lag. Reads the video twice."


def video(
    source: Annotated[str, Argument(metavar="VIDEO", help=_SOURCE)],
    out: Annotated[
        Path | None,
        Option(
            "--out",
            "-o",
            callback=check_local,
            help="Annotated video to write, with sound: .mp4, .mkv or .mov.",
        ),
    ] = None,
    points: Annotated[
        Path | None,
        Option(callback=check_local, help="File for the faces of every frame, .jsonl or .parquet."),
    ] = None,
    draw_boxes: Annotated[bool, Option(help="Draw the boxes of the faces as well.")] = True,
    draw_numbers: Annotated[
        bool, Option("--draw-numbers", help="Draw the numbers of the points as well.")
    ] = False,
    layout: options.DefaultLayoutOption = None,
    model: options.ModelOption = "hih-small",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = "auto",
    runtime: options.RuntimeOption = "auto",
    precision: options.PrecisionOption = "auto",
    face_detector: options.FaceDetectorOption = "mtcnn",
    min_face: options.MinFaceOption = None,
    min_box_score: options.MinBoxScoreOption = None,
    detection_size: options.DetectionSizeOption = None,
    min_reliability: options.MinReliabilityOption = 0.0,
    batch_size: options.BatchSizeOption = None,
    any_rotation: options.AnyRotationOption = False,
    shape_prior: options.ShapePriorOption = True,
    flip_test: Annotated[
        bool, Option(help="Also run the mirrored crop: a little steadier, slower.")
    ] = False,
    max_pixels: options.MaxPixelsOption = options.MAX_PIXELS,
    max_bytes: options.MaxBytesOption = options.MAX_BYTES,
    detect_every: Annotated[int, Option(min=1, help="Run the face detector every N frames.")] = 30,
    smooth: Annotated[bool, Option(help="Smooth the points.")] = True,
    offline: Annotated[bool, Option("--offline", help=_OFFLINE)] = False,
    frames: Annotated[int | None, Option(min=1, help="Stop after this many frames.")] = None,
) -> None:
    """Track the faces of a video, webcam or stream; draw them and write their points.

    Without --out and --points, print a line of JSON per frame. Stop a webcam or a stream with
    Ctrl-C; the files are complete then.
    """
    from hihlandmark.draw import draw_faces
    from hihlandmark.video import AnnotatedVideo, track, track_offline
    from hihlandmark.video.writing import JsonLinesFaces, open_faces
    from hihlandmark.writing import refuse_existing, uninterrupted

    if offline and not smooth:
        raise BadParameter("--offline smooths the points: omit it, or --no-smooth")
    of_drawing = {"--draw-numbers": draw_numbers, "--no-draw-boxes": not draw_boxes}
    if out is None and (given := options.given(of_drawing)):
        raise BadParameter(f"{given} requires --out, a video to draw into")
    refuse_existing(out)
    refuse_existing(points)
    count = 0
    tracks: set[int | None] = set()
    with ExitStack() as stack:
        annotated = stack.enter_context(AnnotatedVideo(out, source)) if out else None
        writer: FaceWriter | None = None
        if points:
            writer = stack.enter_context(open_faces(points))
        elif out is None:
            writer = JsonLinesFaces(sys.stdout)
        # After the files: what cannot be written is an error before the network is loaded.
        detector = options.make_detector(
            layout, model, weights=weights, device=device, runtime=runtime, precision=precision,
            face_detector=face_detector, min_face=min_face, min_box_score=min_box_score,
            detection_size=detection_size, batch_size=batch_size, any_rotation=any_rotation,
            flip_test=flip_test, shape_prior=shape_prior, max_pixels=max_pixels,
            max_bytes=max_bytes,
        )  # fmt: skip
        if offline:
            tracked = track_offline(
                source, detector, detect_every=detect_every, frames=frames,
                min_reliability=min_reliability,
            )  # fmt: skip
        else:
            tracked = track(
                source, detector, detect_every=detect_every, smooth=smooth,
                min_reliability=min_reliability,
            )  # fmt: skip
        try:
            for frame, faces in islice(tracked, frames):
                count, tracks = count + 1, tracks | {face.track_id for face in faces}
                if writer:
                    writer.add(frame, faces)
                if annotated:
                    drawn = draw_faces(frame.image, faces, boxes=draw_boxes, numbers=draw_numbers)
                    annotated.add(drawn, frame.time, frame.pixel_aspect)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            if not count:  # no file without a frame
                raise Exit(130) from None
        with uninterrupted():  # Ctrl-C while files are closed would spoil them
            stack.close()
    written = " and ".join(str(path) for path in (out, points) if path and path.exists())
    where = f"; results in {written}" if written else ""
    print(f"frames: {count}, tracked faces: {len(tracks)}{where}", file=sys.stderr)
