import itertools
import json

import numpy as np
import pytest

from evaluation.checks import components
from evaluation.confounds import Confound, confounds, residuals, smooth, verdict
from evaluation.distances import normalised
from evaluation.matching import strata_of
from evaluation.neighbours import nearest_others
from evaluation.score import Score
from tests.benchmarks.truth_confounds import KINDS
from tests.benchmarks.truth_confounds import verdict as confounded


def faces(seed=0, n=400):
    """Features that show brightness strongly, and a label that only brightness tells."""
    rng = np.random.default_rng(seed)
    group, label = np.arange(n) // 2, rng.integers(0, 2, n)
    brightness = label + rng.normal(size=n)
    features = rng.normal(size=(n, 6))
    features[:, 0] += 3 * brightness
    return features, label, group, brightness, rng.normal(size=n)


def test_a_label_that_only_brightness_tells_vanishes_without_it():
    features, label, group, brightness, other = faces()
    found = confounds(features, label, group, {"brightness": brightness, "hour": other}, replicates=200)
    first, second, every = found
    # Phi(1 / sqrt 2) = .76 for two unit Gaussians one apart
    assert first.label_auc == pytest.approx(0.76, abs=0.06)
    assert first.nuisance.value > 0.85
    assert first.label.low < 0.5
    assert first.matched.value < first.nuisance.value
    assert "no longer separates beyond chance" in first.verdict
    assert second.label_auc == pytest.approx(0.5, abs=0.1)
    # No trace of the hour: 0.5, with a standard error of about sqrt(401 / (12 * 200 * 200)) = 0.03
    assert second.nuisance.value == pytest.approx(0.5, abs=0.1)
    assert second.verdict == "the label still separates without hour"
    assert every.name == "all of them"
    assert "no longer" in every.verdict
    assert every.to_dict()["nuisance"]["value"] is None
    again = Confound.from_dict(json.loads(json.dumps(every.to_dict(), allow_nan=False)))
    assert again.to_dict() == every.to_dict()


def test_a_source_that_carries_the_label_is_found_out():
    # Two sources, three of four fakes from one of them; features know the source and nothing else.
    rng = np.random.default_rng(1)
    label = np.arange(400) % 2
    source = np.where(rng.random(400) < 0.75, label, 1 - label)
    features = rng.normal(size=(400, 6)) + 4 * source[:, None]
    (found,) = confounds(features, label, np.arange(400), {"source": np.array(["web", "tv"])[source]}, replicates=100)
    assert found.label_auc == pytest.approx(0.75, abs=0.05)
    assert found.nuisance.value > 0.99
    assert found.label.low < 0.5  # regressed out
    assert found.matched.low < 0.5  # within each source
    assert found.verdict == "without source the label no longer separates beyond chance"


def test_matched_compares_pairs_without_their_own_votes():
    features, label, group, brightness, _ = faces(n=200)
    (found,) = confounds(features, label, group, {"brightness": brightness}, replicates=2)
    component = components(group, 200)
    nearest, strata = nearest_others(normalised(features), label, component), strata_of(brightness, mixed=True)
    won = []
    for fake, real in itertools.product(np.flatnonzero(label == 1), np.flatnonzero(label == 0)):
        if strata[fake] == strata[real]:
            shares = [np.mean([label[i] for i in nearest[a] if i != b]) for a, b in ((fake, real), (real, fake))]
            won.append((1 + np.sign(round(shares[0] - shares[1], 9))) / 2)
    assert found.matched.value == pytest.approx(np.mean(won))
    assert f"{len(won):,} pairs" in found.matched.how


def test_matching_is_fair_where_samples_share_their_neighbours():
    # Features are the nuisance itself: those alike in it have nearly the same neighbours, but for their own votes.
    values = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z, label = rng.normal(size=400), rng.integers(0, 2, 400)
        values.append(confounds(z[:, None], label, np.arange(400), {"z": z}, replicates=2)[0].matched.value)
    assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values) / np.sqrt(20))


def test_strata_are_narrow_and_do_not_mix_common_values():
    rng = np.random.default_rng(0)
    z = rng.normal(size=1000)
    strata = strata_of(z, mixed=True)
    assert np.bincount(strata).tolist() == [10] * 100
    assert (np.diff(strata[np.argsort(z)]) >= 0).all()
    quality = np.repeat([70.0, 75.0, 75.5, 80.0], [25, 3, 8, 30])  # the two rare ones are neighbours
    strata = strata_of(quality, mixed=True)
    values = [np.unique(quality[strata == s]).tolist() for s in range(strata.max() + 1)]
    assert sorted(values) == [[70], [70], [75, 75.5], [80], [80], [80]]
    source = np.repeat(["a", "b", "c"], [3, 12, 40])
    strata = strata_of(source, mixed=False)
    assert sorted(np.bincount(strata).tolist()) == [3, 10, 10, 10, 10, 12]
    assert all(len(np.unique(source[strata == s])) == 1 for s in range(6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_only_a_nuisance_tells_is_found_out_whatever_its_trace(kind):
    found = [confounded(kind, 400, slope, 0.0, seed, replicates=60) for seed in range(4) for slope in (2, 6)]
    assert found.count("no longer separates") >= 6
    assert "still separates" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_separates_beyond_the_nuisance_is_found(kind):
    found = [confounded(kind, 400, 2, 0.6, seed, replicates=60) for seed in range(4)]
    assert found.count("still separates") >= 3


def test_all_nuisances_together_explain_what_each_alone_does_not():
    found = [confounded("waves", 800, 2, 0.0, seed, nuisances=2, replicates=60) for seed in range(4)]
    assert found.count("no longer separates") >= 3
    found = [confounded("waves", 800, 2, 0.6, seed, nuisances=2, replicates=60) for seed in range(4)]
    assert found.count("still separates") >= 3


def test_undecided_is_a_verdict():
    gone, there = (Score("knn_auc", 0.6, low, 0.7, True, 9, "") for low in (0.4, 0.55))
    assert verdict(there, gone, there, "blur").startswith("undecided: with blur regressed out")
    assert verdict(there, there, gone, "blur").startswith("undecided: with blur matched")
    assert verdict(there, there, there, "blur") == "the label still separates without blur"


def test_a_label_of_its_own_stays():
    features, label, group, brightness, _ = faces()
    features[:, 1] += 4 * label
    (found,) = confounds(features, label, group, {"brightness": brightness}, replicates=100)
    assert found.label.value > 0.85
    assert "still separates" in found.verdict


def test_residuals_hold_no_smooth_function_of_the_nuisance():
    rng = np.random.default_rng(0)
    z = rng.exponential(size=800)
    functions = normalised(np.stack([z, z**3, np.sin(2 * z), np.abs(z - 1)], axis=1) / [1, 30, 1, 1])
    left = residuals(functions + 0.1 * rng.normal(size=functions.shape), smooth(z))
    assert np.abs(np.corrcoef(left.T, functions.T)[:4, 4:]).max() < 0.1
    # The noise is left: 800 less 19 columns and a constant.
    assert left.var(axis=0) == pytest.approx(np.full(4, 0.25), rel=0.15)


def test_a_spline_has_fewer_columns_for_few_samples():
    assert smooth(np.repeat([1.0, 2.0, 5.0], 9)).tolist() == np.repeat([[0, 0], [1, 0], [0, 1]], 9, axis=0).tolist()
    z = np.random.default_rng(0).exponential(size=800)
    # 12 knots and six more in the tails, cubic, less the constant; shared by ten nuisances 2 knots, none in the tails.
    assert smooth(z).shape == (800, 12 + 6 + 1)
    assert smooth(z, 10).shape == (800, 2 + 1)


def test_names_without_meaning_tell_nothing_of_the_label():
    # 30 names and six numbers at random, 200 samples: fitted and asked on the same ones the names give an AUC of .69.
    names, every = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        label, group = rng.permutation(np.arange(200) % 2), np.arange(200) // 2
        nuisances = {"name": rng.integers(0, 30, 200).astype(str)} | {str(i): rng.normal(size=200) for i in range(6)}
        found = confounds(rng.normal(size=(200, 3)), label, group, nuisances, replicates=2)
        names.append(found[0].label_auc)
        every.append(found[-1].label_auc)
    for values in (names, every):
        assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values) / np.sqrt(40))
        assert np.std(values) < 0.06  # one AUC of 100 reals and 100 fakes: sqrt(201 / 12) / 100 = 0.041


def test_fakes_of_a_single_group_leave_the_propensity_undefined():
    rng = np.random.default_rng(0)
    label, group = np.arange(30) % 2, np.where(np.arange(30) % 2, 99, np.arange(30))
    nuisances = {"name": np.array(["a", "b", "c"])[np.arange(30) % 3], "size": rng.normal(size=30)}
    found = confounds(rng.normal(size=(30, 3)), label, group, nuisances, replicates=5)
    assert [np.isnan(each.label_auc) for each in found] == [True, False, True]
    assert "too few groups" in found[-1].matched.how


def test_nothing_to_confound_is_said():
    features, _, group, brightness, other = faces()
    label = (other > 0).astype(int)
    (found,) = confounds(features, label, group, {"brightness": brightness}, replicates=100)
    assert "not asked" in found.verdict


def test_misfits_are_errors():
    features, label, group, *_ = faces()
    with pytest.raises(ValueError, match="'size' is the same"):
        confounds(features, label, group, {"size": np.ones(400)})
    with pytest.raises(ValueError, match="at least one"):
        confounds(features, label, group, {})
    with pytest.raises(ValueError, match="brightness holds 1 NaN"):
        confounds(features, label, group, {"brightness": np.r_[np.nan, np.arange(399)]})
