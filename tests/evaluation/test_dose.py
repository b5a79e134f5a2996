import json
import math

import numpy as np
import pytest

from evaluation.dose import DoseResponse, dose_curves, dose_response
from evaluation.separability import separability_draws

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


def test_curves_of_controlled_forgeries():
    found = dose_curves(*forgeries(), replicates=100)
    assert list(found) == ["blind", "swap"]
    names = [curve.name for curve in found["swap"]]
    clusterings = ["kmeans_ami_k2", "kmeans_ami_k8"]
    distances = ["silhouette", "energy_distance", "mmd2"]
    assert names == ["knn_auc_k5", *distances, *clusterings, "linear_probe_auc"]  # 60 samples allow no 20 neighbours
    for curve in found["swap"][:-1]:
        assert 0.05 < curve.p <= 1
        assert curve.null_holds
        assert curve.slope.low > 0
    assert math.isnan(found["swap"][-1].p)  # the probe has no permutation null
    neighbours = found["swap"][0]
    assert neighbours.severities == (0, 0.25, 0.5, 1)
    assert neighbours.null_holds
    assert neighbours.detectable <= 0.5
    assert neighbours.scores[-1].value > 0.95
    assert {score.n for score in neighbours.scores} == {60}  # the same faces at every severity
    assert neighbours.scores[0].value == found["blind"][0].scores[0].value  # and before any forgery for every method
    assert len({score.value for score in found["blind"][0].scores}) == 1  # what changes nothing has a flat curve


def test_severities_of_originals_are_not_looked_at():
    features, label, group, method, severity = forgeries()
    expected = dose_curves(features, label, group, method, severity, replicates=5)
    severity[label == 0] = np.nan  # as a table without a severity for originals gives it
    found = dose_curves(features, label, group, method, severity, replicates=5)
    assert [curve.scores for curve in found["swap"]] == [curve.scores for curve in expected["swap"]]
    severity[np.flatnonzero(label)[0]] = np.nan
    with pytest.raises(ValueError, match="severity holds 1 NaN"):
        dose_curves(features, label, group, method, severity)


def test_groups_without_every_severity_are_left_out():
    features, label, group, method, severity = forgeries()
    kept = ~((group < 10) & (method == "swap") & (severity == 1))
    found = dose_curves(*(column[kept] for column in (features, label, group, method, severity)), replicates=20)
    assert found["swap"][0].scores[0].n == 50
    assert found["blind"][0].scores[0].n == 60


@pytest.mark.parametrize("severities", [(0.5,), tuple(np.linspace(0.01, 1, 21))])
def test_too_few_or_too_many_severities(severities):
    with pytest.raises(ValueError, match="no method has forgeries of the same groups at 2 to 20"):
        dose_curves(*forgeries(levels=severities), replicates=5)
