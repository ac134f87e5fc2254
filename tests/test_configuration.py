import re
from pathlib import Path

import pytest
from miniature import as_toml, tiny

from hihlandmark import ConfigurationError
from hihlandmark.models.registry import architecture_of, build_model
from hihlandmark.training.config import read_configuration, shipped_configurations


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(as_toml(tiny()), encoding="utf-8")
    return path


def test_a_file_gives_the_configuration_that_was_written(file: Path) -> None:
    assert read_configuration(file) == tiny()


@pytest.mark.parametrize("name", shipped_configurations())
def test_shipped_configurations_can_be_read_and_built(name: str) -> None:
    configuration = read_configuration(name)
    ways = "mixed|distilled|continued"  # of training the same network
    assert configuration.name == re.sub(f"-({ways})$", "", name)
    fields = configuration.network_configuration()
    assert build_model(architecture_of(configuration.model), fields)
    taught = {faces.layout for faces in configuration.sets if faces.layout}
    assert taught <= fields["layouts"].keys() | configuration.auxiliary_layouts.keys()
    calibrated = {faces.of for faces in configuration.card.calibration}
    assert calibrated <= fields["layouts"].keys()


def test_papers_configurations_have_the_released_values() -> None:
    for name, layout in (("hih-wflw", "WFLW98"), ("hih-300w", "W300_68"), ("hih-cofw", "COFW29")):
        configuration = read_configuration(name)
        (stage,) = configuration.stages
        assert configuration.layouts == (layout,)
        assert (stage.epochs, stage.milestones, stage.batch_size) == (60, (30, 50), 16)
        assert (configuration.loss.integer, configuration.loss.decimal) == ("mse", "csc")
        assert configuration.loss.integer_sigma == 1.5
        own = configuration.box_maps()[f"landmarks:{layout}"]
        assert own.scale == pytest.approx(1.2, abs=1e-3), "PFLD's crop"


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
        ("augmentation.flip=2", "tiny.toml: augmentation: flip is 2"),
        ("stages.0.crop_size=100", "stages.0.crop_size=100 is not a multiple of 32"),
        ("auxiliary_layouts={WFLW98=98}", "WFLW98 is predicted already"),
        (
            "self_training={layouts=['WFWL'], sets=[{}]}",
            "self_training.layouts: the network does not predict WFWL",
        ),
        ("loss={integer='csc', point='wing'}", "loss.point needs"),
        ("augmentation.flips=0.5", "augmentation.flips: unknown key"),
        ("stages.0.epochs=3", "either steps or epochs"),
        ("stages.9.steps=3", "no 'stages.9.steps'"),
        ("stages.0.steps=0", "stages.0.steps"),
        ("sets=[]", "sets"),
        ("network.model=3", "unknown: model"),
        ("seed", "not KEY=VALUE"),
        ("model='resnet'", "unknown model 'resnet'"),
        ("layouts=['HELEN194']", "unknown layout 'HELEN194'"),
        ("network={stacks=0}", "stacks=0"),
        ("loss.integer='l2'", "no loss 'l2'"),
    ],
)
def test_what_makes_no_sense_is_named(file: Path, setting: str, message: str) -> None:
    from hihlandmark.training.objectives import make_objective
    from hihlandmark.training.trainer import build_training_network

    def build() -> None:
        configuration = read_configuration(file, [setting])
        make_objective(configuration, build_training_network(configuration))

    with pytest.raises(ConfigurationError) as error:
        build()
    assert message in str(error.value)


def test_a_run_begun_without_a_teacher_goes_on_with_the_same_fingerprint() -> None:
    assert "distillation" not in tiny().fingerprint()
    here, there = (tiny(distillation={"weights": place}).fingerprint() for place in "ab")
    assert here == there, "the content of the weights counts, which the loop adds"
    assert here != tiny(distillation={"weights": "a", "weight": 2.0}).fingerprint()


def test_a_file_can_extend_another(file: Path) -> None:
    more = file.with_name("more.toml")
    more.write_text('extends = "tiny.toml"\nname = "more"\n[loss]\npoint = "star"\n')
    changed = read_configuration(more, ["loss.point_weight=0.1"])
    assert changed.name == "more"
    assert changed.loss == tiny().loss.model_copy(update={"point": "star", "point_weight": 0.1})
    assert changed.sets == tiny().sets
    assert read_configuration("hih-mixed").sets == read_configuration("hih-small").sets
    more.write_text('extends = "more.toml"\n')
    with pytest.raises(ConfigurationError, match=r"more\.toml extends itself"):
        read_configuration(more)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hih-cofw"):
        read_configuration("hih-huge")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_configuration(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(ConfigurationError, match="not TOML"):
        read_configuration(tmp_path / "broken.toml")
