"""Tables that need not fit in memory: counted as they pass, put into an order by way of the disk.

Temporary files have no name: they are gone with the process, however it ends.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from data_shards.command import InputError
from data_shards.files import ListDigest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ROWS = 2**15
"""Rows that are in memory at a time."""
FAN_BITS = 5
"""A table that is too long to be sorted is parted into 2**FAN_BITS, and these likewise."""
RANK_BITS = 60
"""Of a rank that are looked at in parting: what then is still too long lists one path again and again."""

RANK, ROW = "\0rank", "\0row"
"""Columns of a Shuffle beside those of its tables, by names that no table has."""

NewFile = Callable[[], BinaryIO]


@contextmanager
def temporary_files(folder: Path) -> Iterator[NewFile]:
    """A function that opens another temporary file on the disk of ``folder``, which need not exist yet."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    with ExitStack() as files:
        yield lambda: files.enter_context(TemporaryFile(dir=place))


class Tally:
    """How many rows have each combination of values of some columns."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._parts: list[pa.Table] = []
        self._merged = 0  # length of the first part

    def add(self, table: pa.Table) -> None:
        part = table.group_by(self._names, use_threads=False).aggregate([([], "count_all")])
        self._parts.append(part.select([*self._names, "count_all"]).rename_columns([*self._names, "images"]))
        # Merged when what is new has doubled it: each row is merged a few times, however many batches there are.
        if sum(map(len, self._parts)) > 2 * max(self._merged, ROWS):
            self._merge()

    def frame(self) -> pd.DataFrame:
        """One row per combination, in order of first appearance: the columns, then ``images``."""
        self._merge()
        return self._parts[0].to_pandas()

    def _merge(self) -> None:
        import pyarrow as pa

        if len(self._parts) == 1:
            return
        parts = pa.concat_tables(self._parts).group_by(self._names, use_threads=False).aggregate([("images", "sum")])
        self._parts = [parts.select([*self._names, "images_sum"]).rename_columns([*self._names, "images"])]
        self._merged = len(self._parts[0])


class Spool:
    """Tables of one schema in a temporary file, one batch for each, to be read again in that order."""

    def __init__(self, new_file: NewFile) -> None:
        self._new_file = new_file
        self._file: BinaryIO | None = None
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        import pyarrow as pa

        if not len(table):
            return
        if self._file is None:
            self._file = self._new_file()
            self._writer = pa.ipc.new_stream(self._file, table.schema)
        (batch,) = table.combine_chunks().to_batches()
        self._writer.write_batch(batch)
        self.rows += len(table)

    def __iter__(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        if self._file is None:
            return
        self._writer.close()
        self._file.seek(0)
        with pa.ipc.open_stream(self._file) as stream:
            for batch in stream:
                yield pa.Table.from_batches([batch])

    def close(self) -> None:
        """Give the disk space back."""
        if self._file is not None:
            self._file.close()


class Shuffle:
    """Rows in the order of a hash of a seed and one column, of which about ROWS are in memory at a time."""

    def __init__(self, by: str, seed: int, new_file: NewFile) -> None:
        self._by, self._seed, self._new_file = by, seed, new_file
        self._spool = Spool(new_file)

    def add(self, table: pa.Table) -> None:
        import pyarrow as pa

        ranks = [hashlib.sha256(f"{self._seed}\0{value}".encode()).digest() for value in table[self._by].to_pylist()]
        rows = np.arange(self._spool.rows, self._spool.rows + len(table))
        self._spool.write(table.append_column(RANK, pa.array(ranks, pa.binary(32))).append_column(ROW, [rows]))

    def tables(self) -> Iterator[pa.Table]:
        """All rows, once, in tables that follow one another, with their number as ROW. Those of one value are in
        one table, next to each other, in the order in which they came."""
        for table in _sorted(self._spool, self._new_file, 0):
            yield table.drop_columns([RANK])


def unique_paths(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables of a Shuffle by ``path``. When the last of them has been taken: InputError if a path is listed twice,
    with its first such row."""
    import pyarrow.compute as pc

    twice: tuple[int, str] | None = None
    for table in tables:
        paths, rows = table["path"].combine_chunks(), table[ROW].to_numpy()
        again = 1 + np.flatnonzero(pc.equal(paths[1:], paths[:-1]))
        if len(again):
            first = int(again[rows[again].argmin()])
            found = int(rows[first]), paths[first].as_py()
            twice = min(twice or found, found)
        yield table.drop_columns([ROW])
    if twice is not None:
        raise listed_twice(*twice)


def listed_twice(row: int, path: str) -> InputError:
    return InputError(f"row {row + 1} lists {path} a second time; remove one of the rows")


def _sorted(spool: Spool, new_file: NewFile, bit: int) -> Iterator[pa.Table]:
    """The rows of a spool, which is used up, by rank; those of equal rank stay in their order. The first ``bit`` bits
    of all their ranks are the same."""
    import pyarrow as pa

    if spool.rows <= ROWS or bit >= RANK_BITS:
        tables = list(spool)
        spool.close()
        if tables:
            table = pa.concat_tables(tables).combine_chunks()
            yield table.take(np.lexsort(_words(table).T[::-1]))
        return
    fan = 1 << FAN_BITS
    parts = [Spool(new_file) for _ in range(fan)]
    for table in spool:
        part = (_words(table)[:, 0] >> np.uint64(64 - bit - FAN_BITS)).astype(np.int64) % fan
        table = table.take(np.argsort(part, kind="stable"))
        ends = np.cumsum(np.bincount(part, minlength=fan)).tolist()
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            parts[number].write(table.slice(start, end - start))
    spool.close()
    for rows in parts:
        yield from _sorted(rows, new_file, bit + FAN_BITS)


def _words(table: pa.Table) -> np.ndarray:
    """The ranks (n, 4) as numbers, uint64, which compare as the bytes do."""
    import pyarrow as pa

    ranks = pa.concat_arrays(table[RANK].chunks)
    words = np.frombuffer(ranks.buffers()[1], ">u8", 4 * len(ranks), 32 * ranks.offset)
    return words.astype(np.uint64).reshape(-1, 4)


class ShardRows:
    """The rows of a shard set in sample order, to be read again as one table per shard; and what sums them up."""

    def __init__(self, names: Iterable[str], shard_size: int, new_file: NewFile) -> None:
        self._shard_size = shard_size
        self._spool = Spool(new_file)
        self._waiting: list[pa.Table] = []  # of a shard that is not full
        self._digests = {name: ListDigest() for name in names}
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in ("label", "method", "dataset")}

    def add(self, table: pa.Table) -> None:
        import pyarrow as pa

        for name, column in self._digests.items():
            values = table[name].to_pylist()
            column.update(values)
            if name in self.counts:
                self.counts[name].update(values)
        rows = pa.concat_tables([*self._waiting, table])
        full = len(rows) - len(rows) % self._shard_size
        for first in range(0, full, self._shard_size):
            self._spool.write(rows.slice(first, self._shard_size))
        self._waiting = [rows.slice(full)]

    def __len__(self) -> int:
        return self._spool.rows + sum(map(len, self._waiting))

    def digests(self) -> dict[str, str]:
        """``files.digest`` of the list of values of each column."""
        return {name: column.hexdigest() for name, column in self._digests.items()}

    def shards(self) -> Iterator[pa.Table]:
        for table in self._waiting:
            self._spool.write(table)
        self._waiting = []
        yield from self._spool

    def close(self) -> None:
        self._spool.close()
