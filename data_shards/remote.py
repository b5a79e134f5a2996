"""Shards at a URL, or in a slow folder, through fsspec, with a local cache of whole shards.

A shard is fetched as one file, checked against the manifest's sha256, and only then given its name in the cache: what
lies there is what was packed. All processes of a machine share a cache. Its size is bounded: before a shard is
fetched, those that were opened longest ago are removed, except those that any process has open (each holds a shared
``flock`` on it, which the kernel drops with the process). The folder must lie on a local disk. A shard that is damaged
while it lies there is found by the hashes of its samples, removed and fetched again.

A network that fails for a moment is asked again, after growing pauses. What goes wrong on this machine (a full disk,
too many open files, missing rights) stays the OSError that it is: no sample is bad because of it.

Commands in place of addresses (``pipe:``, ``::`` chains) and unknown protocols are refused. There are no credentials in
addresses: object stores take them from their usual files and variables.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.command import InputError
from data_shards.files import flush_to_disk, sha256_file

log = logging.getLogger(__name__)

PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "file", "memory")
FOLDER, SIZE_GB = "DATA_SHARDS_CACHE", "DATA_SHARDS_CACHE_GB"
STAGE = "DATA_SHARDS_STAGE"
DEFAULT_GB = 50.0
ATTEMPTS = 2
"""Times that a shard is fetched which arrives as other bytes than were packed."""
PAUSES = (1.0, 4.0, 16.0)
"""Seconds between the attempts to fetch a file when the network fails."""
TIMEOUT = 60.0
"""Seconds without a byte after which an HTTP connection is given up, and that one waits for room in the cache."""
AGAIN = 60.0
"""Seconds until a shard that could not be fetched is asked for again."""
_OF_THIS_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EACCES, errno.EPERM, errno.ESTALE),
)


def of_this_machine(error: BaseException) -> bool:
    """Whether an error says something of the machine or the rights on it, and nothing of the data."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE)


def url_of(path: str | Path) -> str | None:
    """``path`` as a URL (also after ``pathlib`` has made one slash of two), or None if it is a local path.

    InputError if it is a command or of a protocol that is not one of PROTOCOLS.
    """
    text = str(path)
    match = re.match(r"([A-Za-z][\w+.-]+):", text)
    if match is None or os.path.exists(text):
        return None
    protocol, rest = match[1].lower(), text[match.end() :].strip("/")
    if protocol not in PROTOCOLS or "::" in text:
        raise InputError(f"{text}: refused; shards are read from folders and from {', '.join(PROTOCOLS)}")
    if re.search(r"[?#@]", rest):
        raise InputError(
            f"{protocol}:// address with '?', '#' or '@': give the plain address of the shard set's folder"
        )
    return f"{protocol}://{'/' if protocol == 'file' else ''}{rest}"


def staged_url(path: str | Path) -> str | None:
    """The URL of a folder if $DATA_SHARDS_STAGE is 1: its shards are then read through the cache, as a remote set's.
    For nodes with a fast disk of their own and a slow shared one; it changes no result."""
    wanted = os.environ.get(STAGE, "0")
    if wanted not in ("0", "1"):
        raise InputError(f"{STAGE}={wanted}: expected 0 or 1")
    if wanted == "0" or not os.path.exists(path):
        return None
    return f"file://{os.path.realpath(path)}"


@dataclass(frozen=True)
class RemoteFolder:
    """The folder of a shard set at a URL."""

    url: str

    def of(self, name: str) -> str:
        """URL of a file."""
        return f"{self.url}/{name}"

    def read(self, name: str, limit: int) -> bytes:
        """As ``fetch``, for small files."""
        with tempfile.TemporaryDirectory() as folder:
            self.fetch(name, Path(folder) / name, limit)
            return (Path(folder) / name).read_bytes()

    def fetch(self, name: str, target: Path, limit: int) -> None:
        """Write the file ``name`` to ``target``; OSError if that fails or if it has more than ``limit`` bytes."""
        from fsspec.callbacks import Callback

        class Limit(Callback):
            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > limit:
                    raise _TooLong(f"more than the {limit} bytes expected")

        for pause in (*PAUSES, None):
            try:
                return self._filesystem().get_file(self.of(name), str(target), callback=Limit())
            except Exception as error:  # every backend has its own
                if of_this_machine(error):
                    error.add_note(f"while fetching {self.of(name)}")
                    raise
                reason = f"{self.of(name)}: {type(error).__name__} {error}".rstrip()
                if pause is None or isinstance(error, (FileNotFoundError, _TooLong)):
                    raise OSError(reason) from error
                log.warning("%s; again in %g s", reason, pause)
                time.sleep(pause)

    def _filesystem(self) -> Any:
        import fsspec

        protocol = self.url.split(":")[0]
        if protocol not in ("http", "https"):
            return fsspec.filesystem(protocol)
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        return fsspec.filesystem(protocol, client_kwargs={"timeout": timeout})


class _TooLong(OSError):
    """The file is not the one that was asked for."""


class CacheFull(OSError):
    """There is no room: all shards in the cache are in use."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of at most ``size`` bytes of shards, named by their sha256, shared by any number of processes."""

    folder: Path
    size: int

    @classmethod
    def default(cls) -> ShardCache:
        """From $DATA_SHARDS_CACHE (default ~/.cache/data_shards) and $DATA_SHARDS_CACHE_GB (default 50)."""
        folder = os.environ.get(FOLDER) or Path.home() / ".cache" / "data_shards"
        text = os.environ.get(SIZE_GB) or str(DEFAULT_GB)
        try:
            gigabytes = float(text)
        except ValueError:
            raise InputError(f"{SIZE_GB}={text}: expected a number of gigabytes") from None
        return cls(Path(folder), int(gigabytes * 1e9))

    def open(self, sha256: str, size: int, fetch: Callable[[Path], None], release: Callable[[], None]) -> int:
        """A descriptor of the shard of this digest, in use until it is closed; ``fetch`` writes it, and checks
        what it wrote, if it is not here.

        ``release`` is called when there is no room, to close what the caller has open and can do without.

        Raises:
            OSError: what ``fetch`` raises.
            InputError: there is no room, all shards in the cache stay in use.
        """
        until, last = time.monotonic() + TIMEOUT, False
        while True:
            descriptor = self._hold(sha256)
            if descriptor is not None:
                return descriptor
            try:
                with self._locked(sha256[:2]):  # one process fetches, the others find it here
                    if not self.path(sha256).exists():
                        self._fetch(sha256, size, fetch)
            except CacheFull as error:
                if last:
                    raise InputError(
                        f"{self.folder}: {error}; set {SIZE_GB} to more than {self.size / 1e9:g}"
                    ) from None
                last = time.monotonic() > until  # once more with what is released now
                release()
                time.sleep(0.02)

    def discard(self, sha256: str, descriptor: int) -> bool | None:
        """Remove what was opened as ``descriptor`` if it is damaged, even if others have it open.

        True if it was; False if it is the shard of this digest; None if it is no longer here.
        """
        path = self.path(sha256)
        with self._locked(sha256[:2]), suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                if sha256_file(path) == sha256:
                    return False
                log.warning("%s is damaged; removed", path)
                path.unlink()
                return True
        return None

    def path(self, sha256: str) -> Path:
        """Where a shard lies, if it is here."""
        return self.folder / "shards" / f"{sha256}.tar"

    def _hold(self, sha256: str) -> int | None:
        path = self.path(sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(BlockingIOError, FileNotFoundError):  # it is being removed, or was
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                with suppress(PermissionError):  # another user's file: it then goes earlier than it should
                    os.utime(descriptor)
                return descriptor
        os.close(descriptor)
        return None

    def _fetch(self, sha256: str, size: int, fetch: Callable[[Path], None]) -> None:
        partial, descriptor = self._reserve(size)
        try:
            fetch(partial)
            flush_to_disk(partial)  # or a power failure leaves the name without the bytes
            os.rename(partial, self.path(sha256))
        finally:
            partial.unlink(missing_ok=True)
            os.close(descriptor)

    def _reserve(self, size: int) -> tuple[Path, int]:
        """A new file whose name says how large it will be, locked as long as it is written, and room for it."""
        shards = self.folder / "shards"
        with self._locked("room"):
            shards.mkdir(exist_ok=True)
            kept, here = 0, []
            for entry in os.scandir(shards):
                if entry.name.endswith(".tar"):
                    with suppress(FileNotFoundError):  # discard() does not take this lock
                        status = os.stat(entry.path)
                        here.append((status.st_mtime_ns, status.st_size, entry.path))
                        kept += status.st_size
                elif not _remove(entry.path):  # of a process that lives
                    kept += int(entry.name.split(".")[0])
            for _, bytes_, path in sorted(here):
                if kept + size <= self.size:
                    break
                if _remove(path):
                    kept -= bytes_
            if kept + size > self.size:
                raise CacheFull(f"no room for {size} bytes, all shards here are in use")
            partial = shards / f"{size}.{uuid.uuid4().hex}.partial"
            descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return partial, descriptor

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        # Read only: other users may have made it, and a lock needs no more.
        lock = os.open(folder / name, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _remove(path: str) -> bool:
    """Remove a file of the cache unless it is in use (or was renamed or given up since it was listed, or another
    user does not let us)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


@dataclass(frozen=True)
class RemoteShards:
    """The shards of one set. One that could not be fetched, or is damaged in the cache once and again, is not asked for
    again for a while: it may hold thousands of samples, and many threads may wait for it."""

    source: RemoteFolder
    cache: ShardCache
    _failed: dict[str, tuple[float, str]] = field(default_factory=dict)
    _damaged: dict[str, float] = field(default_factory=dict)

    def open(self, shard: dict[str, Any], release: Callable[[], None]) -> int:
        """As ``ShardCache.open``, for a shard as the manifest describes it."""
        while True:
            descriptor = self.cache.open(
                shard["sha256"], shard["bytes"], lambda target: self._fetch(shard, target), release
            )
            if os.fstat(descriptor).st_size == shard["bytes"] or not self.spoiled(shard, descriptor):
                return descriptor
            os.close(descriptor)

    def spoiled(self, shard: dict[str, Any], descriptor: int) -> bool:
        """Whether the copy in the cache that was opened as ``descriptor`` is damaged. Then ``open`` fetches another,
        once, or raises an OSError that names the copy."""
        name, now = shard["file"], time.monotonic()
        damaged = self.cache.discard(shard["sha256"], descriptor)
        if damaged and now < self._damaged.get(name, -math.inf) + AGAIN:
            path = self.cache.path(shard["sha256"])
            self._failed[name] = now, f"the copy in the cache is damaged, fetched anew as well: {path}"
        if damaged:
            self._damaged[name] = now
        return damaged is not False

    def _fetch(self, shard: dict[str, Any], target: Path) -> None:
        name = shard["file"]
        if name in self._failed:
            when, reason = self._failed[name]
            if time.monotonic() < when + AGAIN:
                raise OSError(reason)
        for _ in range(ATTEMPTS):
            try:
                self.source.fetch(name, target, shard["bytes"])
                if sha256_file(target) == shard["sha256"]:
                    return
                reason = "what was fetched is not the packed shard (sha256 differs)"
            except OSError as error:
                if of_this_machine(error):
                    raise
                reason = str(error)
                break
        self._failed[name] = time.monotonic(), reason
        raise OSError(reason)
