"""Batches for training and evaluation, for this rank, from a shard set.

Threads of this process decode straight into the batch's own memory: no worker processes, no hand-over of pixels. A
batch that was handed out belongs to the caller and is never written again.

Bad samples. With ``on_bad="raise"`` the first one raises CorruptSample. With ``"skip"`` it is logged and left out of
its batch, which is smaller by one (and may even be empty, so that all ranks still make the same number of batches);
nothing is put in its place, and every other sample stays where it was in the sequence. CorruptSample is raised all the
same as soon as a rank has met more different bad samples than ``max_bad_share`` of what it may meet: in training the
whole shard set, counted over all epochs (so that a tolerable set never fails by bad luck, and another fails on every
rank sooner or later); in evaluation the rank's own range (so that what all ranks leave out together is within the
share of the set as well; a range in which the bad samples of a tolerable set lie close together may fail).
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch

from data_shards.command import InputError
from data_shards.manifest import ShardSet
from data_shards.order import SampleOrder
from data_shards.read_ahead import ReadAhead
from data_shards.reader import CorruptSample, SampleReader

log = logging.getLogger(__name__)

OnBad = Literal["raise", "skip"]
Positions = tuple[np.ndarray, np.ndarray]
"""Sample index and epoch, int64 (b,)."""


@dataclass
class Batch:
    """One rank's part of a batch."""

    images: torch.Tensor
    """uint8 (b, S, S, 3), RGB, channels last."""
    labels: torch.Tensor
    """float32 (b,), 1 = fake, 0 = real."""
    index: torch.Tensor
    """int64 (b,), row of the shard set's index: key, path and all else of the sample."""
    epoch: torch.Tensor
    """int64 (b,)."""
    method: torch.Tensor
    """int64 (b,), position in ``shards.methods.names``. Numbers, as text costs a Python object per sample."""
    group: torch.Tensor
    """int64 (b,), position in ``shards.groups.names``."""

    def __len__(self) -> int:
        return len(self.index)


class TrainingLoader:
    """The endless training batches of rank ``rank`` of ``world_size``.

    Global batch b is the positions [b * batch_size, (b + 1) * batch_size) of the sample order (see order.py), counted
    from ``position``; rank r takes the r-th of ``world_size`` equal slices. So the sequence of global batches is the
    same for any number of ranks that divides ``batch_size`` and any number of threads. ``prefetch`` batches are
    decoded ahead of the one asked for.

    An error (CorruptSample, or any other of a decoding thread) surfaces in ``next`` and leaves the loader at the
    batch that failed: the next ``next`` tries it again.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        batch_size: int,
        image_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        position: int = 0,
        prefetch: int = 2,
        on_bad: OnBad = "raise",
        max_bad_share: float = 0.001,
        pin_memory: bool = False,
    ) -> None:
        _check(batch_size, rank, world_size, position)
        if batch_size % world_size:
            raise InputError(f"batch_size={batch_size} is not a multiple of the {world_size} ranks; choose one that is")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.order = SampleOrder([shard["samples"] for shard in shards.shards], seed, shards.digest)
        self._position = position
        self._decoder = _Decoder(
            shards,
            image_size=image_size,
            threads=threads,
            prefetch=prefetch,
            pin_memory=pin_memory,
            bad=_BadSamples(on_bad, max_bad_share, shards.samples),
        )
        self._ahead = ReadAhead(shards, self._decoder.close_files)

    @property
    def position(self) -> int:
        """Samples of the global sequence in the batches handed out so far, by all ranks; prefetch does not count."""
        return self._position

    @property
    def bad(self) -> int:
        """Samples this rank has left out since the loader was made."""
        return self._decoder.bad.count

    def __iter__(self) -> TrainingLoader:
        return self

    def __next__(self) -> Batch:
        if not self._decoder.running:
            self._decoder.start(self._slices(self._position))
        batch = self._decoder.next()
        self._position += self.batch_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the global sequence stands and which one it is; the same on every rank, good for any other ranks."""
        return {"position": self._position, **self._sequence()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at ``state``. InputError if it belongs to another sequence (other data, seed or window)."""
        for name, ours in self._sequence().items():
            if state.get(name) != ours:
                raise InputError(
                    f"the saved position belongs to another sample order: {name} was {state.get(name)} and is {ours}; "
                    "continue with the same data and seed, or start a new run"
                )
        self._decoder.stop()
        self._position = int(state["position"])

    def close(self) -> None:
        """End the threads and close the files. Afterwards ``next`` raises RuntimeError."""
        self._ahead.close()
        self._decoder.close()

    def __enter__(self) -> TrainingLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sequence(self) -> dict[str, Any]:
        return {"seed": self.order.seed, "digest": self.order.digest, "window": self.order.window}

    def _slices(self, position: int) -> Iterator[Positions]:
        each = self.batch_size // self.world_size
        while True:
            start = position + self.rank * each
            if self._ahead.works:
                self._ahead.want(self.order.next_window(start))
            yield self.order.take(start, start + each)
            position += self.batch_size


def evaluation_batches(
    shards: ShardSet,
    *,
    batch_size: int,
    image_size: int,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 2,
    prefetch: int = 2,
    on_bad: OnBad = "raise",
    max_bad_share: float = 0.001,
    pin_memory: bool = False,
    first: int = 0,
) -> Iterator[Batch]:
    """Every sample, from ``first`` of the index on, exactly once over all ranks, in the order of the index; ``epoch``
    is 0.

    Rank r takes the r-th of ``world_size`` contiguous ranges that differ by at most one sample, in batches of
    ``batch_size`` (the rank's, not the global one; the last may be smaller). Nothing is padded: ranks may make
    different numbers of batches, and none at all when there are fewer samples than ranks. Merge by ``index``.
    """
    _check(batch_size, rank, world_size, first)
    start, stop = (first + max(0, shards.samples - first) * r // world_size for r in (rank, rank + 1))
    decoder = _Decoder(
        shards,
        image_size=image_size,
        threads=threads,
        prefetch=prefetch,
        pin_memory=pin_memory,
        bad=_BadSamples(on_bad, max_bad_share, stop - start),
    )

    ahead = ReadAhead(shards, decoder.close_files)
    ends = np.cumsum([shard["samples"] for shard in shards.shards])

    def positions() -> Iterator[Positions]:
        for begin in range(start, stop, batch_size):
            index = np.arange(begin, min(begin + batch_size, stop), dtype=np.int64)
            ahead.want(np.flatnonzero((ends > index[-1]) & (ends < stop))[:1] + 1)
            yield index, np.zeros_like(index)

    def batches() -> Iterator[Batch]:
        try:
            decoder.start(positions())
            while decoder.pending:
                yield decoder.next()
        finally:
            ahead.close()
            decoder.close()

    return batches()


def _check(batch_size: int, rank: int, world_size: int, position: int = 0) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank} of world_size={world_size}: expected 0 <= rank < world_size")
    if position < 0:
        raise InputError(f"position={position}: expected at least 0")


@dataclass
class _BadSamples:
    """Counts what was left out and says when it is too much."""

    on_bad: OnBad
    max_share: float
    samples: int
    """How many different ones this rank may meet."""
    count: int = 0
    different: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.on_bad not in ("raise", "skip"):
            raise InputError(f"on_bad={self.on_bad!r}: expected 'raise' or 'skip'")
        if not 0 <= self.max_share <= 1:
            raise InputError(f"max_bad_share={self.max_share}: expected a share from 0 to 1")

    def admit(self, bad: list[tuple[int, CorruptSample]]) -> None:
        """Take note of a batch's bad samples (index, error); raise when they may not be skipped."""
        for index, error in bad:
            if self.on_bad == "raise":
                raise error
            self.count += 1
            self.different.add(index)
            log.warning("left out: %s", error)
            if len(self.different) > self.max_share * self.samples:
                share = f"{len(self.different)} of {self.samples} samples are bad, above max_bad_share={self.max_share}"
                raise CorruptSample(error.shard, error.key, f"{error.reason}; {share}") from error


@dataclass
class _Pending:
    """A batch in the making: each future fills some rows and returns the bad ones among them."""

    batch: Batch
    futures: list[Future[dict[int, CorruptSample]]] = field(default_factory=list)


class _Recycled:
    """Memory for pixels, used again once nobody can see it: the first touch of fresh pages costs 5 % of decoding.

    A tensor made of an array keeps that array alive, through all its views, until the last one is gone. So the end of
    the object given out is the moment when its memory is free, whoever held the batch and for how long.
    """

    def __init__(self, keep: int) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An uninitialized uint8 array."""
        size = math.prod(shape)
        memory = self._free.pop() if self._free else np.empty(size, np.uint8)
        if memory.size != size:
            memory = np.empty(size, np.uint8)
        array = memory.reshape(shape)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


class _Decoder:
    """Turns positions into batches, in order, ``prefetch`` of them ahead, on a pool of threads.

    No thread ever waits for another: a batch is cut into as many pieces as there are threads, each a finite piece of
    work, so that neither an error nor an early end can leave anything hanging.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        image_size: int,
        threads: int,
        prefetch: int,
        pin_memory: bool,
        bad: _BadSamples,
    ) -> None:
        if threads < 1 or prefetch < 0:
            raise InputError(f"threads={threads}, prefetch={prefetch}: expected at least 1 thread and 0 batches ahead")
        self.bad, self.pending = bad, deque[_Pending]()
        self._shards, self._threads, self._prefetch, self._pin_memory = shards, threads, prefetch, pin_memory
        self._labels = shards.labels.astype(np.float32)
        self._methods, self._groups = shards.methods.codes, shards.groups.codes
        self._reader = SampleReader(shards, image_size=image_size)  # checks that the index is the one opened
        self.close_files = self._reader.close
        self._recycled = _Recycled(keep=prefetch + 2)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="data_shards")
        self._source: Iterator[Positions] | None = None
        self._closed = False

    @property
    def running(self) -> bool:
        return self._source is not None

    def start(self, source: Iterator[Positions]) -> None:
        if self._closed:
            raise RuntimeError("the loader is closed")
        self._source = source
        try:
            self._submit()
        except BaseException:
            self.stop()
            raise

    def next(self) -> Batch:
        """The next batch. The caller has made sure that one is pending."""
        pending = self.pending[0]
        try:
            bad: dict[int, CorruptSample] = {}
            for future in pending.futures:
                bad |= future.result()
            self.pending.popleft()
            self._submit()
            batch = _without(pending.batch, bad)
            self.bad.admit([(int(pending.batch.index[row]), bad[row]) for row in sorted(bad)])
        except BaseException:  # also of an interrupt: a batch was taken that nobody gets, so begin anew
            self.stop()
            raise
        return batch

    def stop(self) -> None:
        """Forget what was decoded ahead; ``start`` begins anew."""
        for pending in self.pending:
            for future in pending.futures:
                future.cancel()
        self.pending.clear()
        self._source = None

    def close(self) -> None:
        self._closed = True
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _submit(self) -> None:
        while len(self.pending) <= self._prefetch:
            positions = next(self._source, None)
            if positions is None:
                break
            self.pending.append(self._begin(*positions))

    def _begin(self, index: np.ndarray, epoch: np.ndarray) -> _Pending:
        size = self._reader.image_size
        shape = (len(index), size, size, 3)
        if self._pin_memory:  # torch recycles pinned memory itself
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            images = torch.from_numpy(self._recycled.empty(shape))
        columns = (
            self._labels[index],
            index,
            epoch,
            *(c[index].astype(np.int64) for c in (self._methods, self._groups)),
        )
        pending = _Pending(Batch(images, *map(torch.from_numpy, columns)))
        pixels, piece = images.numpy(), math.ceil(len(index) / self._threads)
        for start in range(0, len(index), piece):
            rows = range(start, min(start + piece, len(index)))
            pending.futures.append(self._pool.submit(self._decode, index, pixels, rows))
        return pending

    def _decode(self, index: np.ndarray, pixels: np.ndarray, rows: range) -> dict[int, CorruptSample]:
        bad = {}
        for row in rows:
            if self._closed:
                break
            try:
                self._reader.decode_into(int(index[row]), pixels[row])
            except CorruptSample as error:
                bad[row] = error
            except Exception as error:
                error.add_note(f"while reading sample {index[row]} of {self._shards.path}")
                raise
        return bad


def _without(batch: Batch, rows: dict[int, CorruptSample]) -> Batch:
    if not rows:
        return batch
    keep = torch.tensor([row for row in range(len(batch)) if row not in rows], dtype=torch.int64)
    return Batch(*(getattr(batch, column.name)[keep] for column in fields(Batch)))
