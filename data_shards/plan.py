"""What every rank reads, before anything is read: from the manifest alone, or from numbers of a set not yet made.

Samples are exact. Shards and bytes of training are expectations over the shuffle: a rank takes k = N / ranks of the N
samples of each window of shards (see order.py), and misses a shard of n samples with the hypergeometric probability
C(N - n, k) / C(N, k). Evaluation reads contiguous ranges; there the shards are exact too. Bytes are those of the tars,
with headers, KEY.json and padding, which a loader skips (some 1.5 kB per sample), and every sample of a shard counts as
its mean: lengths of single images are in the index, which is not opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma
from pathlib import Path

import numpy as np

from data_shards.command import InputError, run
from data_shards.manifest import read_manifest
from data_shards.order import WINDOW

INDEX_BYTES = {"shard, offset, length, xxh3": 28, "label": 5, "method and group": 8}
"""What a loader holds per sample of the whole set (groups' and methods' names come on top)."""


@dataclass(frozen=True)
class Reads:
    """One entry per rank."""

    samples: np.ndarray
    """(ranks,) int64."""
    shards: np.ndarray
    """(ranks,) float64, shards of which at least one sample is read."""
    bytes: np.ndarray
    """(ranks,) float64, the samples' share of the tars; what is read of it are the images alone."""


def training_reads(samples: np.ndarray, sizes: np.ndarray, *, batch_size: int, ranks: int) -> Reads:
    """What each rank reads in the first epoch. ``samples`` and ``sizes`` (bytes): (shards,), of every shard."""
    total, each = int(samples.sum()), batch_size // ranks
    batches, rest = divmod(total, batch_size)
    mine = batches * each + np.clip(rest - np.arange(ranks, dtype=np.int64) * each, 0, each)
    shards, _ = touched(samples, sizes, 1 / ranks)
    return Reads(mine, np.minimum(mine, shards), mine / total * sizes.sum())


def touched(samples: np.ndarray, sizes: np.ndarray, share: float) -> tuple[float, float]:
    """Shards, and their bytes, that a reader of this ``share`` of every window opens in an epoch of training.

    Windows are drawn anew each epoch: each shard is put into a window of mean size. Shards of the same number of
    samples are counted together; a million shards have few different ones.
    """
    window = samples.mean() * min(WINDOW, len(samples))
    different, kind = np.unique(samples, return_inverse=True)
    of_window = np.maximum(window, different)
    open_ = [1 - _missed(total, n, share * total) for total, n in zip(of_window, different, strict=True)]
    return float(np.bincount(kind) @ open_), float(np.bincount(kind, sizes) @ open_)


def evaluation_reads(samples: np.ndarray, sizes: np.ndarray, *, ranks: int) -> Reads:
    """What each rank reads in one evaluation: contiguous ranges that differ by at most one sample."""
    ends, total = np.cumsum(samples), int(samples.sum())
    edges = np.array([total * rank // ranks for rank in range(ranks + 1)])
    start, stop = edges[:-1], edges[1:]
    shards = np.searchsorted(ends, stop - 1, side="right") - np.searchsorted(ends, start, side="right") + 1.0
    bytes_before = np.interp(edges, np.concatenate([[0], ends]), np.concatenate([[0], np.cumsum(sizes)]))
    return Reads(stop - start, np.where(stop > start, shards, 0.0), np.diff(bytes_before))


def memory(samples: np.ndarray, *, batch_size: int, ranks: int, image_size: int, prefetch: int = 2) -> dict[str, int]:
    """Bytes that one rank's loader holds, by what for."""
    window = int(np.sort(samples)[-WINDOW:].sum())
    return {
        "index": sum(INDEX_BYTES.values()) * int(samples.sum()),
        "order": 3 * 8 * window + 4 * 8 * len(samples),
        "batches": (prefetch + 2) * (batch_size // ranks) * image_size**2 * 3,
    }


def _missed(total: float, n: float, k: float) -> float:
    """Probability that k of ``total`` samples hold none of n given ones: C(total - n, k) / C(total, k)."""
    left = total - n - k
    if left < 0:
        return 0.0
    return exp(lgamma(total - n + 1) - lgamma(left + 1) + lgamma(total - k + 1) - lgamma(total + 1))


@dataclass
class PlanConfig:
    """Print what each rank of a job would read, how balanced that is, and the memory of its loader.

    Give shards=FOLDER, or samples=… for a set that is not made yet.
    """

    shards: str | None = None
    """Folder of a shard set; only its manifest is read."""
    samples: int | None = None
    """Samples of a set that is not made yet."""
    shard_size: int = 1000
    """Its samples per shard."""
    image_bytes: int = 15_000
    """Mean bytes of its images."""
    ranks: int = 8
    """Processes of the job."""
    ranks_per_node: int = 8
    """Processes that share one node's memory and cache."""
    batch_size: int | None = None
    """Global batch; default: 32 per rank."""
    image_size: int = 224
    """Side of the decoded pictures."""


def plan_command(config: PlanConfig) -> None:
    if (config.shards is None) == (config.samples is None):
        raise InputError("give either shards=FOLDER or samples=NUMBER")
    for name in ("samples", "shard_size", "image_bytes", "ranks", "ranks_per_node", "image_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    batch_size = 32 * config.ranks if config.batch_size is None else config.batch_size
    if batch_size < 1 or batch_size % config.ranks:
        raise InputError(f"batch_size={batch_size} is not a multiple of the {config.ranks} ranks; choose one that is")
    samples, sizes = _shards(config)
    print(
        f"{int(samples.sum()):,} samples in {len(samples):,} shards, {size(sizes.sum())}; "
        f"{config.ranks} ranks, batches of {batch_size}\n"
    )
    print("| each rank reads | samples | shards | bytes of tar | most / mean |\n|---|---|---|---|---|")
    rows = {
        "training, an epoch": training_reads(samples, sizes, batch_size=batch_size, ranks=config.ranks),
        "evaluation": evaluation_reads(samples, sizes, ranks=config.ranks),
    }
    for name, reads in rows.items():
        counts = " | ".join(spread(values, lambda n: f"{n:,.0f}") for values in (reads.samples, reads.shards))
        balance = reads.bytes.max() / reads.bytes.mean()
        print(f"| {name} | {counts} | {spread(reads.bytes, size)} | {balance:.4f} |")
    together = min(config.ranks, config.ranks_per_node)
    parts = memory(samples, batch_size=batch_size, ranks=config.ranks, image_size=config.image_size)
    details = ", ".join(f"{name} {size(value)}" for name, value in parts.items())
    whole = sum(parts.values())
    print(f"\nmemory of a rank: {size(whole)} ({details}); of a node of {together}: {size(together * whole)}")
    shards, fetched = touched(samples, sizes, together / config.ranks)
    window = np.sort(sizes)[-WINDOW:]
    print(f"remote shards: a node fetches {shards:,.0f} ({size(fetched)}) in an epoch of training;", end=" ")
    print(f"its cache must hold {len(window)} of them ({size(window.sum())}), and twice that to fetch ahead")


def _shards(config: PlanConfig) -> tuple[np.ndarray, np.ndarray]:
    """Samples and bytes of every shard, int64."""
    if config.shards is not None:
        described = read_manifest(Path(config.shards))["shards"]
        return tuple(np.array([shard[key] for shard in described], np.int64) for key in ("samples", "bytes"))
    whole, rest = divmod(config.samples, config.shard_size)
    samples = np.full(whole + (rest > 0), config.shard_size, np.int64)
    if rest:
        samples[-1] = rest
    blocks = 2 + -(-config.image_bytes // 512) + 1  # two headers, the image, its JSON
    return samples, samples * blocks * 512


def spread(values: np.ndarray, text) -> str:
    """``least to most`` over the ranks, or the one value."""
    least, most = text(values.min()), text(values.max())
    return least if least == most else f"{least} to {most}"


def size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


if __name__ == "__main__":
    run(PlanConfig, plan_command)
