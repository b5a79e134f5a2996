"""Time of packing against the plain copy of the same bytes into tars with hashing, in one run, interleaved.

The copy is what any packer must do: read each image, hash it (sha256 and xxh3), write it and a small JSON with
``tarfile``, sha256 the tar and flush it to the disk. It runs over shards in the same number of processes as the packing
does, and in one. Give 1 process for CPU-seconds, which hold on a shared machine better than wall time does. ``cold``:
the images are not in the memory cache, as when a data set is packed for the first time.

    python tests/benchmarks/bench_pack.py IMAGES PROCESSES [ROUNDS=3] [cold]
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash
from PIL import Image

from data_shards.files import sha256_file
from data_shards.pack import pack

SHARD_SIZE = 1000
DISTINCT = 500


def make(folder: Path, images: int) -> pd.DataFrame:
    """JPEG files of about 15 kB at 224 pixels; DISTINCT different ones, each written many times over."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((224, 224), Image.BICUBIC)
        noise = rng.normal(0, 11, (224, 224, 3))
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=81)
        encoded.append(buffer.getvalue())
    print(f"{images} images of {np.mean([len(data) for data in encoded]) / 1e3:.1f} kB on average")
    rows = []
    for number in range(images):
        path = folder / f"{number % 100:02d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[number % DISTINCT])
        label, method = ("fake", "swap") if number % 2 else ("real", "pristine")
        rows.append((str(path), label, method, f"v{number // 2}", "bench", "train"))
    return pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset", "split"])


def copy_shard(task: tuple[Path, list[str]]) -> list:
    shard, paths = task
    digests = []
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, path in enumerate(paths):
            data = Path(path).read_bytes()
            digests.append((hashlib.sha256(data).hexdigest(), xxhash.xxh3_64_intdigest(data)))
            note = json.dumps({"label": "real", "path": path}).encode()
            for name, content in ((f"{number:09d}.jpg", data), (f"{number:09d}.json", note)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with open(shard, "rb") as file:
        os.fsync(file.fileno())
    return [*digests, sha256_file(shard)]


def copy(faces: pd.DataFrame, out: Path, *, workers: int) -> None:
    paths = faces["path"].sample(frac=1, random_state=0).tolist()
    out.mkdir()
    tasks = [(out / f"{i}.tar", paths[i : i + SHARD_SIZE]) for i in range(0, len(paths), SHARD_SIZE)]
    if workers == 1:
        list(map(copy_shard, tasks))
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        list(pool.map(copy_shard, tasks))


def cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(function, out: Path) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), cpu_seconds()
    function(out)
    result = time.perf_counter() - wall, cpu_seconds() - cpu
    shutil.rmtree(out)
    return result


def forget(faces: pd.DataFrame) -> None:
    """Take the images out of the memory cache."""
    for path in faces["path"]:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    (images, workers, rounds), cold = [*numbers, 3][:3], "cold" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        faces = make(root / "faces", images)
        os.sync()
        ways = {f"copy and hash, {n} processes": partial(copy, faces, workers=n) for n in sorted({workers, 1})[::-1]}
        packing = partial(pack, faces, root / "faces", shard_size=SHARD_SIZE, workers=workers)
        ways |= {f"pack, {workers}": packing, f"pack decode=false, {workers}": partial(packing, decode=False)}
        times = {name: [] for name in ways}
        for number in range(rounds + (not cold)):
            for name, function in ways.items():
                if cold:
                    forget(faces)
                result = timed(function, root / "out")
                if cold or number:  # the first round warms the page cache
                    times[name].append(result)
        print("| way | wall s | CPU s | wall / copy | CPU / copy |\n|---|---|---|---|---|")
        base = np.median(next(iter(times.values())), axis=0)
        for name, values in times.items():
            wall, cpu = np.median(values, axis=0)
            # The time of worker processes counts here only once their server ends: no CPU figures of several.
            seconds, ratio = (f"{cpu:.2f}", f"{cpu / base[1]:.2f}") if workers == 1 else ("", "")
            print(f"| {name} | {wall:.2f} | {seconds} | {wall / base[0]:.2f} | {ratio} |")


if __name__ == "__main__":
    main()
