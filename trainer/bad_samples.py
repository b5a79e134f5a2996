"""Damaged training pictures with on_bad=skip: left out, counted over all processes, and too many of them end the run.

The loader leaves a bad sample out of its batch. Here a stand-in of weight 0 takes its place, so that all processes make
the same passes of the same size, whatever is damaged on which of them: nothing hangs, pairs stay pairs, and random
numbers stay where they were. The loss is divided by the number of good samples in the global batch, so that it is the
mean over these for any number of processes. Batch norm that learns does see the stand-ins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards.loader import Batch, TrainingLoader
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample
from trainer.config import FinetuneConfig
from trainer.distributed import gather

if TYPE_CHECKING:
    from trainer.distributed import Accelerator
    from trainer.inputs import Rows
    from trainer.state import Progress


@dataclass
class WholeBatch(Batch):
    """A loader's batch with all its places."""

    weight: torch.Tensor
    """float32 (b,), 1; 0 at the place of a bad sample."""
    bad: list[int]
    """The samples that were left out, rows of the shard set's index."""


def whole_batches(loader: TrainingLoader) -> Iterator[WholeBatch]:
    """The loader's batches, none of them smaller than the others."""
    size = loader.batch_size // loader.world_size
    while True:
        start = loader.position + loader.rank * size
        batch = next(loader)
        if len(batch) == size:
            yield WholeBatch(**vars(batch), weight=torch.ones(size), bad=[])
        else:
            yield filled(batch, *loader.order.take(start, start + size))


def filled(batch: Batch, index: np.ndarray, epoch: np.ndarray) -> WholeBatch:
    """``batch`` with a row at each of the places that were to hold these samples, int64 (n,) each. For a missing one
    stands the other of its pair, so that mixup blends that one with itself; where both are missing, black pictures."""
    places = list(zip(index.tolist(), epoch.tolist(), strict=True))  # all different, also where two epochs meet
    row_of = {sample: row for row, sample in enumerate(zip(batch.index.tolist(), batch.epoch.tolist(), strict=True))}
    other = [places[place ^ 1] if place ^ 1 < len(places) else None for place in range(len(places))]
    black = len(batch)
    rows = [row_of.get(own, row_of.get(pair, black)) for own, pair in zip(places, other, strict=True)]
    columns = [getattr(batch, column.name) for column in fields(Batch)]
    columns = [torch.cat([column, column.new_zeros(1, *column.shape[1:])])[rows] for column in columns]
    missing = [sample not in row_of for sample in places]
    return WholeBatch(*columns, weight=1 - torch.tensor(missing).float(), bad=index[missing].tolist())


class BadSamples:
    """The different ones that a run has met on all its processes, also before it was resumed (``Progress.bad``)."""

    def __init__(self, config: FinetuneConfig, accelerator: Accelerator, train: ShardSet, progress: Progress) -> None:
        self.config, self.accelerator, self.train, self.progress = config, accelerator, train, progress

    def admit(self, found: list[int]) -> None:
        """Take note of samples, the same on every process; CorruptSample, on every process, if there are too many."""
        self.progress.bad = bad = sorted({*self.progress.bad, *found})
        share = self.config.max_bad_share
        if len(bad) > share * len(self.train):
            shard, key = (self.train.column(name)[bad[-1]] for name in ("shard", "key"))
            reason = f"{len(bad)} of {len(self.train)} samples are bad, above max_bad_share={share}"
            raise CorruptSample(self.train.location(int(shard)), str(key), reason)

    def weights(self, batch: Rows) -> torch.Tensor:
        """What each sample of this process's part of a global batch weighs, float32 (b,): their mean over all processes
        is 1, or 0 where no sample is left. A collective, if there may be bad ones."""
        weight = batch.weight.to(self.accelerator.device)
        if self.config.on_bad == "raise":
            return weight
        found = [index for part in gather(self.accelerator, batch.bad) for index in part]
        self.admit(found)
        return weight * (self.config.batch_size / max(1, self.config.batch_size - len(found)))

    def row(self) -> dict[str, Any]:
        """For a training row of metrics.jsonl."""
        return {} if self.config.on_bad == "raise" else {"train/bad_samples": len(self.progress.bad)}
