"""The cache of remote shards: bounded, shared, never a wrong byte, never a hang."""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_shards import remote
from data_shards.command import InputError
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample
from data_shards.remote import ShardCache
from tests.data_shards.serving import everything, kept


@pytest.fixture
def source(tmp_path):
    """Function (number) → (sha256, size, fetch) of one of many files of 1000 bytes."""
    import hashlib

    def file(number: int):
        data = bytes([number]) * 1000
        return hashlib.sha256(data).hexdigest(), 1000, lambda target: target.write_bytes(data)

    return file


def nothing() -> None:
    pass


def test_the_least_recently_used_goes_and_none_in_use(source, tmp_path):
    cache = ShardCache(tmp_path / "c", 3000)

    clock = itertools.count(10**18, 10**9)

    def touch(number):
        os.close(cache.open(*source(number), nothing))
        os.utime(cache.folder / "shards" / f"{source(number)[0]}.tar", ns=(0, next(clock)))  # clocks may be coarse

    def here():
        return {n for n in range(9) if f"{source(n)[0]}.tar" in kept(cache)}

    for number in (0, 1, 2, 0, 3):
        touch(number)
    assert here() == {0, 2, 3}  # 1 was used longest ago
    used = cache.open(*source(2), nothing)  # now: later than all the others
    for number in (4, 5, 6, 7):
        touch(number)
    assert here() == {2, 6, 7}
    assert os.pread(used, 1000, 0) == bytes([2]) * 1000
    os.close(used)
    os.utime(cache.folder / "shards" / f"{source(2)[0]}.tar", ns=(0, 0))
    touch(8)
    assert here() == {6, 7, 8}


def test_a_damaged_copy_that_goes_while_room_is_made_is_no_error(source, tmp_path, monkeypatch):
    cache = ShardCache(tmp_path / "c", 3000)
    os.close(cache.open(*source(0), nothing))
    damaged = cache.folder / "shards" / f"{source(0)[0]}.tar"
    stat = os.stat

    def gone_by_then(path, **options):
        if str(path) == str(damaged):
            damaged.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(remote.os, "stat", gone_by_then)
    os.close(cache.open(*source(1), nothing))
    assert list(kept(cache)) == [f"{source(1)[0]}.tar"]


def test_the_time_of_use_is_noted(source, tmp_path):
    cache = ShardCache(tmp_path / "c", 3000)
    os.close(cache.open(*source(0), nothing))
    file = cache.folder / "shards" / f"{source(0)[0]}.tar"
    os.utime(file, ns=(0, 0))
    os.close(cache.open(*source(0), nothing))
    assert file.stat().st_mtime_ns > 0


@pytest.mark.timeout(30)
def test_a_cache_full_of_shards_in_use_waits_asks_and_says_so(source, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.0)
    cache = ShardCache(tmp_path / "c", 2000)
    held = [cache.open(*source(number), nothing) for number in (0, 1)]
    with pytest.raises(InputError, match=r"all shards here are in use; set DATA_SHARDS_CACHE_GB to more"):
        cache.open(*source(2), nothing)
    # What is released is tried, even where the time is over.
    held.append(cache.open(*source(2), lambda: os.close(held.pop(0)) if len(held) == 2 else None))
    for descriptor in held:
        os.close(descriptor)
    assert sum(kept(cache).values()) <= 2000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_users_share_a_cache(source):
    """The second one may read what the first one left, and waits for the same locks."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        cache = ShardCache(Path(folder) / "c", 2000)
        os.close(cache.open(*source(0), nothing))
        for name in ("shards", "locks"):
            os.chmod(cache.folder / name, 0o777)
        with cache._locked("room"), cache._locked(source(1)[0][:2]):
            pass  # the locks are root's
        os.seteuid(65534)
        try:
            for number in (0, 1):
                os.close(cache.open(*source(number), nothing))
        finally:
            os.seteuid(0)
        assert len(kept(cache)) == 2


def test_a_shard_is_on_the_disk_before_it_has_its_name(source, tmp_path, monkeypatch):
    """Else a power failure leaves a file of the right name and size, and of zeros."""
    done = []
    monkeypatch.setattr(os, "fsync", lambda _: done.append("fsync"))
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda *names: (done.append("rename"), rename(*names)))
    os.close(ShardCache(tmp_path / "c", 2000).open(*source(0), nothing))
    assert done == ["fsync", "rename"]


def test_what_a_killed_process_left_is_removed(source, tmp_path):
    cache = ShardCache(tmp_path / "c", 2000)
    os.close(cache.open(*source(0), nothing))
    (cache.folder / "shards" / "1000.dead.partial").write_bytes(b"half")
    os.close(cache.open(*source(1), nothing))
    assert len(kept(cache)) == 2
    assert all(name.endswith(".tar") for name in kept(cache))


@pytest.mark.timeout(60)
def test_threads_fetch_each_file_once_and_never_see_half_of_one(source, tmp_path):
    cache, fetching, most = ShardCache(tmp_path / "c", 5000), set(), []

    def use(seed):
        for number in np.random.default_rng(seed).integers(0, 12, 40).tolist():
            sha256, size, fetch = source(number)

            def slow(target, number=number, fetch=fetch):
                assert number not in fetching
                fetching.add(number)
                target.write_bytes(b"half")
                time.sleep(0.001)
                fetch(target)
                fetching.remove(number)

            descriptor = cache.open(sha256, size, slow, nothing)
            assert os.pread(descriptor, 2000, 0) == bytes([number]) * 1000
            most.append(1000 * sum(name.endswith(".tar") for name in os.listdir(cache.folder / "shards")))
            os.close(descriptor)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert max(most) <= 5000


@pytest.mark.timeout(60)
def test_training_with_a_cache_far_smaller_than_the_set(server, local, tmp_path):
    """72 samples in 11 shards; a window is the whole set, so the cache is as small as it may be, and a byte less."""
    whole = local.manifest["bytes"]
    with pytest.raises(InputError, match="needs a cache of at least"):
        ShardSet.open(server.url, ShardCache(tmp_path / "c", whole - 1))
    cache = ShardCache(tmp_path / "c", whole - 1)
    shards = ShardSet(local.path, local.manifest, remote.RemoteShards(remote.RemoteFolder(server.url), cache))
    assert everything(shards) == everything(local)  # the reader closes its own when there is no more room
    assert sum(kept(cache).values()) < whole


@pytest.mark.timeout(90)
def test_processes_share_a_cache(server, local, cache):
    code = (
        "import sys; from pathlib import Path\n"
        "from data_shards.manifest import ShardSet; from data_shards.remote import ShardCache\n"
        "from data_shards.reader import SampleReader\n"
        "shards = ShardSet.open(sys.argv[1], ShardCache(Path(sys.argv[2]), 10**9))\n"
        "reader = SampleReader(shards, image_size=8)\n"
        "print(sum(len(reader.read(i)) for i in range(len(shards))))"
    )
    command = [sys.executable, "-c", code, server.url, str(cache.folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    totals = {int(process.communicate(timeout=80)[0]) for process in running}
    assert totals == {int(local.column("length").sum())}
    tars = [name for name in server.asked if name.endswith(".tar")]
    assert sorted(tars) == sorted(shard["file"] for shard in local.shards)  # each fetched by one of the two


def test_settings_of_the_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_SHARDS_CACHE", str(tmp_path))
    monkeypatch.setenv("DATA_SHARDS_CACHE_GB", "0.5")
    assert ShardCache.default() == ShardCache(tmp_path, 500_000_000)
    monkeypatch.setenv("DATA_SHARDS_CACHE_GB", "much")
    with pytest.raises(InputError, match="DATA_SHARDS_CACHE_GB=much"):
        ShardCache.default()
    monkeypatch.delenv("DATA_SHARDS_CACHE")
    monkeypatch.delenv("DATA_SHARDS_CACHE_GB")
    assert ShardCache.default().size == 50 * 10**9


def test_a_local_set_needs_no_cache(local, tmp_path):
    shutil.copytree(local.path, tmp_path / "set")
    assert ShardSet.open(tmp_path / "set").remote is None


def test_folders_are_staged_to_the_local_disk_when_asked(local, cache, monkeypatch, tmp_path):
    shutil.copytree(local.path, tmp_path / "set" / "train")
    expected = everything(local)
    monkeypatch.setenv("DATA_SHARDS_CACHE", str(cache.folder))
    monkeypatch.setenv("DATA_SHARDS_STAGE", "1")
    shards = ShardSet.open(tmp_path / "set" / "train")
    assert (shards.digest, shards.path.name) == (local.digest, "train")
    assert everything(shards) == expected
    assert set(kept(cache)) == {f"{shard['sha256']}.tar" for shard in local.shards}
    for shard in (tmp_path / "set" / "train").glob("*.tar"):
        shard.write_bytes(b"the slow folder is not read again")
    assert everything(ShardSet.open(tmp_path / "set" / "train")) == expected
    shutil.rmtree(cache.folder / "shards")
    with pytest.raises(CorruptSample, match="sha256 differs"):  # what is staged is hash-checked
        everything(ShardSet.open(tmp_path / "set" / "train"))
    with pytest.raises(InputError, match="no shard set at"):
        ShardSet.open(tmp_path / "absent")
    monkeypatch.setenv("DATA_SHARDS_STAGE", "yes")
    with pytest.raises(InputError, match="DATA_SHARDS_STAGE=yes"):
        ShardSet.open(tmp_path / "set" / "train")
