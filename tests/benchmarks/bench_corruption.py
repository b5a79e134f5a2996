"""Damage a shard set in every way, at random places, and see what the loader makes of it.

    python tests/benchmarks/bench_corruption.py [TRIALS]

Each trial packs nothing new: it damages a copy of one small set, before it is opened or while a loader reads it, and
then reads an epoch of training and an evaluation, once with on_bad="raise" and once with "skip". What was damaged
must raise and name shard (and key, once reading), or be left out and counted; what the loader does not read (tar
headers, padding, KEY.json) must leave the batches as they were and be found by the manifest's sha256. Prints Markdown.
"""

from __future__ import annotations

import collections
import faulthandler
import io
import itertools
import logging
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from data_shards.command import InputError
from data_shards.files import sha256_file
from data_shards.loader import Batch, TrainingLoader, evaluation_batches
from data_shards.manifest import ShardSet
from data_shards.pack import pack
from data_shards.reader import CorruptSample

SIZE = 40
TRIAL_SECONDS = 120  # a trial takes well under one; a hang ends the process with the threads' stacks
Damage = Callable[[Path, np.random.Generator], None]


def make_set(folder: Path, seed: int = 0, images: int = 30, shard_size: int = 8) -> Path:
    """A packed set of small JPEGs of noise (2 to 4 kB), half of them called fake."""
    rng = np.random.default_rng(seed)
    rows = []
    (folder / "faces").mkdir(parents=True)
    for number in range(images):
        name = f"{number:03d}.jpg"
        noise = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        noise.save(folder / "faces" / name, quality=int(rng.integers(60, 95)))
        kind = ("real", "pristine") if number % 2 else ("fake", "swap")
        rows.append(
            {"path": name, "label": kind[0], "method": kind[1], "group": name, "dataset": "d", "split": "train"}
        )
    out = folder / "sets"
    return pack(pd.DataFrame(rows), folder / "faces", out, seed=seed, shard_size=shard_size, workers=1)["train"]


# --- kinds of damage: each changes the set in place, for certain


def _shard(folder: Path, rng: np.random.Generator) -> Path:
    return folder / str(rng.choice(sorted(file.name for file in folder.glob("*.tar"))))


def _rewrite(shard: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    change(members)
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _image(members: list, rng: np.random.Generator) -> int:
    return int(rng.choice([i for i, (member, _) in enumerate(members) if member.name.endswith(".jpg")]))


def cut(folder: Path, rng: np.random.Generator) -> None:
    shard = _shard(folder, rng)
    os.truncate(shard, int(rng.integers(0, shard.stat().st_size)))


def flipped_bit(folder: Path, rng: np.random.Generator) -> None:
    shard = _shard(folder, rng)
    data = bytearray(shard.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    shard.write_bytes(data)


def zeroed_block(folder: Path, rng: np.random.Generator) -> None:
    shard = _shard(folder, rng)
    data = bytearray(shard.read_bytes())
    blocks = [b for b in range(0, len(data), 512) if any(data[b : b + 512])]
    block = int(rng.choice(blocks))
    data[block : block + 512] = bytes(512)
    shard.write_bytes(data)


def swapped_images(folder: Path, rng: np.random.Generator) -> None:
    def change(members: list) -> None:
        a = _image(members, rng)
        b = _image([m if m[1] != members[a][1] else (m[0].replace(name="-"), m[1]) for m in members], rng)
        members[a], members[b] = (members[a][0], members[b][1]), (members[b][0], members[a][1])

    _rewrite(_shard(folder, rng), change)


def missing_member(folder: Path, rng: np.random.Generator) -> None:
    _rewrite(_shard(folder, rng), lambda members: members.pop(int(rng.integers(len(members)))))


def extra_member(folder: Path, rng: np.random.Generator) -> None:
    def change(members: list) -> None:
        members.insert(int(rng.integers(len(members) + 1)), (tarfile.TarInfo("extra.jpg"), rng.bytes(700)))

    _rewrite(_shard(folder, rng), change)


def truncated_image(folder: Path, rng: np.random.Generator) -> None:
    def change(members: list) -> None:
        chosen = _image(members, rng)
        member, data = members[chosen]
        members[chosen] = member, data[: int(rng.integers(len(data)))]

    _rewrite(_shard(folder, rng), change)


def missing_shard(folder: Path, rng: np.random.Generator) -> None:
    _shard(folder, rng).unlink()


def exchanged_shards(folder: Path, rng: np.random.Generator) -> None:
    a, b = rng.choice(sorted(file.name for file in folder.glob("*.tar")), 2, replace=False)
    for source, target in ((a, "-"), (b, a), ("-", b)):
        (folder / str(source)).rename(folder / str(target))


def stale_manifest(folder: Path, rng: np.random.Generator) -> None:
    """The shards were packed again from other images; manifest and index, or the manifest only, stayed behind."""
    other = folder.parent / "other"
    for file in make_set(other, seed=int(rng.integers(1, 1000))).iterdir():
        if file.suffix == ".tar" or (file.suffix == ".parquet" and rng.random() < 0.5):
            shutil.copy(file, folder / file.name)
    shutil.rmtree(other)


def wrong_label(folder: Path, rng: np.random.Generator) -> None:
    """In the index, or in a sample's KEY.json."""
    if rng.random() < 0.5:
        index = pq.read_table(folder / "index.parquet").to_pandas()
        row = int(rng.integers(len(index)))
        index.loc[row, "label"] = "fake" if index.loc[row, "label"] == "real" else "real"
        index.to_parquet(folder / "index.parquet", row_group_size=8)
        return

    def change(members: list) -> None:
        chosen = int(rng.choice([i for i, (member, _) in enumerate(members) if member.name.endswith(".json")]))
        member, data = members[chosen]
        label = (b'"real"', b'"fake"') if b'"real"' in data else (b'"fake"', b'"real"')
        members[chosen] = member, data.replace(*label)

    _rewrite(_shard(folder, rng), change)


KINDS: tuple[Damage, ...] = (
    *(cut, flipped_bit, zeroed_block, swapped_images, missing_member, extra_member, truncated_image),
    *(missing_shard, exchanged_shards, stale_manifest, wrong_label),
)


# --- one trial


class Outcome(NamedTuple):
    """What the loader made of the damage."""

    result: str
    """``refused`` at opening, ``raised`` while reading, ``untouched`` (same batches; sha256 finds it) or ``SILENT``."""
    skipped: int = 0
    """Samples left out and counted with on_bad="skip"."""
    message: str = ""


def samples(batches: Iterable[Batch]) -> list[tuple[int, bytes, float]]:
    """Index, pixels and label of every sample in batches of at most one."""
    return [(int(b.index), b.images.numpy().tobytes(), float(b.labels)) for b in batches if len(b)]


def trial(clean: Path, damage: Damage, rng: np.random.Generator, workspace: Path) -> Outcome:
    """Damage a copy of ``clean`` and read it. The copy is removed."""
    folder = workspace / "copy"
    shutil.copytree(clean, folder)
    faulthandler.dump_traceback_later(TRIAL_SECONDS, exit=True)
    try:
        shards = ShardSet.open(folder)
        whole = set(samples(evaluation_batches(shards, batch_size=1, image_size=SIZE)))
        if rng.random() < 0.5:  # while it is being read
            return _read_damaged(shards, whole, int(rng.integers(len(whole))), lambda: damage(folder, rng))
        damage(folder, rng)  # or before it is opened
        try:
            shards = ShardSet.open(folder)
        except InputError as error:
            return Outcome("refused", message=str(error))
        return _read_damaged(shards, whole, 0, lambda: None)
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder)


def _read_damaged(shards: ShardSet, whole: set, before: int, damage: Callable[[], None]) -> Outcome:
    """Read ``before`` samples, damage, read until every sample was asked for once more; then evaluate."""
    options: dict = {"batch_size": 1, "image_size": SIZE}
    skip: dict = {"on_bad": "skip", "max_bad_share": 1.0}
    asked = 2 * shards.samples - before
    with (
        TrainingLoader(shards, seed=0, **options) as strict,
        TrainingLoader(shards, seed=0, **options, **skip) as skips,
    ):
        for loader in (strict, skips):
            samples(itertools.islice(loader, before))
        damage()
        kept = samples(itertools.islice(skips, asked))
        silent = skips.bad + len(kept) != asked
        raised = ""
        try:
            kept += samples(itertools.islice(strict, asked))
        except CorruptSample as error:
            raised = str(error)
            silent |= error.key not in raised or os.path.basename(error.shard) not in raised
        try:
            kept += samples(evaluation_batches(shards, **options, **skip))
        except InputError as error:  # the index is not the one that was opened
            silent |= "index.parquet" not in str(error)
    found = any(_differs(shards.shard_path(n), shard["sha256"]) for n, shard in enumerate(shards.shards))
    found |= _differs(shards.index_path, shards.manifest["index"]["sha256"])
    if silent or not found or not whole.issuperset(kept):
        return Outcome("SILENT", skips.bad, raised)
    return Outcome("raised" if raised or skips.bad else "untouched", skips.bad, raised)


def _differs(path: Path, sha256: str) -> bool:
    return not path.is_file() or sha256_file(path) != sha256


def main(trials: int = 1000) -> None:
    logging.getLogger("data_shards.loader").setLevel(logging.ERROR)  # one line per sample left out
    counts: dict[str, collections.Counter] = {damage.__name__: collections.Counter() for damage in KINDS}
    skipped: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as workspace:
        clean = make_set(Path(workspace) / "clean")
        for number in range(trials):
            damage = KINDS[number % len(KINDS)]
            outcome = trial(clean, damage, np.random.default_rng(number), Path(workspace))
            counts[damage.__name__][outcome.result] += 1
            skipped[damage.__name__] += outcome.skipped
    results = ("refused", "raised", "untouched", "SILENT")
    columns = ("refused at opening", "raised, with shard and key", "not read, found by sha256", "silent")
    print(f"| damage | trials | {' | '.join(columns)} | left out by `skip` |")
    print("|---" * (len(columns) + 3) + "|")
    for kind, count in counts.items():
        print(f"| {kind} | {count.total()} | {' | '.join(str(count[r]) for r in results)} | {skipped[kind]} |")
    silent = sum(count["SILENT"] for count in counts.values())
    print(f"\n{trials} trials, {silent} silent, none hung (limit {TRIAL_SECONDS} s each).")
    sys.exit(1 if silent else 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
