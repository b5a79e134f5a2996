"""The number of processes changes nothing: float64 parameters and learning rates with 1, 2 and 4 processes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_shards.command import to_dict, write_yaml
from tests.trainer.launching import run
from trainer.launch import SCRIPT, command
from trainer.state import read_metrics

IN_DOUBLE = Path(__file__).with_name("in_double.py")


@pytest.mark.slow
def test_one_two_and_four_processes_give_the_same_parameters(toy_config, toy_cards, tmp_path):
    """Three updates of AdamW, with the flips, class weights and clipping of a real run. Logged rates are the applied
    ones; rounding in another order of summation is about 1e-16, which AdamW's division by small numbers magnifies."""
    cards = tmp_path / "cards.yaml"  # at the size of its position table, which timm would resample in float32
    cards.write_text(toy_cards.read_text().replace("input_size: 32", "input_size: 160"))
    outcomes = []
    for processes in (1, 2, 4):
        config = toy_config(epochs=1.2, cards=cards, log_every=1, experiment=f"of-{processes}")
        file = tmp_path / f"{processes}.yaml"
        write_yaml(file, to_dict(config))
        line = [str(IN_DOUBLE) if part == str(SCRIPT) else part for part in command(file, processes=processes)]
        assert str(IN_DOUBLE) in line
        done = run(line, timeout=300)
        assert done.returncode == 0, done.stderr
        rows = [row for row in read_metrics(config.directory) if "train/learning_rate" in row]
        outcomes.append((load_file(config.directory / "last.safetensors"), rows))
    (alone, rows), *others = outcomes
    assert all(tensor.dtype == torch.float64 for tensor in alone.values())
    assert len(rows) == 3
    for weights, other_rows in others:
        for name, tensor in alone.items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-10, msg=lambda m, name=name: name + m)
        for key in ("step", "epoch", "train/learning_rate"):
            assert [row[key] for row in other_rows] == [row[key] for row in rows]
