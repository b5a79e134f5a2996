"""Scores of several processes, merged, and all that is evaluated of them equal those of one process to the bit."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from data_shards.command import to_dict, write_yaml
from data_shards.manifest import ShardSet
from data_shards.pack import pack
from jobs.evaluate import evaluate, read
from tests.trainer import launching
from trainer import predict, validation
from trainer.distributed import Engine, build_accelerator
from trainer.launch import SCRIPT, command

SCORING = Path(__file__).with_name("scoring.py")


@pytest.fixture(scope="module")
def frames(toy_sets, tmp_path_factory) -> ShardSet:
    """The 22 validation faces as frames: two of a video, a real and a fake video in each group."""
    shards = ShardSet.open(toy_sets["validation"])
    faces = pd.DataFrame({name: shards.column(name) for name in ("path", "label", "method", "dataset")})
    group = pd.Series([f"g{row // 4}" for row in range(len(faces))])
    faces = faces.assign(group=group, video=group + "-" + faces["label"], split="validation")
    folder = tmp_path_factory.mktemp("frames")
    return ShardSet.open(pack(faces, toy_sets["validation"].parents[1], folder, shard_size=8, workers=1)["validation"])


class _Ranks:
    """``gather`` of processes that run one after the other: all but the last end where they would wait for it."""

    def __init__(self, world: int) -> None:
        self.world, self.parts = world, []

    def gather(self, accelerator, part) -> list:
        self.parts.insert(0, part)  # in another order than the ranks'
        if len(self.parts) < self.world:
            raise InterruptedError
        return self.parts


@pytest.fixture
def scored(toy_config, frames, monkeypatch):
    """Function (world) → logits of ``frames`` by an untrained model in that many processes."""
    from trainer.begin import begin
    from trainer.card import get_card

    config = toy_config()
    card = get_card(config.backbone, config.cards)
    engine = Engine(build_accelerator(config), config, begin(config, card, distributed=False).model)

    def run(world: int) -> torch.Tensor:
        ranks = _Ranks(world)
        for rank in range(world):
            place = SimpleNamespace(process_index=rank, num_processes=world, device=engine.accelerator.device)
            with monkeypatch.context() as patch, contextlib.suppress(InterruptedError):
                patch.setattr(validation, "gather", ranks.gather)
                patch.setattr(engine, "accelerator", place)
                return validation.scores(engine, frames, card, batch_size=1, threads=1)
        raise AssertionError("the last process merges")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in scoring.py
    yield run
    torch.set_num_threads(threads)


def evaluated(folder: Path, frames: ShardSet, logits: torch.Tensor) -> bytes:
    for name in ("train", "validation", "test"):
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        predict._write(folder / "scores" / f"{name}.parquet", frames, logits, {}, ())
    return evaluate(folder, replicates=50).read_bytes()


def test_frames_and_videos_of_one_to_four_processes_have_equal_metrics(scored, frames, tmp_path):
    alone = scored(1)
    expected = evaluated(tmp_path / "1", frames, alone)
    found = read(tmp_path / "1" / "evaluation.json")
    assert found.slices["test"]["per video"][0].n == 12
    assert len(np.unique(alone)) == 22  # no metric is equal because all scores are
    for world in (2, 3, 4):
        merged = scored(world)
        assert torch.equal(merged, alone)
        assert evaluated(tmp_path / str(world), frames, merged) == expected


@pytest.mark.slow
def test_two_real_processes_have_the_metrics_of_one(scored, toy_config, frames, tmp_path):
    config, file = replace(toy_config(), validation=frames.path), tmp_path / "config.yaml"
    write_yaml(file, to_dict(config))
    line = command(file, processes=2)
    done = launching.run([str(SCORING) if part == str(SCRIPT) else part for part in line], timeout=200)
    assert done.returncode == 0, done.stderr
    merged = torch.from_numpy(np.load(config.directory / "logits.npy"))
    assert evaluated(tmp_path / "2", frames, merged) == evaluated(tmp_path / "1", frames, scored(1))
