"""trainer/finetune.py where the last process, after finite gradients, finds one loss of the third update not finite."""

from __future__ import annotations

from data_shards.command import run
from trainer import loop
from trainer.config import FinetuneConfig
from trainer.finetune import finetune

gradients = loop._Fit._gradients


def with_one_bad_loss(self, batch):
    losses = gradients(self, batch)
    if self.progress.step == 2 and self.rank == self.world - 1:
        losses[1] = float("nan")
    return losses


loop._Fit._gradients = with_one_bad_loss

if __name__ == "__main__":
    run(FinetuneConfig, finetune)
