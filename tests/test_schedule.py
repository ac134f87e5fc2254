from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hihlandmark.training.config import Stage, TrainingConfiguration
from hihlandmark.training.schedule import BLOCK, MixtureSampler, Plan


def configuration(*stages: Stage, first_stage: int = 1) -> TrainingConfiguration:
    return TrainingConfiguration.model_validate(
        {
            "name": "plan",
            "model": "hih-small-v1",
            "sets": [{}],
            "stages": [stage.model_dump() for stage in stages],
            "first_stage": first_stage,
        }
    )


TWO = configuration(
    Stage(steps=4, batch_size=3, learning_rate=1e-2, warmup_steps=2),
    Stage(epochs=2, batch_size=5, learning_rate=1e-3),
)


def test_epochs_count_the_faces_of_all_sets() -> None:
    plan = Plan(TWO, faces=50)
    assert plan.lengths == [4, 20]
    assert plan.samples == 4 * 3 + 20 * 5
    assert Plan(TWO, faces=50, group=2).lengths == [4, 10], "a step has twice the samples"


def test_samples_are_consecutive() -> None:
    plan = Plan(TWO, faces=50, group=2)
    moments = [plan.at(step) for step in range(plan.steps)]
    counts = [2 * moment.stage.batch_size for moment in moments]
    assert [moment.first_sample for moment in moments] == [0, *np.cumsum(counts)[:-1]]
    with pytest.raises(IndexError):
        plan.at(plan.steps)


def test_learning_rate_warms_up_and_falls_in_every_stage() -> None:
    plan = Plan(TWO, faces=50)
    rates = [plan.learning_rate(step) for step in range(plan.steps)]
    assert rates[0] < rates[1] > rates[2] > rates[3]
    assert rates[4] == pytest.approx(1e-3)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_step_schedule_drops_at_its_epochs() -> None:
    stage = Stage(
        epochs=6, batch_size=5, learning_rate=1.0, schedule="step", milestones=(3, 5), decay=0.1
    )
    plan = Plan(configuration(stage), faces=20)
    rates = [plan.learning_rate(step) for step in range(plan.steps)]
    assert rates[:12] == [1.0] * 12
    assert rates[12:20] == pytest.approx([0.1] * 8)
    assert rates[20:] == pytest.approx([0.01] * 4)


def test_stages_can_be_skipped() -> None:
    late = configuration(*TWO.stages, first_stage=2)
    assert Plan(late, faces=50).lengths == [20]
    with pytest.raises(ValueError, match="stages 1 to 2"):
        configuration(*TWO.stages, first_stage=3)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_every_face_of_a_set_is_used_before_any_is_reused(sizes: list[int], seed: int) -> None:
    sampler = MixtureSampler(sizes, [1.0] * len(sizes), seed)
    seen: dict[int, list[tuple[int, int]]] = {}
    for number in range(500):
        draw = sampler.draw(number)
        seen.setdefault(draw.set_number, []).append((draw.epoch, draw.face))
    for set_number, draws in seen.items():
        assert len(set(draws)) == len(draws)
        size = sizes[set_number]
        assert [epoch for epoch, _ in draws] == [i // size for i in range(len(draws))]
        assert {face for _, face in draws} <= set(range(size))


def test_sets_have_their_shares() -> None:
    sampler = MixtureSampler([10, 1000, 7], [0.5, 0.3, 0.2], seed=3)
    counts = Counter(sampler.draw(number).set_number for number in range(2 * BLOCK))
    assert counts == {0: 1000, 1: 600, 2: 400}
    sampler = MixtureSampler([5, 100_000], [5, 100_000], seed=0)
    assert {sampler.draw(number).set_number for number in range(BLOCK)} == {0, 1}


def test_a_sample_is_computed_without_those_before_it() -> None:
    one, two = (MixtureSampler([30, 50], [1, 2], seed=5) for _ in range(2))
    for number in range(1500):
        one.draw(number)
    assert [two.draw(n) for n in (1400, 3)] == [one.draw(n) for n in (1400, 3)]
    other = MixtureSampler([30, 50], [1, 2], seed=6)
    assert [other.draw(n) for n in range(50)] != [one.draw(n) for n in range(50)]
