"""Gets the shards that will be read next while others are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from data_shards.command import InputError
from data_shards.manifest import ShardSet, window_bytes

log = logging.getLogger(__name__)


class ReadAhead:
    """One thread that puts shards of a remote set into the cache, and tells the system which ones of a folder to read,
    so that a disk or NFS streams them.

    It does nothing where the cache does not hold two windows of shards: it would then take the room of those that are
    being read. (The system's own memory cache looks after itself.)
    """

    def __init__(self, shards: ShardSet, release: Callable[[], None]) -> None:
        """``release`` closes shards that the reader has open and can do without."""
        self._shards, self._release = shards, release
        if shards.decoded is not None:  # nothing of the shards will be read
            self.works = False
        elif shards.remote is None:
            self.works = hasattr(os, "posix_fadvise")
        else:
            self.works = shards.remote.cache.size >= 2 * window_bytes(shards.manifest)
        self._pool = ThreadPoolExecutor(1, "read_ahead")
        self._wanted: Sequence[int] = ()
        self._futures: list[Future[None]] = []

    def want(self, shards: Sequence[int]) -> None:
        """Get these, and no longer what was wanted before. Returns at once."""
        if not self.works or list(shards) == list(self._wanted):
            return
        for future in self._futures:
            future.cancel()
        self._wanted = shards
        self._futures = [self._pool.submit(self._fetch, int(shard)) for shard in shards]

    def close(self) -> None:
        """Returns when the shard under way is there."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, shard: int) -> None:
        try:
            descriptor = self._shards.open_shard(shard, self._release)
            try:
                if self._shards.remote is None:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
        except (OSError, InputError) as error:  # whoever reads the shard will say so, with the sample
            log.debug("not read ahead: %s", error)
