"""The decoded pictures of a shard set as one plain array, which all processes of a machine map into their memory.

A folder holds ``SIZE--DIGEST12.npy``, uint8 (n, SIZE, SIZE, 3), one for each set and size, and beside it a JSON file
that says what it was made from. Every sample is checked against its hash and decoded by the reader itself, so that the
pixels are those that any reader of the set gives; a set with one bad sample has no array.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from data_shards.files import atomic, write_json
from data_shards.manifest import ShardSet
from data_shards.reader import SampleReader

AT_ONCE = 64
"""Pictures that are decoded, written or checked at a time."""


class Decoded(NamedTuple):
    """Pixels of a shard set, in the place of ``ShardSet.decoded``."""

    pixels: np.ndarray
    """uint8 (m, S, S, 3): mapped, not read."""
    rows: np.ndarray
    """int64 (n,): where each sample of the set is in ``pixels``."""


def array_file(shards: ShardSet, image_size: int, folder: Path) -> Path:
    return folder / f"{image_size}--{shards.digest[:12]}.npy"


def size_in_bytes(shards: ShardSet, image_size: int) -> int:
    return shards.samples * image_size * image_size * 3


def lay_out(
    shards: ShardSet, image_size: int, folder: Path, *, threads: int, progress: Callable[[int], object]
) -> None:
    """Write the array, whole or not at all; ``progress`` is told how many pictures were added. CorruptSample on the
    first bad sample; OSError where the disk is full, or the shards cannot be read here."""
    file = array_file(shards, image_size, folder)
    shape = (shards.samples, image_size, image_size, 3)
    block, seen = np.empty((AT_ONCE, *shape[1:]), np.uint8), xxhash.xxh3_64()
    reader = SampleReader(shards, image_size=image_size)
    try:
        # Written, not mapped: a disk that is full is then an error, and not the end of the process.
        with atomic(file) as temporary, open(temporary, "wb") as out, ThreadPoolExecutor(threads) as pool:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            for first in range(0, shards.samples, AT_ONCE):
                some = range(first, min(first + AT_ONCE, shards.samples))
                list(pool.map(reader.decode_into, some, block))
                pixels = block[: len(some)].data
                seen.update(pixels)
                out.write(pixels)
                progress(len(some))
    finally:
        reader.close()
    write_json(_facts_file(file), {**_source(shards, image_size), "xxh3": seen.hexdigest()})


def is_whole(shards: ShardSet, image_size: int, folder: Path) -> bool:
    """Whether the array is there and has the bytes that were written; reads all of it."""
    found = find(shards, image_size, folder)
    if found is None:
        return False
    seen = xxhash.xxh3_64()
    for first in range(0, shards.samples, AT_ONCE):
        seen.update(found.pixels[first : first + AT_ONCE].data)
    return _facts(array_file(shards, image_size, folder))["xxh3"] == seen.hexdigest()


def find(shards: ShardSet, image_size: int, folder: Path) -> Decoded | None:
    """The pictures of a shard set; None if its array is not there, or was made from something else."""
    file = array_file(shards, image_size, folder)
    facts = _facts(file)
    facts.pop("xxh3", None)
    if facts != _source(shards, image_size):
        return None
    try:
        pixels = np.load(file, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError):  # gone, or cut short
        return None
    return Decoded(pixels, np.arange(shards.samples))


def _facts_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _facts(file: Path) -> dict[str, Any]:
    try:
        return json.loads(_facts_file(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _source(shards: ShardSet, image_size: int) -> dict[str, Any]:
    """What the pixels depend on."""
    decoders = {name: version(name) for name in ("simplejpeg", "pillow")}
    return {"shards_digest": shards.digest, "samples": shards.samples, "image_size": image_size, **decoders}
