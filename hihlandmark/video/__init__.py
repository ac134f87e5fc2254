"""Video: frames of files, webcams and streams; face tracking, smoothing and annotated output."""

from hihlandmark.video.frames import Frame, read_frames
from hihlandmark.video.smoothing import OneEuroFilter, smooth_track
from hihlandmark.video.tracking import FaceTracker, track, track_offline
from hihlandmark.video.writing import AnnotatedVideo

__all__ = [
    "AnnotatedVideo",
    "FaceTracker",
    "Frame",
    "OneEuroFilter",
    "read_frames",
    "smooth_track",
    "track",
    "track_offline",
]
