"""Blinks on simulated traces, and on clips whose blinks were counted by looking at the frames."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from hihlandmark import ConfigurationError, Detector, Face
from hihlandmark.layouts import get_layout
from hihlandmark.measures import Measurement
from hihlandmark.video import Track, blinks, collect_tracks, track
from hihlandmark.video.blinks import find_blinks

pytest.importorskip("scipy")

# Eye, first and last frame of each blink, read from enlarged frames of the eyes. d3 also has two
# winks (frames 5 to 21 and 30 to 53) and eyes that stay closed, which are longer than a blink; in
# d12 the eyes narrow with a glance to the side at frame 29.
COUNTED = json.loads((Path(__file__).parent / "data/blinks.json").read_text("utf-8"))
DATA = Path(os.environ.get("HIHLANDMARK_DATA", "data"))


def traces(depth: float, eyes: tuple[int, ...] = (0, 1), seconds: float = 0.2) -> Measurement:
    """20 s at 30 frames a second with one blink at 10 s."""
    rng = np.random.default_rng(0)
    times = np.arange(600) / 30
    value = 0.33 + rng.normal(0, 0.008, (600, 2))
    dip = 0.33 * depth * (np.abs(times - 10) <= seconds / 2)
    value[:, list(eyes)] -= dip[:, None]
    return Measurement(value, np.full((600, 2), 0.04))


TIMES = np.arange(600) / 30


@pytest.mark.parametrize("depth", [0.35, 0.55])
def test_full_and_partial_blinks_are_found_with_their_frames(depth: float) -> None:
    report = find_blinks(TIMES, traces(depth))
    (blink,) = report.blinks
    assert blink.eye == "both"
    assert blink.start < 300 < blink.end
    assert blink.lowest == pytest.approx(300, abs=4)
    assert blink.depth == pytest.approx(depth, abs=0.1)
    assert report.blinks_per_minute == pytest.approx(3, abs=0.1)


def test_noise_long_closures_and_weak_dips_are_no_blinks() -> None:
    for openness in (traces(0.0), traces(0.5, seconds=1.5), traces(0.3, eyes=(0,))):
        assert find_blinks(TIMES, openness).blinks == []


def test_one_eye_can_blink_alone_or_be_the_only_visible_one() -> None:
    assert [blink.eye for blink in find_blinks(TIMES, traces(0.6, eyes=(1,))).blinks] == ["right"]
    hidden = traces(0.35)
    hidden.value[:, 0] = np.nan
    report = find_blinks(TIMES, hidden)
    assert [blink.eye for blink in report.blinks] == ["right"]
    assert np.isnan(report.closed[:, 0]).all()


def test_probability_of_closed_follows_openness() -> None:
    closed = find_blinks(TIMES, traces(0.8)).closed
    assert closed[300].min() > 0.8
    assert closed[:250].max() < 0.05


def test_simulated_blinks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    measurements = pytest.importorskip("measurements")
    assert measurements.blink_figures(traces=5)["f1"] >= 0.95
    sys.modules.pop("measurements")


def test_eyes_turned_away_are_undefined() -> None:
    layout = get_layout(98)
    points = layout.mean_shape * 100
    center = points[60:68].mean(axis=0)
    points[60:68] = center + (points[60:68] - center) * (0.3, 1)
    face = Face(points, np.ones(98), np.tile(np.eye(2), (98, 1, 1)), np.zeros(4), 1.0, layout)
    report = blinks(Track([face] * 5, np.arange(5) / 30))
    assert np.isnan(report.openness.value[:, 0]).all()
    assert np.isfinite(report.openness.value[:, 1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("clip", COUNTED)
def test_blinks_of_clips_are_those_counted_by_eye(clip: str) -> None:
    path = DATA / "clips" / f"{clip}.mp4"
    if not path.exists():
        pytest.skip("HIHLANDMARK_DATA has no clips")
    pytest.importorskip("supervision")
    tracks = collect_tracks(track(path, Detector(98), smooth=False))
    own = max(tracks.values(), key=lambda each: len(each.frames))  # the others are no human faces
    found = [(blink.eye, blink.lowest) for blink in blinks(own).blinks]
    expected = COUNTED[clip]
    assert [eye for eye, _ in found] == [eye for eye, _, _ in expected]
    for (_, lowest), (_, first, last) in zip(found, expected, strict=True):
        assert first <= lowest <= last


def test_times_that_decrease_are_an_error() -> None:
    openness = Measurement(np.full((4, 2), 0.3), np.full((4, 2), 0.01))
    with pytest.raises(ConfigurationError, match="decrease"):
        find_blinks(np.array([0, 1, 0, 1.0]), openness)
