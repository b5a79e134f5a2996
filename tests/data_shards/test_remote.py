"""Shard sets over HTTP and other file systems, and the cache: bounded, shared, never a wrong byte, never a hang."""

import errno
import functools
import http.server
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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

SIZE = 32


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; changes what it sends, and counts, as the server's attributes say."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        if self.server.fails > 0:
            self.server.fails -= 1
            self.send_error(503)
            return
        if name == self.server.stalls:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.server.ended.wait(20)
            return
        super().do_GET()

    def copyfile(self, source, outputfile):
        data = bytearray(source.read())
        name = self.path.rsplit("/", 1)[-1]
        if name == self.server.flips:
            data[len(data) // 2] ^= 1
        if name == self.server.cuts:
            data = data[: len(data) // 2]
        outputfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.03))


@pytest.fixture
def server(shared_sets):
    handler = functools.partial(Handler, directory=shared_sets["train"].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        served.asked, served.flips, served.cuts, served.stalls, served.fails = [], None, None, None, 0
        served.ended = threading.Event()
        served.daemon_threads = True
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        served.url = f"http://127.0.0.1:{served.server_address[1]}/train"
        yield served
        served.ended.set()
        served.shutdown()
        thread.join()


@pytest.fixture
def local(shared_sets) -> ShardSet:
    return ShardSet.open(shared_sets["train"])  # 72 samples in 11 shards


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


def everything(shards, **options):
    batches = list(evaluation_batches(shards, batch_size=10, image_size=SIZE, **options))
    return [(b.index.tolist(), b.images.numpy().tobytes(), b.labels.tolist()) for b in batches]


def kept(cache) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (cache.folder / "shards").iterdir()}


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


# --- the cache


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
    cache, fetched, most = ShardCache(tmp_path / "c", 5000), [], []

    def use(seed):
        for number in np.random.default_rng(seed).integers(0, 12, 40).tolist():
            sha256, size, fetch = source(number)

            def slow(target, number=number, fetch=fetch):
                fetched.append(number)
                target.write_bytes(b"half")
                time.sleep(0.001)
                fetch(target)

            descriptor = cache.open(sha256, size, slow, nothing)
            assert os.pread(descriptor, 2000, 0) == bytes([number]) * 1000
            most.append(1000 * sum(name.endswith(".tar") for name in os.listdir(cache.folder / "shards")))
            os.close(descriptor)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert max(most) <= 5000
    assert len(fetched) < 160  # some were there


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
