"""Videos: reading frames, tracking faces, smoothing points, writing."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, Detector, Face, ImageError
from hihlandmark.cli import app
from hihlandmark.face import transform_face
from hihlandmark.layouts import (
    CONVERSIONS,
    W300_68,
    Contour,
    Conversion,
    Layout,
    register_conversion,
    register_layout,
)
from hihlandmark.video import (
    AnnotatedVideo,
    FaceTracker,
    Frame,
    OneEuroFilter,
    read_frames,
    smooth_track,
    track,
    track_offline,
    tracking,
)
from hihlandmark.video import frames as video_frames
from hihlandmark.video.blinks import blinks
from hihlandmark.video.tracking import Track, _is_lost, _smoothed_offline, collect_tracks
from hihlandmark.video.writing import open_faces

Image = NDArray[np.uint8]
STEP = 3
"""Pixels by which the face moves to the left per frame."""


@pytest.fixture(scope="module")
def frames(astronaut: Image) -> list[Image]:
    """Twelve images (240, 280, 3) of a face that moves to the left."""
    return [
        np.ascontiguousarray(astronaut[:240, 60 + STEP * i : 340 + STEP * i]) for i in range(12)
    ]


def frames_at(images: list[Image], rate: float = 25.0) -> Iterator[Frame]:
    return (Frame(image, i, i / rate) for i, image in enumerate(images))


def write_video(
    path: Path,
    images: list[Image],
    *,
    times: list[float] | None = None,
    sound: str | None = None,
    start: float = 0,
    pixel_aspect: Fraction = Fraction(1),
) -> Path:
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"crf": "10", "g": "4"})
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.sample_aspect_ratio = pixel_aspect
        audio = output.add_stream(sound, rate=8000, layout="mono") if sound else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (start + (times[number] if times else number / 25)))
            output.mux(video.encode(frame))
        output.mux(video.encode())
        if audio is not None:
            tone = (8000 * np.sin(np.arange(4096) / 3)).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            samples.sample_rate, samples.time_base = 8000, Fraction(1, 8000)
            samples.pts = round(8000 * start)
            output.mux([*audio.encode(samples), *audio.encode()])
    return path


@pytest.fixture(scope="module")
def clip(frames: list[Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", frames, sound="aac")


def test_frames_come_in_order_with_their_times(clip: Path, frames: list[Image]) -> None:
    read = list(read_frames(clip))
    assert [frame.index for frame in read] == list(range(12))
    assert [frame.time for frame in read] == pytest.approx([i / 25 for i in range(12)], abs=1e-3)
    for frame, image in zip(read, frames, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 4


def test_variable_frame_rate_is_kept(frames: list[Image], tmp_path: Path) -> None:
    times = [0, 0.02, 0.1, 0.11, 0.5, 0.9]
    read = read_frames(write_video(tmp_path / "a.mp4", frames[:6], times=times))
    assert [frame.time for frame in read] == pytest.approx(times, abs=2e-3)


def write_rotated(path: Path, clip: Path, matrix: tuple[int, ...]) -> Path:
    # The matrix of a track in an MP4 (ISO 14496-12, 8.3.2): a, b, u, c, d, v, x, y, w.
    content = bytearray(clip.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    numbers = np.array([a, b, 0, c, d, 0, 0, 0, 0x40000000], ">i4")
    content[start : start + 36] = numbers.tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_frames_are_rotated_upright(
    clip: Path, tmp_path: Path, matrix: tuple[int, ...], turns: int
) -> None:
    rotated = write_rotated(tmp_path / "rotated.mp4", clip, matrix)
    for one, other in zip(read_frames(rotated), read_frames(clip), strict=True):
        np.testing.assert_array_equal(one.image, np.rot90(other.image, turns))


def test_broken_frames_are_skipped(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat")
    rng = np.random.default_rng(0)
    content[start + 9000 : start + 22000] = rng.bytes(13000)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    read = list(read_frames(broken))
    assert 0 < len(read) < 12
    assert [frame.index for frame in read] == list(range(len(read)))
    assert "broken" in caplog.text


def test_truncated_video_ends_early(tmp_path: Path, frames: list[Image]) -> None:
    path = write_video(tmp_path / "cut.mkv", frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len(list(read_frames(path))) < 12


def write_sound_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        audio = output.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        output.mux([*audio.encode(samples), *audio.encode()])


def write_no_frame(path: Path) -> None:
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.height = video.width = 32


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("not a video"),
        lambda path: path.mkdir(),
        lambda path: None,
        write_sound_only,
        write_no_frame,
    ],
)
def test_what_is_not_a_video_is_an_image_error(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    write(tmp_path / "a.mp4")
    with pytest.raises(ImageError, match=r"a\.mp4"):
        list(read_frames(tmp_path / "a.mp4"))


def test_a_missing_camera_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"camera:99: .*connected"):
        next(read_frames("camera:99"))
    for source in ("0", "/dev/video99"):
        with pytest.raises(ImageError, match=f"camera:{source.removeprefix('/dev/video')}"):
            next(read_frames(source))
    for source in ("camera:", "camera:front", "camera:-1"):
        with pytest.raises(ConfigurationError, match="camera:0"):
            next(read_frames(source))
    result = CliRunner().invoke(app, ["video", "camera:99", "--out", str(tmp_path / "a.mp4")])
    assert result.exit_code == 1
    assert "connected" in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tgz"])
def test_folders_and_archives_of_images_are_videos(
    suffix: str, frames: list[Image], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        PillowImage.fromarray(frames[number]).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"broken")
    source = folder
    if suffix:
        kind = "gztar" if suffix == ".tgz" else suffix[1:]
        made = shutil.make_archive(str(tmp_path / "sequence"), kind, folder)
        source = Path(made).rename(tmp_path / f"sequence{suffix}")
    read = list(read_frames(source))
    assert [(frame.index, frame.time) for frame in read] == [(0, 0), (1, 0.04)]
    np.testing.assert_array_equal(read[1].image, frames[2])
    assert "1.png" in caplog.text


def test_face_keeps_its_track_id_and_is_detected_now_and_then(
    frames: list[Image], detector: Detector
) -> None:
    tracker = FaceTracker(detector, detect_every=5, smooth=False)
    found = [tracker.update(frame) for frame in frames_at(frames)]
    assert [[face.track_id for face in faces] for faces in found] == [[1]] * 12
    assert tracker.searches == 3
    for number, (face,) in enumerate(found):
        moved = face.points - found[0][0].points + (STEP * number, 0)
        assert np.abs(moved).mean() < 0.02 * face.interocular
        np.testing.assert_allclose(face.box[:2], face.points.min(axis=0))
    assert Face.from_dict(face.to_dict()).track_id == 1
    assert face.to_layout(5).track_id == 1


def test_a_search_crops_no_face_that_is_tracked_well(
    frames: list[Image], detector: Detector
) -> None:
    own = detector.with_options(flip_test=False)
    tracker = FaceTracker(own, detect_every=1)
    run, cropped = own.pipeline.run, []

    class Counting:
        def run(self, found: Any, box_map: Any) -> Any:
            cropped.append(len(found[0].detections))
            return run(found, box_map)

    own.pipeline = Counting()  # type: ignore[assignment]
    for frame in frames_at(frames[:3]):
        assert len(tracker.update(frame)) == 1
    assert (cropped, tracker.searches) == ([1, 0, 0], 3)


@pytest.mark.parametrize(
    ("score", "reliability", "shown"), [(0.5, 0.01, 0), (0.1, 0.01, 1), (0.5, 0.5, 1)]
)
def test_a_search_shows_no_false_detections(
    frames: list[Image], detector: Detector, score: float, reliability: float, shown: int
) -> None:
    own = detector.with_options(flip_test=False)
    tracker = FaceTracker(own)
    run = own.pipeline.run

    class Doubting:
        def run(self, found: Any, box_map: Any) -> Any:
            for number, faces in run(found, box_map):
                scores = np.full(own.layout.size, score, np.float32)
                yield number, [replace(f, scores=scores, reliability=reliability) for f in faces]

    own.pipeline = Doubting()  # type: ignore[assignment]
    assert len(tracker.update(next(iter(frames_at(frames))))) == shown


def test_a_face_keeps_its_id_where_frames_change_their_size(
    frames: list[Image], detector: Detector
) -> None:
    large = [cv2.resize(image, None, fx=2, fy=2) for image in frames[3:6]]
    tracker = FaceTracker(detector)
    found = [tracker.update(f) for f in frames_at([*frames[:3], *large, *frames[6:9]])]
    assert [[face.track_id for face in faces] for faces in found] == [[1]] * 9
    assert tracker.searches == 1
    alone = FaceTracker(detector)
    same = [alone.update(frame) for frame in frames_at(frames[:9])]
    for number, scale in ((3, 2), (5, 2), (6, 1)):
        (face,), (expected,) = found[number], same[number]
        apart = (face.points + 0.5) / scale - (expected.points + 0.5)
        assert np.abs(apart).mean() < 0.02 * expected.interocular


def test_points_move_where_times_do_not(frames: list[Image], detector: Detector) -> None:
    still = [Frame(image, number, 0.0) for number, image in enumerate(frames[:8])]
    found = [faces for _, faces in track(still, detector)]
    raw = [faces for _, faces in track(still, detector, smooth=False)]
    moved, true = (each[7][0].points - each[0][0].points for each in (found, raw))
    assert moved[:, 0].mean() == pytest.approx(true[:, 0].mean(), rel=0.2)
    offline = _smoothed_offline([(0.0, faces) for faces in raw], fill=0)
    moved = offline[7][1][0].points - offline[0][1][0].points
    assert moved[:, 0].mean() == pytest.approx(true[:, 0].mean(), rel=0.2)
    assert [time for time, _ in offline] == [0.0] * 8


def test_frames_may_be_views_of_other_arrays(
    frames: list[Image], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_cut, copied = FaceTracker._is_cut, []

    def watched(self: FaceTracker, image: Image) -> bool:
        copied.append(image.flags.c_contiguous)
        return is_cut(self, image)

    monkeypatch.setattr(FaceTracker, "_is_cut", watched)
    views = [np.ascontiguousarray(image[..., ::-1])[..., ::-1] for image in frames[:3]]
    for (_, one), (_, other) in zip(
        track(frames_at(views), detector), track(frames_at(frames[:3]), detector), strict=True
    ):
        np.testing.assert_array_equal(one[0].points, other[0].points)
    assert copied == [True] * 6


def test_moving_stripes_are_no_cut(frames: list[Image], detector: Detector) -> None:
    width = 960
    striped = []
    for number, image in enumerate(frames[:6]):
        columns = np.where((np.arange(width) + 3 * number) // 4 % 2, 40, 200).astype(np.uint8)
        behind = np.repeat(np.tile(columns, (600, 1))[..., None], 3, axis=2)
        behind[: image.shape[0], : image.shape[1]] = frames[0]
        striped.append(behind)
    tracker = FaceTracker(detector)
    assert [[face.track_id for face in tracker.update(f)] for f in frames_at(striped)] == [[1]] * 6
    assert tracker.searches == 1


def test_rotating_face_is_tracked(astronaut: Image, detector: Detector) -> None:
    rotated = []
    for degrees in range(0, 66, 6):
        matrix = cv2.getRotationMatrix2D((223, 120), -degrees, 1)
        rotated.append(cv2.warpAffine(astronaut, matrix, (512, 512))[:300, 80:380])
    tracker = FaceTracker(detector, detect_every=100)
    found = [tracker.update(frame) for frame in frames_at(rotated)]
    eyes = [faces[0].points[list(detector.layout.ocular_pair)] for faces in (found[0], found[-1])]
    first, last = (np.rad2deg(np.arctan2(*(right - left)[::-1])) for left, right in eyes)
    assert last - first == pytest.approx(60, abs=4)
    assert tracker.searches == 1


def test_faces_leave_and_enter(frames: list[Image], detector: Detector) -> None:
    empty = np.full_like(frames[0], 90)
    images = [*frames[:2], empty, empty, *frames[2:4]]
    found = list(track(frames_at(images), detector, detect_every=1))
    assert [len(faces) for _, faces in found] == [1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("smooth", [True, False])
def test_faces_of_another_scene_get_new_ids(
    frames: list[Image], astronaut: Image, detector: Detector, smooth: bool
) -> None:
    other = 255 - np.zeros_like(frames[0])
    other[20:240, 40:260] = astronaut[10:230, 110:330]
    images = [*frames[:2], other, other, *frames[:2]]
    found = list(track(frames_at(images), detector, detect_every=50, smooth=smooth))
    ids = [[face.track_id for face in faces] for _, faces in found]
    assert ids == [[1], [1], [2], [2], [3], [3]]


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_stream(
    clip: Path, detector: Detector, tmp_path: Path
) -> None:
    def stream() -> Iterator[Frame]:
        for turn in range(200):
            for frame in read_frames(clip):
                number = 12 * turn + frame.index
                yield Frame(frame.image, number, number / 25)

    resident = []
    with AnnotatedVideo(tmp_path / "out.mp4") as video:
        for frame, faces in track(stream(), detector):
            video.add(frame.image, frame.time)
            assert len(faces) == 1
            if frame.index % 600 == 599:
                status = Path("/proc/self/status").read_text()
                resident.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
    assert len(resident) == 4
    print(f"MB after each quarter: {resident}")
    assert max(resident) - resident[0] < 30


def second_difference(points: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(np.diff(points, 2, axis=0), axis=-1).mean())


COVARIANCE = np.tile(np.eye(2), (5, 1, 1))


def test_points_at_rest_are_smoothed() -> None:
    still = 50 + np.random.default_rng(1).normal(0, 1, (60, 5, 2))
    one_euro = OneEuroFilter()
    filtered = np.stack([one_euro(t / 25, p, COVARIANCE, 100) for t, p in enumerate(still)])
    smoothed = smooth_track(
        np.arange(60) / 25, still, np.tile(COVARIANCE, (60, 1, 1, 1)), np.full(60, 100.0)
    ).points
    assert second_difference(filtered) < 0.6 * second_difference(still)
    assert second_difference(smoothed) < 0.6 * second_difference(still)
    np.testing.assert_allclose(filtered[30:].mean(axis=(0, 1)), 50, atol=0.3)


def test_points_with_low_variance_are_filtered_less() -> None:
    covariance = COVARIANCE * np.array([0.1, 1, 1, 1, 10])[:, None, None]
    one_euro = OneEuroFilter()
    one_euro(0, np.zeros((5, 2)), covariance, 100)
    moved = one_euro(0.04, np.ones((5, 2)), covariance, 100)[:, 0]
    assert moved[0] > moved[1] == moved[2] > moved[4] > 0
    plain = OneEuroFilter(by_covariance=False)
    plain(0, np.zeros((5, 2)), covariance, 100)
    assert len(set(plain(0.04, np.ones((5, 2)), covariance, 100)[:, 0])) == 1


def test_time_that_does_not_increase_changes_nothing() -> None:
    one_euro = OneEuroFilter()
    one_euro(1.0, np.zeros((5, 2)), COVARIANCE, 100)
    assert (one_euro(1.0, np.ones((5, 2)), COVARIANCE, 100) == 0).all()


def test_offline_smoother_does_not_lag() -> None:
    times = np.array([0, 0.04, 0.08, 0.2, 0.24, 0.28, 0.32, 0.36])
    points = np.tile(200 * times[:, None, None], (1, 5, 2))  # two inter-ocular distances a second
    covariance = np.tile(COVARIANCE, (len(times), 1, 1, 1))
    smoothed = smooth_track(times, points, covariance, np.full(len(times), 100.0)).points
    np.testing.assert_allclose(smoothed, points, atol=0.05)
    one_euro = OneEuroFilter()
    filtered = [one_euro(t, p, COVARIANCE, 100) for t, p in zip(times, points, strict=True)]
    assert (filtered[-1] < points[-1] - 0.5).all()  # a causal filter lags


def test_track_offline_smooths_with_later_frames(clip: Path, detector: Detector) -> None:
    raw = [faces[0].points for _, faces in islice(track(clip, detector, smooth=False), 6)]
    smooth = [faces[0].points for _, faces in track_offline(clip, detector, frames=6)]
    part = [faces[0].points for _, faces in track_offline(clip, detector, frames=3)]
    assert (len(smooth), len(part)) == (6, 3)
    assert np.abs(part[2] - smooth[2]).max() > 1e-4, "later frames were ignored"
    assert second_difference(np.stack(smooth)) < second_difference(np.stack(raw))


def test_offline_smoothing_begins_anew_where_frames_change_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = W300_68.mean_shape.astype(np.float32) * 100 + 200
    spread = np.tile(np.eye(2, dtype=np.float32), (68, 1, 1))
    box = np.array([100, 100, 300, 300], np.float32)
    still = Face(points, np.ones(68, np.float32), spread, box, 1.0, W300_68)
    sizes = [1.0] * 20 + [0.5] * 20
    raw = [[replace(transform_face(still, size * np.eye(2, 3)), track_id=1)] for size in sizes]
    images = [np.zeros((round(480 * size), 640, 3), np.uint8) for size in sizes]
    frames = list(frames_at(images))
    monkeypatch.setattr(tracking, "read_frames", lambda source, **limits: iter(frames))
    tracked = (pair for pair in zip(frames, raw, strict=True))
    monkeypatch.setattr(tracking, "track", lambda *arguments, **options: tracked)
    detector = SimpleNamespace(limits={})
    found = [faces for _, faces in track_offline("some.mp4", detector)]  # type: ignore[arg-type]
    for (smooth,), (before,) in zip(found, raw, strict=True):
        np.testing.assert_allclose(smooth.points, before.points, atol=0.01)


@pytest.mark.parametrize(("duration", "is_endless"), [(None, True), (0, True), (5_000_000, False)])
def test_streams_without_an_end_are_live(
    duration: int | None, is_endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = nullcontext(SimpleNamespace(duration=duration))
    monkeypatch.setattr(video_frames, "open_container", lambda source: container)
    assert video_frames.is_live("rtsp://host/stream") == is_endless
    for recorded in ("clip.mp4", "s3://bucket/frames/*.png", "file:///clip.mp4"):
        assert not video_frames.is_live(recorded)
    assert video_frames.is_live("camera:0")


def test_any_pattern_is_a_sequence(tmp_path: Path) -> None:
    for number in range(2):
        PillowImage.new("RGB", (60, 40)).save(tmp_path / f"{number}.png")
    assert len(list(read_frames(str(tmp_path / "*")))) == 2
    assert len(list(read_frames(str(tmp_path / "[0-1].p*g")))) == 2


def test_a_signal_while_files_are_closed_spoils_none(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = AnnotatedVideo._finish

    def interrupted(self: AnnotatedVideo, *raised: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(self, *raised)

    monkeypatch.setattr(AnnotatedVideo, "_finish", interrupted)
    out = tmp_path / "out.mp4"
    arguments = ["video", str(clip), "--out", str(out), "--layout", "29", "--frames", "3"]
    CliRunner().invoke(app, arguments)
    assert len(list(read_frames(out))) == 3


def test_wrong_tracking_options_are_refused(detector: Detector) -> None:
    with pytest.raises(ConfigurationError, match="camera"):
        next(track_offline("camera:0", detector))
    with pytest.raises(ConfigurationError, match="detect_every"):
        FaceTracker(detector, detect_every=0)


@pytest.mark.slow
def test_videos_can_be_left_in_the_middle(clip: Path) -> None:
    program = (
        "import sys\nfrom hihlandmark.video import read_frames\n"
        "for number in range(200):\n"
        "    for frame in read_frames(sys.argv[1]):\n"
        "        if frame.index == number % 12:\n"
        "            break\n"
    )
    # In another process, because a deadlock cannot be interrupted.
    result = subprocess.run([sys.executable, "-c", program, str(clip)], timeout=300, check=False)
    assert result.returncode == 0


def test_annotated_video_keeps_times_and_sound(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.mp4"
    with AnnotatedVideo(out, clip) as video:
        for frame in read_frames(clip):
            video.add(frame.image[:239, :279], frame.time)  # odd sides
    written = list(read_frames(out))
    assert [f.time for f in written] == pytest.approx([i / 25 for i in range(12)], abs=1e-3)
    assert written[0].image.shape == (240, 280, 3)
    packets = []
    for path in (clip, out):
        with av.open(str(path)) as container:
            packets.append([bytes(packet) for packet in container.demux(audio=0)])
    assert len(packets[0]) > 3
    assert packets[0] == packets[1]
    assert [path.name for path in out.parent.iterdir()] == ["out.mp4"]


def test_interrupted_video_leaves_no_file(tmp_path: Path) -> None:
    def write(name: str, *, stop: bool) -> None:
        with AnnotatedVideo(tmp_path / name) as video:
            video.add(np.zeros((32, 32, 3), np.uint8), 0)
            if stop:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write("a.mp4", stop=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match="mp4"):
        write("a.doc", stop=False)
    with AnnotatedVideo(tmp_path / "a.mp4"):
        pass  # stopped before the first frame
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "time"),
    [
        (np.zeros((8, 8), np.uint8), 0.0),
        (np.zeros((8, 8, 4), np.uint8), 0.0),
        (np.zeros((0, 8, 3), np.uint8), 0.0),
        (np.zeros((8, 8, 3)), 0.0),
        ("a.png", 0.0),
        (np.zeros((8, 8, 3), np.uint8), np.nan),
        (np.zeros((8, 8, 3), np.uint8), None),
        (np.zeros((8, 8, 3), np.uint8), "1"),
    ],
)
def test_frames_are_rgb_images_with_a_time(tmp_path: Path, image: Any, time: Any) -> None:
    with pytest.raises(ConfigurationError, match="of a frame is"):
        Frame(image, 0, time)
    with (
        pytest.raises(ConfigurationError, match="of a frame is"),
        AnnotatedVideo(tmp_path / "a.mp4") as video,
    ):
        video.add(image, time)
    assert list(tmp_path.iterdir()) == []


def test_only_frames_are_tracked(frames: list[Image], detector: Detector) -> None:
    with pytest.raises(ConfigurationError, match=r"Frame\(image, index, time\), not ndarray"):
        next(track(frames, detector))  # type: ignore[arg-type]


def test_five_points_are_tracked(frames: list[Image], detector_of: Any) -> None:
    found = [faces for _, faces in track(frames_at(frames), detector_of(5), detect_every=50)]
    assert [len(faces) for faces in found] == [1] * len(frames)
    assert {faces[0].track_id for faces in found} == {1}
    moves = [b[0].points[0, 0] - a[0].points[0, 0] for a, b in pairwise(found)]
    assert np.mean(moves) == pytest.approx(-STEP, abs=1)


def test_faces_are_written_for_each_frame(clip: Path, detector: Detector, tmp_path: Path) -> None:
    import pandas

    found = list(islice(track(clip, detector, detect_every=50), 6))
    for suffix in ("jsonl", "parquet"):
        with open_faces(tmp_path / f"faces.{suffix}") as writer:
            for frame, faces in found:
                writer.add(frame, faces)
    lines = [json.loads(line) for line in (tmp_path / "faces.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert lines[3]["faces"][0]["track_id"] == 1
    table = pandas.read_parquet(tmp_path / "faces.parquet")
    assert table["frame"].tolist() == list(range(6))
    assert set(table["track_id"]) == {1}
    np.testing.assert_array_equal(np.stack(table["points"][4]), found[4][1][0].points)
    with (
        pytest.raises(ConfigurationError, match="jsonl"),
        open_faces(Path("a.csv")),
    ):
        pass


def test_video_command_draws_and_writes(
    clip: Path, tmp_path: Path, detector_of: Callable[[int], Detector]
) -> None:
    out, points = tmp_path / "out.mp4", tmp_path / "faces.jsonl"
    arguments = ["video", str(clip), "--out", str(out), "--points", str(points)]
    arguments += ["--layout", "29", "--no-flip-test", "--offline", "--frames", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "frames: 5, tracked faces: 1; results in" in result.stderr
    assert len(list(read_frames(out))) == 5
    assert len(points.read_text().splitlines()) == 5
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, ConfigurationError)
    assert "exists already" in str(again.exception)
    printed_arguments = ["video", str(clip), "--layout", "29", "--frames", "2"]
    printed = CliRunner().invoke(app, printed_arguments)
    assert [json.loads(line)["frame"] for line in printed.stdout.splitlines()] == [0, 1]
    doubted = CliRunner().invoke(app, [*printed_arguments, "--min-reliability", "1"])
    assert [json.loads(line)["faces"] for line in doubted.stdout.splitlines()] == [[], []]


def squeezed(images: list[Image]) -> list[Image]:
    """The images at half the width, which pixels of 2:1 undo."""
    return [cv2.resize(image, (140, 240), interpolation=cv2.INTER_AREA) for image in images]


@pytest.mark.parametrize("is_rotated", [False, True])
def test_faces_of_oblong_pixels_are_as_accurate(
    frames: list[Image], tmp_path: Path, detector: Detector, is_rotated: bool
) -> None:
    images, aspect = squeezed(frames[:2]), Fraction(2)
    path = tmp_path / "a.mp4"
    if is_rotated:
        images = [np.ascontiguousarray(np.rot90(image)) for image in images]
        write_video(tmp_path / "b.mp4", images, pixel_aspect=1 / aspect)
        write_rotated(path, tmp_path / "b.mp4", (0, 1, -1, 0))
    else:
        write_video(path, images, pixel_aspect=aspect)
    (frame, (face,)), _ = track(path, detector, smooth=False)
    assert (frame.image.shape, frame.pixel_aspect) == ((240, 140, 3), aspect)
    ((_, (true,)),) = track(frames_at(frames[:1]), detector, smooth=False)
    moved = (face.points + 0.5) * (2, 1) - 0.5 - true.points
    assert np.linalg.norm(moved, axis=1).mean() < 0.03 * true.interocular
    np.testing.assert_allclose(face.box[2:], face.points.max(axis=0), atol=0.01)
    widths = face.covariance[:, 0, 0] / true.covariance[:, 0, 0]
    assert np.median(widths) == pytest.approx(1 / 4, rel=0.3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_annotated_video_keeps_the_pixel_aspect(
    frames: list[Image], tmp_path: Path, suffix: str
) -> None:
    path = write_video(tmp_path / "a.mp4", squeezed(frames), pixel_aspect=Fraction(2))
    out = tmp_path / f"out.{suffix}"
    with AnnotatedVideo(out, path) as video:
        for frame in read_frames(path):
            video.add(frame.image, frame.time, frame.pixel_aspect)
    (frame, *_) = read_frames(out)
    assert (frame.image.shape, frame.pixel_aspect) == ((240, 140, 3), 2)


def copied(path: Path, out: Path) -> Path:
    with AnnotatedVideo(out, path) as video:
        for frame in read_frames(path):
            video.add(frame.image, frame.time)
    return out


def sound_of(path: Path) -> tuple[str, NDArray[np.floating], float]:
    """Codec, samples of a channel, and time in seconds of the first one."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = list(container.decode(stream))
        samples = np.concatenate([np.atleast_2d(part.to_ndarray())[0] for part in parts])
        return stream.codec_context.name, samples, float(parts[0].time or 0)


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("pcm_mulaw", "mov"), ("adpcm_ms", "avi"), ("libopencore_amrnb", "3gp")],
)
def test_sound_that_mp4_cannot_hold_is_encoded_again(
    frames: list[Image], tmp_path: Path, codec: str, suffix: str
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", frames, sound=codec)
    name, samples, start = sound_of(copied(path, tmp_path / "out.mp4"))
    assert name == "aac"
    assert start == pytest.approx(0, abs=0.05)
    assert 0.5 < len(samples) / 48_000 < 0.8  # blocks of ADPCM are filled up
    assert np.abs(samples[4800:9600]).mean() > 0.05
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 12


def test_sound_of_an_unknown_codec_is_left_out_with_a_warning(
    frames: list[Image], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.mov", frames, sound="pcm_mulaw")
    path.write_bytes(path.read_bytes().replace(b"ulaw", b"????"))
    copied(path, tmp_path / "out.mp4")
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 12
    assert "out.mp4: the sound, or the rest of it, is left out" in caplog.text


@pytest.mark.parametrize(
    ("sound", "suffix"), [("aac", "ts"), ("libopencore_amrnb", "3gp"), ("pcm_mulaw", "mov")]
)
def test_damage_costs_packets_and_not_the_video(tmp_path: Path, sound: str, suffix: str) -> None:
    images = [np.full((64, 64, 3), 20 * number, np.uint8) for number in range(12)]
    whole = write_video(tmp_path / f"a.{suffix}", images, sound=sound).read_bytes()
    damaged, out = tmp_path / f"b.{suffix}", tmp_path / "out.mp4"
    rng, written = np.random.default_rng(0), 0
    for _ in range(15):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=20):
            content[place] = rng.integers(256)
        damaged.write_bytes(content)
        try:
            written += len(list(read_frames(copied(damaged, out)))) > 0
        except ImageError:  # what FFmpeg cannot open, or without an intact frame
            continue
    assert written > 1


@pytest.mark.parametrize(
    ("name", "sound", "suffix"),
    [("a.ts", "aac", "mp4"), ("a.mkv", "aac", "mkv"), ("a.mov", "pcm_mulaw", "mp4")],
)
def test_a_recording_that_starts_late_begins_at_zero(
    frames: list[Image], tmp_path: Path, name: str, sound: str, suffix: str
) -> None:
    path = write_video(tmp_path / name, frames, sound=sound, start=1000)
    times = [frame.time for frame in read_frames(path)]
    assert times == pytest.approx([i / 25 for i in range(12)], abs=0.15)
    out = copied(path, tmp_path / f"out.{suffix}")
    with av.open(str(out)) as container:
        assert container.duration / av.time_base < 2
        assert container.start_time == pytest.approx(0, abs=150_000)
    assert sound_of(out)[2] == pytest.approx(0, abs=0.15)


def test_a_video_never_replaces_its_source(clip: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.mp4"
    own.write_bytes(clip.read_bytes())
    result = CliRunner().invoke(app, ["video", str(own), "--out", str(own)])
    assert isinstance(result.exception, ConfigurationError)
    with pytest.raises(ConfigurationError, match="is the source"):
        AnnotatedVideo(own, own)
    assert own.read_bytes() == clip.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--offline", "--no-smooth"], "omit it, or --no-smooth"),
        (["--model", "adnet-small", "--min-reliability", "0.5"], "no reliability of WFLW98"),
    ],
)
def test_options_of_video_that_have_no_effect_are_refused(
    clip: Path, options: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["video", str(clip), *options])
    assert result.exit_code != 0
    assert message in str(result.exception) + result.stderr


@pytest.mark.parametrize("suffix", ["webm", "gif", "doc", "txt", ""])
def test_a_file_that_holds_no_h264_is_refused_before_the_work(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hihlandmark.cli.options.make_detector", None)
    out = tmp_path / "new" / f"out.{suffix}"
    result = CliRunner().invoke(app, ["video", "clip.mp4", "--out", str(out)])
    assert isinstance(result.exception, ConfigurationError)
    assert "use .mp4 or .mkv" in str(result.exception)
    assert not out.parent.exists()


def test_too_large_frames_are_refused(clip: Path, tmp_path: Path, frames: list[Image]) -> None:
    with pytest.raises(ImageError, match="max_pixels=1000"):
        next(read_frames(clip, max_pixels=1000))
    PillowImage.fromarray(frames[0]).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="no frame"):
        next(read_frames(tmp_path, max_pixels=1000))
    result = CliRunner().invoke(app, ["video", str(clip), "--max-pixels", "1000"])
    assert isinstance(result.exception, ImageError)


def test_a_failing_encoder_leaves_no_file(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "a.mp4")
    video.add(np.zeros((32, 32, 3), np.uint8), 0)
    video._video = None  # fails when the last frames are written
    with pytest.raises(AttributeError):
        video.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_smoothing_starts_anew_where_time_jumps_back(
    frames: list[Image], detector: Detector
) -> None:
    raw, smooth = (FaceTracker(detector, smooth=each) for each in (False, True))
    times = [0.0, 0.04, 0.08, 0.0, 0.04]
    for index, time in enumerate(times):
        frame = Frame(frames[index], index, time)
        ((plain,), (filtered,)) = (tracker.update(frame) for tracker in (raw, smooth))
        if time == 0:
            np.testing.assert_array_equal(plain.points, filtered.points)


def test_frames_of_another_size_and_earlier_time_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with AnnotatedVideo(path) as video:
        times = [0.0, 0.04, 0.04, 0.08, 0.0, 0.04]
        for size, time in zip((64, 64, 64, 64, 128, 128), times, strict=True):
            video.add(np.full((size, size, 3), 200, np.uint8), time)
    found = list(read_frames(path))
    expected = [0, 0.04, 0.04, 0.08, 0.12, 0.16]
    assert [frame.time for frame in found] == pytest.approx(expected, abs=1e-3)
    assert found[-1].image.mean() == pytest.approx(200, abs=3)
    with pytest.raises(ConfigurationError, match=r"\.mp4"):
        AnnotatedVideo(tmp_path / "out.avi")


@pytest.mark.parametrize("height", [64, 720])
def test_colors_of_written_videos_are_stated(tmp_path: Path, height: int) -> None:
    import av

    color = (30, 180, 60)
    with AnnotatedVideo(tmp_path / "out.mp4") as video:
        video.add(np.full((height, 128, 3), color, np.uint8), 0.0)
    with av.open(str(tmp_path / "out.mp4")) as container:
        (frame,) = container.decode(video=0)
    assert (frame.colorspace, frame.color_range) == (1, 1)
    luma = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    assert frame.to_ndarray()[:height].mean() == pytest.approx(16 + luma * 219 / 255, abs=2)


@pytest.mark.parametrize(
    ("score", "reliability", "lost"),
    [
        (0.1, 1.0, True),
        (0.25, 0.02, True),  # as of what covers a face
        (0.55, 0.02, True),  # as of a false detection
        (0.25, 0.5, False),
        (0.25, np.nan, False),
        (0.9, 0.02, False),
    ],
)
def test_points_of_what_covers_a_face_are_no_face(
    score: float, reliability: float, lost: bool
) -> None:
    points = W300_68.mean_shape * 80 + 100
    covariance, box = np.tile(np.eye(2), (68, 1, 1)), np.array([50, 50, 150, 150])
    scores = np.full(68, score)
    face = Face(points, scores, covariance, box, 0.9, W300_68, reliability=reliability)
    assert _is_lost(face) == lost


def test_filtered_points_may_be_changed_in_place() -> None:
    points, covariance = np.zeros((4, 2)), np.tile(np.eye(2), (4, 1, 1))
    smooth = OneEuroFilter()
    for time in (0.0, 0.04):
        smooth(time, points, covariance, 60.0)[:] = 50
    np.testing.assert_array_equal(smooth(0.08, points, covariance, 60.0), points)
    smooth(0.08, points, covariance, 60.0)[:] = 50  # no later time: the last points again
    np.testing.assert_array_equal(smooth(0.08, points, covariance, 60.0), points)


def test_a_part_of_a_track_has_its_times_and_the_numbers_of_its_frames(
    frames: list[Image], detector: Detector
) -> None:
    numbered = (Frame(image, 5 + i, i / 25) for i, image in enumerate(frames[:4]))
    (whole,) = collect_tracks(track(numbered, detector)).values()
    part = whole[1:3]
    assert isinstance(part, Track)
    assert part[0] is whole[1]
    assert part.times == [1 / 25, 2 / 25]
    assert part.frames == [6, 7]
    with pytest.raises(ConfigurationError, match="Track"):
        blinks(list(whole))  # type: ignore[arg-type]
    five = Track([face.to_layout("five") for face in whole], whole.times)
    with pytest.raises(ConfigurationError, match="eyelids"):
        blinks(five)


def test_a_converted_layout_is_tracked(
    frames: list[Image], detector_of: Callable[[int], Detector], own_layouts: None
) -> None:
    eyes = [*W300_68.parts["left_eye"], *W300_68.parts["right_eye"]]
    names = tuple(W300_68.point_names[i] for i in eyes)
    left, right = tuple(range(6)), tuple(range(6, 12))
    layout = register_layout(
        Layout(
            "TRACKED_EYES",
            (),
            names,
            {"left_eye": left, "right_eye": right},
            (Contour(left, closed=True), Contour(right, closed=True)),
            (names.index("left_eye_outer_corner"), names.index("right_eye_outer_corner")),
            (left, right),
            W300_68.mean_shape[eyes],
        )
    )
    table = Conversion.from_tables(W300_68, layout, dict(enumerate(eyes)))
    with contextlib.ExitStack() as stack:
        register_conversion(table)
        stack.callback(CONVERSIONS.pop, (W300_68, layout))
        detector = Detector(layout, device="cpu", precision="fp32")
        expected = list(track(frames_at(frames), detector_of(68), smooth=False))
        found = list(track(frames_at(frames), detector, smooth=False))
    for (_, (face,)), (_, (whole,)) in zip(found, expected, strict=True):
        apart = np.linalg.norm(face.points - whole.points[eyes], axis=1).mean()
        assert apart < 0.03 * whole.interocular, "another crop, the same eyes"


@pytest.mark.parametrize("options", [{"frames": -1}, {"frames": 1.5}, {"fill": "x"}, {"fill": -1}])
def test_options_of_offline_tracking_are_checked(detector: Detector, options: Any) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        next(track_offline("none.mp4", detector, **options))


def test_the_shape_of_pixels_is_a_number(frames: list[Image], tmp_path: Path) -> None:
    with AnnotatedVideo(tmp_path / "wide.mp4") as video:
        with pytest.raises(ConfigurationError, match="pixel_aspect"):
            video.add(frames[0], 0, 0)  # type: ignore[arg-type]
        for index in range(2):
            video.add(frames[index], index / 25, 1.5)  # type: ignore[arg-type]
    assert next(iter(read_frames(tmp_path / "wide.mp4"))).pixel_aspect == Fraction(3, 2)


def test_what_is_no_source_of_frames_is_an_error(detector: Detector) -> None:
    with pytest.raises(ConfigurationError, match="camera:0"):
        next(track(0, detector))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="read twice"):
        next(track_offline([], detector))  # type: ignore[arg-type]
