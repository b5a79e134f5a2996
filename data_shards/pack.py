"""Face table or folder → shard sets, one per split.

The tars of a set are independent units: each is a pure function of its rows and the image files, so that any number
of processes writes the same bytes, and a killed run continues with the tars that it had finished.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_shards import duplicates
from data_shards.command import InputError, run
from data_shards.faces import LABELS, SPLITS
from data_shards.files import atomic, flush_to_disk, sha256_file, write_json
from data_shards.manifest import INDEX, MANIFEST, SCHEMA, ShardSet, content_digest, shard_name
from data_shards.pack_plan import Plan, make_plans
from data_shards.shard import write_shard
from data_shards.sources import FaceBatches, of_frame, only_dataset, open_faces
from data_shards.splits import balance, check_fractions
from data_shards.table import Tally, temporary_files

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}
LOG_EVERY = 30.0
"""Seconds between lines about the progress where there is no terminal."""


def pack(
    faces: pd.DataFrame | FaceBatches,
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    shard_size: int = 1000,
    fractions: dict[str, float] | None = None,
    workers: int | None = None,
    decode: bool = True,
) -> dict[str, Path]:
    """Write one shard set per split to ``out/SPLIT``: the same bytes for the same faces, seed and shard size.

    Image bytes are passed through. Samples are shuffled over the whole split, by a hash of seed and path. A set that
    is already there, from the same rows and unchanged images, is left alone. After a kill the next call continues
    with the shards that were finished. Pictures that are in several splits, or have both labels, are warned of. Memory
    depends on the numbers of groups, videos and shards, not of images: rows are put into their order on the disk of
    ``out``.

    Args:
        faces: face table (see docs/DESIGN.md), or its batches; its splits are used if it has some.
        root: folder that relative paths start from; paths below it are stored relative to it.
        out: folder of the sets.
        seed: of the shuffle and of the splits.
        shard_size: samples per shard; the last one holds the rest.
        fractions: wanted splits, default FRACTIONS; ``{"test": 1}`` for a dataset that is never trained on.
        workers: processes; default: the cores this process may use. More than one need an importable ``__main__``.
        decode: decode every image; False checks headers and end markers of JPEG files only, and takes half of the
            time. The output is the same.

    Returns:
        Folder of each split.

    Raises:
        InputError: a wrong row or image, or another shard set at ``out``.
    """
    if shard_size < 1:
        raise InputError(f"shard_size={shard_size} must be at least 1")
    source = faces if isinstance(faces, FaceBatches) else of_frame(faces)
    with temporary_files(Path(out)) as new_file:
        plans = make_plans(
            source, Path(root), Path(out), seed, shard_size, FRACTIONS if fractions is None else fractions, new_file
        )
        done = {plan.split: _already_packed(plan) for plan in plans}
        strangers = [split for split in SPLITS if split not in done and (Path(out) / split).exists()]
        if strangers:
            raise InputError(f"{Path(out) / strangers[0]} is of another pack, its groups may leak; give another out=")
        for plan in plans:
            if done[plan.split]:
                _remove_partial(plan)
            else:
                _write_set(plan, decode, workers or cores())
            plan.rows.close()
        if not all(done.values()):
            duplicates.warn((ShardSet.open(plan.target) for plan in plans), new_file)
    return {plan.split: plan.target for plan in plans}


def cores() -> int:
    """CPU cores that this process may use (all, where the system does not tell)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _already_packed(plan: Plan) -> bool:
    """Whether the target holds this plan of unchanged images; InputError if it holds anything else."""
    if not plan.target.exists():
        return False
    found = ShardSet.open(plan.target)
    if found.manifest["plan"] != plan.digest:
        raise InputError(f"{plan.target} holds a shard set of other rows or settings; give another out= or remove it")
    packed = (plan.target / MANIFEST).stat().st_mtime
    for batch in found.batches(["path", "length", "sha256"]):
        for path, length, sha256 in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            status = os.stat(plan.root / path)
            if status.st_size != length or (status.st_mtime >= packed and sha256_file(plan.root / path) != sha256):
                raise InputError(
                    f"{path} has changed since {plan.target} was packed; give another out= or remove that set"
                )
    return True


def _write_set(plan: Plan, decode: bool, workers: int) -> None:
    """Write the tars, then index and manifest, in the partial folder; rename the whole."""
    shards = -(-len(plan.rows) // plan.shard_size)
    with _locked(plan), _progress(plan, shards) as advance:
        records: list[dict[str, Any]] = [{}] * shards
        folder, flushed = plan.partial / "set", []
        with ThreadPoolExecutor(1, "flush") as disk:  # the processes do not wait for the disk
            for number, record in in_processes(write_shard, plan.shards(decode), min(workers, shards)):
                records[number] = record
                flushed.append(disk.submit(flush_to_disk, folder / record["file"]))
                advance(record["samples"])
            _write_index(plan, len(records))
            for file in flushed:
                file.result()
        _write_manifest(plan, records)
        for stray in {file.name for file in folder.iterdir()} - {INDEX, MANIFEST, *(r["file"] for r in records)}:
            (folder / stray).unlink()
        os.rename(folder, plan.target)
        shutil.rmtree(plan.partial, ignore_errors=True)  # another process may have begun: see _remove_partial


@contextmanager
def _progress(plan: Plan, shards: int) -> Iterator[Callable[[int], Any]]:
    """A function that is told how many more images are packed: a bar on a terminal, a line now and then in a log."""
    from tqdm import tqdm

    total = len(plan.rows)
    if sys.stderr.isatty():
        with tqdm(total=total, unit="img", desc=plan.split) as bar:
            yield bar.update
        return
    print(f"packing {total} images into {shards} shards of {plan.target}", file=sys.stderr)
    began = said = time.monotonic()
    done = 0

    def advance(images: int) -> None:
        nonlocal said, done
        done, now = done + images, time.monotonic()
        if now - said >= LOG_EVERY:
            said, rate = now, done / (now - began)
            left = tqdm.format_interval((total - done) / rate)
            print(f"{plan.target}: {done} of {total} images, {rate:.0f} a second, {left} left", file=sys.stderr)

    yield advance
    print(f"packed {plan.target}", file=sys.stderr)


@contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """The partial folder for this process alone. It stays after a failure if a shard in it is finished."""
    with _lock(plan):
        try:
            if plan.target.exists():  # finished by another process since we looked
                raise InputError(f"{plan.target} was packed by another process just now; run again to compare")
            yield
        except BaseException:
            if not any((plan.partial / "parts").glob("*.parquet")):
                left = plan.partial.rename(plan.partial.with_name(f"{plan.partial.name}.{os.getpid()}"))
                shutil.rmtree(left)  # under a name of its own: another process may be about to begin
            raise


def _lock(plan: Plan) -> IO[str]:
    """The lock of the partial folder, which is made; again where a process that gave up took the folder away while this
    one came."""
    file = plan.partial / "lock"
    while True:
        with suppress(FileNotFoundError), ExitStack() as closing:
            for name in ("set", "parts"):
                (plan.partial / name).mkdir(parents=True, exist_ok=True)
            lock = closing.enter_context(open(file, "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process is packing {plan.target}; wait for it") from None
            if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                closing.pop_all()
                return lock


def _remove_partial(plan: Plan) -> None:
    """Of a set that is finished: what a kill after the last rename left. Not if a process still works there."""
    with suppress(FileNotFoundError, BlockingIOError), open(plan.partial / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(plan.partial, ignore_errors=True)


def in_processes(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Results in order of completion; at most two tasks per process are in memory. A failure cancels the rest."""
    if workers == 1:
        yield from map(function, tasks)
        return
    # No forks of this process: it has threads (Arrow's), and a fork may inherit a lock that one of them holds.
    pool: Executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"))
    try:
        running: set[Future[Any]] = set()
        for task in tasks:
            running.add(pool.submit(function, task))
            if len(running) >= 2 * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_index(plan: Plan, shards: int) -> None:
    """One row group per shard, read and written one by one."""
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    with atomic(plan.partial / "set" / INDEX) as temporary:
        try:
            for shard in range(shards):
                table = pq.read_table(plan.partial / "parts" / f"{shard_name(shard)}.parquet").replace_schema_metadata()
                if writer is None:
                    writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=len(table))
        finally:
            if writer is not None:
                writer.close()


def _write_manifest(plan: Plan, records: list[dict[str, Any]]) -> None:
    folder = plan.partial / "set"
    manifest = {
        "schema": SCHEMA,
        "split": plan.split,
        "samples": len(plan.rows),
        "bytes": sum(record["bytes"] for record in records),
        "labels": dict(sorted(plan.rows.counts["label"].items())),
        "methods": dict(sorted(plan.rows.counts["method"].items())),
        "datasets": dict(sorted(plan.rows.counts["dataset"].items())),
        "groups": plan.groups,
        "seed": plan.seed,
        "plan": plan.digest,
        "shards": records,
        "index": {"file": INDEX, "sha256": sha256_file(folder / INDEX)},
        "digest": content_digest(plan.split, [record["sha256"] for record in records]),
    }
    write_json(folder / MANIFEST, manifest)


@dataclass
class PackConfig:
    """Pack a face table (CSV, Parquet) or a folder tree into shard sets, one per split.

    A folder tree is real/VIDEO/… and fake/METHOD/VIDEO/…, or without videos real/… and fake/[METHOD/]…
    Splits are those of the table, else made from the fractions: no group straddles, labels and methods are balanced.
    """

    faces: str
    """Face table or folder."""
    out: str
    """Folder of the shard sets; OUT/train, OUT/validation and OUT/test are made."""
    root: str | None = None
    """Folder that the table's relative paths start from; default: the folder of the table."""
    dataset: str | None = None
    """Name of the dataset, if the table has no such column."""
    layout: str | None = None
    """Layout of a public dataset: celeb-df, deepfakebench[-test], dfdc[-test], faceforensics[-clean]."""
    only: str | None = None
    """Take this dataset's rows of a table that holds several."""
    seed: int = 0
    """Of the splits and of the shuffle."""
    shard_size: int = 1000
    """Samples per shard."""
    workers: int = field(default_factory=cores)
    """Processes; the output is the same for any number."""
    decode: bool = True
    """Decode every image; false checks headers and end markers of JPEG files only, in half of the time."""
    train: float = FRACTIONS["train"]
    """Fraction of the training split."""
    validation: float = FRACTIONS["validation"]
    """Fraction of the validation split."""
    test: float = FRACTIONS["test"]
    """Fraction of the test split; train=0 validation=0 test=1 for a dataset that is never trained on."""


def pack_command(config: PackConfig) -> None:
    """Read, split, pack, and print what came out."""
    if config.workers < 1:
        raise InputError(f"workers={config.workers} must be at least 1")
    fractions = check_fractions({name: getattr(config, name) for name in SPLITS})
    source = Path(config.faces)
    faces = open_faces(source, root=config.root, dataset=config.dataset, layout=config.layout)
    if config.only is not None:
        faces = only_dataset(faces, config.only, source)
    root = Path(config.root) if config.root else (source if source.is_dir() else source.parent)
    sets = pack(
        faces,
        root,
        config.out,
        seed=config.seed,
        shard_size=config.shard_size,
        fractions=fractions,
        workers=config.workers,
        decode=config.decode,
    )
    packed = [ShardSet.open(path) for path in sets.values()]
    groups = _groups_of(packed)
    wanted = None if "split" in faces.types else fractions
    print(balance(groups, wanted, groups["images"]).round(4).to_string(index=False))
    for found in packed:
        images = ", ".join(f"{found.manifest['labels'][label]} {label}" for label in LABELS)
        groups, shards = found.manifest["groups"], len(found.shards)
        print(f"{found.path}: {images}, {shards} shards, {groups} groups, {found.digest[:12]}")


def _groups_of(sets: list[ShardSet]) -> pd.DataFrame:
    """How many images each group has: columns ``label, method, group, images`` and ``split``."""
    import pandas as pd

    def tally(shards: ShardSet) -> pd.DataFrame:
        groups = Tally(("label", "method", "group"))
        for batch in shards.batches(["label", "method", "group"]):
            groups.add(batch)
        return groups.frame().assign(split=shards.split)

    return pd.concat([tally(shards) for shards in sets], ignore_index=True)


if __name__ == "__main__":
    run(PackConfig, pack_command)
