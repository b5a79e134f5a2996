"""Shard sets over HTTP and other file systems: never a wrong byte, never a hang."""

import errno
import functools
import itertools
import os
import shutil
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_shards import remote
from data_shards.command import InputError
from data_shards.inspect import contact_sheet, open_sets
from data_shards.loader import TrainingLoader, evaluation_batches
from data_shards.manifest import ShardSet
from data_shards.order import SampleOrder
from data_shards.reader import CorruptSample
from data_shards.remote import ShardCache, url_of
from tests.data_shards.serving import SIZE, everything, kept


@pytest.mark.timeout(60)
def test_over_http_the_batches_are_the_same(server, local, cache, monkeypatch):
    shards = ShardSet.open(server.url, cache)
    assert (shards.digest, shards.path.name) == (local.digest, "train")
    assert "shard-000000.tar" not in server.asked  # nothing is fetched before reading begins
    assert everything(shards) == everything(local)
    assert sorted(server.asked) == sorted(["manifest.json", "index.parquet", *(s["file"] for s in local.shards)])
    with (
        TrainingLoader(local, batch_size=8, image_size=SIZE, seed=3) as ours,
        TrainingLoader(shards, batch_size=8, image_size=SIZE, seed=3) as theirs,
    ):
        for a, b in itertools.islice(zip(ours, theirs, strict=False), 12):
            assert a.index.tolist() == b.index.tolist()
            np.testing.assert_array_equal(a.images, b.images)
    monkeypatch.setenv("DATA_SHARDS_CACHE", str(cache.folder))
    assert contact_sheet(open_sets(server.url)).tobytes() == contact_sheet([local]).tobytes()
    server.asked.clear()
    assert everything(ShardSet.open(server.url + "/manifest.json", cache)) == everything(local)
    assert server.asked == ["manifest.json"]  # all else is in the cache


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_file_systems_and_paths(protocol, local, cache, shared_sets):
    url = f"file://{local.path}"
    if protocol == "memory":
        memory = fsspec.filesystem("memory")
        memory.put(str(local.path), "/somewhere/train", recursive=True)
        url = "memory://somewhere/train"
    expected = everything(local)
    assert everything(ShardSet.open(url, cache)) == expected
    assert everything(ShardSet.open(Path(url), cache)) == expected  # commands take paths: one slash is left of two


@pytest.mark.timeout(60)
def test_what_is_read_next_is_fetched_while_this_is_read(server, local, cache):
    shards = ShardSet.open(server.url, cache)
    batches = evaluation_batches(shards, batch_size=2, image_size=SIZE, prefetch=0, threads=1)
    next(batches)  # of shard 0; nobody asks for a sample of shard 1
    while "shard-000001.tar" not in server.asked:
        time.sleep(0.01)
    batches.close()
    assert {name for name in server.asked if name.endswith(".tar")} == {"shard-000000.tar", "shard-000001.tar"}


@pytest.mark.timeout(60)
def test_training_reads_a_window_ahead_where_the_cache_holds_two(server, local, cache, monkeypatch):
    monkeypatch.setattr("data_shards.manifest.WINDOW", 2)
    monkeypatch.setattr("data_shards.loader.SampleOrder", functools.partial(SampleOrder, window=2))
    first = SampleOrder([s["samples"] for s in local.shards], 3, local.digest, window=2)
    decoded = local.column("shard")[first.take(0, 8)[0]]  # the batch asked for, and one that is begun behind it
    ahead = first.next_window(0)
    assert not set(decoded) & set(ahead)  # so that only reading ahead asks for these
    expected = {f"shard-{s:06d}.tar" for s in ahead}
    two = 2 * max(a["bytes"] + b["bytes"] for a, b in itertools.combinations(local.shards, 2))
    for size in (two, two - 1):
        server.asked.clear()
        shards = ShardSet.open(server.url, ShardCache(cache.folder / str(size), size))
        with TrainingLoader(shards, batch_size=4, image_size=SIZE, seed=3, prefetch=0) as batches:
            next(batches)
            while size == two and not expected <= set(server.asked):
                time.sleep(0.01)
        assert expected & set(server.asked) == (expected if size == two else set())


# --- what is wrong on the way


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("damage", "attempts"), [("flips", 2), ("cuts", 4)])
def test_a_shard_damaged_on_the_wire_is_named(server, cache, damage, attempts):
    setattr(server, damage, "shard-000002.tar")  # samples 14 to 20
    shards = ShardSet.open(server.url, cache)
    with pytest.raises(CorruptSample, match=r"train/shard-000002\.tar: sample '\d+': cannot be read: ") as caught:
        everything(shards)
    assert caught.value.shard == f"{server.url}/shard-000002.tar"
    assert not any(name.endswith(".partial") for name in kept(cache))
    assert server.asked.count("shard-000002.tar") == attempts  # then never again for its other samples
    seen = [i for index, *_ in everything(shards, on_bad="skip", max_bad_share=0.1) for i in index]
    assert seen == [i for i in range(72) if not 14 <= i < 21]
    assert server.asked.count("shard-000002.tar") == attempts


@pytest.mark.timeout(60)
def test_a_network_that_fails_for_a_moment_is_asked_again(server, local, cache):
    server.fails = 3
    shards = ShardSet.open(server.url, cache)
    assert server.asked.count("manifest.json") == 4
    server.fails = 3
    assert everything(shards) == everything(local)
    server.fails = 10**6
    shutil.rmtree(cache.folder / "shards")
    with pytest.raises(CorruptSample, match="503"):
        everything(shards)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "many"), PermissionError("no")])
@pytest.mark.parametrize("where", ["fetch", "open"])
def test_what_is_wrong_with_this_machine_is_not_called_a_bad_sample(local, cache, monkeypatch, where, error):
    """Else on_bad=skip would drop good samples."""
    shards = local
    if where == "fetch":
        shards = ShardSet.open(f"file://{local.path}", cache)

    def fail(*_, **__):
        raise error

    target = "fsspec.implementations.local.LocalFileSystem.get_file" if where == "fetch" else "os.pread"
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        with pytest.raises(type(error)) as caught:
            everything(shards, on_bad="skip", max_bad_share=1.0)
    assert "while reading sample" in "".join(caught.value.__notes__)
    assert everything(shards) == everything(local)  # nothing of it is remembered


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["zeroed", "cut", "grown"])
def test_a_copy_damaged_in_the_cache_is_fetched_again(server, local, cache, damage):
    shards, expected = ShardSet.open(server.url, cache), everything(local)
    assert everything(shards) == expected
    copies = sorted((cache.folder / "shards").glob("*.tar"))
    for copy in copies[:3]:  # as after a power failure, or bits that rot
        size = copy.stat().st_size
        copy.write_bytes({"zeroed": bytes(size), "cut": copy.read_bytes()[: size // 2]}.get(damage, bytes(size + 1)))
    server.asked.clear()
    assert everything(ShardSet.open(server.url, cache)) == expected
    assert sum(name.endswith(".tar") for name in server.asked) == 3
    with TrainingLoader(shards, batch_size=8, image_size=SIZE, seed=3) as loader:  # while it has them open
        next(loader)
        for copy in copies:
            with open(copy, "r+b") as file:
                file.write(bytes(copy.stat().st_size))
        seen = [next(loader) for _ in range(20)]
    assert sum(map(len, seen)) == 160


@pytest.mark.timeout(60)
def test_a_cache_that_damages_what_it_holds_is_named(server, cache, monkeypatch):
    shards = ShardSet.open(server.url, cache)
    rename = os.rename

    def spoiling(source, target):
        source.write_bytes(bytes(source.stat().st_size))
        rename(source, target)

    monkeypatch.setattr(os, "rename", spoiling)
    with pytest.raises(CorruptSample, match=r"the copy in the cache is damaged, .*/shards/[0-9a-f]{64}\.tar") as caught:
        everything(shards, threads=1, prefetch=0)
    assert caught.value.shard == f"{server.url}/shard-000000.tar"
    assert server.asked.count("shard-000000.tar") == 2


@pytest.mark.timeout(60)
def test_a_shard_repaired_at_its_source_is_fetched_again(server, local, cache, monkeypatch):
    monkeypatch.setattr(remote, "AGAIN", 0.0)
    server.flips = "shard-000002.tar"
    shards = ShardSet.open(server.url, cache)
    with pytest.raises(CorruptSample):
        everything(shards)
    server.flips = None
    assert everything(shards) == everything(local)


@pytest.mark.timeout(30)
def test_a_server_that_says_nothing_more_is_given_up(server, cache, monkeypatch):
    shards = ShardSet.open(server.url, cache)
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    server.stalls = "shard-000000.tar"
    with pytest.raises(CorruptSample, match=r"shard-000000\.tar.*Timeout"):
        everything(shards)


@pytest.mark.timeout(30)
def test_opening_what_is_not_there(server, cache):
    with pytest.raises(InputError, match=r"there is no shard set at http://127.*nowhere"):
        ShardSet.open(server.url + "/nowhere", cache)
    server.flips = "index.parquet"
    with pytest.raises(InputError, match=r"index.parquet is not the one"):
        ShardSet.open(server.url, cache)
    server.flips = None
    ShardSet.open(server.url, cache)  # a damaged copy of the index is fetched again


def test_a_file_that_never_ends_is_cut_off(server, tmp_path):
    source = remote.RemoteFolder(server.url)
    with pytest.raises(OSError, match="more than the 1000 bytes expected"):
        source.fetch("shard-000000.tar", tmp_path / "x", 1000)


@pytest.mark.parametrize(
    "path",
    [
        "pipe:cat /etc/passwd",
        "pipe:curl -s http://x/train",
        "http::file:///x",
        "simplecache::http://x/train",
        "ssh://host/train",
        "github://a:b@c/train",
        "http://user:password@host/train",
        "https://host/train?token=1",
    ],
)
def test_commands_chains_and_credentials_are_refused(path, monkeypatch):
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: pytest.fail("asked a file system"))
    for given in (path, Path(path)):
        with pytest.raises(InputError) as caught:
            ShardSet.open(given)
        assert "password@" not in str(caught.value)


def test_local_paths_stay_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data:set").mkdir()
    for path in ("train", "/a/b", "./a:b", "C:/x", tmp_path, "data:set"):
        assert url_of(path) is None
    assert url_of("HTTP:/host/a/") == "http://host/a"
    assert url_of("file:///a/b") == url_of("file:/a/b") == "file:///a/b"
