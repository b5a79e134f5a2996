"""Check a shard set, every byte of it, against its manifest."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import run
from data_shards.faces import COLUMNS
from data_shards.files import sha256_file
from data_shards.manifest import INDEX, ShardSet, index_problems, read_manifest, shard_name
from data_shards.pack import cores, in_processes
from data_shards.shard import sample_json
from data_shards.splits import components

if TYPE_CHECKING:
    import pyarrow as pa


def verify(path: str | Path, workers: int | None = None) -> list[str]:
    """Problems of the shard set at ``path``, one line each, naming shard and key; empty if it is what was packed.

    Checks the index and every shard against the manifest (sha256, counts), and in every shard the members (present,
    in order, none extra), the bytes of each image (sha256, xxh3, place) and each JSON against the index. Shards are
    read in parallel, by ``workers`` processes (default: the cores this process may use).

    Raises:
        InputError: there is no shard set, or its manifest is of another schema or not consistent in itself.
    """
    from tqdm import tqdm

    path = Path(path)
    manifest = read_manifest(path)
    problems = index_problems(path, manifest)
    tasks = [_Task(path, number, entry, whole_index=not problems) for number, entry in enumerate(manifest["shards"])]
    if not problems:
        problems += _check_index(ShardSet(path, manifest))
    workers = min(workers or cores(), max(len(tasks), 1))
    with tqdm(total=manifest["bytes"], unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        found: list[list[str]] = [[]] * len(tasks)
        for number, lines in in_processes(_check_shard, tasks, workers):
            found[number] = lines
            bar.update(tasks[number].entry["bytes"])
    strays = {file.name for file in path.glob("*.tar")} - {task.entry["file"] for task in tasks}
    problems += [f"{name} is not in the manifest" for name in sorted(strays)]
    return problems + [line for lines in found for line in lines]


@dataclass(frozen=True)
class _Task:
    path: Path
    number: int
    entry: dict[str, Any]  # of the manifest
    whole_index: bool  # the index is the one that the manifest names, so samples can be compared with it


def _check_index(shards: ShardSet) -> list[str]:
    """Counts of the index against those of the manifest."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(shards.index_path) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if rows != [entry["samples"] for entry in shards.shards]:
        return [f"{INDEX} has other samples per shard than the manifest"]
    problems = []
    for name, key in (("label", "labels"), ("method", "methods"), ("dataset", "datasets")):
        if dict(Counter(shards.column(name))) != shards.manifest[key]:
            problems.append(f"{INDEX} has other {key} than the manifest")
    if components(shards.column("group")).max() + 1 != shards.manifest["groups"]:
        problems.append(f"{INDEX} has another number of groups than the manifest")
    return problems


def _check_shard(task: _Task) -> tuple[int, list[str]]:
    file = task.path / task.entry["file"]
    name = task.entry["file"]
    if not file.is_file():
        return task.number, [f"{name} is missing"]
    problems = []
    if file.stat().st_size != task.entry["bytes"]:
        problems.append(f"{name} has {file.stat().st_size} bytes, the manifest says {task.entry['bytes']}")
    elif sha256_file(file) != task.entry["sha256"]:
        problems.append(f"{name} is not the one that the manifest names (sha256 differs)")
    if task.whole_index:
        problems += [f"{name} {line}" for line in _check_samples(file, _rows(task), task)]
    return task.number, problems


def _rows(task: _Task) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(task.path / INDEX) as file:
        if task.number >= file.num_row_groups:
            return file.schema_arrow.empty_table()
        return file.read_row_group(task.number)


def _check_samples(file: Path, table: pa.Table, task: _Task) -> list[str]:
    """Lines ``KEY: …`` on members and samples of one shard."""
    import xxhash

    rows = table.to_pylist()
    problems = [
        f"{row['key']}: the index puts it in {shard_name(row['shard'])}" for row in rows if row["shard"] != task.number
    ]
    for key in ("labels", "methods"):
        if dict(Counter(table[key[:-1]].to_pylist())) != task.entry[key]:
            problems.append(f"has other {key} than the manifest")
    with open(file, "rb") as stream:
        listing = _list(stream)
        problems += _check_names(
            [n for row in rows for n in (f"{row['key']}.{row['extension']}", f"{row['key']}.json")], listing
        )
        members = {member.name: member for member in listing.members}
        for row in rows:
            stream.seek(row["offset"])
            data = stream.read(row["length"])
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                problems.append(f"{row['key']}: the image is not the packed one (sha256 differs)")
            elif xxhash.xxh3_64_intdigest(data) != row["xxh3"]:
                problems.append(f"{row['key']}: the index has a wrong xxh3 of the image")
            image = members.get(f"{row['key']}.{row['extension']}")
            if image and (image.offset_data, image.size) != (row["offset"], row["length"]):
                problems.append(f"{row['key']}: the image lies elsewhere in the tar than the index says")
            text = members.get(f"{row['key']}.json")
            if text:
                stream.seek(text.offset_data)
                if stream.read(text.size) != sample_json({name: row[name] for name in COLUMNS}):
                    problems.append(f"{row['key']}: the JSON is not what the index says")
    return problems


@dataclass
class _Listing:
    members: list[tarfile.TarInfo] = field(default_factory=list)
    damage: str | None = None


def _list(stream: Any) -> _Listing:
    """Members of a tar up to the first header that is not one."""
    listing = _Listing()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            listing.members.extend(tar)
    except (tarfile.TarError, OSError, ValueError) as error:
        listing.damage = str(error)
    return listing


def _check_names(wanted: Sequence[str], listing: _Listing) -> list[str]:
    found = [member.name for member in listing.members]
    if found == list(wanted):
        return []
    problems = []
    missing, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    for names, what in ((missing, "is missing in the tar"), (extra, "does not belong in the tar")):
        if names:
            first, more = next(iter(names)), names.total() - 1
            problems.append(f"{first.rsplit('.', 1)[0]}: {first} {what}" + (f" (and {more} more)" if more else ""))
    if not missing and not extra:
        first = next(name for name, other in zip(found, wanted, strict=True) if name != other)
        problems.append(f"{first.rsplit('.', 1)[0]}: {first} is out of order")
    return problems


@dataclass
class VerifyConfig:
    """Check a shard set against its manifest: exit status 0 if every byte is as packed, 1 with one line per problem."""

    path: str
    """Folder of one shard set, such as OUT/train."""
    workers: int = field(default_factory=cores)
    """Processes."""


def verify_command(config: VerifyConfig) -> None:
    problems = verify(config.path, config.workers)
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{config.path}: as packed")


if __name__ == "__main__":
    run(VerifyConfig, verify_command)
