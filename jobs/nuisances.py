"""What may come along with the label: compression, resolution, brightness, sharpness, source of every image."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_shards.command import InputError
from data_shards.files import atomic, digest
from jobs.pixels import pixel_features

if TYPE_CHECKING:
    from data_shards.manifest import ShardSet

SCHEMA = 1
"""Raised when the same images would give other values than an earlier version gave."""
MEASURED = ("brightness", "sharpness", "JPEG quality", "bits per pixel", "resolution")


def nuisances(shards: ShardSet, out: Path, carried: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Name → ``(n,)``: what is measured of the images, and the columns ``dataset`` and ``carried`` of the face table.

    Brightness and sharpness (log variance of the Laplacian) at 224 pixels, standardised; the JPEG quality estimated
    from the quantisation table (100 where there is none), bits per pixel of the file, and resolution (log2 of the
    number of pixels). Measured once per shard set and kept in the folder ``out``.
    """
    import pyarrow.parquet as pq

    path = out / f"nuisances--{shards.path.resolve().name}--{digest([SCHEMA, shards.digest])[:12]}.parquet"
    if not path.is_file():
        _measure(shards, out, path)
    table = pq.read_table(path)
    found = {name: table.column(name).to_numpy() for name in MEASURED}
    for name in ("dataset", *carried):
        if name not in shards.column_names:
            raise InputError(
                f"nuisances: {shards.path} has no column {name!r}; it has {', '.join(shards.column_names)}"
            )
        values = np.asarray(shards.column(name))
        found["source" if name == "dataset" else name] = values if values.dtype.kind in "fiu" else values.astype(str)
    return found


def _measure(shards: ShardSet, out: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_shards.reader import SampleReader
    from evaluation.pixels import NAMES
    from trainer.features import read_features

    reader = SampleReader(shards, image_size=224)
    files = np.array([_of_file(reader.read(index)) for index in range(len(shards))])
    reader.close()
    pixels = read_features(pixel_features(shards, out)).features
    columns = {
        "brightness": pixels[:, NAMES.index("brightness")],
        "sharpness": pixels[:, NAMES.index("log Laplacian variance")],
        **dict(zip(MEASURED[2:], files.T, strict=True)),
    }
    table = pa.table(columns).replace_schema_metadata({"shards": json.dumps(shards.digest)})
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def _of_file(data: bytes) -> tuple[float, float, float]:
    """JPEG quality, bits per pixel and log2 of the pixels of one image file; nothing is decoded."""
    from PIL import Image

    from evaluation.pixels import jpeg_quality

    with Image.open(io.BytesIO(data)) as image:
        tables = getattr(image, "quantization", None) or {}
        quality = jpeg_quality(tables[min(tables)]) if tables else 100.0
        pixels = image.width * image.height
    return quality, 8 * len(data) / pixels, float(np.log2(pixels))
