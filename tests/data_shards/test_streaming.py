"""Packing a table of any length: the same sets as from a table in memory, whatever the size of the batches."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards import pack_plan, sources, splits, table
from data_shards.command import InputError
from data_shards.faces import SPLITS, check_faces, read_faces
from data_shards.files import ListDigest, digest
from data_shards.manifest import ShardSet
from data_shards.pack import PackConfig, pack, pack_command
from data_shards.sources import of_frame, open_faces
from data_shards.splits import assign_splits
from data_shards.table import Shuffle, Tally, temporary_files

OPTIONS = {"workers": 1, "decode": False}


@pytest.fixture
def batches(monkeypatch):
    """Function (rows, bits): batches of so many rows, tables parted into 2**bits when they are longer."""

    def change(rows, bits=5):
        for module in (table, sources, splits):
            monkeypatch.setattr(module, "ROWS", rows)
        monkeypatch.setattr(table, "FAN_BITS", bits)

    return change


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def in_memory(faces, split, seed, shard_size):
    """The digest that names the rows of a set, computed from the whole table at once as the format defines it."""
    rows = faces[faces["split"] == split]
    order = sorted(rows.index, key=lambda row: hashlib.sha256(f"{seed}\0{rows['path'][row]}".encode()).digest())
    columns = {name: digest(rows.loc[order, name].tolist()) for name in rows.columns if name != "split"}
    return digest({"schema": 1, "split": split, "seed": seed, "shard_size": shard_size, "rows": columns})


names = st.sampled_from(["a", "b", "c", "a|d", "e|b", "f", "g", "h"])
faces_rows = st.lists(st.tuples(names, st.sampled_from(["pristine", "swap", "blend"])), min_size=8, max_size=40)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faces_rows, st.integers(1, 9), st.integers(1, 3), st.integers(0, 3), st.integers(1, 7), st.booleans())
def test_plans_are_those_of_the_whole_table(tmp_path, batches, rows, size, bits, seed, shard_size, given_splits):
    faces = pd.DataFrame(
        [(f"{n:02d}.jpg", "real" if m == "pristine" else "fake", m, g, "d") for n, (g, m) in enumerate(rows)],
        columns=["path", "label", "method", "group", "dataset"],
    ).assign(frame=range(len(rows)), quality=np.arange(len(rows)) / 8, sharp=[n % 3 == 0 for n in range(len(rows))])
    for path in faces["path"]:
        (tmp_path / path).write_bytes(b"x")
    whole = faces.assign(split=assign_splits(faces, {"train": 0.5, "test": 0.5}, seed))
    batches(size, bits)
    kept = whole[whole["split"].isin(SPLITS)]
    with temporary_files(tmp_path) as new_file:
        source = of_frame(kept if given_splits else faces)
        arguments = source, tmp_path, tmp_path, seed, shard_size, {"train": 0.5, "test": 0.5}, new_file
        if not given_splits and set(kept["split"]) != {"train", "test"}:
            with pytest.raises(InputError, match=r"groups are too few for train=0\.5 test=0\.5"):
                pack_plan.make_plans(*arguments)
            return
        if (kept.groupby("split")["label"].nunique() < 2).any():
            with pytest.raises(InputError, match="image; each split needs real and fake ones"):
                pack_plan.make_plans(*arguments)
            return
        found = pack_plan.make_plans(*arguments)
        shards = {plan.split: [len(shard.rows) for shard in plan.shards(False)] for plan in found}
    assert {plan.split: plan.digest for plan in found} == {
        split: in_memory(kept, split, seed, shard_size) for split in SPLITS if (kept["split"] == split).any()
    }
    for plan in found:
        assert sum(shards[plan.split]) == len(plan.rows) == (whole["split"] == plan.split).sum()
        assert set(shards[plan.split][:-1]) <= {shard_size}


def test_sets_are_the_same_for_batches_of_any_size(make_faces, tmp_path, batches):
    source = make_faces(20)
    whole = pd.read_csv(source, dtype=str).assign(frame=range(60), note="", quality=np.arange(60) / 7)
    whole.to_csv(source, index=False)
    pack(read_faces(source), source.parent, tmp_path / "whole", shard_size=7, **OPTIONS)
    for rows, bits in ((1, 1), (7, 2), (59, 5)):
        batches(rows, bits)
        out = tmp_path / f"{rows}"
        pack_command(PackConfig(str(source), str(out), shard_size=7, **OPTIONS))
        assert contents(out) == contents(tmp_path / "whole")
        pack(read_faces(source), source.parent, out, shard_size=7, **OPTIONS)  # known as packed


def test_frozen_plan(faces_csv, tmp_path):
    """Sets that were packed before this version are known as packed, and half-packed ones go on."""
    faces = pd.read_csv(faces_csv, dtype=str).assign(frame=range(30), note=["", 'ä"|'] * 15, quality=np.arange(30) / 4)
    faces.loc[3, "quality"] = None
    faces.to_parquet(faces_csv.with_suffix(".parquet"))
    sets = pack(open_faces(faces_csv.with_suffix(".parquet")), faces_csv.parent, tmp_path, shard_size=4, **OPTIONS)
    assert {split: ShardSet.open(path).manifest["plan"][:16] for split, path in sets.items()} == {
        "train": "333c518b56704d3b",
        "validation": "af976b778d1cb406",
        "test": "66460591599880b6",
    }


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "3"], "int64"),
        (["007", "1", "2"], "int64"),
        (["1", "2.5", "3"], "float64"),
        (["2.5", "1", "2"], "float64"),
        (["1", str(2**63), "0"], "uint64"),
        (["1", str(2**63), "0.5"], "float64"),
        (["-1", str(2**63), "0"], "str"),
        (["0.5", "1", str(10**20)], "float64"),
        ([str(10**20), "1", "0.5"], "str"),
        (["1", "2", ""], "str"),
        (["1", "2", "NA"], "str"),
        (["1.5", "2", "x"], "str"),
        (["x", "2", "3"], "str"),
        (["True", "False", "true"], "bool"),
        (["True", "1", "0"], "str"),
        (["1", "True", "1"], "str"),
        (['a "quoted", one', "2\n3", "4"], "str"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_types_are_those_of_the_whole_csv(faces_csv, batches, values, kind, rows):
    faces = pd.read_csv(faces_csv, dtype=str).iloc[:3].assign(value=values)
    faces.to_csv(faces_csv, index=False)
    whole = pd.read_csv(faces_csv, keep_default_na=False, low_memory=False)["value"]
    batches(rows)
    found = read_faces(faces_csv)["value"]
    assert found.dtype == whole.dtype == kind
    assert found.tolist() == whole.tolist()


def test_more_digits_than_64_bits_hold_are_text(faces_csv, batches):
    """pandas makes integers of Python of them, which no column of an index holds."""
    faces = pd.read_csv(faces_csv, dtype=str).iloc[:3].assign(value=[str(10**20), "7", str(10**21)])
    faces.to_csv(faces_csv, index=False)
    for rows in (1, 100):
        batches(rows)
        assert read_faces(faces_csv)["value"].tolist() == faces["value"].tolist()


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_parquet_types_are_those_of_the_whole_table(faces_csv, batches, rows):
    faces = read_faces(faces_csv).assign(
        holes=pd.Series([*range(29), None], dtype="Int64").astype(object),
        nullable=pd.Series([*range(29), None], dtype="Int64"),
        small=np.arange(30, dtype=np.int8),
        maybe=[None, True, False] * 10,
        text=[None, "a", ""] * 10,
        none=None,
    )
    file = faces_csv.with_suffix(".parquet")
    faces.to_parquet(file)
    whole = of_frame(pd.read_parquet(file))
    batches(rows)
    found = open_faces(file)
    kinds = {name: pack_plan._index_type(name, kind) for name, kind in whole.types.items()}
    assert {name: pack_plan._index_type(name, kind) for name, kind in found.types.items()} == kinds
    parts = [sources.arrow_table(batch, kinds) for batch in found.batches]
    assert [row for part in parts for row in part.to_pylist()] == sources.arrow_table(
        pd.read_parquet(file), kinds
    ).to_pylist()


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_first_wrong_row_is_named_across_batches(faces_csv, tmp_path, batches, rows):
    batches(rows)
    faces = read_faces(faces_csv)

    def wrong(message, *changes):
        table = faces.copy()
        for row, column, value in changes:
            table.loc[row, column] = value
        for check in (check_faces, lambda f: pack(f, faces_csv.parent, tmp_path / "out", **OPTIONS)):
            with pytest.raises(InputError, match=message):
                check(table)
        assert not (tmp_path / "out").exists()

    wrong("row 9 .*has label 'x'", (20, "label", "x"), (8, "label", "x"))
    wrong("row 21 has no path", (20, "path", ""), (3, "label", ""), (2, "label", "x"))  # the gravest kind
    wrong("row 6 lists .* a second time", (9, "path", faces["path"][0]), (5, "path", faces["path"][0]))
    wrong("row 10 lists .* a second time", (9, "path", faces["path"][4]), (1, "path", "gone.jpg"))
    wrong("row 6: there is no file", (5, "path", "gone.jpg"), (9, "path", "a.bmp"))
    with pytest.raises(InputError, match="video 'v' has more than one label"):
        check_faces(faces.assign(video=["v" if row in (11, 12) else f"{row}" for row in range(30)]))


def test_columns_of_any_name_are_carried(faces_csv, tmp_path):
    names = ["row", "rank", "images", "component", "count_all", "number", "position"]
    faces = read_faces(faces_csv).assign(video=[f"{row}" for row in range(30)], **dict.fromkeys(names, range(30)))
    with pytest.raises(InputError, match=r"row 3 lists .* a second time"):
        check_faces(pd.concat([faces[:2], faces[1:]], ignore_index=True))
    sets = pack(faces, faces_csv.parent, tmp_path, **OPTIONS)
    for found in map(ShardSet.open, sets.values()):
        paths = [str(faces_csv.parent / path) for path in found.column("path")]
        assert [faces["path"].tolist().index(path) for path in paths] == found.column("row").tolist()
        assert all(found.column("row").tolist() == found.column(name).tolist() for name in names)


def test_a_csv_without_rows(tmp_path):
    (tmp_path / "faces.csv").write_text("path,label,method,group,dataset,frame\n")
    with pytest.raises(InputError, match="the face table has no rows"):
        pack_command(PackConfig(str(tmp_path / "faces.csv"), str(tmp_path / "out"), **OPTIONS))
    with pytest.raises(InputError, match="has no dataset 'x'"):
        pack_command(PackConfig(str(tmp_path / "faces.csv"), str(tmp_path / "out"), only="x", **OPTIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["faces.csv"]


def test_a_path_that_fills_more_than_a_bucket_is_listed_twice(tmp_path, batches):
    batches(4, 5)
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = [("a.jpg", "real", "pristine", "g", "d")] * 40
    faces = pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset"])
    with pytest.raises(InputError, match=r"row 2 lists a\.jpg a second time"):
        pack(faces, tmp_path, tmp_path / "out", **OPTIONS)


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text()), max_size=4)))
def test_digest_of_a_list_in_parts(parts):
    whole = ListDigest()
    for part in parts:
        try:
            whole.update(part)
        except UnicodeEncodeError:  # half a surrogate pair is no text
            return
    assert whole.hexdigest() == digest([value for part in parts for value in part])


def test_tally_keeps_the_order_of_first_appearance(batches):
    import pyarrow as pa

    batches(2)
    tally = Tally(("a", "b"))
    for part in (["x", "y"], ["z", "x"], ["x", "w"], ["y", "y"]):
        tally.add(pa.table({"a": part, "b": ["1"] * 2}))
    assert [tuple(row) for row in tally.frame().itertuples(index=False)] == [
        ("x", "1", 3),
        ("y", "1", 3),
        ("z", "1", 1),
        ("w", "1", 1),
    ]


def test_shuffle_keeps_rows_of_one_value_together(tmp_path, batches):
    import pyarrow as pa

    batches(3, 1)
    with temporary_files(tmp_path / "not" / "there") as new_file:
        shuffle = Shuffle("key", 0, new_file)
        for first in range(0, 60, 3):
            shuffle.add(pa.table({"key": [f"{n % 20}" for n in range(first, first + 3)]}))
        found = [(part["key"].to_pylist(), part[table.ROW].to_pylist()) for part in shuffle.tables()]
    assert sorted(row for _, rows in found for row in rows) == list(range(60))
    for keys, rows in found:
        assert sorted(keys.count(key) for key in set(keys)) == [3] * len(set(keys))
        for key in set(keys):
            mine = [row for row, other in zip(rows, keys, strict=True) if other == key]
            assert mine == sorted(mine)


def test_nothing_stays_of_a_run_that_is_killed_while_it_reads(faces_csv, tmp_path):
    """The temporary files have no name, so there is nothing to clean up."""
    slow = (
        "import time; from data_shards import pack, pack_plan\n"
        "pack_plan.Shuffle.tables = lambda self: (print(self._spool.rows, flush=True), time.sleep(60))\n"
        "pack.run(pack.PackConfig, pack.pack_command)"
    )
    command = [sys.executable, "-c", slow, f"faces={faces_csv}", f"out={tmp_path / 'out'}", "workers=1"]
    (tmp_path / "out").mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "0"  # the videos
        links = [os.readlink(f"/proc/{process.pid}/fd/{n}") for n in os.listdir(f"/proc/{process.pid}/fd")]
        assert not os.listdir(tmp_path / "out")
        process.send_signal(signal.SIGKILL)
    assert not os.listdir(tmp_path / "out")
    assert any(link.startswith(str(tmp_path / "out")) and "deleted" in link for link in links)


PEAK = """
import json, sys
from pathlib import Path
from data_shards.pack_plan import make_plans
from data_shards.sources import open_faces
from data_shards.table import temporary_files
source = Path(sys.argv[1])
with temporary_files(source.parent) as new_file:
    plans = make_plans(open_faces(source), source.parent, source.parent, 0, 1000, {"train": 0.5, "test": 0.5}, new_file)
    rows = sum(len(shard.rows) for plan in plans for shard in plan.shards(False))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([rows, int(peak.split()[1]) / 1000]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """Of 30,000 and of 300,000 images of as many groups. The table in memory took 0.7 kB for each image more."""
    (tmp_path / "files").mkdir()
    for number in range(500):
        (tmp_path / "files" / f"{number:03d}.jpg").write_bytes(b"x")
    peaks = []
    for folders in (60, 600):
        lines = []
        for folder in range(folders):  # one folder under many names: so many paths, and few files
            if not (tmp_path / f"v{folder:03d}").exists():
                (tmp_path / f"v{folder:03d}").symlink_to("files")
            label, method = (("real", "pristine"), ("fake", "swap"))[folder % 2]
            about = f"{label},{method},group-{folder % 60:03d},data,video-{folder:03d}"
            lines += [f"v{folder:03d}/{number:03d}.jpg,{about},{number}\n" for number in range(500)]
        source = tmp_path / f"{folders}.csv"
        source.write_text("path,label,method,group,dataset,video,frame\n" + "".join(lines))
        output = subprocess.run([sys.executable, "-c", PEAK, source], check=True, capture_output=True, text=True).stdout
        rows, peak = json.loads(output)
        assert rows == 500 * folders
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 40, f"{peaks} MB"
