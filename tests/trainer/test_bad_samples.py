"""Damaged training pictures: the run ends, or goes on without them, the same for any number of processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_shards.command import InputError, to_dict, write_yaml
from data_shards.loader import Batch
from data_shards.manifest import ShardSet
from data_shards.order import SampleOrder
from data_shards.reader import CorruptSample
from tests.trainer import launching
from trainer.bad_samples import BadSamples, filled
from trainer.clean_subset import clean_subset
from trainer.config import run_name
from trainer.launch import SCRIPT, command
from trainer.loop import Stopped
from trainer.state import read_metrics

IN_DOUBLE = Path(__file__).with_name("in_double.py")


@pytest.fixture
def damaged(toy_sets, tmp_path):
    """Function (*samples) → a copy of the training set of 40 where each of these has one bit flipped."""

    def make(*samples: int) -> Path:
        path = tmp_path / f"damaged-{'-'.join(map(str, samples))}"
        shutil.copytree(toy_sets["train"], path, dirs_exist_ok=True)
        shards = ShardSet.open(path)
        for index in samples:
            file = shards.shard_path(shards.column("shard")[index])
            data = bytearray(file.read_bytes())
            data[shards.column("offset")[index] + shards.column("length")[index] // 2] ^= 4
            file.write_bytes(data)
        return path

    return make


def places(path: Path, seed: int = 0) -> np.ndarray:
    """The samples of the first 48 places of the training order, three updates of 16."""
    shards = ShardSet.open(path)
    return SampleOrder([shard["samples"] for shard in shards.shards], seed, shards.digest).take(0, 48)[0]


def batch(index: list[int], epoch: list[int]) -> Batch:
    """Rows whose columns tell which sample they are."""
    number = torch.tensor(index, dtype=torch.int64)
    images = number.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    return Batch(images, number % 2.0, number, torch.tensor(epoch, dtype=torch.int64), number, number)


def test_stand_ins_by_hand():
    """Of the places 5 6 | 7 5' | 8 9 | 3, where 5' is of the next epoch, the samples 6, 5', 8, 9 and 3 are bad."""
    index, epoch = np.array([5, 6, 7, 5, 8, 9, 3]), np.array([0, 0, 0, 1, 1, 1, 1])
    whole = filled(batch([5, 7], [0, 0]), index, epoch)
    assert whole.index.tolist() == [5, 5, 7, 7, 0, 0, 0]
    assert whole.images[:, 0, 0, 0].tolist() == [5, 5, 7, 7, 0, 0, 0]
    assert whole.epoch.tolist() == [0] * 7
    assert whole.weight.tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert whole.bad == [6, 5, 8, 9, 3]
    nothing = filled(batch([], []), index, epoch)
    assert nothing.images.shape == (7, 2, 2, 3)
    assert not nothing.images.any()
    assert not nothing.weight.any()


@pytest.mark.parametrize("subset", [1, 512])
def test_a_damaged_picture_ends_the_run_naming_shard_and_key(toy_config, train, damaged, subset):
    """Wherever it is met first: in a batch, or among the training pictures that are scored."""
    config = replace(toy_config(train_subset=subset), train=damaged(9))
    shards = ShardSet.open(config.train)
    assert (9 in clean_subset(shards.labels, subset)) == (subset == 512)
    with pytest.raises(CorruptSample, match="xxh3 differs") as error:
        train(config)
    assert error.value.shard == str(shards.shard_path(0))
    assert error.value.key == shards.column("key")[9]


def test_skipped_it_is_counted_and_changes_nothing_before_its_update(toy_config, train, damaged):
    path = damaged(9)
    at = places(path).tolist().index(9)
    keys = {"flip": False, "log_every": 1, "train_subset": 512}
    config = replace(toy_config(**keys, on_bad="skip", max_bad_share=0.03), train=path)
    result = train(config)
    rows = [row for row in read_metrics(config.directory) if "train/loss" in row]
    assert result["bad_samples"] == 1  # of the different ones, though it was met in four epochs
    assert {row["train/bad_samples"] for row in rows} == {1}  # the pictures that are scored hold it from the start
    whole = toy_config(**keys, experiment="whole")
    losses = [row["train/loss"] for row in read_metrics(train(whole) and whole.directory) if "train/loss" in row]
    assert "train/bad_samples" not in read_metrics(whole.directory)[0]
    differ = [i for i, row in enumerate(rows) if row["train/loss"] != losses[i]]
    assert differ[0] == at // 16


def test_the_loss_is_the_mean_over_the_good_samples(toy_config, train, damaged, monkeypatch):
    """At the first update, by hand, with class weights, mixup and two passes."""
    from trainer.loop import _Fit

    path, seen, losses = damaged(*places(damaged()).tolist()[2:5]), [], []
    training_losses = _Fit._training_losses

    def spy(self, inputs, labels, share):
        seen.append(training_losses(self, inputs, labels, share))
        return seen[-1]

    monkeypatch.setattr(_Fit, "_training_losses", spy)
    keys = {"epochs": 0.4, "accumulation": 2, "mixup": 0.4, "log_every": 1, "on_bad": "skip", "max_bad_share": 0.1}
    train(replace(toy_config(**keys), train=path), losses.append)
    each = torch.cat(seen).detach().double()
    # Of the pairs 2, 3 and 4, 5 the first two are gone, and 5 is blended with itself.
    mean = (each.sum() - each[2:5].sum()) / 13
    assert losses[0]["train/loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert losses[0]["train/bad_samples"] == 3


def test_above_the_share_the_run_ends(toy_config, train, damaged):
    """2 of 40 are a share of 0.05."""
    keys = {"on_bad": "skip", "train_subset": 1}
    path = damaged(9, 30)
    with pytest.raises(CorruptSample, match=r"2 of 40 samples are bad, above max_bad_share=0\.049"):
        train(replace(toy_config(**keys, max_bad_share=0.049), train=path))
    assert train(replace(toy_config(**keys, max_bad_share=0.05), train=path))["bad_samples"] == 2


def test_only_what_counts_for_all_processes_ends_a_run(toy_config, train, damaged, monkeypatch):
    """The loader of one process would end that one alone."""
    path = damaged(9, 30)
    monkeypatch.setattr(BadSamples, "admit", lambda *_: None)
    config = replace(toy_config(on_bad="skip", max_bad_share=0.0, train_subset=1), train=path)
    assert train(config)["steps"] == 10


@pytest.mark.parametrize("share", [0.04, 0.05])
def test_the_count_outlives_a_stop(toy_config, train, damaged, share):
    """One bad sample before it and another after it are two, for the record and for the share."""
    scored = set(clean_subset(ShardSet.open(damaged()).labels, 1))
    order = places(damaged()).tolist()
    first, second = (next(i for i in part if i not in scored) for part in (order[:16], order[32:40]))
    path = damaged(first, second)
    keys = {"on_bad": "skip", "max_bad_share": share, "train_subset": 1, "epochs": 1.2, "log_every": 1}
    whole, config = (replace(toy_config(**keys, experiment=name), train=path) for name in ("whole", "stopped"))

    def stop(row):
        if row["step"] == 1:
            (config.directory / "stop").touch()

    with pytest.raises(Stopped):
        train(config, stop)
    if share == 0.04:
        with pytest.raises(CorruptSample, match="2 of 40 samples are bad"):
            train(config)
        return
    result = train(config)
    assert [row["train/bad_samples"] for row in read_metrics(config.directory) if "train/loss" in row] == [1, 1, 2]
    assert result["bad_samples"] == 2
    assert result["checkpoints"] == train(whole)["checkpoints"]


def test_a_clean_set_is_trained_on_as_without_the_option(toy_config, train):
    """To the bit; but the run has another name, since it might have been another."""
    strict, tolerant = toy_config(epochs=0.8), toy_config(epochs=0.8, on_bad="skip")
    assert strict.directory.name != tolerant.directory.name
    assert train(strict)["checkpoints"].keys() == train(tolerant)["checkpoints"].keys()
    weights = [load_file(config.directory / "last.safetensors") for config in (strict, tolerant)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_names_and_what_does_not_go_together(toy_config, tmp_path):
    assert run_name(toy_config(max_bad_share=0.5)) == run_name(toy_config(on_bad="raise")) == run_name(toy_config())
    names = {run_name(toy_config(on_bad="skip", max_bad_share=share)) for share in (0.001, 0.002)}
    assert len(names) == 2
    with pytest.raises(InputError, match=r"max_bad_share=1\.5: must be from 0 to 1"):
        toy_config(max_bad_share=1.5)
    with pytest.raises(InputError, match="needs on_bad=raise, not skip"):
        toy_config(on_bad="skip", mode="head", flip=False, features=tmp_path)


def launched(config, processes: int, script: Path, tmp_path: Path):
    file = tmp_path / f"{config.experiment}.yaml"
    write_yaml(file, to_dict(config))
    line = command(file, processes=processes, deepspeed_stage=config.deepspeed_stage)
    done = launching.run([str(script) if part == str(SCRIPT) else part for part in line], timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_metrics(config.directory) if "train/loss" in row]
    result = json.loads((config.directory / "result.json").read_text())
    assert result["processes"] == processes
    return load_file(config.directory / "last.safetensors"), rows, result


@pytest.mark.slow
def test_two_processes_train_as_one_though_one_has_nothing_left(toy_config, toy_cards, damaged, tmp_path):
    """Of the second update all that rank 0 was to have is bad, and of the third one sample of one rank alone: float64,
    as in tests/trainer/test_worlds.py."""
    cards = tmp_path / "cards.yaml"  # at the size of its position table, which timm would resample in float32
    cards.write_text(toy_cards.read_text().replace("input_size: 32", "input_size: 160"))
    path = damaged(*places(damaged())[[*range(16, 24), 35]].tolist())
    keys = {"epochs": 1.2, "log_every": 1, "cards": cards, "mixup": 0.4, "accumulation": 2}
    keys |= {"on_bad": "skip", "max_bad_share": 0.25, "train_subset": 20}
    outcomes = [
        launched(replace(toy_config(**keys, experiment=f"of-{n}"), train=path), n, IN_DOUBLE, tmp_path) for n in (1, 2)
    ]
    (alone, rows, result), (weights, other_rows, other_result) = outcomes
    assert result["bad_samples"] == other_result["bad_samples"] == 9
    assert [row["train/bad_samples"] for row in rows] == [row["train/bad_samples"] for row in other_rows]
    assert [row["train/loss"] for row in other_rows] == pytest.approx([row["train/loss"] for row in rows], rel=1e-6)
    for key in ("train/auc", "train/clean_loss"):
        assert result["selected"][key] == pytest.approx(other_result["selected"][key], rel=1e-6)
    for name, tensor in alone.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-10, msg=lambda m, name=name: name + m)


@pytest.mark.slow
@pytest.mark.compiler
def test_under_zero_3_where_a_pass_involves_all_processes(toy_config, train, damaged, tmp_path):
    """Likewise, up to the rounding of float32, which AdamW's division magnifies."""
    path = damaged(*places(damaged())[16:24].tolist())
    keys = {"epochs": 1.2, "log_every": 1, "on_bad": "skip", "max_bad_share": 0.25}
    alone = replace(toy_config(**keys, experiment="alone"), train=path)
    train(alone)
    config = replace(toy_config(**keys, experiment="zero", deepspeed_stage=3), train=path)
    weights, _, result = launched(config, 2, IN_DOUBLE.with_name("with_all_in_parts.py"), tmp_path)
    assert result["bad_samples"] == 8
    for name, tensor in load_file(alone.directory / "last.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-4, msg=lambda m, name=name: name + m)
