"""Head-only sweeps on shared features: equal to the long way, and less data means more overfitting."""

import copy
import json

import numpy as np
import pytest

from data_shards.command import InputError, from_dict
from data_shards.manifest import ShardSet
from jobs import sweep_features, trial
from jobs.search import grid, parse_space
from jobs.sweep import trials_per_task
from jobs.sweep_plan import Sweep, check, first_trials, make_trial, pack_subsets, prepare_shared
from tests.jobs.sweeping import planned, run_sweep, sweep_values

FINETUNE = {"mode": "head", "flip": False, "epochs": 30, "evaluate_every": 5, "batch_size": 16, "learning_rate": 0.01}
SPACE = {"train_groups": [6, 15, None], "seed": [0, 1, 2, 3]}


def head_values(folder, cards, **changes):
    changes = {"space": SPACE, "finetune": {**FINETUNE, "features": str(folder / "features")}, **changes}
    return sweep_values(folder, cards, backbones=[{"name": "tiny_resnet", "initialisation": "random"}], **changes)


@pytest.mark.slow
def test_less_data_means_a_larger_gap_and_ray_runs_few_tasks(tmp_path, tiny_cards):
    # The sample's fakes are scripted forgeries; a new random backbone for every seed, twelve trials.
    values = head_values(tmp_path, tiny_cards, cpus_per_trial=1)
    process = run_sweep(tmp_path, values)
    assert process.returncode == 0, process.stderr
    config = from_dict(Sweep, copy.deepcopy(values))
    gaps = {}
    for each in planned(config):
        assert trial.read_record(each.row)["status"] == "finished"
        last = json.loads((each.row.run / "overfitting.json").read_text())["last_gaps"][0]
        assert last["name"] == "train − validation"
        gaps.setdefault(each.values["train_groups"], []).append(last["value"])
    means = [np.mean(gaps[groups]) for groups in SPACE["train_groups"]]
    assert means[0] > means[1] > means[2] > 0
    # Weights of heads only: the backbone's lie with its card.
    heads = [each.row.run / f"{name}.safetensors" for each in planned(config) for name in ("best", "last")]
    assert max(file.stat().st_size for file in heads) < 10_000
    assert "Learning curves" in (config.folder / "report.html").read_text()


def test_shared_features_give_what_decoded_pictures_give(tmp_path, tiny_cards):
    space = {"train_groups": [10], "flipped_labels": [0.2]}
    quick, long = (
        from_dict(Sweep, head_values(tmp_path, tiny_cards, space=space, name=name, finetune=finetune))
        for name, finetune in (
            ("quick", {**FINETUNE, "features": str(tmp_path / "features")}),
            ("long", {**FINETUNE, "epochs": 30}),
        )
    )
    found = []
    for config in (quick, long):
        [only] = planned(config)
        pack_subsets(config, parse_space(config.space))
        prepare_shared(config, [only])
        trial.run_trial(only.row, lambda told: None, config.place)
        evaluation = json.loads((only.row.run / "evaluation.json").read_text())
        found.append({name: scores[0]["value"] for name, scores in evaluation["detection"].items()})
    assert found[0] == pytest.approx(found[1], abs=1e-3)  # float32 sums in other orders


def test_a_smaller_or_mislabelled_set_takes_its_rows_from_the_whole_one(tmp_path, tiny_cards):
    config = from_dict(
        Sweep,
        head_values(tmp_path, tiny_cards, space={"train_groups": [10], "flipped_labels": [0.0, 0.2], "seed": [0]}),
    )
    trials = planned(config)
    pack_subsets(config, parse_space(config.space))
    prepare_shared(config, trials)
    frozen = sweep_features.Frozen(sweep_features.key(trials[0].row.config), config.place.features, config.data.train)
    whole, parts = frozen.of(config.data.train), [frozen.of(each.row.config.train) for each in trials]
    assert not isinstance(whole.features, np.ndarray) or isinstance(whole.features, np.memmap)  # mapped, not read
    assert np.array_equal(parts[0].features, parts[1].features)
    assert (parts[0].label != parts[1].label).mean() == pytest.approx(0.2, abs=0.02)
    source = ShardSet.open(config.data.train)
    shards = ShardSet.open(trials[0].row.config.train)
    row = list(source.column("sha256")).index(shards.column("sha256")[3])
    assert np.array_equal(parts[0].features[3], whole.features[row])


def test_with_tpe_every_choice_that_features_depend_on_is_prepared(tmp_path, tiny_cards):
    space = {"precision": ["fp32", "bf16"], "seed": [0, 1], "weight_decay": [0.0, 0.1]}
    config = from_dict(Sweep, head_values(tmp_path, tiny_cards, space=space, sampler="tpe", trials=8))
    first = first_trials(config, check(config))
    made = [(each.row.config.precision, each.row.config.seed) for each in first]
    assert made == [("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1)]
    prepare_shared(config, first)
    for values in grid(parse_space(space)):
        key = sweep_features.key(make_trial(config, 0, values).row.config)
        assert len(sweep_features.Frozen(key, config.place.features, config.data.train).of(config.data.train).label)


def test_seeds_are_gone_through_only_where_they_change_features(tmp_path, tiny_cards):
    seeds = {"space": {"seed": {"low": 0, "high": 99_999}}, "sampler": "tpe", "trials": 3}

    def firsts(**changes):
        config = from_dict(Sweep, {**head_values(tmp_path, tiny_cards, **seeds), **changes})
        return first_trials(config, check(config))

    assert len(firsts(backbones=[{"name": "tiny_resnet"}])) == 1  # pre-trained
    assert len(firsts(finetune={"mode": "full"})) == 1  # nothing is frozen
    with pytest.raises(InputError, match=r"tiny_resnet-random has other features with each seed.*list seeds"):
        firsts()


def test_with_a_gpu_features_are_made_in_a_process_of_their_own(tmp_path, tiny_cards, monkeypatch):
    """Which has none here, and takes the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(sweep_features, "prepare", None)  # not in this process
    config = from_dict(Sweep, head_values(tmp_path, tiny_cards, space={"seed": [0, 1]}))
    trials = planned(config)
    prepare_shared(config, trials)
    assert len(list(config.place.features.glob("*.npy"))) == 2 * 4
    pretrained = from_dict(Sweep, {**head_values(tmp_path, tiny_cards), "backbones": [{"name": "tiny_resnet"}]})
    with pytest.raises(InputError, match="tiny_resnet"):  # its card names a file that is not there
        prepare_shared(pretrained, planned(pretrained)[:1])


def test_missing_features_are_named(tmp_path, tiny_cards):
    config = from_dict(Sweep, head_values(tmp_path, tiny_cards))
    key = "tiny_resnet", "pretrained", "None", "bf16"
    with pytest.raises(InputError, match=r"has no features of .*train by tiny_resnet pretrained None bf16; run"):
        sweep_features.Frozen(key, config.place.features, config.data.train).of(config.data.train)


@pytest.mark.parametrize(
    ("changes", "left", "at_once", "expected"),
    [({}, 900, 2, 25), ({}, 12, 2, 1), ({}, 100, 2, 12), ({"scheduler": "asha"}, 900, 2, 1)],
)
def test_tasks_hold_many_short_trials_but_leave_every_process_some(
    tmp_path, tiny_cards, changes, left, at_once, expected
):
    config = from_dict(Sweep, head_values(tmp_path, tiny_cards, **changes))
    assert trials_per_task(config, left, at_once) == expected


def test_trials_that_train_a_backbone_are_tasks_of_their_own(tmp_path, tiny_cards):
    config = from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space={"seed": [0, 1]}))
    assert trials_per_task(config, 900, 2) == 1


def test_several_trials_make_a_task_only_where_no_backbone_is_trained(tmp_path, tiny_cards):
    head, full = {"features": "f", "mode": "head", "flip": False}, {"mode": "full"}

    def of(first, second, shared=None):
        two = [{"name": "tiny_resnet", "finetune": first}, {"name": "tiny_efficientnet", "finetune": second}]
        values = sweep_values(tmp_path, tiny_cards, backbones=two, space=SPACE, finetune=shared or {})
        return from_dict(Sweep, values).head_only

    assert of(head, head)
    assert of({}, {}, shared=head)
    assert not of(head, full)
    assert not of(full, head)
    assert not of({}, {"features": None, **full}, shared=head)
    assert not of(full, full)
