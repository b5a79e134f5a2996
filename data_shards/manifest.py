"""The shard set: a folder with one split as tars, an index with one row per sample, and the manifest that binds them.

Row ``i`` of ``index.parquet`` is sample ``i``; one row group per shard. ``manifest.json`` is the truth about which
bytes belong to the set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_shards.command import InputError
from data_shards.faces import LABELS, SPLITS
from data_shards.files import atomic, digest, sha256_file
from data_shards.order import WINDOW
from data_shards.remote import SIZE_GB, RemoteFolder, RemoteShards, ShardCache, staged_url, url_of
from data_shards.table import ROWS

if TYPE_CHECKING:
    import pyarrow as pa

    from data_shards.decoded import Decoded

SCHEMA = 1
MANIFEST = "manifest.json"
INDEX = "index.parquet"
INDEX_COLUMNS = (
    *("key", "shard", "offset", "length", "sha256", "xxh3"),
    *("extension", "label", "method", "group", "dataset", "path"),
)
REPEATED = ("extension", "label", "method", "dataset")  # few distinct values: read as numbers and a dictionary
KEYS = {
    *("schema", "split", "samples", "bytes", "labels", "methods", "datasets", "groups"),
    *("seed", "plan", "shards", "index", "digest"),
}
MAX_MANIFEST, MAX_INDEX = 2**32, 2**40  # bytes that are fetched before anything about them is known
SHARD_KEYS = {"file", "samples", "bytes", "sha256", "labels", "methods"}


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def content_digest(split: str, shard_sha256: list[str]) -> str:
    """Name of a set's content: its schema, its split and the bytes of its shards in order."""
    return digest({"schema": SCHEMA, "split": split, "shards": shard_sha256})


class Codes(NamedTuple):
    """A text column as numbers: ``names[codes]`` is the column."""

    codes: np.ndarray
    """(n,) int32."""
    names: np.ndarray
    """(k,) objects, sorted: the same numbers on every machine."""


@dataclass(frozen=True)
class ShardSet:
    """A shard set whose manifest, index and shard sizes agree. Make one with ``ShardSet.open``."""

    path: Path
    """Folder with manifest and index (of a remote set: their copy in the cache)."""
    manifest: dict[str, Any]
    remote: RemoteShards | None = None
    """Where the shards come from if they are not in the folder."""
    decoded: Decoded | None = field(default=None, compare=False, repr=False)
    """The pictures of one size, if they are decoded already (see decoded.py): readers take them from here."""

    @classmethod
    def open(cls, path: str | Path, cache: ShardCache | None = None) -> ShardSet:
        """Open the folder (or its manifest.json); InputError if it is none, of another schema, altered or incomplete.

        Reads the manifest and hashes the index; of the shards only the sizes are looked at. Their content is checked
        per sample by whoever reads it, and as a whole by ``data_shards.verify``.

        ``path`` may be a URL (see remote.py). Then manifest and index are fetched now, and each shard when it is first
        read, into ``cache`` (default: ShardCache.default()), where its sha256 is checked. With DATA_SHARDS_STAGE=1 in
        the environment the same is done for folders: their shards are staged to this machine's own disk.
        """
        url = url_of(path) or staged_url(path)
        if url is not None:
            return _open_remote(url.removesuffix(f"/{MANIFEST}"), cache or ShardCache.default())
        path = Path(path)
        if path.name == MANIFEST and path.is_file():
            path = path.parent
        manifest = read_manifest(path)
        problems = [*index_problems(path, manifest), *shard_problems(path, manifest)]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise InputError(f"shard set {path}: {problems[0]}{more}; copy or pack it again")
        return cls(path, manifest)

    @property
    def split(self) -> str:
        return self.manifest["split"]

    @property
    def samples(self) -> int:
        return self.manifest["samples"]

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Per shard: file, samples, bytes, sha256, labels, methods."""
        return self.manifest["shards"]

    @property
    def index_path(self) -> Path:
        return self.path / INDEX

    def __len__(self) -> int:
        return self.samples

    def shard_path(self, number: int) -> Path:
        """The tar; of a remote set it does not exist: see ``open_shard``."""
        return self.path / self.shards[number]["file"]

    def location(self, number: int) -> str:
        """Path or URL of a shard, for messages."""
        return (
            str(self.shard_path(number)) if self.remote is None else self.remote.source.of(self.shards[number]["file"])
        )

    def open_shard(self, number: int, release: Callable[[], None] = lambda: None) -> int:
        """A file descriptor of a shard, for positioned reads; the caller closes it. OSError if it cannot be had.

        A remote shard is fetched if need be and stays in the cache as long as the descriptor is open. ``release`` is
        called when the cache has no room: it closes descriptors that the caller can do without.
        """
        if self.remote is not None:
            return self.remote.open(self.shards[number], release)
        return os.open(self.shard_path(number), os.O_RDONLY | os.O_CLOEXEC)

    def spoiled(self, number: int, descriptor: int) -> bool:
        """Whether the shard opened as ``descriptor`` is a damaged copy of a remote one: ``open_shard`` gives another,
        or raises an OSError that names the copy."""
        return self.remote is not None and self.remote.spoiled(self.shards[number], descriptor)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Columns of the index: INDEX_COLUMNS, then the carried ones."""
        import pyarrow.parquet as pq

        return tuple(pq.read_schema(self.index_path).names)

    def column(self, name: str, shard: int | None = None) -> np.ndarray:
        """One column of the index, (n,) in sample order, or only the rows of one shard; nothing else is read.

        ``shard`` int32, ``offset`` and ``length`` (of the image in its tar, bytes) int64, ``xxh3`` uint64; text as
        objects.
        """
        import pyarrow.parquet as pq

        if name not in self.column_names:
            raise KeyError(f"the index of {self.path} has no column {name!r}; it has {', '.join(self.column_names)}")
        with pq.ParquetFile(self.index_path, read_dictionary=[c for c in REPEATED if c == name]) as file:
            table = file.read(columns=[name]) if shard is None else file.read_row_group(shard, columns=[name])
        column = table.column(0)
        return column.to_numpy() if name not in REPEATED else _decode(column)

    def batches(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of the index in sample order, ROWS rows at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.index_path) as file:
            for batch in file.iter_batches(ROWS, columns=columns):
                yield pa.Table.from_batches([batch]).select(columns)

    @cached_property
    def labels(self) -> np.ndarray:
        """(n,) uint8, 0 = real, 1 = fake."""
        return (self.column("label") == LABELS[1]).astype(np.uint8)

    @cached_property
    def methods(self) -> Codes:
        """The method of every sample."""
        return self._codes("method")

    @cached_property
    def groups(self) -> Codes:
        """The group of every sample, as it was given: ``a|b`` is a name of its own."""
        return self._codes("group")

    @property
    def videos(self) -> np.ndarray | None:
        """(n,) the video of every sample, a manipulated version being another; None where the face table names none."""
        return self.column("video") if "video" in self.column_names else None

    def _codes(self, name: str) -> Codes:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.index_path, read_dictionary=[name]) as file:
            column = file.read(columns=[name]).column(0).unify_dictionaries()
        found = np.array(column.chunk(0).dictionary.to_pylist(), dtype=object)
        order = np.argsort(found)
        rank = np.empty(len(found), np.int32)
        rank[order] = np.arange(len(found), dtype=np.int32)
        return Codes(np.concatenate([rank[chunk.indices.to_numpy()] for chunk in column.chunks]), found[order])


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the set at ``path``, consistent in itself; InputError otherwise."""
    file = path / MANIFEST
    if not path.is_dir():
        raise InputError(f"there is no shard set at {path}")
    if not file.is_file():
        raise InputError(f"{path} has no {MANIFEST}: it is no shard set (one split each; is {path}/train meant?)")
    return _parse_manifest(file.read_bytes(), str(file))


def _parse_manifest(text: bytes, file: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise InputError(f"{file} is not the manifest of a shard set")
    if manifest["schema"] != SCHEMA:
        raise InputError(f"{file} has schema {manifest['schema']}; this version reads {SCHEMA}: pack the faces again")
    try:
        wrong = _inconsistency(manifest)
    except (KeyError, TypeError, AttributeError) as error:
        wrong = f"malformed entry ({error})"
    if wrong:
        raise InputError(f"{file} was altered: {wrong}; copy it again from its source or pack the faces again")
    return manifest


def _open_remote(url: str, cache: ShardCache) -> ShardSet:
    """Manifest and index lie in the cache below the hash of the manifest: another set at that URL is another folder."""
    source = RemoteFolder(url)
    try:
        text = source.read(MANIFEST, MAX_MANIFEST)
        manifest = _parse_manifest(text, source.of(MANIFEST))
        folder = cache.folder / "sets" / hashlib.sha256(text).hexdigest()[:16] / url.rsplit("/", 1)[-1]
        if index_problems(folder, manifest):
            with atomic(folder / INDEX) as temporary:
                source.fetch(INDEX, temporary, MAX_INDEX)
        with atomic(folder / MANIFEST) as temporary:
            temporary.write_bytes(text)
    except OSError as error:
        raise InputError(f"there is no shard set at {url}: {error}") from None
    problems = index_problems(folder, manifest)
    if problems:
        raise InputError(f"shard set {url}: {problems[0]}; copy it again from its source")
    window = window_bytes(manifest)
    if cache.size < window:
        raise InputError(
            f"{url} needs a cache of at least {window / 1e9:.3g} GB ({WINDOW} shards); set {SIZE_GB} to more than that"
        )
    return ShardSet(folder, manifest, RemoteShards(source, cache))


def window_bytes(manifest: dict[str, Any]) -> int:
    """Size of the largest window of shards that training may read at once."""
    return sum(sorted(shard["bytes"] for shard in manifest["shards"])[-WINDOW:])


def index_problems(path: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the index file: absent, or not the bytes that the manifest names."""
    file = path / INDEX
    if not file.is_file():
        return [f"{INDEX} is missing"]
    if sha256_file(file) != manifest["index"]["sha256"]:
        return [f"{INDEX} is not the one that the manifest names (sha256 differs)"]
    return []


def shard_problems(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Shards that are absent or of the wrong size."""
    problems = []
    for shard in manifest["shards"]:
        file = path / shard["file"]
        if not file.is_file():
            problems.append(f"{shard['file']} is missing")
        elif file.stat().st_size != shard["bytes"]:
            problems.append(f"{shard['file']} has {file.stat().st_size} bytes, the manifest says {shard['bytes']}")
    return problems


def _inconsistency(manifest: dict[str, Any]) -> str | None:
    if set(manifest) != KEYS:
        return f"its keys differ in {', '.join(sorted(set(manifest) ^ KEYS))}"
    if manifest["split"] not in SPLITS:
        return f"unknown split {manifest['split']!r}"
    shards = manifest["shards"]
    for number, shard in enumerate(shards):
        if set(shard) != SHARD_KEYS or shard["file"] != shard_name(number):  # also keeps paths out of the names
            return f"shard {number} is not described as {shard_name(number)}"
        if not re.fullmatch("[0-9a-f]{64}", shard["sha256"]) or shard["samples"] < 1:
            return f"{shard['file']} has no valid sha256 or no samples"
    if manifest["index"]["file"] != INDEX:
        return f"the index is not {INDEX}"
    for key in ("samples", "bytes"):
        if manifest[key] != sum(shard[key] for shard in shards):
            return f"{key} is not the sum over the shards"
    if manifest["digest"] != content_digest(manifest["split"], [shard["sha256"] for shard in shards]):
        return "the digest does not name the listed shards"
    return None


def _decode(column: Any) -> np.ndarray:
    """Objects of a dictionary-encoded column, one string object per distinct value and chunk."""
    parts = [
        np.array(chunk.dictionary.to_pylist(), dtype=object)[chunk.indices.to_numpy(zero_copy_only=False)]
        for chunk in column.chunks
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=object)
