"""A shard set in the formats of other loaders: written once into the temporary folder, for all runs of a benchmark."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from data_shards.manifest import ShardSet
from data_shards.reader import SampleReader


def sample(folder: Path, index: int) -> dict[str, Any]:
    """Index, label and image bytes."""
    shards, reader = opened(folder)
    return {"index": index, "label": int(shards.labels[index]), "jpg": reader.read(index)}


@functools.cache
def opened(folder: Path) -> tuple[ShardSet, SampleReader]:
    shards = ShardSet.open(folder)
    return shards, SampleReader(shards, image_size=1)


def mds(shards: ShardSet) -> str:
    """MosaicML Streaming's format, as many shards as the set has."""
    from streaming import MDSWriter

    out = Path(tempfile.gettempdir()) / "mds"
    if not out.exists():
        size = 2 * shards.manifest["bytes"] // 3 // len(shards.shards)  # headers and JSON of a tar are not in it
        columns = {"index": "int", "label": "int", "jpg": "bytes"}
        with MDSWriter(out=str(out), columns=columns, size_limit=max(size, 2**16)) as writer:
            for index in range(shards.samples):
                writer.write(sample(shards.path, index))
    return str(out)


def litdata(shards: ShardSet) -> str:
    """LitData's chunks, as many as the set has shards."""
    from litdata import optimize

    out = Path(tempfile.gettempdir()) / "litdata"
    if not out.exists():
        inputs, chunk = list(range(shards.samples)), -(-shards.samples // len(shards.shards))
        function = functools.partial(sample, shards.path)
        optimize(function, inputs, str(out), chunk_size=chunk, num_workers=1, reorder_files=False, verbose=False)
    return str(out)
