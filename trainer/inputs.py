"""What the model is fed: pictures decoded from the shards at every pass, or features computed once.

Both give ``fit`` the same things in the same order, so that one loop trains either. Features in place of pictures are
for ``mode=head`` alone, where nothing before the head learns and nothing changes a picture between two epochs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn

from data_shards.command import InputError
from data_shards.loader import TrainingLoader
from data_shards.manifest import ShardSet
from data_shards.order import SampleOrder
from trainer.augment import augment
from trainer.bad_samples import WholeBatch, whole_batches
from trainer.card import BackboneCard, determining, get_card
from trainer.clean_subset import CleanSubset, clean_subset
from trainer.config import FinetuneConfig
from trainer.distributed import Engine, on_rank_zero
from trainer.features import Features, extract, read_features
from trainer.validation import prepared, scores

if TYPE_CHECKING:
    from trainer.distributed import Accelerator


class Rows(NamedTuple):
    """One process's part of a global batch, of which a ``trainer.bad_samples.WholeBatch`` is one, too."""

    labels: torch.Tensor
    """float32 (b,), 1 = fake."""
    index: torch.Tensor
    """int64 (b,), rows of the training set."""
    weight: torch.Tensor
    """float32 (b,), 1; 0 at the place of a bad sample."""
    bad: list[int]
    """Rows of the training set that were left out."""


class Inputs(Protocol):
    """Where the inputs of one run come from."""

    clean_labels: torch.Tensor
    """float64 (m,), of ``clean_scores``."""
    bad: list[int]
    """Training samples that are damaged and not in ``clean_scores``, the same on every process."""

    def batches(self, position: int) -> Any:
        """Context manager of this process's endless training batches, from ``position`` in the sample order."""

    def training(self, batch: Any) -> torch.Tensor:
        """The inputs of a batch's rows, (b, ...), on any device."""

    def prepared(self, inputs: torch.Tensor, engine: Engine) -> torch.Tensor:
        """Inputs as the engine's model takes them, on its device."""

    def validation_scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        """Logits, float64 (n,), of the validation set in the order of its index, on every process. Leaves the model in
        evaluation mode."""

    def clean_scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        """Likewise of a fixed part of the training set, unchanged."""


class Pictures:
    """Decoded from the shards at every pass, and changed as the config says."""

    def __init__(
        self,
        config: FinetuneConfig,
        card: BackboneCard,
        train: ShardSet,
        validation: ShardSet,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.card, self.train, self.validation = config, card, train, validation
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device = accelerator.device
        self._clean = CleanSubset(train, card, config.train_subset, accelerator, config.on_bad)
        self.clean_labels, self.bad = torch.from_numpy(self._clean.labels), self._clean.bad

    @contextmanager
    def batches(self, position: int) -> Iterator[Iterator[WholeBatch]]:
        loader = TrainingLoader(
            self.train,
            batch_size=self.config.batch_size,
            image_size=self.card.input_size,
            seed=self.config.seed,
            rank=self.rank,
            world_size=self.world,
            threads=self.config.threads,
            position=position,
            on_bad=self.config.on_bad,
            max_bad_share=1.0,  # BadSamples counts, for all processes: here one alone would leave the others waiting
            pin_memory=self.device.type == "cuda",
        )
        with loader:
            yield whole_batches(loader)

    def training(self, batch: WholeBatch) -> torch.Tensor:
        return augment(
            batch.images.to(self.device, non_blocking=True),
            batch.index.numpy(),
            batch.epoch.numpy(),
            seed=self.config.seed,
            flip=self.config.flip,
            strength=self.config.augmentation,
        )

    def prepared(self, inputs: torch.Tensor, engine: Engine) -> torch.Tensor:
        return prepared(inputs, engine, self.card)

    def validation_scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        return scores(engine, self.validation, self.card, batch_size=batch_size, threads=self.config.threads)

    def clean_scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        return self._clean.scores(engine, batch_size)


@dataclass(frozen=True)
class HeadFeatures:
    """A frozen backbone's features of a training and a validation set, in memory: made once, for any number of runs."""

    train: Features
    validation: Features
    backbone: dict[str, torch.Tensor] | None = None
    """State dict of the backbone, which completes what a run publishes. Without it the published weights are those of
    the head alone, and ``trainer.predict`` and ``trainer.export`` take the backbone from its card."""

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The features as tensors, for all runs. Files are read into memory that is not writable, which torch wants a
        copy of; mapped memory is shared between processes and stays where it is."""
        arrays = self.train.features, self.validation.features
        return tuple(torch.from_numpy(a) if a.flags.writeable else torch.tensor(a) for a in arrays)

    def check(self, config: FinetuneConfig, train: ShardSet, validation: ShardSet) -> None:
        """InputError unless these are the features that ``config`` asks for."""
        if config.features is None:
            raise InputError("features in memory need features=FOLDER in the config, where the same command finds them")
        first = self.train.provenance
        for features, shards in ((self.train, train), (self.validation, validation)):
            found = features.provenance
            wanted = {
                "backbone": config.backbone,
                "initialisation": config.initialisation,
                "seed": config.seed if config.initialisation == "random" else None,
                "precision": config.precision,
                "shards_digest": shards.digest,
                **determining(get_card(config.backbone, config.cards)),
                "weights_sha256": first["weights_sha256"],
            }
            for name, value in wanted.items():
                if found[name] != value:
                    raise InputError(f"features of {shards.path}: {name} is {found[name]!r}, the run needs {value!r}")


def load_head_features(config: FinetuneConfig, device: str = "auto") -> HeadFeatures:
    """The features that ``config`` (mode=head, features=FOLDER) trains on: from its folder, computed where they are not
    there. Good for every config with the same backbone, weights, precision and data."""
    from trainer.backbones import create_backbone

    card = get_card(config.backbone, config.cards)
    backbone = create_backbone(
        card, initialisation=config.initialisation, seed=config.seed, weights_dir=config.weights_dir
    )
    parts = [
        read_features(
            extract(
                card,
                ShardSet.open(path),
                config.features,
                initialisation=config.initialisation,
                seed=config.seed,
                threads=config.threads,
                device=device,
                precision=config.precision,
                backbone=backbone,
            )
        )
        for path in (config.train, config.validation)
    ]
    return HeadFeatures(*parts, backbone={name: tensor.cpu() for name, tensor in backbone.state_dict().items()})


def shared_head_features(config: FinetuneConfig, accelerator: Accelerator) -> HeadFeatures:
    """``load_head_features`` on every process; rank 0 computes what is missing, the others wait for it."""
    device = str(accelerator.device)
    on_rank_zero(accelerator, lambda: load_head_features(config, device) and None)
    return load_head_features(config, device)


class FeatureBackbone(nn.Module):
    """In the place of a backbone whose output is there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def blocks(self) -> list[tuple[str, list[str]]]:
        return []


class FeatureInputs:
    """Rows of arrays in memory. Every process scores all of them: that is less work than to share it."""

    def __init__(
        self,
        config: FinetuneConfig,
        features: HeadFeatures,
        train: ShardSet,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self._order = SampleOrder([shard["samples"] for shard in train.shards], config.seed, train.digest)
        self._train, self._validation = features.tensors
        self._labels = torch.from_numpy(train.labels).float()
        subset = torch.from_numpy(clean_subset(train.labels, config.train_subset))
        self._clean, self.clean_labels = self._train[subset], self._labels[subset].double()
        self.bad: list[int] = []

    @contextmanager
    def batches(self, position: int) -> Iterator[Iterator[Rows]]:
        yield self._rows(position)

    def _rows(self, position: int) -> Iterator[Rows]:
        each = self.config.batch_size // self.world
        weight = torch.ones(each)
        while True:
            start = position + self.rank * each
            index = torch.from_numpy(self._order.take(start, start + each)[0])
            yield Rows(self._labels[index], index, weight, [])
            position += self.config.batch_size

    def training(self, batch: Rows) -> torch.Tensor:
        return self._train[batch.index]

    def prepared(self, inputs: torch.Tensor, engine: Engine) -> torch.Tensor:
        return inputs.to(engine.accelerator.device, non_blocking=True)

    def validation_scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        return self._scores(engine, self._validation)

    def clean_scores(self, engine: Engine, batch_size: int) -> torch.Tensor:
        return self._scores(engine, self._clean)

    def _scores(self, engine: Engine, features: torch.Tensor) -> torch.Tensor:
        engine.evaluate()
        return engine.score(self.prepared(features, engine)).double().cpu()


def complete(file: Path, backbone: dict[str, torch.Tensor]) -> None:
    """Add the backbone's tensors to published weights of a head."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from trainer.classifier import save_weights

    with safe_open(file, "pt") as opened:
        provenance = json.loads(opened.metadata()["provenance"])
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    save_weights(file, tensors | load_file(file), provenance)
