"""What README and docs/ show: their code runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pages import DOCS, FENCE, ROOT, blocks_of
from PIL import Image
from typer.main import get_command

from hihlandmark import Detector, crop, face_detection, layouts
from hihlandmark.cli import app
from hihlandmark.models import registry
from hihlandmark.runtimes import RUNTIMES
from hihlandmark.training.config import read_configuration
from hihlandmark.training.objectives import OBJECTIVES

PAGES = sorted(DOCS.rglob("*.md"))
EVERYTHING = [ROOT / "README.md", *PAGES]


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ----------------------------------------------------------------------------------------- code


@pytest.fixture
def open_tables() -> Iterator[None]:
    """Tables to which pages add rows are afterwards as they were."""
    tables: list[dict[Any, Any]] = [
        crop.CANONICAL_CROP,
        face_detection.FACE_DETECTORS,
        layouts.CONVERSIONS,
        layouts.LAYOUTS,
        registry.ARCHITECTURES,
        registry.LAYOUT_POINTS,
        registry.MODELS,
        OBJECTIVES,
        RUNTIMES,
    ]
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    astronaut: NDArray[np.uint8],
    open_tables: None,
    one_thread: None,
) -> Path:
    """An empty folder with an image, where nothing can be fetched and conversions are not kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("hihlandmark.runtimes._cache_folder", lambda package: tmp_path)
    Image.fromarray(astronaut).save("image.jpg", quality=95)
    return tmp_path


def run(page: str, **names: Any) -> dict[str, Any]:
    """The Python blocks of a page one after the other; what they leave behind."""
    blocks = blocks_of(ROOT / page, "python")
    assert blocks, f"{page} has no Python any more"
    namespace: dict[str, Any] = {"__name__": "page", **names}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    return namespace


def test_readme_does_what_it_shows(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = run("README.md")
    assert [face.layout.size for face in left["detector"].predict("image.jpg")] == [98]
    assert capsys.readouterr().out
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_pages_for_newcomers(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/head-pose.md")
    left = run("docs/own-boxes.md")
    (expected,) = Detector(68).predict("image.jpg")
    assert np.abs(left["face"].points - expected.points).max() < 0.05 * expected.interocular
    assert len(left["faces"]) == 1
    left = run("docs/coming-from.md")
    assert left["points"].shape == (98, 2)
    assert left["face"].layout.size == 68


def test_quick_start(workplace: Path) -> None:
    left = run("docs/quick-start.md")
    assert left["face"].layout.size == 98
    assert left["crop"].shape == (112, 112, 3)
    with Image.open("landmarks.png") as drawn:
        assert drawn.size == (512, 512)


def test_concepts_say_what_is_so(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/concepts/pixels.md")
    assert capsys.readouterr().out == "[[4.5 2.5]]\n[[2. 1.]]\n"
    left = run("docs/concepts/crops.md")
    assert left["crop"].shape == (256, 256, 3)
    assert (left["inside"] > 0).all()
    assert (left["inside"] < 256).all()
    left = run("docs/concepts/layouts.md")
    assert left["converted"].approximate.sum() == 22, "the page says so"
    assert left["face"].layout.parts["outer_lips"] == tuple(range(76, 88))
    capsys.readouterr()
    left = run("docs/concepts/heatmaps.md")
    assert (left["found"].points - left["points"]).abs().max() < 1e-3
    assert (left["highest"].points - left["points"]).abs().max() <= 0.25
    left = run("docs/concepts/scores.md")
    assert left["radius"].shape == (98,)
    assert len(left["confident"]) > 50


def test_the_way_of_an_image_by_hand_is_that_of_the_detector(workplace: Path) -> None:
    left = run("docs/architecture.md")
    (face,) = Detector(68, refine=0).predict("image.jpg")
    assert np.abs(left["points"] - face.points).max() < 1e-3


def test_front_page_and_face_detection(workplace: Path) -> None:
    run("docs/index.md")
    left = run("docs/face-detection.md")
    assert len(left["faces"]) == 1
    assert left["detector"].pipeline.any_rotation


def test_data_of_ones_own(workplace: Path) -> None:
    left = run("docs/own-data.md")
    assert left["faces"].layout == "W300_68"
    assert len(left["faces"]) == 1
    for name, page in (("mine.toml", "own-data"), ("fine.toml", "fine-tuning")):
        (toml,) = blocks_of(DOCS / f"{page}.md", "toml")
        Path(name).write_text(toml)
        configuration = read_configuration(name)
        assert [each.folder for each in configuration.sets] == ["my-faces"]


def test_a_model_can_be_added(workplace: Path) -> None:
    left = run("docs/extending/model.md")
    assert left["face"].layout.size == 68
    assert left["error"] < 0.05, "the page says: a few per cent"


def test_a_layout_can_be_added(workplace: Path) -> None:
    left = run("docs/extending/layout.md")
    (face,) = left["faces"]
    assert face.layout is layouts.get_layout("eyes")
    assert face.points.shape == (12, 2)
    assert (0, 9) in face.layout.mirror_pairs
    assert not np.array_equal(left["drawing"], left["image"])
    network = left["network"].eval()
    with torch.inference_mode():
        heatmaps = network(torch.zeros(1, 3, 256, 256))
    assert heatmaps["EYES12"].integer.shape == (1, 12, 64, 64)
    box_map = crop.CANONICAL_CROP["landmarks:EYES12"]
    square = box_map.squares(crop.tight_boxes(left["points"][:1, left["eyes"]]))
    assert np.allclose(square[0, :3], left["squares"][0, :3])


def test_a_face_detector_can_be_added(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = run("docs/extending/face-detector.md")
    assert "no crop for boxes of kind 'lbp-cascade'" in capsys.readouterr().out
    (expected,) = Detector(68).predict("image.jpg")
    apart = np.linalg.norm(left["face"].points - expected.points, axis=1).mean()
    assert apart < 0.01 * expected.interocular
    assert np.abs(left["face"].box - expected.box).max() > 5, "boxes of another kind"


def test_a_runtime_can_be_added(workplace: Path) -> None:
    left = run("docs/extending/runtime.md")
    assert list(workplace.glob("*.pt2"))
    assert np.abs(left["face"].points - left["same"].points).max() < 0.01
    assert left["counting"].crops == 2, "the page says so"


def test_all_python_is_python() -> None:
    for page in EVERYTHING:
        for number, block in enumerate(blocks_of(page, "python"), 1):
            compile(block, f"{relative(page)}, block {number}", "exec")


# ------------------------------------------------------------------------------------- commands


def commands() -> dict[tuple[str, ...], Any]:
    """Commands by the words that call them."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))
        found[words] = command

    walk(get_command(app), ())
    return found


COMMANDS = commands()


def shown_commands(page: Path) -> Iterator[str]:
    """What follows `hihlandmark` in blocks of a page and in its text, a command each."""
    text = page.read_text("utf-8")
    blocks = [match["text"].replace("\\\n", " ") for match in FENCE.finditer(text)]
    lines = [line for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    for shown in (*lines, *(" ".join(span.split()) for span in spans)):
        for match in re.finditer(r"(?:^|[\s$;{])hihlandmark (?P<rest>.*)", shown):
            if not re.search(r"(import|install|from|for)\s*$", shown[: match.start("rest") - 12]):
                yield re.split(r" #|;|\s\|(?=\s*(?:head|less))|&&|\s\}", match["rest"])[0].strip()


def command_and_rest(shown: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """The words of the commands that a line calls, or lists by |, and what comes after them."""
    rest = [word for word in shlex.split(shown, comments=True) if word not in ("-v", "--verbose")]
    words: tuple[str, ...] = ()
    while rest and rest[0] not in ("|", "...") and (*words, rest[0]) in COMMANDS:
        words = (*words, rest.pop(0))
    called = [words]
    while len(rest) > 1 and rest[0] == "|":
        called.append((*words[:-1], rest[1]))
        rest = rest[2:]
    return called, rest


def problem_with(shown: str) -> str | None:
    if "COMMAND" in shown or shown in ("--help", "...", "-v ..."):
        return None
    called, _ = command_and_rest(shown)
    unknown = [" ".join(words) for words in called if words not in COMMANDS or not words]
    if unknown:
        return f"no command {unknown}"
    command = COMMANDS[called[0]]
    known = {"--help"}.union(*({*p.opts, *p.secondary_opts} for p in command.params))
    wrong = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown)) - known
    return f"no option {', '.join(sorted(wrong))}" if wrong else None


@pytest.mark.parametrize("page", EVERYTHING, ids=relative)
def test_commands_exist_with_their_options(page: Path) -> None:
    problems = {shown: problem_with(shown) for shown in shown_commands(page)}
    assert not {shown: problem for shown, problem in problems.items() if problem}


def test_whole_command_lines_parse() -> None:
    """With the types of their values; those with brackets, dots and variables are no whole ones."""
    parsed = 0
    for page in EVERYTHING:
        for match in FENCE.finditer(page.read_text("utf-8")):
            for line in match["text"].replace("\\\n", " ").splitlines():
                shown = re.fullmatch(r"\s*(?:\$ )?hihlandmark (?P<rest>[^\[\]|$>]*)", line)
                if shown is None or "..." in line or match["language"] == "toml":
                    continue
                (words,), rest = command_and_rest(shown["rest"])
                try:
                    COMMANDS[words].make_context(" ".join(words), list(rest))
                except Exception as error:
                    pytest.fail(f"{relative(page)}: {line.strip()}: {error}")
                parsed += 1
    assert parsed > 30, "commands are no longer found"


# ---------------------------------------------------------------------------------------- links


def slug(heading: str) -> str:
    """The anchor of a heading, as the site and code hosts make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text("utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", EVERYTHING, ids=relative)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: there is no such file"
        if anchor and page.name != "index.md":
            assert anchor in anchors(file), f"{target}: there is no such heading"


def test_pages_link_to_nothing_that_the_site_lacks() -> None:
    """Beyond docs/ there are only modules, whose links lead to the reference on the site."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8")):
            file = (page.parent / target).resolve()
            if "://" not in target and not file.is_relative_to(DOCS):
                assert file.suffix == ".py", target
                assert file.is_relative_to(ROOT / "hihlandmark"), target


# ----------------------------------------------------------------------------------------- site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config("mkdocs.yml", strict=True, site_dir=str(folder)))
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=[\"']?(https?:[^\"'\s>]*)")
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text("utf-8")), page.name


def test_model_cards_and_commands_are_on_the_site(site: Path) -> None:
    cards = (site / "model-cards.html").read_text("utf-8")
    for weights in (ROOT / "weights").glob("*.json"):
        assert f'id="{weights.stem}"' in cards
    reference = (site / "reference" / "command-line.html").read_text("utf-8")
    for words, command in COMMANDS.items():
        if not hasattr(command, "commands"):
            assert f'id="hihlandmark-{"-".join(words)}"' in reference
    assert "--fail-fast" in reference
