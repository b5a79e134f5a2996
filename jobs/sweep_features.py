"""Frozen features that all head-only trials of a sweep share.

They are computed once for each backbone and shard set, before the trials begin, and lie as plain arrays that the
processes of a node map into their memory together. A smaller or mislabelled training set takes its rows from the whole
one: equal images have equal features, whatever their labels.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.command import InputError
from data_shards.files import atomic, write_json
from data_shards.manifest import ShardSet
from jobs.launched import die_with_parent
from jobs.subset import rows_in

if TYPE_CHECKING:
    from trainer.config import FinetuneConfig
    from trainer.features import Features
    from trainer.inputs import HeadFeatures


def prepare_all(configs: Collection[FinetuneConfig], sets: Collection[Path], folder: Path) -> None:
    """``prepare`` for each config; with a GPU in a process of its own: whoever has used a GPU keeps some of its memory
    until he ends, and a sweep's driver lives as long as the sweep."""
    if not configs:
        return
    import torch

    if not torch.cuda.is_available():
        _prepare_each(configs, sets, folder)
        return
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=die_with_parent) as process:
        process.submit(_prepare_each, configs, sets, folder).result()


def _prepare_each(configs: Collection[FinetuneConfig], sets: Collection[Path], folder: Path) -> None:
    for config in configs:
        prepare(config, sets, folder)


def prepare(config: FinetuneConfig, sets: Iterable[Path], folder: Path) -> None:
    """Compute what is missing of the features of ``config``'s frozen backbone on the shard sets, and lay the arrays out
    in ``folder``."""
    from trainer.backbones import create_backbone, get_card
    from trainer.features import extract, read_features

    card = get_card(config.backbone, config.cards)
    backbone = create_backbone(
        card, initialisation=config.initialisation, seed=config.seed, weights_dir=config.weights_dir
    )
    for path in sets:
        shards = ShardSet.open(path)
        features = read_features(
            extract(
                card,
                shards,
                config.features,
                initialisation=config.initialisation,
                seed=config.seed,
                threads=config.threads,
                precision=config.precision,
                backbone=backbone,
            )
        )
        array = _array(key(config), shards, folder)
        facts = array.with_suffix(".json")
        if facts.is_file() and json.loads(facts.read_text(encoding="utf-8")) == features.provenance:
            continue
        with atomic(array) as temporary, open(temporary, "wb") as file:
            np.save(file, features.features)
        write_json(facts, features.provenance)


def key(config: FinetuneConfig) -> tuple[str, ...]:
    """What the frozen features of a run depend on, its data aside."""
    seed = config.seed if config.initialisation == "random" else None
    return config.backbone, config.initialisation, str(seed), config.precision


def load(backbone: tuple[str, ...], shards: ShardSet, folder: Path) -> Features:
    """The features of a shard set that ``prepare`` was given; the array is mapped, not read."""
    array = _array(backbone, shards, folder)
    provenance = json.loads(array.with_suffix(".json").read_text(encoding="utf-8"))
    # Copy on write: torch wants memory that it may write to, and nobody does.
    return _features(np.load(array, mmap_mode="c"), shards, provenance)


class Frozen:
    """The features of one frozen backbone, in a process of a trial."""

    def __init__(self, backbone: tuple[str, ...], folder: Path, whole: Path) -> None:
        self._backbone, self._folder, self._whole = backbone, folder, whole
        self._found: dict[Path, Features] = {}
        self._heads: dict[tuple[Path, Path], HeadFeatures] = {}

    def of(self, path: Path) -> Features:
        """Of a shard set that ``prepare`` was given, or of a part of the whole training set."""
        if path not in self._found:
            shards = ShardSet.open(path)
            if _array(self._backbone, shards, self._folder).is_file():
                self._found[path] = load(self._backbone, shards, self._folder)
            elif path == self._whole:
                by = " ".join(self._backbone)
                raise InputError(f"{self._folder} has no features of {path} by {by}; run the sweep again to make them")
            else:
                self._found[path] = part(self.of(self._whole), ShardSet.open(self._whole), shards)
        return self._found[path]

    def for_training(self, config: FinetuneConfig) -> HeadFeatures:
        """What ``trainer.loop.fit`` takes."""
        from trainer.inputs import HeadFeatures

        sets = config.train, config.validation
        if sets not in self._heads:
            self._heads[sets] = HeadFeatures(*map(self.of, sets))
        return self._heads[sets]


@lru_cache(maxsize=2)
def frozen(backbone: tuple[str, ...], folder: Path, whole: Path) -> Frozen:
    """The one of this process: a process goes through many trials of a backbone, and a few backbones."""
    return Frozen(backbone, folder, whole)


def part(features: Features, whole: ShardSet, shards: ShardSet) -> Features:
    """The features of ``shards``, each of whose images is in ``whole``, from those of ``whole``."""
    provenance = {**features.provenance, "shards_digest": shards.digest, "samples": len(shards)}
    return _features(features.features[rows_in(whole, shards)], shards, provenance)


def _features(values: np.ndarray, shards: ShardSet, provenance: dict[str, Any]) -> Features:
    from trainer.features import TEXT_COLUMNS, Features

    texts = {name: shards.column(name) for name in TEXT_COLUMNS}
    return Features(values, np.arange(len(shards)), shards.labels, **texts, provenance=provenance)


def _array(backbone: tuple[str, ...], shards: ShardSet, folder: Path) -> Path:
    return folder / f"{'-'.join(backbone)}--{shards.digest[:12]}.npy"
