"""Evaluation where processes have different numbers of batches: a collective inside the loop would hang there."""

import json
from pathlib import Path

import pandas as pd
import pytest

from data_shards.command import to_dict, write_yaml
from data_shards.loader import evaluation_batches
from data_shards.manifest import ShardSet
from data_shards.pack import pack
from tests.trainer import launching
from trainer.launch import SCRIPT, command

ALL_IN_PARTS = Path(__file__).with_name("with_all_in_parts.py")
KEYS = {"epochs": 2, "batch_size": 20, "experiment": "uneven"}


@pytest.fixture(scope="module")
def validation(toy_sets, tmp_path_factory):
    """21 of the 22 validation faces: processes 0 and 1 have 10 and 11, which are 1 and 2 batches of 10."""
    shards = ShardSet.open(toy_sets["validation"])
    columns = ["path", "label", "method", "group", "dataset"]
    faces = pd.DataFrame({name: shards.column(name) for name in columns}).iloc[:-1].assign(split="validation")
    path = pack(faces, toy_sets["validation"].parents[1], tmp_path_factory.mktemp("uneven"), workers=1)["validation"]
    batches = [
        len(list(evaluation_batches(ShardSet.open(path), batch_size=10, image_size=32, rank=rank, world_size=2)))
        for rank in range(2)
    ]
    assert batches == [1, 2]
    return path


@pytest.fixture
def uneven(toy_config, validation):
    """Function (**keys) → config that selects by the 21 faces."""
    return lambda **keys: type(toy_config())(**{**toy_config(**KEYS, **keys).__dict__, "validation": validation})


@pytest.fixture
def alone(uneven, train):
    """Selected evaluation of one process."""
    return train(uneven(runs=uneven().runs / "alone"))["selected"]


def check(config, done, alone):
    """Every sample was scored once, with the scores of one process up to rounding."""
    assert done.returncode == 0, done.stderr
    result = json.loads((config.directory / "result.json").read_text())
    assert (result["processes"], result["deepspeed_stage"]) == (2, config.deepspeed_stage)
    assert (result["selected"]["validation/n"], alone["validation/n"]) == (21, 21)
    assert result["selected"] == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
def test_plain_processes_with_one_and_two_batches(uneven, launch, alone):
    config = uneven()
    check(config, launch(config, 2), alone)


@pytest.mark.slow
@pytest.mark.compiler
def test_under_zero_3_where_a_forward_pass_involves_all_processes(uneven, alone, tmp_path):
    config = uneven(deepspeed_stage=3)
    file = tmp_path / "config.yaml"
    write_yaml(file, to_dict(config))
    line = command(file, processes=2, deepspeed_stage=3)
    check(config, launching.run([str(ALL_IN_PARTS) if part == str(SCRIPT) else part for part in line]), alone)
