"""The pixel-statistics control: colour, sharpness and JPEG traces of a shard set as a features file.

What these 38 numbers separate, a backbone need not see faces for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data_shards.files import atomic, digest
from data_shards.manifest import ShardSet

LABEL = "pixel statistics"
SIZE = 224  # pixels: images as most backbones see them
SCHEMA = 1
"""Raised when the same images would give other values than an earlier version gave."""


def pixel_features(shards: ShardSet, out: Path) -> Path:
    """The features file of the pixel statistics of a shard set in the folder ``out``, computed if it is not there.

    It has the form of :mod:`trainer.features`'s files, so all that reads those reads it."""
    from importlib.metadata import version

    determining = {
        "schema": SCHEMA,
        "backbone": LABEL,
        "input_size": SIZE,
        "shards_digest": shards.digest,
        "decoder": f"simplejpeg {version('simplejpeg')}",
    }
    path = out / f"pixel-statistics--{shards.path.resolve().name}--{digest(determining)[:12]}.parquet"
    if not path.is_file():
        _compute(shards, path, determining)
    return path


def _compute(shards: ShardSet, path: Path, determining: dict[str, object]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm import tqdm

    from data_shards.loader import evaluation_batches
    from evaluation.pixels import pixel_features as features_of

    quiet = not sys.stderr.isatty()
    if quiet:
        print(f"{LABEL}: {shards.samples} images of {shards.path.name}", file=sys.stderr)
    batches = evaluation_batches(shards, batch_size=64, image_size=SIZE)  # in the order of the index
    images = (image for batch in batches for image in batch.images.numpy())
    values = features_of(tqdm(images, total=shards.samples, desc=LABEL, unit="img", disable=quiet))
    n, d = values.shape
    columns = {
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), d),
        "index": pa.array(range(n), pa.int64()),
        "label": pa.array(shards.labels),
        **{name: pa.array(shards.column(name), pa.string()) for name in ("group", "method", "dataset")},
    }
    provenance = {**determining, "samples": n, "num_features": d, "parameters": 0, "split": shards.split}
    table = pa.table(columns).replace_schema_metadata({"provenance": json.dumps(provenance, sort_keys=True)})
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
