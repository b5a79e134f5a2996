"""trainer/finetune.py with a finite loss whose gradients are not, on the last process in the third update."""

from __future__ import annotations

from data_shards.command import run
from trainer.config import FinetuneConfig
from trainer.distributed import Engine
from trainer.finetune import finetune

backward, calls = Engine.backward, 0


def overflowing(self, loss, *, last):
    global calls
    calls += 1
    bad = calls == 3 and self.accelerator.process_index == self.accelerator.num_processes - 1
    backward(self, loss * float("inf") if bad else loss, last=last)


Engine.backward = overflowing

if __name__ == "__main__":
    run(FinetuneConfig, finetune)
