import json

import numpy as np
import pytest

from evaluation import distances
from evaluation.arrays import Compute
from evaluation.comparison import compared
from evaluation.panel import Panel, panel
from evaluation.partitions import partitions
from evaluation.separability import separability


def sample(n=120, shift=1.5, seed=0):
    rng = np.random.default_rng(seed)
    label = np.tile([0, 1], n // 2)
    method = np.where(label == 0, "pristine", np.where(np.arange(n) % 4 == 1, "swap", "blend"))
    strong = shift * (method == "swap") + 0.1 * shift * (method == "blend")
    features = rng.normal(size=(n, 6)) + strong[:, None] * (np.arange(6) < 3)
    return features, label, np.arange(n) // 2, method


@pytest.fixture(scope="module")
def found():
    nuisances = {"hour": np.arange(120) % 24, "same": np.ones(120)}
    return panel(*sample(), nuisances, replicates=99)


def test_scores_are_those_of_the_separability_panel(found):
    features, label, group, _ = sample()
    clusterings = partitions(features, label, group, replicates=99)
    *label_free, linear_probe, knn_probe = separability(features, label, group, replicates=99)
    assert found.scores == [*label_free, *clusterings, linear_probe, knn_probe]
    assert [each.name for each in found.confounds] == ["hour"]  # what does not vary is left out
    assert found.headline.score is found.scores[0]
    assert len(found.draws) == 99


def test_everything_is_there(found):
    assert found.null("knn_auc_k20").permutations == 99
    assert found.null("knn_auc_k20").value == pytest.approx(found.scores[0].value)
    assert found.null("linear_probe_auc") is None
    assert list(found.by_method) == ["blend", "swap", "blend against swap"]
    assert found.by_method["swap"].value > found.by_method["blend"].value + 0.1
    assert found.by_method["swap"].n == 90  # 60 real and half of 60 fakes
    assert found.by_method["blend against swap"].n == 60
    assert found.by_method["blend against swap"].value > 0.6
    assert found.by_treatment["centred"].value == found.scores[0].value
    assert {score.name for score in found.transferability} >= {"logme", "h_score"}


def test_json_and_back(found):
    again = Panel.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found


def test_a_stored_panel_without_the_scores_of_a_later_version_is_read(found):
    values = found.to_dict()
    values["scores"].pop()
    assert [score.name for score in Panel.from_dict(values).scores] == [score.name for score in found.scores[:-1]]


def test_undefined_numbers_survive_json(found):
    odd = Panel(found.scores, draws=[float("nan"), 0.5])
    values = json.loads(json.dumps(odd.to_dict(), allow_nan=False))
    assert np.isnan(Panel.from_dict(values).draws[0])
    assert Panel.from_dict(values).draws[1] == 0.5


def test_one_method_is_not_split_and_progress_is_told():
    features, label, group, _ = sample(n=60)
    told = []
    one = panel(features, label, group, np.full(60, "swap"), replicates=9, progress=lambda *step: told.append(step))
    assert one.by_method == {}
    assert [done for done, _, _ in told] == list(range(1, told[-1][1] + 1))


def test_a_method_within_one_group_is_undefined_and_says_why():
    features, label, _, _ = sample(n=40)
    group = np.where(label == 0, 0, np.arange(40))  # all real samples in one group
    method = np.where(np.arange(40) == 1, "rare", "swap")
    group[1] = 0  # and the only fake of the rare method with them
    rare = panel(features, label, group, method, replicates=9).by_method["rare"]
    assert np.isnan(rare.value)
    assert "one group" in rare.how


def test_device_and_chunk_reach_every_pass_over_pairs(monkeypatch):
    features, label, group, method = sample()
    seen, tiles = [], distances.tiles

    def spied(x, component, compute):
        for tile in tiles(x, component, compute):
            seen.append((compute, tile.values.size))
            yield tile

    monkeypatch.setattr(distances, "tiles", spied)
    panel(features, label, group, method, {"hour": np.arange(120) % 24}, replicates=5, compute=Compute("cpu", 700))
    assert {compute for compute, _ in seen} == {Compute("cpu", 700)}
    assert max(size for _, size in seen) <= 700  # and not the 120 x 120 of a single tile


def test_method_must_fit():
    features, label, group, _ = sample()
    with pytest.raises(ValueError, match="method must have shape"):
        panel(features, label, group, ["swap"], replicates=9)


def test_panels_of_the_same_samples_are_compared(found):
    features, label, group, method = sample(shift=0.2)
    weak = panel(features, label, group, method, replicates=99)
    other = Panel(found.scores, draws=found.draws[:50])  # fewer resamples: not paired
    (pair,) = compared({"strong": found, "weak": weak, "other": other})
    assert (pair.a, pair.b) == ("strong", "weak")
    assert pair.score.value == pytest.approx(found.scores[0].value - weak.scores[0].value)
    assert json.dumps(pair.to_dict(), allow_nan=False)
    assert compared({}) == []
