"""Shard sets written by hand after docs/DESIGN.md, so that shards have any size."""

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from data_shards.files import sha256_file, write_json
from data_shards.manifest import ShardSet, content_digest

SIZE = 8
SHARDS = {
    "uneven": [5, 1, 9, 3, 14, 1],
    "one-sample shards": [1] * 7,
    "one sample": [1],
    "one shard": [23],
    "more than a window": [3] * 20,
}


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A smooth random picture (noise would make chroma subsampling invisible in its own artefacts)."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_set(folder, shards: list[list[bytes]], extension: str = "jpg") -> ShardSet:
    folder.mkdir(parents=True)
    rows, described, number = [], [], 0
    for shard, images in enumerate(shards):
        name = f"shard-{shard:06d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for data in images:
                label = ("real", "fake")[number % 2]
                meta = {"label": label, "method": "m", "group": f"g{number}", "dataset": "d", "path": f"{number}.jpg"}
                for suffix, content in ((extension, data), ("json", json.dumps(meta).encode())):
                    info = tarfile.TarInfo(f"k{number}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                hashes = {"sha256": "", "xxh3": np.uint64(xxhash.xxh3_64_intdigest(data))}
                rows.append({"key": f"k{number}", "shard": shard, "length": len(data), **hashes, **meta})
                number += 1
        with tarfile.open(folder / name) as tar:
            offsets = [member.offset_data for member in tar if not member.name.endswith(".json")]
        for row, offset in zip(rows[-len(images) :], offsets, strict=True):
            row.update(offset=offset, extension=extension)
        sizes = {"samples": len(images), "bytes": (folder / name).stat().st_size}
        described.append({"file": name, "sha256": sha256_file(folder / name), "labels": {}, "methods": {}, **sizes})
    table = pa.Table.from_pandas(pd.DataFrame(rows).astype({"shard": "int32"}), preserve_index=False)
    with pq.ParquetWriter(folder / "index.parquet", table.schema) as writer:
        for shard in range(len(shards)):
            writer.write_table(table.filter(pa.compute.equal(table["shard"], shard)))
    totals = {key: sum(shard[key] for shard in described) for key in ("samples", "bytes")}
    manifest = {"schema": 1, "split": "train", "labels": {}, "methods": {}, "datasets": {}, "groups": 0, "seed": 0}
    manifest |= {"plan": "", "shards": described, **totals}
    manifest["index"] = {"file": "index.parquet", "sha256": sha256_file(folder / "index.parquet")}
    manifest["digest"] = content_digest("train", [shard["sha256"] for shard in described])
    write_json(folder / "manifest.json", manifest)
    return ShardSet.open(folder)
