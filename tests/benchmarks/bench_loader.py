"""Loaders side by side on the same tars: CPU-seconds and wall time per image, in one run, interleaved.

    python tests/benchmarks/bench_loader.py [--shards SET] [--images 4000] [--epochs 2] [--rounds 3] [--only NAME ...]

Every loader gives endless shuffled batches of 64 uint8 RGB images with labels, with two threads or worker processes.
Each run is a fresh process; after one epoch to warm up, ``epochs`` are timed, with the CPU time of its children.
CPU-seconds hold on a shared machine better than wall time does. What is not installed is left
out (DALI, LMDB, MosaicML Streaming, LitData).
Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import formats
import numpy as np
import pandas as pd
from PIL import Image

from data_shards.manifest import ShardSet

BATCH, WORKERS, SIZE = 64, 2, 224
DISTINCT = 500
LOADERS: dict[str, tuple[Callable[[ShardSet], Iterator], tuple[str, ...]]] = {}


def loader(name: str, *packages: str) -> Callable:
    """Register a function that gives endless (images, labels) batches, with the packages it is made of."""

    def register(function: Callable[[ShardSet], Iterator]) -> Callable[[ShardSet], Iterator]:
        LOADERS[name] = function, packages
        return function

    return register


@loader("ours", "simplejpeg", "xxhash")
def ours(shards: ShardSet) -> Iterator:
    from data_shards.loader import TrainingLoader

    with TrainingLoader(shards, batch_size=BATCH, image_size=SIZE, seed=0, threads=WORKERS) as batches:
        for batch in batches:
            yield batch.images, batch.labels


def _webdataset(shards: ShardSet, decode: Callable[[bytes], np.ndarray]) -> Iterator:
    import torch
    import webdataset

    files = [str(shards.shard_path(number)) for number in range(len(shards.shards))]
    dataset = webdataset.WebDataset(files, shardshuffle=len(files), seed=0).repeat().shuffle(1000, seed=0)
    samples = dataset.map(lambda s: (decode(s["jpg"]), np.float32(json.loads(s["json"])["label"] == "fake")))
    return iter(torch.utils.data.DataLoader(samples, batch_size=BATCH, num_workers=WORKERS))


def _pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@loader("webdataset + Pillow, 2 workers", "webdataset", "pillow")
def webdataset_pillow(shards: ShardSet) -> Iterator:
    return _webdataset(shards, _pillow)


@loader("webdataset + simplejpeg, 2 workers", "webdataset", "simplejpeg")
def webdataset_simplejpeg(shards: ShardSet) -> Iterator:
    import simplejpeg

    return _webdataset(shards, simplejpeg.decode_jpeg)


@loader("DALI cpu, 2 threads", "nvidia-dali-cuda120")
def dali(shards: ShardSet) -> Iterator:
    import torch
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, seed=0)
    def pipeline():
        files = [str(shards.shard_path(number)) for number in range(len(shards.shards))]
        jpg, meta = fn.readers.webdataset(paths=files, ext=["jpg", "json"], random_shuffle=True, initial_fill=1000)
        return fn.decoders.image(jpg, device="cpu"), meta

    pipe = pipeline()
    pipe.build()
    while True:
        images, meta = pipe.run()
        labels = [json.loads(bytes(np.array(meta.at(i))))["label"] == "fake" for i in range(len(meta))]
        yield torch.from_numpy(images.as_array()), torch.tensor(labels, dtype=torch.float32)  # as_array copies


@loader("LMDB + Pillow, 2 workers", "lmdb", "pillow")
def lmdb_pillow(shards: ShardSet) -> Iterator:
    import lmdb
    import torch

    from data_shards.reader import SampleReader

    folder, labels = tempfile.mkdtemp(), shards.labels.astype(np.float32)
    with (
        lmdb.open(folder, map_size=2 * shards.manifest["bytes"] + 2**26) as database,
        database.begin(write=True) as put,
    ):
        reader = SampleReader(shards, image_size=SIZE)
        for index in range(shards.samples):
            put.put(str(index).encode(), reader.read(index))

    class Faces(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.database = None

        def __len__(self) -> int:
            return shards.samples

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.float32]:
            if self.database is None:  # one per worker
                self.database = lmdb.open(folder, readonly=True, lock=False)
            with self.database.begin() as get:
                return _pillow(get.get(str(index).encode())), labels[index]

    batches = torch.utils.data.DataLoader(
        Faces(), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    return itertools.chain.from_iterable(itertools.repeat(batches))


def _decoded(samples: list[dict]) -> tuple:
    import simplejpeg
    import torch

    images = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(sample["jpg"]) for sample in samples]))
    return images, torch.tensor([sample["label"] for sample in samples])


@loader("MosaicML Streaming + simplejpeg, 2 workers", "mosaicml-streaming", "simplejpeg")
def mosaicml(shards: ShardSet) -> Iterator:
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    faces = streaming.StreamingDataset(local=formats.mds(shards), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
    batches = streaming.StreamingDataLoader(
        faces, batch_size=BATCH, num_workers=WORKERS, collate_fn=_decoded, persistent_workers=True
    )
    return itertools.chain.from_iterable(itertools.repeat(batches))


@loader("LitData + simplejpeg, 2 workers", "litdata", "simplejpeg")
def litdata(shards: ShardSet) -> Iterator:
    import litdata

    faces = litdata.StreamingDataset(formats.litdata(shards), shuffle=True)
    batches = litdata.StreamingDataLoader(
        faces, batch_size=BATCH, num_workers=WORKERS, collate_fn=_decoded, persistent_workers=True
    )
    return itertools.chain.from_iterable(itertools.repeat(batches))


def measure(name: str, folder: str, epochs: int) -> dict[str, float]:
    """Seconds of CPU (with children) and of wall time per image, of one loader in this process."""
    import psutil

    def cpu() -> float:
        me = psutil.Process()
        return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))

    shards = ShardSet.open(folder)
    batches = LOADERS[name][0](shards)

    def consume(images: int) -> int:
        count = 0
        while count < images:
            pixels, labels = next(batches)
            assert tuple(pixels.shape[1:]) == (SIZE, SIZE, 3), pixels.shape
            assert len(labels) == len(pixels)
            count += len(pixels)
        return count

    consume(shards.samples)
    cpu_began, began = cpu(), time.perf_counter()
    count = consume(epochs * shards.samples)
    return {"cpu": (cpu() - cpu_began) / count, "wall": (time.perf_counter() - began) / count}


def make_shards(folder: Path, images: int) -> Path:
    """JPEGs of about 15 kB at 224 pixels, quality 90: smooth pictures with some noise, DISTINCT different ones."""
    from data_shards.pack import pack

    rng, rows, encoded = np.random.default_rng(0), [], []
    for _ in range(min(images, DISTINCT)):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.BICUBIC)
        pixels = np.asarray(coarse, np.float32) + rng.normal(0, 3.5, (SIZE, SIZE, 1))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    (folder / "faces").mkdir()
    for number in range(images):
        name = f"{number:06d}.jpg"
        (folder / "faces" / name).write_bytes(encoded[number % len(encoded)])
        kind = ("real", "pristine") if number % 2 else ("fake", "swap")
        rows.append(
            {"path": name, "label": kind[0], "method": kind[1], "group": name, "dataset": "d", "split": "train"}
        )
    size = max(1, images // 10)
    return pack(pd.DataFrame(rows), folder / "faces", folder / "sets", shard_size=size, workers=1)["train"]


def installed(packages: tuple[str, ...]) -> str | None:
    """Names with versions, or None if one is missing."""
    try:
        return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    except importlib.metadata.PackageNotFoundError:
        return None


def report(results: dict[str, list[dict[str, float]]], shards: ShardSet) -> None:
    mean = int(shards.column("length").mean())
    rounds = len(results["ours"])
    print(f"{shards.samples} JPEGs of {SIZE} px, {mean} bytes on average; batches of {BATCH}; {rounds} rounds")
    versions = installed(("numpy", "torch", "pillow"))
    print(f"on {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}.\n")
    print("| loader | CPU µs/image (median) | CPU, ours = 1 | images/s (best) | versions |\n|---|---|---|---|---|")
    cpu = {name: statistics.median(run["cpu"] for run in runs) for name, runs in results.items()}
    for name in sorted(cpu, key=cpu.__getitem__):
        best = 1 / min(run["wall"] for run in results[name])
        ratio = cpu[name] / cpu["ours"]
        print(f"| {name} | {1e6 * cpu[name]:.0f} | {ratio:.2f} | {best:.0f} | {installed(LOADERS[name][1])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", help="a shard set of JPEGs of 224 pixels; default: made of synthetic pictures")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="loaders whose name contains one of these, beside ours")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one loader, in its own process
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options.run, options.shards, options.epochs)))
        return
    wanted = [n for n in LOADERS if n == "ours" or not options.only or any(part in n for part in options.only)]
    names = [name for name in wanted if installed(LOADERS[name][1])]
    for name in set(wanted) - set(names):
        print(f"left out, not installed: {name}", file=sys.stderr)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or str(make_shards(Path(folder), options.images))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder}
        for _ in range(options.rounds):
            for name in names:
                command = [sys.executable, __file__, "--run", name, "--shards", shards, "--epochs", str(options.epochs)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
        report(results, ShardSet.open(shards))


if __name__ == "__main__":
    main()
