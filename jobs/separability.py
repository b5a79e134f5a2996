"""Separability scores of a features file: ``python -m jobs.separability features=FILE.parquet out=scores.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import InputError, run
from data_shards.files import digest, write_json

if TYPE_CHECKING:
    import numpy as np

    from evaluation.panel import Panel

SCHEMA = 6
"""Raised when a file holds other scores, or other values of them, than an earlier version wrote."""


@dataclass
class Separability:
    """How well frozen features separate real from fake without supervision."""

    features: Path
    """Features file, written by trainer.features."""
    out: Path
    """JSON file for the scores."""
    replicates: int = 1000
    """Bootstrap replicates behind every interval, and permutations behind every p-value."""
    shards: Path | None = None
    """Shard set of the features: also asks whether the label separates without brightness, sharpness, compression …;
    if its face table has a column video, the permutations keep videos whole."""
    nuisances: list[str] = field(default_factory=list)
    """With shards: further columns of its face table that may come along with the label."""
    device: str = "cpu"
    """Where pairwise distances are computed: cpu, or a torch device such as cuda."""
    chunk: int = 0
    """Distances held at a time, which bounds memory; 0: those of 256 samples, and at least 4 million on a CPU."""


def separability(
    features: Path,
    out: Path,
    *,
    replicates: int,
    nuisances: Mapping[str, np.ndarray] | None = None,
    video: np.ndarray | None = None,
    device: str = "cpu",
    chunk: int = 0,
) -> Path:
    """Write the scores of ``features`` to ``out``; skipped when they are there already.

    The name of a features file carries the digest of all that determines its values, so it stands for them; not of
    ``nuisances`` and ``video``, arrays ``(n,)`` in the order of its samples. ``device`` and ``chunk`` change results by
    rounding only."""
    columns = {name: values.tolist() for name, values in (nuisances or {}).items()}
    inputs = digest([SCHEMA, features.name, replicates, columns, None if video is None else video.tolist()])
    if out.is_file() and json.loads(out.read_text(encoding="utf-8"))["inputs"] == inputs:
        return out
    from evaluation.arrays import Compute
    from evaluation.panel import panel
    from trainer.features import read_features

    data = read_features(features)
    with _progress(out.stem) as progress:
        try:
            arrays = (data.features, data.label, data.group, data.method, nuisances)
            compute = Compute(device, chunk)
            found = panel(*arrays, video=video, replicates=replicates, progress=progress, compute=compute)
        except ValueError as error:
            raise InputError(f"{features}: {error}") from None
    write_json(
        out,
        {
            "inputs": inputs,
            "schema": SCHEMA,
            "features": features.name,
            "num_features": data.provenance["num_features"],
            "parameters": data.provenance["parameters"],
            **found.to_dict(),
        },
    )
    return out


class _progress:
    """A bar over the steps of the panel; one line where stderr is no terminal."""

    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        quiet = not sys.stderr.isatty()
        if quiet:
            print(f"separability of {title}", file=sys.stderr)
        self.bar = tqdm(desc=f"separability of {title}", unit="step", disable=quiet)

    def __call__(self, done: int, total: int, what: str) -> None:
        self.bar.total = total
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.update(done - self.bar.n)

    def __enter__(self) -> _progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()


def read(path: Path) -> tuple[Panel | None, bool]:
    """What a file written by :func:`separability` holds, and whether this version wrote it. None where the file is too
    old to tell; a benchmark run makes it again."""
    from evaluation.panel import Panel

    values = json.loads(path.read_text(encoding="utf-8"))
    return Panel.from_dict(values) if "nulls" in values else None, values.get("schema") == SCHEMA


def main(config: Separability) -> None:
    columns = {}
    if config.shards:
        from data_shards.manifest import ShardSet
        from jobs.nuisances import nuisances

        shards = ShardSet.open(config.shards)
        found = nuisances(shards, config.features.parent, config.nuisances)
        columns = {"nuisances": found, "video": shards.videos}
    options = {"replicates": config.replicates, "device": config.device, "chunk": config.chunk}
    out = separability(config.features, config.out, **columns, **options)
    found, _ = read(out)
    for score in found.scores:
        null = found.null(score.name)
        p = f"  p={null.p:.3g}" if null else ""
        print(f"{score.name:28} {score.value:9.4f}  [{score.low:.4f}, {score.high:.4f}]  n={score.n}{p}")
    for each in found.confounds:
        print(f"{each.name}: {each.verdict}")
    print(out)


if __name__ == "__main__":
    run(Separability, main)
