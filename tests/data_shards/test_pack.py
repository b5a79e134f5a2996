"""Packing: what is in the tars, the same bytes for the same faces, and nothing half-written or mixed up."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pandas as pd
import pytest
import webdataset
import xxhash

from data_shards.command import InputError
from data_shards.faces import read_faces
from data_shards.manifest import ShardSet
from data_shards.pack import PackConfig, pack, pack_command
from data_shards.shard import _header


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_index_locates_the_original_bytes(shard_sets, faces_csv):
    seen = []
    for path in shard_sets.values():
        found = ShardSet.open(path)
        names = ("key", "shard", "offset", "length", "sha256", "xxh3", "path")
        for key, shard, offset, length, sha256, xxh3, name in zip(*map(found.column, names), strict=True):
            data = found.shard_path(shard).read_bytes()[offset : offset + length]
            assert data == (faces_csv.parent / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == sha256
            assert xxhash.xxh3_64_intdigest(data) == xxh3
            assert "." not in key
            seen.append(name)
    assert sorted(seen) == sorted(pd.read_csv(faces_csv)["path"])


def test_row_groups_columns_and_labels(shard_sets):
    found = ShardSet.open(shard_sets["train"])
    # 10 groups of 3 images at 60 %: 6 groups, 18 images, shards of 5, 5, 5 and 3
    assert [shard["samples"] for shard in found.shards] == [5, 5, 5, 3]
    assert found.column("shard").tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 3
    assert found.column("key", shard=3).tolist() == ["000000015", "000000016", "000000017"]
    dtypes = {name: found.column(name).dtype for name in ("shard", "offset", "length", "xxh3")}
    assert dtypes == {"shard": np.int32, "offset": np.int64, "length": np.int64, "xxh3": np.uint64}
    assert found.labels.dtype == np.uint8
    assert found.labels.tolist() == [int(label == "fake") for label in found.column("label")]
    assert found.methods.names.tolist() == ["blend", "pristine", "warp"]
    for name, (codes, names) in (("method", found.methods), ("group", found.groups)):
        assert codes.dtype == np.int32
        assert names[codes].tolist() == found.column(name).tolist()
    assert found.manifest["labels"] == {"fake": 12, "real": 6}
    assert found.manifest["methods"] == {"blend": 6, "pristine": 6, "warp": 6}
    assert found.manifest["groups"] == 6
    assert len(found) == found.samples == 18


def test_plain_webdataset_reads_the_same(shard_sets):
    found = ShardSet.open(shard_sets["train"])
    urls = [str(found.shard_path(number)) for number in range(len(found.shards))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == found.column("key").tolist()
    digests = [hashlib.sha256(sample["jpg"]).hexdigest() for sample in samples]
    assert digests == found.column("sha256").tolist()
    for name in ("label", "method", "group", "dataset", "path"):
        assert [json.loads(sample["json"])[name] for sample in samples] == found.column(name).tolist()


def test_tar_members_carry_no_trace_of_the_machine(shard_sets):
    with tarfile.open(shard_sets["test"] / "shard-000000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 10
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_same_bytes_whatever_workers_row_order_and_place(faces_csv, tmp_path):
    faces = read_faces(faces_csv)
    one = pack(faces, faces_csv.parent, tmp_path / "one", shard_size=4, workers=1)
    moved = tmp_path / "moved"
    faces_csv.parent.rename(moved)
    turned = read_faces(moved / "faces.csv").sample(frac=1, random_state=1)
    two = pack(turned, moved, tmp_path / "two", shard_size=4, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert list(one) == list(two) == ["train", "validation", "test"]


def test_seed_and_shuffle(make_faces, tmp_path):
    table = make_faces(60)
    orders = []
    for seed in (0, 1):
        faces = read_faces(table).assign(split="train")
        path = pack(faces, table.parent, tmp_path / str(seed), seed=seed, workers=1)["train"]
        names = ShardSet.open(path).column("path").tolist()
        ranks = pd.Series(names).map({name: i for i, name in enumerate(sorted(names))})
        # Spearman correlation of 180 shuffled positions with the sorted ones: SD 1/sqrt(179) = 0.075; 4 SD = 0.3
        assert abs(np.corrcoef(ranks, np.arange(180))[0, 1]) < 0.3
        orders.append(names)
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_again_is_quiet_and_touches_nothing(faces_csv, shard_sets, tmp_path):
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "shards").rglob("*")}
    assert pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "shards", shard_size=5, workers=1) == shard_sets
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "shards").rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"shard_size": 6}, {"fractions": {"train": 0.5, "test": 0.5}}])
def test_another_set_is_never_overwritten(faces_csv, shard_sets, tmp_path, change):
    before = contents(tmp_path / "shards")
    with pytest.raises(InputError, match="give another out"):
        pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "shards", **{"shard_size": 5, "workers": 1, **change})
    assert contents(tmp_path / "shards") == before


def test_changed_image_is_not_taken_for_the_packed_one(faces_csv, shard_sets, tmp_path):
    image = faces_csv.parent / ShardSet.open(shard_sets["test"]).column("path")[0]
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)  # same size, later time
    with pytest.raises(InputError, match="has changed since"):
        pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "shards", shard_size=5, workers=1)


def test_sets_of_two_packs_do_not_mix(faces_csv, tmp_path):
    faces = read_faces(faces_csv)
    pack(faces, faces_csv.parent, tmp_path / "out", fractions={"train": 1}, workers=1)
    with pytest.raises(InputError, match="may leak"):
        pack(faces, faces_csv.parent, tmp_path / "out", fractions={"test": 1}, workers=1)


def test_given_splits_and_carried_columns(faces_csv, tmp_path):
    faces = read_faces(faces_csv)
    faces["split"] = np.where(faces["group"] < "g0005", "train", "test")
    faces["quality"] = np.arange(len(faces)) / 2
    faces["frame"] = np.arange(len(faces))
    sets = pack(faces, faces_csv.parent, tmp_path / "out", workers=1)
    assert list(sets) == ["train", "test"]
    found = ShardSet.open(sets["test"])
    assert set(found.column("group")) == {f"g{i:04d}" for i in range(5, 10)}
    wanted = faces.set_index(faces["path"].map(lambda p: os.path.relpath(p, faces_csv.parent)))
    assert found.column("frame").tolist() == wanted.loc[found.column("path"), "frame"].tolist()
    assert found.column("quality").dtype == np.float64
    assert found.column_names[-2:] == ("quality", "frame")


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_image_is_named_and_leaves_no_set(faces_csv, tmp_path, workers):
    image = faces_csv.parent / "warp" / "g0003.jpg"
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"g0003\.jpg: not a readable image"):
        pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "out", fractions={"test": 1}, workers=workers)
    assert not (tmp_path / "out" / "test").exists()
    assert contents(tmp_path / "out") == {}


def test_continues_after_a_kill(make_faces, tmp_path):
    """SIGKILL in the middle: finished shards are kept as they are, and the end is what an undisturbed run gives."""
    table = make_faces(400, size=64)
    faces = read_faces(table)
    pack(faces, table.parent, tmp_path / "whole", fractions={"test": 1}, shard_size=30, workers=1)
    slow = (  # so that it is killed in the middle, however busy the machine is
        "import time; from data_shards import pack; write = pack.write_shard\n"
        "pack.write_shard = lambda shard: (time.sleep(0.2 if shard.number > 3 else 0), write(shard))[1]\n"
        "pack.run(pack.PackConfig, pack.pack_command)"
    )
    command = [sys.executable, "-c", slow, f"faces={table}", f"out={tmp_path / 'out'}", "shard_size=30", "workers=1"]
    process = subprocess.Popen([*command, "train=0", "validation=0", "test=1"], stderr=subprocess.DEVNULL)
    parts = tmp_path / "out" / ".test.partial" / "parts"
    while not parts.is_dir() or len(list(parts.glob("*.parquet"))) < 4:
        assert process.poll() is None, "packed before it could be killed: give it more images"
        time.sleep(0.001)
    process.kill()
    process.wait()
    kept = sorted((tmp_path / "out" / ".test.partial" / "parts").glob("*.parquet"))
    tars = [kept[0].parent.parent / "set" / part.stem for part in kept]
    before = [tar.stat().st_ino for tar in tars]
    # What a kill at a worse moment leaves: a temporary file, and a finished shard whose bytes are not on disk.
    (tars[0].parent / ".shard-000012.tar.deadbeef.partial").write_bytes(b"half")
    with open(tars[-1], "r+b") as file:
        file.truncate(1000)
    result = pack(faces, table.parent, tmp_path / "out", fractions={"test": 1}, shard_size=30, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    after = [(result["test"] / tar.name).stat().st_ino for tar in tars]
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


def test_killed_after_the_last_rename(faces_csv, tmp_path, monkeypatch):
    """The set is whole; the next run removes what lies beside it, unless a process still works there."""
    faces, options = read_faces(faces_csv), {"fractions": {"test": 1}, "workers": 1}
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        pack(faces, faces_csv.parent, tmp_path / "out", **options)
    before, partial = contents(tmp_path / "out" / "test"), tmp_path / "out" / ".test.partial"
    with open(partial / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        pack(faces, faces_csv.parent, tmp_path / "out", **options)
    assert (partial / "lock").exists()
    pack(faces, faces_csv.parent, tmp_path / "out", **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test"]
    assert contents(tmp_path / "out" / "test") == before


@pytest.mark.parametrize("every", [0.0, 30.0])
def test_a_log_file_gets_a_line_now_and_then(faces_csv, tmp_path, monkeypatch, capsys, every):
    monkeypatch.setattr("data_shards.pack.LOG_EVERY", every)
    pack(read_faces(faces_csv), faces_csv.parent, tmp_path, fractions={"test": 1}, shard_size=10, workers=1)
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert (first, last) == (f"packing 30 images into 3 shards of {tmp_path / 'test'}", f"packed {tmp_path / 'test'}")
    if every:
        assert not lines
    else:
        assert [line.split(": ")[1].split(",")[0] for line in lines] == [f"{n} of 30 images" for n in (10, 20, 30)]
        assert re.search(r", \d+ a second, 00:\d\d left$", lines[0])


def test_image_changed_after_a_kill_is_packed_anew(faces_csv, tmp_path, monkeypatch):
    faces = read_faces(faces_csv)
    bad = faces_csv.parent / "warp" / "g0003.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    with pytest.raises(InputError):
        pack(faces, faces_csv.parent, tmp_path / "out", fractions={"test": 1}, shard_size=1, workers=1)
    kept = sorted((tmp_path / "out" / ".test.partial" / "parts").glob("*"))
    assert kept  # finished shards wait for the repair
    bad.write_bytes(good)
    pack(faces, faces_csv.parent, tmp_path / "whole", fractions={"test": 1}, shard_size=1, workers=1)
    first = ShardSet.open(tmp_path / "whole" / "test").column("path")[0]
    other = faces_csv.parent / first
    new = (faces_csv.parent / "blend" / "g0001.jpg").read_bytes()
    other.write_bytes(new)
    path = pack(faces, faces_csv.parent, tmp_path / "out", fractions={"test": 1}, shard_size=1, workers=1)["test"]
    assert ShardSet.open(path).column("sha256")[0] == hashlib.sha256(new).hexdigest()


def test_two_processes_do_not_write_one_set(faces_csv, tmp_path):
    partial = tmp_path / "out" / ".test.partial"
    partial.mkdir(parents=True)
    with open(partial / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is packing"):
            pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "out", fractions={"test": 1}, workers=1)
    pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "out", fractions={"test": 1}, workers=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test"]


def test_a_process_may_begin_as_another_gives_up(faces_csv, tmp_path, monkeypatch):
    partial, flock, calls = tmp_path / "out" / ".test.partial", fcntl.flock, []

    def lock(*arguments):  # the other one's, of which it lets go
        calls.append(arguments)
        if len(calls) < 3:
            shutil.rmtree(partial)
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", lock)
    pack(read_faces(faces_csv), faces_csv.parent, tmp_path / "out", fractions={"test": 1}, workers=1)
    assert len(calls) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test"]


def test_command(faces_csv, tmp_path, capsys):
    pack_command(PackConfig(faces=str(faces_csv), out=str(tmp_path / "out"), workers=1, shard_size=5))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["split", "label", "method", "images", "groups", "share", "wanted", "deviation"]
    assert lines[1].split() == ["train", "fake", "blend", "6", "6", "0.6", "0.6", "0.0"]
    assert lines[10].startswith(f"{tmp_path / 'out' / 'train'}: 6 real, 12 fake, 4 shards, 6 groups, ")
    for bad in ({"train": 0.9}, {"workers": 0}, {"shard_size": 0}, {"train": -0.2, "test": 1.0}):
        with pytest.raises(InputError):
            pack_command(PackConfig(**{"faces": str(faces_csv), "out": str(tmp_path / "no"), "workers": 1, **bad}))
    assert not (tmp_path / "no").exists()


def test_command_packs_one_dataset_of_a_table(faces_csv, tmp_path, capsys):
    table = pd.read_csv(faces_csv, dtype=str)
    table["dataset"] = np.where(table["group"] < "g0004", "first", "second")
    table.to_csv(faces_csv, index=False)
    config = PackConfig(str(faces_csv), str(tmp_path / "out"), only="first", workers=1, train=0, validation=0, test=1)
    pack_command(config)
    assert ShardSet.open(tmp_path / "out" / "test").manifest["datasets"] == {"first": 12}
    with pytest.raises(InputError, match="has no dataset 'secnd'; did you mean 'second'"):
        pack_command(PackConfig(str(faces_csv), str(tmp_path / "no"), only="secnd"))


def test_too_few_groups_for_the_wanted_splits(make_faces, tmp_path):
    """Of two groups one is left for two splits; of ten, tied to each other, nothing is left for the second split."""
    table = make_faces(2)
    with pytest.raises(
        InputError, match=r"2 independent groups are too few for train=0\.6 validation=0\.2 test=0\.2: none"
    ):
        pack(read_faces(table), table.parent, tmp_path / "out", workers=1)
    faces = read_faces(make_faces(10, name="ten"))
    tied = faces.assign(group=faces["group"] + "|all")
    halves = {"train": 0.5, "test": 0.5}
    with pytest.raises(InputError, match=r"1 independent groups are too few for train=0\.5 test=0\.5: .* or test=0"):
        pack(tied, tmp_path / "ten", tmp_path / "out", fractions=halves, workers=1)
    assert not (tmp_path / "out").exists()
    sets = pack(
        tied, tmp_path / "ten", tmp_path / "out", fractions={"train": 0.5, "validation": 0, "test": 0}, workers=1
    )
    assert list(sets) == ["train"]


def test_the_same_picture_in_two_splits_or_with_both_labels_is_warned_of(faces_csv, tmp_path, caplog):
    """Frames of one split that are equal are no mistake; nor is what another set holds."""
    folder, faces = faces_csv.parent, read_faces(faces_csv)
    faces["split"] = np.where(faces["group"] < "g0005", "train", "test")
    equal = [("pristine/g0000", "pristine/g0001"), ("blend/g0002", "blend/g0007"), ("warp/g0003", "warp/g0008")]
    for one, other in [*equal, ("pristine/g0004", "warp/g0004")]:
        (folder / f"{other}.jpg").write_bytes((folder / f"{one}.jpg").read_bytes())
    pack(faces, folder, tmp_path / "out", workers=1)
    split, label = (record.getMessage() for record in caplog.records)
    assert split.startswith("2 pictures (the same bytes) are in more than one split, which leaks: join their groups")
    assert split.partition("; such as ")[2] in {f"{one}.jpg and {other}.jpg" for one, other in equal[1:]}
    assert label.startswith("1 pictures (the same bytes) are real in one row and fake in another: correct the table")
    assert sorted(label.partition("; such as ")[2].split(" and ")) == ["pristine/g0004.jpg", "warp/g0004.jpg"]
    caplog.clear()
    pack(faces[:15], folder, tmp_path / "train", workers=1)
    assert [record.getMessage()[:30] for record in caplog.records] == [label[:30]]


def test_a_mistake_in_one_dataset_of_a_table_is_found_by_its_path(faces_csv, tmp_path):
    """Row 3 of the dataset is row 15 of the table."""
    table = pd.read_csv(faces_csv, dtype=str)
    table["dataset"] = np.where(table["group"] < "g0004", "first", "second")
    table.loc[14, "label"] = "wrong"
    table.to_csv(faces_csv, index=False)
    with pytest.raises(InputError, match=r"row 3 \(warp/g0004\.jpg\) has label 'wrong'"):
        pack_command(PackConfig(str(faces_csv), str(tmp_path / "out"), only="second", workers=1))


@pytest.mark.parametrize(("name", "size"), [("000000001.jpg", 12345), ("999999999.json", 0), ("000000000.webp", 2**28)])
def test_headers_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    assert _header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_what_a_power_failure_leaves_is_packed_anew(make_faces, tmp_path):
    """A part of the index or a tar that has its name, but not its bytes."""
    table = make_faces(20)
    faces, options = read_faces(table), {"fractions": {"test": 1}, "shard_size": 10, "workers": 1}
    pack(faces, table.parent, tmp_path / "whole", **options)
    bad = table.parent / ShardSet.open(tmp_path / "whole" / "test").column("path")[-1]
    good = bad.read_bytes()
    bad.write_bytes(good[:-100])
    with pytest.raises(InputError, match="not a readable image"):  # of the last shard: the others are finished
        pack(faces, table.parent, tmp_path / "out", **options)
    bad.write_bytes(good)
    partial = tmp_path / "out" / ".test.partial"
    (partial / "parts" / "shard-000000.tar.parquet").write_bytes(b"")
    (partial / "parts" / "shard-000001.tar.parquet").write_bytes(bytes(900))
    tar = partial / "set" / "shard-000002.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    pack(faces, table.parent, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
