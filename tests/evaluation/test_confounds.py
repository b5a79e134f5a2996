import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.checks import components
from evaluation.confounds import Confound, confounds, residuals, verdict
from evaluation.distances import normalised
from evaluation.neighbours import nearest_others
from evaluation.score import Score


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


def test_matched_is_the_mean_over_strata_weighed_by_pairs():
    features, label, group, brightness, _ = faces(n=200)
    (found,) = confounds(features, label, group, {"brightness": brightness}, replicates=2)
    space, component = normalised(features), components(group, 200)
    share = label[nearest_others(space, label, component)].mean(axis=1)
    strata = np.searchsorted(np.quantile(brightness, [0.2, 0.4, 0.6, 0.8]), brightness)
    parts = [strata == s for s in range(5)]
    pairs = [label[p].sum() * (1 - label[p]).sum() for p in parts]
    aucs = [roc_auc_score(label[p], share[p]) for p in parts]
    assert found.matched.value == pytest.approx(np.average(aucs, weights=pairs))


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


def test_residuals_are_uncorrelated_with_the_nuisance_and_its_square():
    features, *_, brightness, _ = faces()
    z = brightness - brightness.mean()
    left = residuals(features, np.stack([z, z**2], axis=1))
    assert z @ left == pytest.approx(np.zeros(6), abs=1e-3)
    assert z**2 @ left == pytest.approx(np.zeros(6), abs=1e-3)


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
    assert "to begin with" in found.verdict


def test_misfits_are_errors():
    features, label, group, *_ = faces()
    with pytest.raises(ValueError, match="'size' is the same"):
        confounds(features, label, group, {"size": np.ones(400)})
    with pytest.raises(ValueError, match="at least one"):
        confounds(features, label, group, {})
    with pytest.raises(ValueError, match="brightness holds 1 NaN"):
        confounds(features, label, group, {"brightness": np.r_[np.nan, np.arange(399)]})
