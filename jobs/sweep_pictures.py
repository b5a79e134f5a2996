"""Decoded pictures that all trials of a sweep share which train a backbone.

They are decoded once for each shard set and input size, before the trials begin, and lie as plain arrays that the
processes of a node map into their memory together. A smaller or mislabelled training set finds its pictures in the
whole one. What is not there is decoded by every trial, with equal results: pictures for which there is no memory, and
those of a set with a damaged sample, which trials then meet as without sharing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from data_shards import decoded
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample
from jobs.subset import rows_in

if TYPE_CHECKING:
    from jobs.trial import Place
    from trainer.config import FinetuneConfig

SHARE_OF_MEMORY = 0.25
"""Of this machine's, for all pictures of a sweep together."""


def input_size(config: FinetuneConfig) -> int:
    """Side in pixels of the pictures that a run's backbone takes."""
    from trainer.card import get_card

    return get_card(config.backbone, config.cards).input_size


def prepare(sizes: Collection[int], sets: Mapping[str, Path], folder: Path) -> None:
    """Lay out in ``folder`` what is missing of the pictures of the sets, by name, in these sizes; what is in it and
    not asked for goes."""
    wanted = _that_fit(sizes, sets, folder)
    for file in folder.iterdir() if folder.is_dir() else ():  # also what a kill left half written
        if file.with_suffix(".npy") not in wanted or file.suffix not in (".npy", ".json"):
            file.unlink()
    with _bar(sum(len(shards) for _, shards, _ in wanted.values())) as bar:
        for name, shards, size in wanted.values():
            _prepare_one(name, shards, size, folder, bar)


def _that_fit(sizes: Collection[int], sets: Mapping[str, Path], folder: Path) -> dict[Path, tuple[str, ShardSet, int]]:
    """Of each array for which there is memory: its set's name, the set, and the size. A line says what there is none
    for."""
    left, wanted = int(SHARE_OF_MEMORY * psutil.virtual_memory().total), {}
    for size in sorted(sizes):
        for name, path in sets.items():
            shards = ShardSet.open(path)
            file, needed = decoded.array_file(shards, size, folder), decoded.size_in_bytes(shards, size)
            if file in wanted:
                continue
            if needed > left:
                why = f"{needed / 1e9:.2g} GB, and all shared ones may take {SHARE_OF_MEMORY:.0%} of the memory"
                _not_shared(name, size, why)
                continue
            wanted[file] = name, shards, size
            left -= needed
    return wanted


def opener(config: FinetuneConfig, place: Place | None) -> Callable[[Path], ShardSet]:
    """What opens the shard sets of a run, for ``trainer.loop.fit``. Outside a sweep, and on features, nothing is
    shared."""
    if place is None or config.features is not None:
        return ShardSet.open
    return partial(open_shards, image_size=input_size(config), folder=place.pictures, whole=place.train)


def open_shards(path: Path, *, image_size: int, folder: Path, whole: Path) -> ShardSet:
    """The shard set, with its decoded pictures if ``prepare`` laid them out, or those of the training set ``whole``
    that it is a part of."""
    shards = ShardSet.open(path)
    found = decoded.find(shards, image_size, folder)
    if found is None:
        source = ShardSet.open(whole)
        found = decoded.find(source, image_size, folder)
        try:
            found = found and found._replace(rows=rows_in(source, shards))
        except KeyError:  # no part of it
            found = None
    return replace(shards, decoded=found)


def _prepare_one(name: str, shards: ShardSet, size: int, folder: Path, bar: Any) -> None:
    if decoded.is_whole(shards, size, folder):
        bar.update(len(shards))
        return
    if bar.disable:
        print(f"decoded pictures: {len(shards)} of {name} at {size} px", file=sys.stderr, flush=True)
    try:
        threads = len(os.sched_getaffinity(0))
        decoded.lay_out(shards, size, folder, threads=threads, progress=bar.update)
    except (CorruptSample, OSError) as error:
        _not_shared(name, size, str(error))


def _not_shared(name: str, size: int, why: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"pictures of {name} at {size} px are decoded by every trial: {why}", file=sys.stderr)


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with tqdm(total=total, desc="decoded pictures", unit="img", disable=not (terminal and total)) as bar:
        yield bar
