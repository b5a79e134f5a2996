"""Depth x data size, by hand."""

import math

import numpy as np
import pytest
from scipy.stats import t

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
from tests.benchmarks.truth_overfitting import interaction_holds


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


def test_the_interaction_of_one_trial_a_corner_has_no_interval():
    found = depth_by_data(by_mode(), gap)
    # Depth costs .30 - .10 = .20 with 40 groups and .08 - .05 = .03 with 160: .17 more.
    assert [score.value for score in found] == pytest.approx([0.20, 0.03, 0.17])
    assert all(math.isnan(score.low) and math.isnan(score.high) for score in found)
    assert "full minus last_blocks at 40 groups, minus the same at 160" in found.interaction.how
    assert "one trial in a corner, no interval" in found.interaction.how


def test_several_trials_in_each_corner_by_hand():
    trials = [each for shift in (-0.01, 0.01) for each in by_mode(shift)]
    found = depth_by_data(trials, gap)
    assert found.interaction.value == pytest.approx(0.17)
    # Variance of each corner's mean .0002 / 2 = .0001 with one degree of freedom: of four, error .02 and four degrees.
    assert found.interaction.high - 0.17 == pytest.approx(t.ppf(0.975, 4) * 0.02)
    assert found.small.high - found.small.value == pytest.approx(t.ppf(0.975, 2) * 0.02 / math.sqrt(2))
    assert "over trials" in found.interaction.how


@pytest.mark.parametrize("trials", [2, 3, 5, 9])
def test_the_interval_holds_the_truth_with_few_trials_too(trials):
    assert 0.93 < np.mean([interaction_holds(trials, seed) for seed in range(1000)]) < 0.995


def test_trials_with_flipped_labels_and_without_a_depth_are_left_out():
    others = [
        make(5.0, mode="full", train_groups=40, flipped_labels=0.2),
        make(5.0, mode="lora", train_groups=40),
        make(5.0, mode="full", train_groups=None),
    ]
    trials = [*by_mode(), *by_mode(0.01)]
    assert depth_by_data([*trials, *others], gap) == depth_by_data(trials, gap)


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
    alone = of_family({"a": depth_by_data([each for shift in (0, 0.1) for each in by_mode(shift)], gap)})
    assert alone.interaction.value == pytest.approx(0.17)
    assert math.isnan(alone.interaction.low)  # a family is not one of its backbones
    sides = by_side([*by_mode(), *by_mode(backbone="b"), *by_mode(backbone="c", family="g")], gap)
    assert [name for name, _ in sides] == ["a", "b", "c", "f (family of 2)", "g (family of 1)"]
