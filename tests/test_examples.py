import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_quick_start_draws_three_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, picture = tmp_path / "photo.png", tmp_path / "landmarks.png"
    from skimage.data import astronaut

    Image.fromarray(astronaut()).save(photo)
    monkeypatch.setattr(sys, "argv", ["quick_start.py", str(photo), str(picture)])
    runpy.run_path(str(EXAMPLES / "quick_start.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(f"{layout} points" in printed for layout in (98, 68, 29))
    with Image.open(picture) as drawn:
        assert drawn.size == (3 * 512, 512)
