"""What a stop in the middle of an epoch costs: samples never seen and seen twice, loaders side by side.

    python tests/benchmarks/bench_resume.py [--samples 5000] [--only NAME ...]

Each loader reads batches of 64 and is stopped after 40 of 79. A fresh process continues from what the loader can
save, with the same workers and with other ones, to the end of the epoch. Samples are counted over both parts; the
order is compared with that of a third process that was never stopped. webdataset saves nothing: its users skip
what was read. What is not installed is left out (MosaicML Streaming, LitData). Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import formats
import numpy as np
import pandas as pd
from PIL import Image

from data_shards.manifest import ShardSet

BATCH, STOP, SHARDS, SIZE = 64, 40, 10, 16
Batches = Iterator[tuple[list[int], Callable[[], Any]]]
"""Sample indices of each batch, and a function that gives the state after it."""


class Loader(NamedTuple):
    epoch: Callable[[ShardSet, int, Any], Batches]
    """(shards, workers, state or None) → the rest of the epoch."""
    workers: tuple[int, int]
    """Before the stop, and other ones to continue with."""
    unit: str
    packages: tuple[str, ...]


def ours(shards: ShardSet, workers: int, state: Any, *, by: str) -> Batches:
    """One epoch: its last batch ends with the first samples of the next one, which are not counted."""
    from data_shards.loader import TrainingLoader

    ranks, threads = (workers, 1) if by == "ranks" else (1, workers)
    options: dict = {"batch_size": BATCH, "image_size": SIZE, "seed": 0, "threads": threads}
    loaders = [TrainingLoader(shards, rank=rank, world_size=ranks, **options) for rank in range(ranks)]
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
    while loaders[0].position < shards.samples:
        parts = [next(loader) for loader in loaders]
        yield [i for part in parts for i in part.index[part.epoch == 0].tolist()], loaders[-1].state_dict


def webdataset(shards: ShardSet, workers: int, state: Any, *, seed: int | None) -> Batches:
    """``state`` is the number of batches to skip."""
    import torch
    import webdataset as wds

    files = [str(shards.shard_path(number)) for number in range(SHARDS)]
    seeded = {} if seed is None else {"seed": seed}
    faces = wds.WebDataset(files, shardshuffle=SHARDS, **seeded).shuffle(1000, **seeded)
    keys = faces.map(_key)
    batches = torch.utils.data.DataLoader(keys, batch_size=BATCH, num_workers=workers)
    for number, batch in enumerate(batches, start=1):
        if number > (state or 0):
            yield batch.tolist(), partial(int, number)


def _key(sample: dict) -> int:
    return int(sample["__key__"])


def mosaicml(shards: ShardSet, workers: int, state: Any) -> Batches:
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    faces = streaming.StreamingDataset(local=formats.mds(shards), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
    loader = streaming.StreamingDataLoader(faces, batch_size=BATCH, num_workers=workers, collate_fn=_index)
    return _stateful(loader, state)


def litdata(shards: ShardSet, workers: int, state: Any) -> Batches:
    import litdata

    faces = litdata.StreamingDataset(formats.litdata(shards), shuffle=True, seed=0)
    loader = litdata.StreamingDataLoader(faces, batch_size=BATCH, num_workers=workers, collate_fn=_index)
    return _stateful(loader, state)


def _stateful(loader: Any, state: Any) -> Batches:
    if state is not None:
        loader.load_state_dict(state)
    for batch in loader:
        yield batch.tolist(), loader.state_dict


def _index(samples: list[dict]) -> Any:
    import torch

    return torch.tensor([int(sample["index"]) for sample in samples])


LOADERS = {
    "ours, threads": Loader(partial(ours, by="threads"), (2, 4), "threads", ()),
    "ours, ranks": Loader(partial(ours, by="ranks"), (2, 8), "ranks", ()),
    "webdataset, default shuffle, skip": Loader(partial(webdataset, seed=None), (2, 4), "workers", ("webdataset",)),
    "webdataset, seeded, skip": Loader(partial(webdataset, seed=0), (2, 4), "workers", ("webdataset",)),
    "MosaicML Streaming": Loader(mosaicml, (2, 4), "workers", ("mosaicml-streaming",)),
    "LitData": Loader(litdata, (2, 4), "workers", ("litdata",)),
}


def make_shards(folder: Path, samples: int) -> Path:
    """Tiny JPEGs in SHARDS shards; sample i has the key i."""
    from data_shards.pack import pack

    (folder / "faces").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(samples):
        name = f"{number:06d}.jpg"
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / "faces" / name)
        kind = ("real", "pristine") if number % 2 else ("fake", "swap")
        rows.append(
            {"path": name, "label": kind[0], "method": kind[1], "group": name, "dataset": "d", "split": "train"}
        )
    size = -(-samples // SHARDS)
    return pack(pd.DataFrame(rows), folder / "faces", folder / "sets", shard_size=size, workers=1)["train"]


def part(name: str, folder: str, workers: int, state: Any, batches: int | None) -> dict[str, Any]:
    """What one process sees, and the state at its end."""
    seen: list[int] = []
    after = state
    for index, save in itertools.islice(LOADERS[name].epoch(ShardSet.open(folder), workers, state), batches):
        seen += index
        after = save
    return {"seen": seen, "state": after() if batches else None}


def in_fresh_process(name: str, folder: str, workers: int, state: Any = None, batches: int | None = None) -> dict:
    """``part`` in a process of its own, so that nothing but the state is carried over; errors as ``{"error": …}``."""
    request = json.dumps([name, folder, workers, state, batches])
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        done = subprocess.run(
            [sys.executable, __file__, "--part", answer.name],
            input=request,
            text=True,
            capture_output=True,
            timeout=300,
        )
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1][:100]}
        return json.load(answer)


def outcome(name: str, folder: str, samples: int) -> list[str]:
    """Cells of the table: after a stop, with the same and with other workers."""
    loader, cells = LOADERS[name], []
    before, other = loader.workers
    whole = in_fresh_process(name, folder, before)
    first = in_fresh_process(name, folder, before, batches=STOP)
    for failed in (whole, first):
        if "error" in failed:
            raise RuntimeError(f"{name}: {failed['error']}")
    for workers in (before, other):
        rest = in_fresh_process(name, folder, workers, first["state"])
        if "error" in rest:
            cells.append(f"refuses: {rest['error']}")
            continue
        seen = np.bincount(first["seen"] + rest["seen"], minlength=samples)
        order = "same order" if first["seen"] + rest["seen"] == whole["seen"] else "another order"
        cells.append(f"{(seen == 0).sum()} never, {(seen > 1).sum()} twice; {order}")
    return [f"{before} → {before}, {before} → {other} {loader.unit}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--only", nargs="*", help="loaders whose name contains one of these")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # the work of one process, from stdin to this file
    options = parser.parse_args()
    if options.part:
        Path(options.part).write_text(json.dumps(part(*json.load(sys.stdin))))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TMPDIR=folder, OMP_NUM_THREADS="1")
        tempfile.tempdir = folder
        shards = str(make_shards(Path(folder), options.samples))
        batches = -(-options.samples // BATCH)
        print(f"{options.samples} samples in {SHARDS} shards, batches of {BATCH}, stopped after {STOP} of {batches};")
        print(f"Python {platform.python_version()}, torch {importlib.metadata.version('torch')}.\n")
        print("| loader | stopped → continued | the same | others | version |\n|---|---|---|---|---|")
        for name, loader in LOADERS.items():
            if options.only and not any(wanted in name for wanted in options.only):
                continue
            try:
                versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in loader.packages)
            except importlib.metadata.PackageNotFoundError:
                print(f"left out, not installed: {name}", file=sys.stderr)
                continue
            print(f"| {name} | {' | '.join(outcome(name, shards, options.samples))} | {versions} |", flush=True)


if __name__ == "__main__":
    main()
