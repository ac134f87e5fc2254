import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import as_toml, tiny
from pydantic import ValidationError

from hihlandmark import ConfigurationError
from hihlandmark.crop import BoxMap
from hihlandmark.layouts import COFW29, register_layout
from hihlandmark.models.registry import architecture_of, build_model
from hihlandmark.training.config import read_configuration, shipped_configurations
from hihlandmark.training.objectives import make_objective
from hihlandmark.training.trainer import build_training_network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(as_toml(tiny()), encoding="utf-8")
    return path


def test_a_written_configuration_is_read_back(file: Path) -> None:
    assert read_configuration(file) == tiny()


@pytest.mark.parametrize("name", shipped_configurations())
def test_shipped_configurations_can_be_read_and_built(name: str) -> None:
    configuration = read_configuration(name)
    # Ways of training one network.
    ways = "mixed|distilled|continued|annotated|points|steady|pruned|one-stack"
    assert configuration.name == re.sub(f"-({ways})$", "", name)
    fields = configuration.network_configuration()
    assert build_model(architecture_of(configuration.model), fields)
    trained = {faces.layout for faces in configuration.sets if faces.layout}
    assert trained <= fields["layouts"].keys() | configuration.auxiliary_layouts.keys()
    calibrated = {faces.of for faces in configuration.card.calibration}
    assert calibrated <= fields["layouts"].keys() | fields["auxiliary_layouts"].keys()


def test_settings_reach_into_tables_and_lists(file: Path) -> None:
    changed = read_configuration(
        file,
        [
            "stages.1.steps=7",
            "loss.point=wing",
            "optimizer.betas=[0.5, 0.9]",
            "sets.0.ignored=['3-5', 9]",
            "name='other'",
        ],
    )
    assert changed.stages[1].steps == 7
    assert changed.loss.point == "wing"
    assert changed.optimizer.betas == (0.5, 0.9)
    assert changed.sets[0].ignored == (3, 4, 5, 9)
    assert changed.name == "other"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages.0.stepz=3", "stages.0.stepz: unknown key"),
        ("augmentation.flip=2", "augmentation"),
        ("stages.0.crop_size=100", "multiple of 32"),
        ("auxiliary_layouts={WFLW98=98}", "WFLW98"),
        ("exported_auxiliary=['SCUT86']", "SCUT86"),
        ("self_training={layouts=['WFWL'], sets=[{}]}", "WFWL"),
        ("loss={integer='csc', point='wing'}", "loss.point"),
        ("augmentation.flips=0.5", "augmentation.flips: unknown key"),
        ("stages.0.epochs=3", "steps or epochs"),
        ("stages.9.steps=3", "stages.9.steps"),
        ("stages.0.steps=0", "stages.0.steps"),
        ("sets=[]", "sets"),
        ("network.model=3", "unknown: model"),
        ("seed", "KEY=VALUE"),
        ("model='resnet'", "resnet"),
        ("layouts=['HELEN194']", "HELEN194"),
        ("network={stacks=0}", "stacks=0"),
        ("loss.integer='l2'", "l2"),
        ("loss.decimal='l2'", "l2"),
        ("loss.point_weight=2.0", "no effect"),
        ("stages.0.trained=['nowhere']", "stages.0.trained"),
        ("model=['hih-small']", "model"),
    ],
)
def test_a_wrong_setting_is_an_error(file: Path, setting: str, message: str) -> None:
    def build() -> None:
        configuration = read_configuration(file, [setting])
        make_objective(configuration, build_training_network(configuration))

    with pytest.raises(ConfigurationError, match=message):
        build()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stages=[{step=3}]", "stages.0.step: unknown key, did you mean steps?"),
        ("augmentation.flips=0.5", "augmentation.flips: unknown key, did you mean flip?"),
        (
            "self_training={layouts=['WFLW98'], sets=[{spilt='a'}]}",
            "self_training.sets.0.spilt: unknown key, did you mean split?",
        ),
        ("zzz=1", "zzz: unknown key"),
    ],
)
def test_an_unknown_key_is_the_one_problem_and_its_neighbor_is_named(
    file: Path, setting: str, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(file, [setting])
    assert str(caught.value) == f"{file}: {message}"


def test_the_fingerprint_has_no_path_of_a_teacher() -> None:
    assert "distillation" not in tiny().fingerprint()
    here, there = (tiny(distillation={"weights": place}).fingerprint() for place in "ab")
    assert here == there
    assert here != tiny(distillation={"weights": "a", "weight": 2.0}).fingerprint()


def test_a_file_can_extend_another(file: Path) -> None:
    more = file.with_name("more.toml")
    more.write_text('extends = "tiny.toml"\nname = "more"\n[loss]\npoint = "star"\n')
    changed = read_configuration(more, ["loss.point_weight=0.1"])
    assert changed.name == "more"
    assert changed.loss == tiny().loss.model_copy(update={"point": "star", "point_weight": 0.1})
    assert changed.sets == tiny().sets
    assert read_configuration("hih-mixed").sets == read_configuration("hih-small-v1").sets
    more.write_text('extends = "more.toml"\n')
    with pytest.raises(ConfigurationError, match="extends"):
        read_configuration(more)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hih-cofw"):
        read_configuration("hih-huge")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_configuration(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(ConfigurationError, match="not TOML"):
        read_configuration(tmp_path / "broken.toml")


def test_layouts_of_ones_own_have_a_crop_where_they_are_validated_and_exported() -> None:
    layout = replace(COFW29, name="OWN29", aliases=())
    register_layout(layout)
    configuration = tiny(layouts=["OWN29"], canonical_scale=1.5)
    assert configuration.box_maps()["landmarks:OWN29"] == BoxMap((0.0, 0.0), 1.5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"name": "my model/1"}, "name"),
        ({"sets": [{"share": float("inf")}]}, "share"),
        ({"sets": [{"share": 1}, {"folder": "b"}]}, "all sets or for none"),
        ({"sets": [{"names": "["}]}, "regular expression"),
        ({"sets": [{"ignored": [-1]}]}, "ignored"),
        ({"sets": [{"ignored": ["5-2"]}]}, "ends before it begins"),
        ({"seed": -1}, "seed"),
        ({"canonical_scale": float("inf")}, "canonical_scale"),
        ({"optimizer": {"betas": [1.5, 0.9]}}, "betas"),
    ],
)
def test_wrong_values_are_named_before_the_training(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        tiny(**values)
