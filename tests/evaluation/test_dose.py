import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import combine_pvalues

from evaluation import distances, dose
from evaluation.arrays import Compute
from evaluation.bootstrap import Sampled
from evaluation.dose import DoseResponse, dose_curves, dose_response, least_severity
from evaluation.score import Score
from evaluation.separability import distance_scores, separability_draws

SEVERITIES = (0, 0.25, 0.5, 1)


def curves(name, strength=3.0):
    """A real and its forgery in each of 100 groups; at severity 0 they differ by noise alone."""
    rng = np.random.default_rng(0)
    group, label = np.repeat(np.arange(100), 2), np.tile([0, 1], 100)
    base = rng.normal(size=(200, 6))
    panels = []
    for severity in SEVERITIES:
        x = base + strength * severity * label[:, None] * (np.arange(6) < 2)
        panels.append({r.score.name: r for r in separability_draws(x, label, group, replicates=200)})
    return [panel[name] for panel in panels]


@pytest.mark.parametrize(("name", "chance"), [("knn_auc_k20", 0.5), ("silhouette", 0.0)])
def test_a_score_that_answers_to_severity(name, chance):
    found = dose_response(SEVERITIES, curves(name), chance=chance)
    assert found.null_holds
    assert found.detectable in (0.25, 0.5)
    assert found.slope.low > 0
    assert [score.value for score in found.scores] == sorted(score.value for score in found.scores)
    # By hand: severities less their mean .4375 are -.4375, -.1875, .0625, .5625; their squares sum to .546875.
    values = [score.value for score in found.scores]
    assert found.slope.value == pytest.approx(np.dot([-0.4375, -0.1875, 0.0625, 0.5625], values) / 0.546875)


def test_a_score_that_sees_nothing():
    found = dose_response(SEVERITIES, curves("knn_auc_k20", strength=0), chance=0.5)
    assert math.isnan(found.detectable)
    assert found.to_dict()["detectable"] is None
    assert found.slope.value == pytest.approx(0, abs=1e-12)


def test_a_score_beyond_its_null_at_severity_zero_is_told():
    results = curves("silhouette", strength=0)
    assert dose_response(SEVERITIES, results, chance=0, p=0.2).null_holds
    found = dose_response(SEVERITIES, results, chance=0, p=0.03)  # the interval holds chance all the same
    assert dose_response(SEVERITIES, results, chance=-1, p=0.2).null_holds  # p alone counts where it is known
    assert not dose_response(SEVERITIES, results, chance=-1).null_holds
    assert found.scores[0].low <= 0 <= found.scores[0].high
    assert not found.null_holds
    for each in (found, dose_response(SEVERITIES, results, chance=0)):
        again = DoseResponse.from_dict(json.loads(json.dumps(each.to_dict(), allow_nan=False)))
        assert again.to_dict() == each.to_dict()
        assert again.scores == found.scores


def test_misfits_are_errors():
    results = curves("silhouette", 0)
    with pytest.raises(ValueError, match="rise from 0"):
        dose_response((0.1, 0.2, 0.5, 1), results, chance=0)
    with pytest.raises(ValueError, match="one score per severity"):
        dose_response((0, 0.5, 1), results, chance=0)


def forgeries(strength=4.0, faces=60, levels=(0.25, 0.5, 1.0)):
    """An original of each face, and its forgery by two methods at each level; ``blind`` changes nothing."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(faces, 5))
    rows = [(base, 0, "pristine", 0.0)]
    rows += [(base + strength * level * (np.arange(5) < 2), 1, "swap", level) for level in levels]
    rows += [(base, 1, "blind", level) for level in levels]
    features = np.concatenate([x for x, *_ in rows])
    label, method, severity = (np.repeat([row[i] for row in rows], faces) for i in (1, 2, 3))
    return features, label, np.tile(np.arange(faces), len(rows)), method, severity


def flat(values, draws):
    """A score of each severity, with its resamples."""
    scores = [Score("silhouette", value, value, value, True, 9, "") for value in values]
    return [Sampled(*pair) for pair in zip(scores, draws, strict=True)]


def test_told_is_what_rises_over_severity_zero_and_its_range_is_that_of_resamples():
    # All four scores move together by up to 1 in resamples, so that only the rises 0.2, 0.6 and 0.9 are sure: they vary
    # by -0.3 ... 0.3, evenly in 101 resamples, whose 95 % are within 0.285 and whose mean is 0.
    common, own = np.random.default_rng(0).uniform(-1, 1, 101), np.linspace(-0.3, 0.3, 101)
    values = [0.1, 0.3, 0.7, 1.0]
    draws = [0.1 + common, *(value + common + own for value in values[1:])]
    found = dose_response((0, 1, 2, 3), flat(values, draws), chance=0)
    assert found.detectable == 2
    # A resample tells severity 1 where 0.2 + own - 0.285 > 0, own > 0.085: in 36 % of them; severity 2 where
    # 0.6 + own > 0.285: always. So the range is 1 to 2.
    assert (found.detectable_low, found.detectable_high) == (1, 2)
    assert least_severity(found) == "2 [1, 2]"
    # A rise in between that falls again is not told, and a score of which lower is better is told by its fall.
    dented = dose_response((0, 1, 2, 3), flat([0.1, 0.7, 0.1, 0.7], draws), chance=0)
    assert dented.detectable == 3
    falling = [
        Sampled(dataclasses.replace(each.score, higher_is_better=False), each.draws) for each in flat(values, draws)
    ]
    assert least_severity(dose_response((0, 1, 2, 3), falling, chance=0)) == "none [none, none]"
    upside_down = [
        Sampled(Score("d", -value, -value, -value, False, 9, ""), -row)
        for value, row in zip(values, draws, strict=True)
    ]
    assert least_severity(dose_response((0, 1, 2, 3), upside_down, chance=0)) == "2 [1, 2]"


def test_an_earlier_file_without_the_range_is_read():
    plain = dose_response(SEVERITIES, curves("silhouette"), chance=0).to_dict()
    assert None not in (plain["detectable"], plain["detectable_low"], plain["detectable_high"])
    earlier = {key: value for key, value in plain.items() if key not in ("detectable_low", "detectable_high")}
    found = DoseResponse.from_dict(earlier)
    assert math.isnan(found.detectable_low)
    assert least_severity(found) == f"{found.detectable:g}"


def test_halves_are_averaged_with_their_resamples_and_their_p():
    one, other = flat([0.2, 0.4], np.array([[0.1, 0.3, 0.2], [0.5, 0.3, 0.4]]))
    mean = dose._averaged([one, other])
    assert mean.score.value == pytest.approx(0.3)
    assert mean.draws == pytest.approx([0.3, 0.3, 0.3])
    assert mean.score.how.startswith("mean over 2 random halves")
    p = np.array([0.2, 0.01, 0.7])
    expected = combine_pvalues(p - 0.5 / 100, method="stouffer").pvalue
    assert dose._combined(p.tolist(), 99) == pytest.approx(expected)
    assert 0.99 < dose._combined([1.0, 1.0], 99) < 1  # the largest p that permutations give is not infinitely large


def test_the_answer_hardly_depends_on_the_halves(monkeypatch):
    """The same faces, eight draws of the halves: the spread of a mean of ten is a third of that of one."""

    def light(prepared, *, seed, replicates, compute):
        return distance_scores(prepared.space, prepared.label, prepared.component, seed=0, replicates=replicates)

    monkeypatch.setattr(dose, "_scores", light)
    monkeypatch.setattr(dose, "null_of", lambda *_, **__: [])
    features, label, group, method, severity = forgeries(1.0, 40, (0.5, 1.0))
    one_method = [column[method != "blind"] for column in (features, label, group, method, severity)]
    spread = {}
    for splits in (1, 10):
        monkeypatch.setattr(dose, "SPLITS", splits)
        found = [dose_curves(*one_method, seed=seed, replicates=2)["swap"] for seed in range(8)]
        spread[splits] = np.std([[score.value for score in curves[1].scores] for curves in found], axis=0)
    assert (spread[10] < spread[1] / 2).all()


def test_device_and_chunk_reach_every_pass_over_pairs(monkeypatch):
    seen, tiles = [], distances.tiles

    def spied(features, component, compute):
        seen.append(compute)
        return tiles(features, component, compute)

    monkeypatch.setattr(distances, "tiles", spied)
    monkeypatch.setattr(dose, "SPLITS", 1)
    dose_curves(*forgeries(faces=20, levels=(0.5, 1.0)), replicates=5, compute=Compute("cpu", 100))
    assert set(seen) == {Compute("cpu", 100)}


@pytest.fixture
def two_halves(monkeypatch):
    monkeypatch.setattr(dose, "SPLITS", 2)


def test_curves_of_controlled_forgeries(two_halves):
    found = dose_curves(*forgeries(), replicates=100)
    assert list(found) == ["blind", "swap"]
    names = [curve.name for curve in found["swap"]]
    clusterings = ["kmeans_ami_k2", "kmeans_ami_k8"]
    pairs = ["silhouette", "energy_distance", "mmd2"]
    probes = ["linear_probe_auc", "knn_probe_auc"]
    assert names == ["knn_auc_k5", *pairs, *clusterings, *probes]  # 60 samples allow no 20 neighbours
    for curve in found["swap"][:-2]:
        assert 0.05 < curve.p <= 1
        assert curve.null_holds
        assert curve.slope.low > 0
    assert all(math.isnan(curve.p) and curve.null_holds for curve in found["swap"][-2:])  # probes have no null
    neighbours = found["swap"][0]
    assert neighbours.severities == (0, 0.25, 0.5, 1)
    assert neighbours.null_holds
    assert neighbours.detectable <= 0.5
    assert neighbours.scores[-1].value > 0.95
    assert {score.n for score in neighbours.scores} == {60}  # the same faces at every severity
    assert neighbours.scores[0].value == found["blind"][0].scores[0].value  # and before any forgery for every method
    assert len({score.value for score in found["blind"][0].scores}) == 1  # what changes nothing has a flat curve


def test_severities_of_originals_are_not_looked_at(two_halves):
    features, label, group, method, severity = forgeries(faces=20)
    expected = dose_curves(features, label, group, method, severity, replicates=5)
    severity[label == 0] = np.nan  # as a table without a severity for originals gives it
    found = dose_curves(features, label, group, method, severity, replicates=5)
    assert [curve.scores for curve in found["swap"]] == [curve.scores for curve in expected["swap"]]
    severity[np.flatnonzero(label)[0]] = np.nan
    with pytest.raises(ValueError, match="severity holds 1 NaN"):
        dose_curves(features, label, group, method, severity)


def test_groups_without_every_severity_are_left_out(two_halves):
    features, label, group, method, severity = forgeries()
    kept = ~((group < 10) & (method == "swap") & (severity == 1))
    found = dose_curves(*(column[kept] for column in (features, label, group, method, severity)), replicates=20)
    assert found["swap"][0].scores[0].n == 50
    assert found["blind"][0].scores[0].n == 60


@pytest.mark.parametrize("severities", [(0.5,), tuple(np.linspace(0.01, 1, 21))])
def test_too_few_or_too_many_severities(severities):
    with pytest.raises(ValueError, match="no method has forgeries of the same groups at 2 to 20"):
        dose_curves(*forgeries(levels=severities), replicates=5)
