"""Decoded pictures that the trials of a sweep share: equal results, and no picture decoded by a trial."""

import copy
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from data_shards import decoded
from data_shards.command import from_dict
from data_shards.manifest import ShardSet
from data_shards.reader import SampleReader
from jobs import sweep_pictures, trial
from jobs.search import parse_space
from jobs.sweep_plan import Sweep, pack_subsets, prepare_shared
from tests.jobs.sweeping import SAMPLE, damage, planned, sweep_values

FINETUNE = {"mode": "full", "epochs": 2, "batch_size": 16, "evaluate_every": 0.5, "augmentation": 0.5, "threads": 1}
SETS = {"train": SAMPLE / "train", "test": SAMPLE / "test"}


class Killed(BaseException):
    """As a kill of the process: nothing may catch it."""


@pytest.fixture
def reads(monkeypatch):
    """Images that were read from shards so far."""
    found, read = [], SampleReader.read
    monkeypatch.setattr(SampleReader, "read", lambda self, index: found.append(index) or read(self, index))
    return found


def only_trial(folder, cards, name):
    """The trial of a sweep over one smaller training set with wrong labels, packed."""
    space = {"train_groups": [20], "flipped_labels": [0.2]}
    finetune = {**FINETUNE, "checkpoint_steps": 3}
    values = sweep_values(folder, cards, space=space, finetune=finetune, name=name, replicates=10)
    config = from_dict(Sweep, values)
    pack_subsets(config, parse_space(config.space))
    [only] = planned(config)
    return config, only


def outcome(row) -> tuple:
    """Weights, evaluations, and the logits of all sets. Not the files: they hold the run's name, and that its set's."""
    files = (row.run / f"{name}.safetensors" for name in ("best", "last"))
    weights = [{name: tensor.tolist() for name, tensor in load_file(file).items()} for file in files]
    lines = [json.loads(line) for line in (row.run / "metrics.jsonl").read_text().splitlines()]
    curves = ("validation/auc", "validation/loss", "train/auc", "train/clean_loss", "train/loss", "train/gradient_norm")
    evaluations = [[line.get(name) for name in curves] for line in lines]
    logits = {file.name: pq.read_table(file)["logit"].to_pylist() for file in (row.run / "scores").iterdir()}
    assert len(logits) == 8
    return weights, evaluations, logits


@pytest.mark.slow
def test_shared_pictures_change_nothing_and_no_trial_decodes(tmp_path, tiny_cards, reads, capsys):
    _, alone = only_trial(tmp_path, tiny_cards, "alone")
    reads.clear()
    trial.run_trial(alone.row, lambda told: None)
    assert reads  # it decodes

    # Killed in the midst, and gone on with.
    config, shared = only_trial(tmp_path, tiny_cards, "shared")
    prepare_shared(config, [shared])
    printed = capsys.readouterr().err
    assert f"decoded pictures: {len(ShardSet.open(config.data.train))} of train at 64 px" in printed
    reads.clear()

    def kill(told):
        if told["epoch"] > 1:
            raise Killed

    with pytest.raises(Killed):
        trial.run_trial(shared.row, kill, config.place)
    assert (shared.row.run / "state" / "latest").is_file()
    trial.run_trial(shared.row, lambda told: None, config.place)
    assert reads == []
    assert outcome(shared.row) == outcome(alone.row)


def test_all_sets_are_laid_out_once_in_every_size(tmp_path, tiny_cards, reads):
    values = sweep_values(tmp_path, tiny_cards, space={"seed": [0]}, finetune=FINETUNE)
    config = from_dict(Sweep, copy.deepcopy(values))
    todo = planned(config)
    prepare_shared(config, todo)
    samples = sum(len(ShardSet.open(path)) for path in config.data.by_name().values())
    assert len(reads) == samples
    assert len(list(config.place.pictures.glob("64--*.npy"))) == len(config.data.by_name())
    prepare_shared(config, todo)  # the same again makes nothing
    assert len(reads) == samples
    for path in config.data.by_name().values():
        opened = sweep_pictures.open_shards(path, image_size=64, folder=config.place.pictures, whole=config.data.train)
        assert opened.decoded is not None
    # Other sizes come, and those that no trial needs go, as does what a kill left.
    (config.place.pictures / ".16--0123456789ab.npy.01234567.partial").touch()
    sweep_pictures.prepare({16, 24}, SETS, config.place.pictures)
    assert len(reads) == samples + 2 * sum(len(ShardSet.open(path)) for path in SETS.values())
    assert {file.name.split("--")[0] for file in config.place.pictures.iterdir()} == {"16", "24"}


def test_pictures_for_which_there_is_no_memory_are_not_laid_out(tmp_path, monkeypatch, capsys):
    train = ShardSet.open(SETS["train"])
    room = decoded.size_in_bytes(train, 16) + 1
    monkeypatch.setattr(sweep_pictures, "SHARE_OF_MEMORY", room / sweep_pictures.psutil.virtual_memory().total)
    sweep_pictures.prepare({16}, SETS, tmp_path)
    assert [file.name for file in tmp_path.glob("*.npy")] == [decoded.array_file(train, 16, tmp_path).name]
    printed = capsys.readouterr().err
    assert "pictures of test at 16 px are decoded by every trial" in printed
    assert "of the memory" in printed
    opened = sweep_pictures.open_shards(SETS["test"], image_size=16, folder=tmp_path, whole=SETS["train"])
    assert opened.decoded is None


def test_a_set_with_a_damaged_sample_is_not_shared_and_trials_meet_it_as_before(tmp_path, tiny_cards, capsys):
    values = sweep_values(tmp_path, tiny_cards, space={"seed": [0]})
    values["data"]["train"] = str(tmp_path / "train")
    shutil.copytree(SAMPLE / "train", tmp_path / "train")
    damage(tmp_path / "train", sample=1)
    values["finetune"] = {**FINETUNE, "epochs": 1, "on_bad": "skip", "max_bad_share": 0.1}
    config = from_dict(Sweep, values)
    [only] = planned(config)
    prepare_shared(config, [only])
    line = next(line for line in capsys.readouterr().err.splitlines() if "by every trial" in line)
    assert line.startswith("pictures of train at 64 px are decoded by every trial: ")
    assert "xxh3 differs" in line
    trial.run_trial(only.row, lambda told: None, config.place)  # training leaves it out; its scores would not
    assert json.loads((only.row.run / "result.json").read_text())["bad_samples"] == 1
    assert trial.read_record(only.row)["error"] == "CorruptSample"
    strict = replace(only.row, finetune={**only.row.finetune, "on_bad": "raise", "experiment": "strict"})
    trial.run_trial(strict, lambda told: None, config.place)
    assert trial.read_record(strict)["error"] == "CorruptSample"
