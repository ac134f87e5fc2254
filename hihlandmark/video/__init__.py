"""Video: frames of files, webcams and streams; face tracking, smoothing and annotated output."""

from hihlandmark.video.blinks import Blink, EyeTraces, blinks
from hihlandmark.video.frames import Frame, read_frames
from hihlandmark.video.smoothing import OneEuroFilter, SmoothedTrack, smooth_track
from hihlandmark.video.tracking import FaceTracker, Track, collect_tracks, track, track_offline
from hihlandmark.video.writing import AnnotatedVideo

__all__ = [
    "AnnotatedVideo",
    "Blink",
    "EyeTraces",
    "FaceTracker",
    "Frame",
    "OneEuroFilter",
    "SmoothedTrack",
    "Track",
    "blinks",
    "collect_tracks",
    "read_frames",
    "smooth_track",
    "track",
    "track_offline",
]
