"""A loss that is not finite on one process stops all before the update, and leaves what is needed to look into it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_shards.command import to_dict, write_yaml
from data_shards.manifest import ShardSet
from tests.trainer import launching
from trainer.begin import begin
from trainer.card import get_card
from trainer.distributed import Engine
from trainer.launch import SCRIPT, command
from trainer.loop import NonFiniteLoss
from trainer.preprocess import normalize

ONE_BAD_RANK = Path(__file__).with_name("with_one_bad_rank.py")


def test_batch_and_weights_before_the_update_show_it_again(toy_config, train, toy_sets):
    """With the moving average on, which is not what made the loss."""
    # The first update moves every weight by about 1e37, so that the second forward pass overflows.
    config = toy_config(learning_rate=1e37, warmup=0, clip=None, checkpoint_steps=1, ema=0.99, mixup=0.4)
    with pytest.raises(NonFiniteLoss, match="at step 2"):
        train(config)
    report = json.loads((config.directory / "non-finite-0.json").read_text())
    batch = load_file(config.directory / "non-finite-0.safetensors")
    assert list(ShardSet.open(toy_sets["train"]).column("key")[batch["index"]]) == report["keys"]
    assert (batch["inputs"].shape, batch["inputs"].dtype) == ((16, 32, 32, 3), torch.uint8)
    assert batch["labels"].shape == batch["share"].shape == (16,)
    weights = load_file(config.directory / "non-finite-weights.safetensors")
    saved = load_file(config.directory / "state" / "step-00000001" / "model.safetensors")
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)


def test_weights_and_batch_give_the_losses_again(toy_config, train, monkeypatch):
    config = toy_config()
    monkeypatch.setattr(Engine, "finite_gradients", lambda self: False)
    with pytest.raises(NonFiniteLoss, match="at step 1 in a batch with"):
        train(config)
    batch = load_file(config.directory / "non-finite-0.safetensors")
    card = get_card(config.backbone, config.cards)
    model = begin(config, card, distributed=False).model.train()
    model.load_state_dict(load_file(config.directory / "non-finite-weights.safetensors"))
    logits = model(normalize(batch["inputs"], card)).detach()
    sign = 2 * batch["labels"] - 1
    torch.testing.assert_close(torch.log1p(torch.exp(-sign * logits)), batch["losses"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.compiler)])
def test_one_bad_rank_of_two_stops_both(toy_config, tmp_path, stage):
    """Loss and gradients of the other one are finite: it knows by the vote alone."""
    config = toy_config(epochs=2.4, checkpoint_steps=1, deepspeed_stage=stage)
    file = tmp_path / "config.yaml"
    write_yaml(file, to_dict(config))
    line = command(file, processes=2, deepspeed_stage=stage)
    done = launching.run([str(ONE_BAD_RANK) if part == str(SCRIPT) else part for part in line], cwd=tmp_path)
    assert done.returncode == 1
    reports = [json.loads((config.directory / f"non-finite-{rank}.json").read_text()) for rank in range(2)]
    assert [report["step"] for report in reports] == [3, 3]
    assert all(torch.tensor(reports[0]["losses"]).isfinite())
    assert torch.tensor(reports[1]["losses"]).isfinite().tolist() == [True, *[False], *[True] * 6]
    assert f"at step 3 for samples {reports[1]['keys'][1]} (rank 1)" in done.stderr
    assert reports[0]["keys"] != reports[1]["keys"]
    assert (config.directory / "state" / "latest").read_text() == "step-00000002\n"
    weights = load_file(config.directory / "non-finite-weights.safetensors")
    saved = load_file(config.directory / "state" / "step-00000002" / "model.safetensors")
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    for report in reports:
        batch = load_file(config.directory / f"non-finite-{report['rank']}.safetensors")
        assert batch["inputs"].shape == (8, 32, 32, 3)
