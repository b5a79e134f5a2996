"""Scores of the validation set by the model that a run starts from, as a script for a launcher: the code that selects
checkpoints, whose logits are not kept otherwise. Run as ``scoring.py --config FILE.yaml``; writes ``logits.npy`` into
the run directory. A batch is one face and a process one
thread: products of other shapes, or in other parts, are rounded otherwise."""

from __future__ import annotations

import numpy as np
import torch

from data_shards.command import run
from data_shards.manifest import ShardSet
from trainer.begin import begin
from trainer.card import get_card
from trainer.config import FinetuneConfig
from trainer.distributed import Engine, build_accelerator, close, on_rank_zero
from trainer.validation import scores


def write_scores(config: FinetuneConfig) -> None:
    torch.set_num_threads(1)
    accelerator, card = build_accelerator(config), get_card(config.backbone, config.cards)
    engine = Engine(accelerator, config, begin(config, card, distributed=accelerator.num_processes > 1).model)
    logits = scores(engine, ShardSet.open(config.validation), card, batch_size=1, threads=1)
    config.directory.mkdir(parents=True, exist_ok=True)
    on_rank_zero(accelerator, lambda: np.save(config.directory / "logits.npy", logits.numpy()))
    close(accelerator)


if __name__ == "__main__":
    run(FinetuneConfig, write_scores)
