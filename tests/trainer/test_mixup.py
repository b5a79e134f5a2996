"""Mixup: blends are functions of the seed and the place in the global order, and off is what it was."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_shards.command import InputError, to_dict, write_yaml
from trainer import mixup
from trainer.launch import SCRIPT, command
from trainer.loop import Stopped
from trainer.state import read_metrics

IN_DOUBLE = Path(__file__).with_name("in_double.py")


def test_a_blend_by_hand():
    values, share = torch.tensor([[0.0], [1.0], [10.0], [20.0]]), torch.tensor([0.75, 0.75, 0.5, 0.5])
    # 0.75 x 0 + 0.25 x 1 and 0.75 x 1 + 0.25 x 0; half of 10 and half of 20 for both of the other pair.
    assert mixup.blend(values, share).squeeze(1).tolist() == [0.25, 0.75, 15.0, 15.0]
    assert mixup.partners(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def test_shares_follow_from_the_place_and_are_drawn_from_beta():
    whole = mixup.shares(100, 40000, alpha=0.4, seed=3)
    parts = [mixup.shares(100 + start, 10000, alpha=0.4, seed=3) for start in range(0, 40000, 10000)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole[::2], whole[1::2])
    assert not torch.equal(mixup.shares(100, 40000, alpha=0.4, seed=4), whole)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)) = 0.13889; of 20,000 draws the mean errs by 0.0026.
    assert whole.mean().item() == pytest.approx(0.5, abs=0.01)
    assert whole.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.003)
    correlation = np.corrcoef(whole[:-2:2], whole[2::2])[0, 1]
    assert abs(correlation) < 0.03  # 4 standard errors


def test_the_loss_is_that_of_both_labels_in_their_shares(toy_config, train, monkeypatch):
    """By hand, at the first update; with class weights, whatever the number of passes."""
    from trainer.distributed import Engine

    seen = []
    forward = Engine.forward

    def spy(self, images):
        logits = forward(self, images)
        seen.append(logits.detach().double())
        return logits

    monkeypatch.setattr(Engine, "forward", spy)
    rows = []
    train(toy_config(mixup=0.4, epochs=0.4, log_every=1, accumulation=2, flip=False), rows.append)
    labels = first_labels(toy_config())
    share = mixup.shares(0, 16, alpha=0.4, seed=0).double()
    target = share * labels + (1 - share) * labels.view(-1, 2).flip(1).flatten()  # classes are balanced: both weigh 1
    x = torch.cat(seen[:2])
    loss = (torch.log1p(torch.exp(x)) - target * x).mean()
    assert rows[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def first_labels(config) -> torch.Tensor:
    """Of the first 16 samples of the training order."""
    from data_shards.manifest import ShardSet
    from data_shards.order import SampleOrder

    shards = ShardSet.open(config.train)
    order = SampleOrder([shard["samples"] for shard in shards.shards], config.seed, shards.digest)
    return torch.from_numpy(shards.labels[order.take(0, 16)[0]]).double()


def test_it_trains_and_resumes_bit_equal(toy_config, train):
    keys = {"mixup": 0.4, "accumulation": 2, "augmentation": 0.5}
    whole, config = toy_config(**keys, experiment="whole"), toy_config(**keys, experiment="stopped")
    result = train(whole)

    def stop(row):
        (config.directory / "stop").touch()

    with pytest.raises(Stopped):
        train(config, stop)
    assert train(config)["checkpoints"] == result["checkpoints"]
    without = toy_config(**{**keys, "mixup": 0.0})
    assert without.directory.name != whole.directory.name
    assert train(without)["checkpoints"] != result["checkpoints"]


def test_off_is_bit_equal_to_a_loss_without_it(toy_config, train, monkeypatch):
    """And the run keeps the name that it had before there was such a field."""
    from trainer.loop import _Fit

    off = toy_config(mixup=0.0, label_smoothing=0.1, experiment="off")
    result = train(off)

    def plain(self, inputs, labels, share):
        return self._losses(self.engine.forward(inputs), labels, self.config.label_smoothing)

    monkeypatch.setattr(_Fit, "_training_losses", plain)
    before = toy_config(label_smoothing=0.1, experiment="before")
    assert before.directory.name == off.directory.name
    assert train(before)["checkpoints"] == result["checkpoints"]


def test_what_does_not_go_together_is_refused(toy_config, tmp_path):
    with pytest.raises(InputError, match=r"needs mixup=0\.0, not 0\.2"):
        toy_config(mixup=0.2, mode="head", flip=False, features=tmp_path)
    with pytest.raises(InputError, match=r"mixup=-1\.0: must be 0 or more"):
        toy_config(mixup=-1)
    assert toy_config(mixup=0.2).rank_batch(8) == 2
    with pytest.raises(InputError, match="must be a multiple of 2 x 8 processes x accumulation=2"):
        toy_config(mixup=0.2, accumulation=2).rank_batch(8)


@pytest.mark.slow
def test_two_processes_train_as_one(toy_config, toy_cards, tmp_path):
    """In float64, as tests/trainer/test_worlds.py has it without mixup."""
    cards = tmp_path / "cards.yaml"  # at the size of its position table, which timm would resample in float32
    cards.write_text(toy_cards.read_text().replace("input_size: 32", "input_size: 160"))
    outcomes = []
    for processes in (1, 2):
        config = toy_config(epochs=0.8, cards=cards, log_every=1, mixup=0.4, experiment=f"of-{processes}")
        file = tmp_path / f"{processes}.yaml"
        write_yaml(file, to_dict(config))
        line = [str(IN_DOUBLE) if part == str(SCRIPT) else part for part in command(file, processes=processes)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        losses = [row["train/loss"] for row in read_metrics(config.directory) if "train/loss" in row]
        outcomes.append((load_file(config.directory / "last.safetensors"), losses))
    (alone, losses), (weights, other_losses) = outcomes
    assert other_losses == pytest.approx(losses, rel=1e-6)
    for name, tensor in alone.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-10, msg=lambda m, name=name: name + m)
