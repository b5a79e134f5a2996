"""Depth x data size, by hand."""

import math

import pytest

from evaluation.overfitting_interaction import (
    DATA,
    DEPTH,
    DepthByData,
    by_side,
    crossed,
    depth,
    depth_by_data,
    of_family,
    with_depth,
)
from evaluation.overfitting_results import TrialResult
from evaluation.results import find
from evaluation.score import Score


def make(gap, *, width=0.03, backbone="a", family="f", **values):
    score = Score("train − validation", gap, gap - width, gap + width, False, 100, "how")
    return TrialResult("run", backbone, family, values, "finished", last_gaps=[score])


def gap(trial):
    return find(trial.last_gaps, "train − validation")


def by_mode(shift=0.0, **more):
    """Gaps: last blocks .05 at 160 groups and .10 at 40, all of it .08 and .30; 80 groups lie between the corners."""
    cells = {("last_blocks", 160): 0.05, ("last_blocks", 40): 0.10, ("full", 160): 0.08, ("full", 40): 0.30}
    cells |= {("last_blocks", 80): 9.0, ("full", 80): -9.0}
    return [make(value + shift, mode=mode, train_groups=groups, **more) for (mode, groups), value in cells.items()]


def test_the_interaction_of_one_trial_a_corner_by_hand():
    found = depth_by_data(by_mode(), gap)
    # Depth costs .30 - .10 = .20 with 40 groups and .08 - .05 = .03 with 160: .17 more. Four independent scores of
    # half-width .03 give .06, two of them .0424.
    assert [score.value for score in found] == pytest.approx([0.20, 0.03, 0.17])
    assert found.interaction.high - found.interaction.value == pytest.approx(0.06)
    assert found.small.value - found.small.low == pytest.approx(0.03 * math.sqrt(2))
    assert "full minus last_blocks at 40 groups, minus the same at 160" in found.interaction.how
    assert "faces alone" in found.interaction.how


def test_several_trials_in_each_corner_are_drawn_again():
    trials = [each for shift in (-0.01, 0.01) for each in by_mode(shift)]
    found = depth_by_data(trials, gap)
    assert found.interaction.value == pytest.approx(0.17)
    # Each corner's mean is -.01, 0 or .01 away, with chances 1/4, 1/2 and 1/4: the extremes lie .04 off.
    assert 0.17 - 0.0401 <= found.interaction.low < 0.17 < found.interaction.high <= 0.17 + 0.0401
    assert "trials within each corner" in found.interaction.how


def test_trials_with_flipped_labels_and_without_a_depth_are_left_out():
    others = [
        make(5.0, mode="full", train_groups=40, flipped_labels=0.2),
        make(5.0, mode="lora", train_groups=40),
        make(5.0, mode="full", train_groups=None),
    ]
    assert depth_by_data([*by_mode(), *others], gap) == depth_by_data(by_mode(), gap)


def test_depths_are_ordered_from_the_head_to_the_whole():
    values = [{"mode": "full"}, {"mode": "last_blocks", "unfrozen_blocks": 4}, {"mode": "head", "unfrozen_blocks": 4}]
    values += [{"mode": "last_blocks", "unfrozen_blocks": 2}, {"mode": "norm"}]
    trials = [make(0.1, train_groups=40, **each) for each in values]
    assert [each.values[DEPTH] for each in with_depth(trials)] == ["head", "last 2", "last 4", "full"]
    assert depth({"unfrozen_blocks": 3}) == (3, "3")
    assert depth({"learning_rate": 0.1}) is None
    assert not crossed(trials)  # one data size
    assert crossed(by_mode())
    assert all(each.values[DATA] for each in with_depth(by_mode()))


def test_a_missing_corner_is_no_number():
    found = depth_by_data([each for each in by_mode() if each.values != {"mode": "full", "train_groups": 40}], gap)
    assert math.isnan(found.interaction.value)
    assert found.interaction.how == "a corner has no finished trial"
    assert math.isnan(depth_by_data(by_mode()[:1], gap).small.value)


def test_a_family_is_the_mean_of_its_backbones_by_hand():
    one, other = depth_by_data(by_mode(), gap), depth_by_data(by_mode(), gap)
    other = DepthByData(*(Score(s.name, s.value + 0.02, 0, 0, False, 4, "") for s in other))
    found = of_family({"a": one, "b": other})
    # .17 and .19: mean .18, standard error .01, Student's quantile with one degree of freedom 12.706.
    assert found.interaction.value == pytest.approx(0.18)
    assert found.interaction.high - 0.18 == pytest.approx(0.12706, abs=1e-4)
    assert of_family({"a": one}) == one
    sides = by_side([*by_mode(), *by_mode(backbone="b"), *by_mode(backbone="c", family="g")], gap)
    assert [name for name, _ in sides] == ["a", "b", "c", "f (family of 2)", "g (family of 1)"]
