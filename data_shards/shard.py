"""One shard of a set: a tar and its part of the index, a pure function of the rows and the image files."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data_shards.command import InputError
from data_shards.faces import COLUMNS, check_image
from data_shards.files import atomic, digest, sha256_file
from data_shards.manifest import INDEX_COLUMNS, shard_name

if TYPE_CHECKING:
    import pyarrow as pa

KEY_DIGITS = 9
READ_AHEAD = 32
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Shard:
    """The work of one process: write this tar and its part of the index."""

    number: int
    first: int  # index of its first sample
    root: Path
    partial: Path
    rows: pa.Table
    decode: bool

    @property
    def tar(self) -> Path:
        return self.partial / "set" / shard_name(self.number)

    @property
    def part(self) -> Path:
        return self.partial / "parts" / f"{shard_name(self.number)}.parquet"


def write_shard(shard: Shard) -> tuple[int, dict[str, Any]]:
    """(number, manifest entry) of a tar that is now there: kept from an earlier run, or written.

    Nothing waits for the disk: a tar that a power failure spoils is found by its sha256 and written again. Whoever
    publishes it flushes it first.
    """
    import pyarrow.parquet as pq

    plan = _shard_digest(shard)
    record = _finished(shard, plan)
    if record is None:
        with atomic(shard.tar, flush=False) as temporary:
            columns, sha256 = _write_tar(shard, temporary)
        record = {
            "file": shard.tar.name,
            "samples": len(shard.rows),
            "bytes": shard.tar.stat().st_size,
            "sha256": sha256,
            "labels": counts(shard.rows["label"]),
            "methods": counts(shard.rows["method"]),
        }
        table = _index_table(shard, columns)
        with atomic(shard.part, flush=False) as temporary:  # last: it says that the tar is whole
            note = {"plan": plan, "record": json.dumps(record)}
            pq.write_table(table.replace_schema_metadata(note), temporary)
    return shard.number, record


def _finished(shard: Shard, plan: str) -> dict[str, Any] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not shard.part.is_file():
        return None
    try:
        note = pq.read_schema(shard.part).metadata
    except pa.ArrowInvalid:  # the power failed
        return None
    if note[b"plan"].decode() != plan:
        return None
    record = json.loads(note[b"record"])
    return record if shard.tar.is_file() and sha256_file(shard.tar) == record["sha256"] else None


def _shard_digest(shard: Shard) -> str:
    """Of rows and of size and time of the files: an image that was changed after a kill is packed again."""
    status = [os.stat(shard.root / path) for path in shard.rows["path"].to_pylist()]
    files = [(entry.st_size, entry.st_mtime_ns) for entry in status]
    return digest({"first": shard.first, "rows": shard.rows.to_pydict(), "files": files, "decode": shard.decode})


def _write_tar(shard: Shard, path: Path) -> tuple[dict[str, list[Any]], str]:
    """Columns of the index that only the bytes tell, and sha256 of the tar."""
    import xxhash

    columns: dict[str, list[Any]] = {name: [] for name in ("key", "offset", "length", "sha256", "xxh3", "extension")}
    with open(path, "wb", buffering=2**20) as file:
        tar = _Tar(file)
        rows = shard.rows.select(COLUMNS).to_pylist()
        sources = [os.path.join(shard.root, row["path"]) for row in rows]
        for position, (row, source, data) in enumerate(zip(rows, sources, _contents(sources), strict=True)):
            extension = os.path.splitext(source)[1].lower()
            try:
                check_image(data, extension, decode=shard.decode)
            except ValueError as error:
                raise InputError(f"{source}: {error}; restore the file or remove its row") from None
            key = f"{shard.first + position:0{KEY_DIGITS}d}"
            columns["key"].append(key)
            columns["offset"].append(tar.add(key + extension, data))
            columns["length"].append(len(data))
            columns["sha256"].append(hashlib.sha256(data).hexdigest())
            columns["xxh3"].append(xxhash.xxh3_64_intdigest(data))
            columns["extension"].append(extension[1:])
            tar.add(key + ".json", sample_json(row))
        return columns, tar.close()


def _contents(paths: list[str]) -> Iterator[bytes]:
    """The bytes of each file. The system is asked for READ_AHEAD files before they are read: a disk or NFS then works
    while we do."""
    opened: deque[BinaryIO] = deque()
    try:
        for position in range(len(paths) + READ_AHEAD):
            if position < len(paths):
                opened.append(open(paths[position], "rb", buffering=0))  # noqa: SIM115
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(opened[-1].fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            if position >= READ_AHEAD:
                with opened.popleft() as file:
                    yield file.readall()
    finally:
        for file in opened:
            file.close()


def sample_json(row: dict[str, Any]) -> bytes:
    """The KEY.json of a sample: label, method, group, dataset and path, in one canonical form."""
    return json.dumps({name: row[name] for name in sorted(COLUMNS)}, ensure_ascii=False).encode()


def _header(name: str, size: int) -> bytes:
    """The block that ``TarInfo.tobuf`` would give, a tenth as slow: every header differs in name and size only."""
    text, length = name.encode("ascii"), b"%011o" % size
    checksum = _CHECKSUM + sum(text) + sum(length)
    middle = _TEMPLATE[len(text) : 124], length, _TEMPLATE[135:148]
    return b"".join((text, *middle, b"%06o\0 " % checksum, _TEMPLATE[156:]))


def _template() -> bytes:
    """A member without a name, a size, a date or an owner."""
    header = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
    checksum = b" " * 8  # counts as blanks, by definition
    return header[:124] + bytes(11) + header[135:148] + checksum + header[156:]


_TEMPLATE = _template()
_CHECKSUM = sum(_TEMPLATE)


class _Tar:
    """Plain USTAR file whose bytes depend on the content alone."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its data."""
        offset = self._position + BLOCK
        self._write(b"".join((_header(name, len(data)), data, bytes(-len(data) % BLOCK))))
        return offset

    def close(self) -> str:
        """Write the end marker, padded to a whole record as tar does; returns the sha256 of the file."""
        end = self._position + 2 * BLOCK
        self._write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        return self._sha256.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._position += len(data)


def _index_table(shard: Shard, columns: dict[str, list[Any]]) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    kinds = {"offset": pa.int64(), "length": pa.int64(), "xxh3": pa.uint64()}
    made = {name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()}
    made["shard"] = pa.array(np.full(len(shard.rows), shard.number, np.int32))
    for name in shard.rows.column_names:
        made[name] = shard.rows[name]
    carried = [name for name in shard.rows.column_names if name not in COLUMNS]
    return pa.table({name: made[name] for name in (*INDEX_COLUMNS, *carried)})


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(column.to_pylist()).items()))
