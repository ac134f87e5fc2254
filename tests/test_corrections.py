"""Faces corrected in other tools, read back, and which images to label first."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hihlandmark import ConfigurationError, DataError, Face
from hihlandmark.cli import app
from hihlandmark.datasets import read_faces
from hihlandmark.datasets.corrections import images_to_label, import_corrections
from hihlandmark.io import Result, ResultFolder, Source
from hihlandmark.io.connectors import to_cvat, to_label_studio
from hihlandmark.io.results import read_results
from hihlandmark.layouts import COFW29, W300_68

SIZE = 200, 160


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    for name in ("a/1.png", "2.png"):
        Image.new("RGB", SIZE).save(folder / name)
    return folder


def face(layout=W300_68, shift=0.0, score=0.9):
    points = 40 + 15 * np.asarray(layout.mean_shape) / np.ptp(layout.mean_shape) + shift
    covariance = np.tile(np.eye(2), (layout.size, 1, 1))
    return Face(points, np.full(layout.size, score), covariance, (30, 30, 80, 80), 0.9, layout)


def source(name):
    return Source(path=name, name=name, stamp="")


def task(faces, image, **annotation):
    """A task of Label Studio as it is exported after its prediction was accepted."""
    made = to_label_studio(faces, SIZE, image)
    annotation = {"result": made["predictions"][0]["result"]} | annotation
    return {"data": made["data"], "annotations": [annotation]}


def points_in(folder):
    return [each.points for each in read_faces(folder, "train")]


def test_cvat_comes_back_with_hidden_and_missing_points(tmp_path, images):
    faces = [face(), face(shift=60)]
    text = to_cvat(
        [Result(source("a/1.png"), faces, SIZE), Result(source("2.png"), faces[:1], SIZE)]
    )
    text = text.replace('occluded="0"', 'occluded="1"', 1)
    last = text.rindex('outside="0"')
    (tmp_path / "corrected.xml").write_text(text[:last] + 'outside="1"' + text[last + 11 :])
    done = import_corrections(tmp_path / "corrected.xml", images, tmp_path / "out")
    assert (done.images, done.faces, done.left_out) == (2, 3, [])
    read = read_faces(tmp_path / "out", "train")
    assert read.layout == "W300_68"
    assert read[0].load_image().shape == (160, 200, 3)
    for found, expected in zip(read, [*faces, faces[0]], strict=True):
        known = np.isfinite(found.points[:, 0])
        assert np.abs(found.points - expected.points)[known].max() < 0.02
    assert not read[0].visible[0]
    assert read[0].visible[1:].all()
    assert np.isnan(read[2].points).any(axis=1).sum() == 1


@pytest.mark.parametrize("form", ["grouped", "plain"])
@pytest.mark.parametrize("layout", [W300_68, COFW29])
def test_label_studio_comes_back_in_both_forms(tmp_path, images, form, layout):
    faces = [face(layout), face(layout, shift=60)]
    tasks = [task(faces, "http://host/data/upload/3/0a1b2c3d-2.png")]
    if form == "plain":  # the points of one face follow those of the other
        for result in (results := tasks[0]["annotations"][0]["result"]):
            result.pop("parentID", None)
        results[:] = [result for result in results if result["type"] == "keypointlabels"]
    (tmp_path / "corrected.json").write_text(json.dumps(tasks))
    import_corrections(tmp_path / "corrected.json", images, tmp_path / "out")
    read = read_faces(tmp_path / "out", "train")
    assert read.layout == layout.name
    for found, expected in zip(read, faces, strict=True):
        np.testing.assert_allclose(found.points, expected.points, atol=0.01)


def test_a_point_added_by_hand_joins_the_face_that_lacks_it(tmp_path, images):
    faces = [face(), face(shift=60)]
    tasks = [task(faces, "/data/local-files/?d=some/where/a/1.png")]
    results = tasks[0]["annotations"][0]["result"]
    del next(r for r in reversed(results) if r["type"] == "keypointlabels")["parentID"]
    (tmp_path / "corrected.json").write_text(json.dumps(tasks))
    import_corrections(tmp_path / "corrected.json", images, tmp_path / "out")
    np.testing.assert_allclose(points_in(tmp_path / "out")[1], faces[1].points, atol=0.01)


def test_only_the_last_valid_annotation_of_a_task_counts(tmp_path, images):
    old, new = face(), face(shift=10)
    tasks = [task([old], "2.png", updated_at="2026-01-01T00:00:00Z"), task([old], "a/1.png")]
    tasks[0]["annotations"] += task([new], "", updated_at="2026-01-02T00:00:00Z")["annotations"]
    tasks[1]["annotations"][0]["was_cancelled"] = True
    (tmp_path / "corrected.json").write_text(json.dumps(tasks))
    assert import_corrections(tmp_path / "corrected.json", images, tmp_path / "out").faces == 1
    np.testing.assert_allclose(points_in(tmp_path / "out")[0], new.points, atol=0.01)


def test_annotations_are_kept_unless_appending_is_chosen(tmp_path, images):
    def corrected(name):
        path = tmp_path / "corrected.xml"
        path.write_text(to_cvat([Result(source(name), [face()], SIZE)]))
        return path

    out = tmp_path / "out"
    import_corrections(corrected("2.png"), images, out)
    first = (out / "annotations.jsonl").read_bytes()
    with pytest.raises(DataError, match="exists"):
        import_corrections(corrected("a/1.png"), images, out)
    with pytest.raises(DataError, match="already"):
        import_corrections(corrected("2.png"), images, out, append=True)
    assert (out / "annotations.jsonl").read_bytes() == first
    import_corrections(corrected("a/1.png"), images, out, append=True)
    assert (out / "annotations.jsonl").read_bytes().startswith(first)
    assert len(points_in(out)) == 2


def cvat_of(folder, image, *names):
    """A file with one face, of which only the named points are labeled."""
    path = folder / "points.xml"
    points = "".join(f'<points label="{name}" points="9,9"/>' for name in names)
    skeleton = f"<skeleton>{points}</skeleton>"
    path.write_text(f'<annotations><image name="{image}">{skeleton}</image></annotations>')
    return path


def test_appended_faces_take_the_layout_of_those_before(tmp_path, images):
    (tmp_path / "corrected.xml").write_text(to_cvat([Result(source("2.png"), [face()], SIZE)]))
    out = tmp_path / "out"
    import_corrections(tmp_path / "corrected.xml", images, out)
    import_corrections(cvat_of(tmp_path, "a/1.png", "nose_tip"), images, out, append=True)
    read = read_faces(out, "train")
    assert (read.layout, len(read), list(read.skipped)) == ("W300_68", 2, [])
    assert np.isfinite(read[1].points).all(axis=1).sum() == 1


@pytest.mark.parametrize(("name", "layout"), [("left_pupil", None), ("nose_tip", 98)])
def test_faces_of_another_layout_are_not_appended(tmp_path, images, name, layout):
    (tmp_path / "corrected.xml").write_text(to_cvat([Result(source("2.png"), [face()], SIZE)]))
    out = tmp_path / "out"
    import_corrections(tmp_path / "corrected.xml", images, out)
    first = (out / "annotations.jsonl").read_bytes()
    file = cvat_of(tmp_path, "a/1.png", name)
    with pytest.raises(DataError, match="68 points"):
        import_corrections(file, images, out, layout=layout, append=True)
    assert (out / "annotations.jsonl").read_bytes() == first


@pytest.mark.parametrize("text", ["", "[]", "{}", "<annotations/>", '[{"annotations": []}]'])
@pytest.mark.parametrize("layout", [None, 68])
def test_a_file_without_annotations_is_named_as_such(tmp_path, images, text, layout):
    (tmp_path / "other").write_text(text)
    with pytest.raises(DataError, match="no annotations"):
        import_corrections(tmp_path / "other", images, tmp_path / "out", layout=layout)


@pytest.mark.parametrize("meta", [None, {}, {"text": None}, {"text": ["hidden"]}])
def test_meta_information_may_be_empty(tmp_path, images, meta):
    tasks = [task([face()], "2.png")]
    for result in tasks[0]["annotations"][0]["result"]:
        result["meta"] = meta
    (tmp_path / "corrected.json").write_text(json.dumps(tasks))
    import_corrections(tmp_path / "corrected.json", images, tmp_path / "out")
    (read,) = read_faces(tmp_path / "out", "train")
    assert (read.visible is None) == (meta != {"text": ["hidden"]})


@pytest.mark.parametrize("split", ["", "a/b"])
def test_a_split_that_could_not_be_read_is_not_written(tmp_path, images, split):
    file = cvat_of(tmp_path, "2.png", "nose_tip")
    with pytest.raises(ConfigurationError, match="split"):
        import_corrections(file, images, tmp_path / "out", split=split)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "<html/>", "<annotations>", "[]"])
def test_other_files_are_refused(tmp_path, images, text):
    (tmp_path / "other").write_text(text)
    with pytest.raises(DataError, match="other"):
        import_corrections(tmp_path / "other", images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_images_are_named(tmp_path, images):
    results = [Result(source(name), [face()], SIZE) for name in ("2.png", "../../none.png")]
    (tmp_path / "corrected.xml").write_text(to_cvat(results))
    arguments = ["data", "import", str(tmp_path / "corrected.xml"), "--images", str(images)]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "1 face in 1 image" in done.output
    assert "none.png" in done.output


@pytest.mark.parametrize("name", ["json", "csv", "csv-wide", "parquet"])
def test_the_least_reliable_images_come_first(tmp_path, name):
    from dataclasses import replace

    from hihlandmark.io import FORMATS

    if name == "parquet":
        pytest.importorskip("pyarrow")
    rated = {
        "good.png": [face(score=0.9)],
        "bad.png": [replace(face(score=0.9), reliability=0.9), replace(face(), reliability=0.1)],
        "poor.png": [face(score=0.3)],
        "none.png": [],
    }
    results = [Result(source(name), faces, SIZE) for name, faces in rated.items()]
    if name == "json":
        for result in results:
            (tmp_path / f"{result.source.name}.json").write_bytes(
                FORMATS["json"].of_image(result)[".json"]
            )
    else:
        (tmp_path / f"part{FORMATS[name].suffix}").write_bytes(FORMATS[name].of_many(results))
    assert [each.image for each in images_to_label(tmp_path)] == ["bad.png", "poor.png", "good.png"]
    listed = CliRunner().invoke(app, ["data", "next", str(tmp_path), "--paths", "-n", "1"])
    assert listed.output == "bad.png\n"


def test_a_file_that_two_images_match_is_left_out(tmp_path, images):
    results = [Result(source(name), [face()], SIZE) for name in ("x/2.png", "y/2.png", "a/1.png")]
    (tmp_path / "corrected.xml").write_text(to_cvat(results))
    imported = import_corrections(tmp_path / "corrected.xml", images, tmp_path / "out")
    assert (imported.images, imported.faces) == (1, 1)
    assert "x/2.png" in imported.left_out[0]
    assert "y/2.png" in imported.left_out[1]


def test_images_are_found_where_the_folder_is_a_link(tmp_path, images):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "corrected.xml").write_text(to_cvat([Result(source("2.png"), [face()], SIZE)]))
    import_corrections(tmp_path / "corrected.xml", images, tmp_path / "out")
    (read,) = read_faces(tmp_path / "out", "train")
    assert read.load_image().shape == (160, 200, 3)


def test_images_of_labels_are_named_by_their_place(tmp_path, images):
    values = {"points": np.zeros((29, 2)).tolist(), "scores": [0.5] * 29, "split": "train"}
    (tmp_path / "labels").mkdir()
    lines = json.dumps({"image": "../images/2.png", **values})
    (tmp_path / "labels" / "annotations.jsonl").write_text(lines + "\n")
    listed = CliRunner().invoke(app, ["data", "next", str(tmp_path / "labels"), "--paths"])
    assert listed.output == f"{(images / '2.png').resolve()}\n"


def test_names_of_uploads_are_shortened_at_their_start_alone(tmp_path, images):
    for other in ("deadbeef-", "cam_2024abcd-2.png"):
        (tmp_path / "other.json").write_text(json.dumps([task([face()], other)]))
        with pytest.raises(DataError, match=f"{other}: there is no such image"):
            import_corrections(tmp_path / "other.json", images, tmp_path / "no")
    (tmp_path / "upload.json").write_text(json.dumps([task([face()], "x/2024abcd-2.png")]))
    assert import_corrections(tmp_path / "upload.json", images, tmp_path / "out").faces == 1


def test_paths_may_be_texts(tmp_path, images):
    (tmp_path / "done.json").write_text(json.dumps([task([face()], "2.png")]))
    texts = [str(tmp_path / "done.json"), str(images), str(tmp_path / "out")]
    assert import_corrections(*texts).faces == 1
    folder = tmp_path / "results"
    with ResultFolder(folder, "jsonl", {}) as results:
        results.add(Result(source("2.png"), [face()], SIZE))
    assert [each.image for each in read_results(str(folder))] == ["2.png"]
    assert [each.image for each in images_to_label(str(folder))] == ["2.png"]
