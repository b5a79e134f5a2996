"""A fixed part of the training data, scored without augmentation: the training side of the overfitting gap."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_shards.loader import OnBad
from data_shards.manifest import ShardSet
from data_shards.order import permutation
from data_shards.reader import CorruptSample, SampleReader
from trainer.card import BackboneCard
from trainer.distributed import Engine, gather
from trainer.validation import prepared

if TYPE_CHECKING:
    from trainer.distributed import Accelerator

log = logging.getLogger(__name__)


def clean_subset(labels: np.ndarray, samples: int) -> np.ndarray:
    """Indices, int64 and rising, of about ``samples`` of ``labels`` (n,), all if there are fewer: each class with its
    share, but at least one sample. A function of the index alone, so that all runs on one shard set see the same."""
    order = permutation(len(labels), key=0)
    share = min(1.0, samples / len(labels))
    parts = [order[labels[order] == label] for label in np.unique(labels)]
    return np.sort(np.concatenate([part[: max(1, round(share * len(part)))] for part in parts]))


class CleanSubset:
    """The subset of this process, decoded once: a few hundred pictures, scored at every evaluation. With
    ``on_bad="skip"`` the damaged ones, ``bad`` (rows of the set's index, of all processes), are not in it."""

    def __init__(
        self, shards: ShardSet, card: BackboneCard, samples: int, accelerator: Accelerator, on_bad: OnBad
    ) -> None:
        subset = clean_subset(shards.labels, samples)
        rank, world = accelerator.process_index, accelerator.num_processes
        # Processes get equally many, since under ZeRO-3 a forward pass involves them all; repeated ones are dropped.
        self.place = np.resize(np.arange(len(subset)), -(-len(subset) // world) * world)[rank::world]
        size = card.input_size
        self.images = torch.empty((len(self.place), size, size, 3), dtype=torch.uint8)
        reader, bad = SampleReader(shards, image_size=size), []
        try:
            for row, index in enumerate(subset[self.place].tolist()):
                try:
                    reader.decode_into(index, self.images.numpy()[row])
                except CorruptSample as error:
                    if on_bad == "raise":
                        raise
                    log.warning("left out of the training scores: %s", error)
                    bad.append(index)
        finally:
            reader.close()
        self.bad = sorted({index for part in gather(accelerator, bad) for index in part})
        self.good = ~np.isin(subset, self.bad)
        self.labels = shards.labels[subset[self.good]].astype(np.float64)
        self.card = card

    def scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        """Logits, float64 (n,), of the whole subset in the order of ``labels``, on every process. Leaves the model in
        evaluation mode."""
        engine.evaluate()
        logits = [
            engine.score(prepared(part, engine, self.card)).cpu().numpy() for part in self.images.split(batch_size)
        ]
        merged = torch.empty(len(self.good), dtype=torch.float64)
        for place, values in gather(engine.accelerator, (self.place, np.concatenate(logits))):
            merged[place] = torch.from_numpy(values).double()
        return merged[torch.from_numpy(self.good)]
