"""trainer/finetune.py where ZeRO-3 works as on a large model. Of a tiny one DeepSpeed leaves all weights whole on all
processes, or keeps them once they were put together, so that a forward pass involves nobody."""

from __future__ import annotations

from data_shards.command import run
from trainer import distributed
from trainer.config import FinetuneConfig
from trainer.finetune import finetune

deepspeed_config = distributed.deepspeed_config


def with_all_in_parts(*arguments):
    made = deepspeed_config(*arguments)
    small = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    made["zero_optimization"] |= {f"stage3_{name}": 0 for name in small}
    return made


distributed.deepspeed_config = with_all_in_parts

if __name__ == "__main__":
    run(FinetuneConfig, finetune)
