"""Overfitting of one finished, scored trial: ``RUN/overfitting.json``, from its curve and its two checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_shards.faces import LABELS
from data_shards.files import digest, sha256_file, write_json
from data_shards.manifest import ShardSet
from evaluation.score import Score
from jobs import evaluate
from jobs.subset import TRUE_LABEL

PARTS = ("curve", "last_gaps", "drops")


def measure(run: Path, train: Path, *, replicates: int) -> Path:
    """Write ``curve`` (see evaluation.overfitting_curves; with flipped labels in ``train`` also the share of them that
    the last checkpoint repeats), ``last_gaps`` (the gaps of evaluation.json, at the last
    checkpoint) and ``drops`` (selected minus last checkpoint). Skipped when it is there for the same files."""
    from evaluation.overfitting import gap
    from evaluation.overfitting_curves import curve_scores, drop, memorisation

    files = sorted([*(run / "scores").glob("*.parquet"), run / "metrics.jsonl"])
    inputs = digest([replicates, {file.name: sha256_file(file) for file in files}])
    path = run / "overfitting.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["inputs"] == inputs:
        return path
    names = list(evaluate.read(run / "evaluation.json").detection)
    best = {name: evaluate.read_scores(run / "scores" / f"{name}.parquet") for name in names}
    last = {name: evaluate.read_scores(run / "scores" / f"{name}-last.parquet") for name in names}
    unseen = [name for name in names if name not in evaluate.IN_DOMAIN]
    pairs = [("train", "validation"), ("validation", "test"), *(("test", name) for name in unseen)]
    rows = curve(run)
    found = {
        "curve": curve_scores(*([row[key] for row in rows] for key in ("epoch", "train/auc", "validation/auc"))),
        "last_gaps": [gap(f"{a} − {b}", last[a], last[b], replicates=replicates) for a, b in pairs],
        "drops": [
            drop(name, label, logit, last[name][1], group, replicates=replicates)
            for name, (label, logit, group) in best.items()
            if name != "train"
        ],
    }
    shards = ShardSet.open(train)
    if TRUE_LABEL in shards.column_names:
        true = (shards.column(TRUE_LABEL) == LABELS[1]).astype(int)
        if (true != shards.labels).any():
            found["curve"].append(memorisation(true, true != shards.labels, last["train"][1]))
    write_json(path, {"inputs": inputs, **{part: [score.to_dict() for score in found[part]] for part in PARTS}})
    return path


def read(run: Path) -> dict[str, list[Score]]:
    """What ``measure`` found, by part."""
    values = json.loads((run / "overfitting.json").read_text(encoding="utf-8"))
    return {part: [Score.from_dict(score) for score in values[part]] for part in PARTS}


def curve(run: Path) -> list[dict[str, Any]]:
    """The evaluations among the rows of metrics.jsonl."""
    from trainer.state import read_metrics

    return [row for row in read_metrics(run) if "validation/auc" in row and "train/auc" in row]
