"""What the shard sets of a face table will hold: its rows checked, split, and put into their order.

Rows pass in batches and wait on the disk; what is kept of them in memory is counts per group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import InputError
from data_shards.faces import COLUMNS, SPLITS, Checks, check_columns, check_splits
from data_shards.files import digest
from data_shards.manifest import INDEX_COLUMNS, SCHEMA
from data_shards.shard import Shard
from data_shards.sources import FaceBatches, arrow_table
from data_shards.splits import LEFT_OUT, assign_splits, check_fractions, components
from data_shards.table import NewFile, ShardRows, Shuffle, unique_paths

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class Plan:
    """What one shard set will hold: rows in sample order."""

    split: str
    root: Path
    target: Path
    seed: int
    shard_size: int
    rows: ShardRows  # COLUMNS, then carried columns
    groups: int
    digest: str

    @property
    def partial(self) -> Path:
        return self.target.parent / f".{self.split}.partial"

    def shards(self, decode: bool) -> Iterator[Shard]:
        for number, rows in enumerate(self.rows.shards()):
            yield Shard(number, number * self.shard_size, self.root, self.partial, rows, decode)


def make_plans(
    source: FaceBatches,
    root: Path,
    out: Path,
    seed: int,
    shard_size: int,
    fractions: dict[str, float],
    new_file: NewFile,
) -> list[Plan]:
    """The plan of each split that has images, for the arguments of ``pack``; rows lie in files of ``new_file``."""
    types = _index_types(source.types)
    shuffle, checks = Shuffle("path", seed, new_file), Checks(root, new_file)
    groups = _read(source, types, root, shuffle, checks, fractions, seed)
    rows = _by_split(shuffle, groups, types, shard_size, new_file)
    plans = []
    for split, part in rows.items():
        identity = {"schema": SCHEMA, "split": split, "seed": seed, "shard_size": shard_size, "rows": part.digests()}
        number = int(components(groups["group"][groups["split"] == split]).max()) + 1
        plans.append(Plan(split, root, out / split, seed, shard_size, part, number, digest(identity)))
    return plans


def _read(
    source: FaceBatches,
    types: Mapping[str, pa.DataType],
    root: str | Path,
    shuffle: Shuffle,
    checks: Checks,
    fractions: dict[str, float],
    seed: int,
) -> pd.DataFrame:
    """Check all rows and give them to ``shuffle``. Returns how many images each group has in which split: columns
    ``group, label, method, split`` and ``images``."""
    for batch in source.batches:
        faces = _relative_to(batch, root)
        if checks.look(faces):
            table = arrow_table(faces, types)
            checks.count(table)
            shuffle.add(table)
    checks.check_values()
    try:
        groups = checks.check_rest()
        if "split" not in groups.columns:
            groups["split"] = assign_splits(groups, fractions, seed, groups["images"])
            _check_none_empty(groups, fractions)
            groups = groups[groups["split"] != LEFT_OUT].reset_index(drop=True)
            check_splits(groups)
    except InputError:
        for _ in unique_paths(shuffle.tables()):  # a path that is listed twice is named before groups, splits and files
            pass
        raise
    return groups


def _check_none_empty(groups: pd.DataFrame, fractions: dict[str, float]) -> None:
    """InputError if a wanted split got no group."""
    wanted = check_fractions(fractions)
    empty = [split for split in wanted if not (groups["split"] == split).any()]
    if empty:
        number, given = components(groups["group"]).max() + 1, " ".join(f"{s}={value:g}" for s, value in wanted.items())
        raise InputError(
            f"{number} independent groups are too few for {given}: none was left for {empty[0]}; give other fractions, "
            f"or {empty[0]}=0"
        )


def _relative_to(faces: pd.DataFrame, root: str | Path) -> pd.DataFrame:
    base = os.path.abspath(root)
    full = [os.path.normpath(os.path.join(base, str(path))) if path else "" for path in faces["path"]]
    below = base.rstrip("/") + "/"
    return faces.assign(path=[path.removeprefix(below) for path in full])


def _by_split(
    shuffle: Shuffle, groups: pd.DataFrame, types: Mapping[str, pa.DataType], shard_size: int, new_file: NewFile
) -> dict[str, ShardRows]:
    """The rows of each split that has some, in sample order; those of groups in no split are left out."""
    import pyarrow.compute as pc

    names = [name for name in types if name != "split"]
    rows = {split: ShardRows(names, shard_size, new_file) for split in SPLITS if (groups["split"] == split).any()}
    split_of = {} if "split" in types else dict(zip(groups["group"], groups["split"], strict=True))
    for table in unique_paths(shuffle.tables()):
        splits = table["split"] if "split" in types else _looked_up(table["group"], split_of)
        for split, part in rows.items():
            part.add(table.select(names).filter(pc.equal(splits, split)))
    return rows


def _looked_up(column: pa.ChunkedArray, values: dict[str, str]) -> pa.Array:
    import pyarrow as pa

    names = column.combine_chunks().dictionary_encode()
    return pa.array([values.get(name) for name in names.dictionary.to_pylist()], pa.string()).take(names.indices)


def _index_types(types: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Of COLUMNS, then ``split`` if given, then the carried columns; InputError on what the index cannot hold."""
    check_columns(types)
    carried = [name for name in types if name not in (*COLUMNS, "split")]
    taken = [name for name in carried if name in (*INDEX_COLUMNS, "index")]
    if taken:
        raise InputError(f"the face table's column {taken[0]!r} has the name of one of the index; rename it")
    names = [*COLUMNS, *(["split"] if "split" in types else []), *carried]
    return {name: _index_type(name, types[name]) for name in names}


def _index_type(name: str, kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if name in COLUMNS or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return pa.string()
    if any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)):
        return kind
    raise InputError(
        f"the face table's column {name!r} is of type {kind}; carried columns are text, numbers or booleans"
    )
