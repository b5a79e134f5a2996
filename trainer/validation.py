"""Scores of a whole shard set, each sample exactly once, from one process or many."""

from __future__ import annotations

import math

import numpy as np
import torch

from data_shards.command import InputError
from data_shards.loader import evaluation_batches
from data_shards.manifest import ShardSet
from trainer.card import BackboneCard
from trainer.distributed import Engine, gather
from trainer.preprocess import normalize

Part = tuple[np.ndarray, np.ndarray]


def check_sets(train: ShardSet, validation: ShardSet) -> None:
    """InputError unless the sets may train and select: no group in both, and none a test split."""
    for role, shards in (("train", train), ("validation", validation)):
        if shards.split == "test":
            raise InputError(f"{role}={shards.path} is a test split; training and selection may not see it")
    shared = _groups(train) & _groups(validation)
    if shared:
        raise InputError(
            f"group {min(shared)!r} is in both {train.path} and {validation.path}, which would leak; pack them together"
        )


def _groups(shards: ShardSet) -> set[str]:
    """Single ids; a group may join several with ``|``."""
    return {identity for group in set(shards.column("group")) for identity in group.split("|")}


def prepared(images: torch.Tensor, engine: Engine, card: BackboneCard) -> torch.Tensor:
    """Pixels uint8 (b, S, S, 3) as the engine's model takes them, on its device."""
    images = images.to(engine.accelerator.device, non_blocking=True)
    return normalize(images, card, dtype=engine.input_type, memory_format=engine.memory_format)


def scores(engine: Engine, shards: ShardSet, card: BackboneCard, *, batch_size: int, threads: int) -> torch.Tensor:
    """Logits of ``shards``, float64 (n,) in the order of its index, the same on every process. Leaves the model in
    evaluation mode.

    Processes score their shares without talking to each other, and merge by index. Under ZeRO-3 a forward pass
    involves all processes, so that those with fewer batches go on with an empty picture.
    """
    rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
    engine.share_buffers()
    engine.evaluate()
    index, logits = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    how = {"batch_size": batch_size, "image_size": card.input_size, "threads": threads}
    how["pin_memory"] = engine.accelerator.device.type == "cuda"
    for batch in evaluation_batches(shards, rank=rank, world_size=world, **how):
        index.append(batch.index.numpy())
        logits.append(engine.score(prepared(batch.images, engine, card)).cpu().numpy())
    if engine.stage == 3:
        most = math.ceil(math.ceil(len(shards) / world) / batch_size)
        empty = torch.zeros(1, card.input_size, card.input_size, 3, dtype=torch.uint8)
        for _ in range(most - (len(index) - 1)):
            engine.score(prepared(empty, engine, card))
    part = np.concatenate(index), np.concatenate(logits)
    return merge_by_index(gather(engine.accelerator, part), len(shards))


def merge_by_index(parts: list[Part], n: int) -> torch.Tensor:
    """Values, float64 (n,) in the order of their indices, from (index, value) arrays of the processes; RuntimeError
    unless each index came exactly once."""
    index = np.concatenate([part[0] for part in parts])
    values = np.concatenate([part[1] for part in parts])
    if not np.array_equal(np.sort(index), np.arange(n)):
        raise RuntimeError(f"evaluation covered {len(np.unique(index))} of {n} samples in {len(index)} scores")
    merged = torch.empty(n, dtype=torch.float64)
    merged[index] = torch.from_numpy(values).double()
    return merged
