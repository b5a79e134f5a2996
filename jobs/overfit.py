"""Scores of one finished, scored trial, from its two checkpoints and its curve: ``RUN/evaluation.json`` and
``RUN/overfitting.json``. Only what a sweep compares: ``python -m jobs.evaluate run=RUN`` gives all detection metrics.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.faces import LABELS
from data_shards.files import digest, sha256_file, write_json
from data_shards.manifest import ShardSet
from evaluation.score import Score
from jobs import evaluate
from jobs.subset import TRUE_LABEL

SCHEMA = 3
"""Raised when the files hold other numbers than an earlier version wrote."""
PARTS = ("curve", "last_gaps", "drops")


def measure(run: Path, train: Path, names: Sequence[str], *, replicates: int) -> None:
    """Write ``evaluation.json`` (AUC and gaps of the selected checkpoint, as jobs.evaluate reads them) and
    ``overfitting.json``: ``curve`` (see evaluation.overfitting_curves; with flipped labels in ``train`` also the share
    of them that the last checkpoint repeats), ``last_gaps`` (the gaps at the last checkpoint) and ``drops`` (selected
    minus last checkpoint). Skipped when they are there for the same files.

    ``names``: the sets. Scores of others may lie there, from when the sweep file had them."""
    scored = {name: [run / "scores" / f"{name}{suffix}.parquet" for suffix in ("", "-last")] for name in names}
    files = [file for pair in scored.values() for file in pair] + [run / "metrics.jsonl"]
    inputs = digest([SCHEMA, replicates, {file.name: sha256_file(file) for file in files}])
    evaluation, overfitting = run / "evaluation.json", run / "overfitting.json"
    current = overfitting.is_file() and json.loads(overfitting.read_text(encoding="utf-8"))["inputs"] == inputs
    if evaluation.is_file() and current:
        return
    best, last = ({name: evaluate.read_scores(pair[at]) for name, pair in scored.items()} for at in (0, 1))
    scores = _scores(best, last, replicates)
    scores["curve"] = [*_curve_scores(run, best["validation"]), *_memorisation(train, last)]
    plain = {part: [score.to_dict() for score in scores[part]] for part in ("auc", "gaps", *PARTS)}
    detection = {name: [auc] for name, auc in zip(names, plain["auc"], strict=True)}
    write_json(evaluation, {"inputs": inputs, **_selected(best, detection, plain["gaps"])})
    write_json(overfitting, {"inputs": inputs, **{part: plain[part] for part in PARTS}})


def _scores(best: dict[str, Any], last: dict[str, Any], replicates: int) -> dict[str, list[Score]]:
    """``auc`` and ``gaps`` of the selected checkpoint, ``last_gaps`` and ``drops``: one resampling of each set and
    checkpoint serves all. Most of the time of a short trial would else be bootstrap."""
    from evaluation.overfitting import auc_score, drop, gap_between, independent_seeds, resampled_auc

    seeds = dict(zip(best, independent_seeds(len(best)), strict=True))
    at_best, at_last = (
        {name: resampled_auc(scored, replicates=replicates, seed=seeds[name]) for name, scored in each.items()}
        for each in (best, last)
    )
    unseen = [name for name in best if name not in evaluate.IN_DOMAIN]
    pairs = [("train", "validation"), ("validation", "test"), *(("test", name) for name in unseen)]
    gaps, last_gaps = ([gap_between(f"{a} − {b}", auc[a], auc[b]) for a, b in pairs] for auc in (at_best, at_last))
    drops = [drop(name, at_best[name], at_last[name]) for name in best if name != "train"]
    return {"auc": list(map(auc_score, at_best.values())), "gaps": gaps, "last_gaps": last_gaps, "drops": drops}


def _selected(best: dict[str, Any], detection: dict[str, Any], gaps: list[dict[str, Any]]) -> dict[str, Any]:
    from evaluation.detection import balanced_threshold

    label, logit, _ = best["validation"]
    return {"threshold": balanced_threshold(label, logit), "detection": detection, "gaps": gaps}


def _curve_scores(run: Path, validation: tuple[Any, Any, Any]) -> list[Score]:
    """Gains below the standard error of the best validation AUC are none. Groups are what is independent: frames of a
    video count as one."""
    from evaluation.checks import components
    from evaluation.overfitting_curves import auc_error, curve_scores

    rows, (label, _, group) = curve(run), validation
    epoch, train, auc = ([row[key] for row in rows] for key in ("epoch", "train/auc", "validation/auc"))
    component = components(group, len(label))
    fakes, reals = (len(np.unique(component[label == one])) for one in (1, 0))
    return curve_scores(epoch, train, auc, noise=auc_error(max(auc), fakes, reals))


def _memorisation(train: Path, last: dict[str, Any]) -> list[Score]:
    """Nothing where the training set has its true labels."""
    from evaluation.overfitting_memorisation import memorisation

    shards = ShardSet.open(train)
    if TRUE_LABEL not in shards.column_names:
        return []
    true = (shards.column(TRUE_LABEL) == LABELS[1]).astype(int)
    if (true == shards.labels).all():
        return []
    _, logit, group = last["train"]
    return memorisation((true, logit, group), true != shards.labels, last["validation"])


def read(run: Path) -> dict[str, list[Score]]:
    """What ``measure`` found, by part."""
    values = json.loads((run / "overfitting.json").read_text(encoding="utf-8"))
    return {part: [Score.from_dict(score) for score in values[part]] for part in PARTS}


def curve(run: Path) -> list[dict[str, Any]]:
    """The evaluations among the rows of metrics.jsonl."""
    from trainer.state import read_metrics

    return [row for row in read_metrics(run) if "validation/auc" in row and "train/auc" in row]
