"""Detection metrics and gaps of a scored run: ``python -m jobs.evaluate run=runs/NAME/RUN``.

Reads ``scores/*.parquet``, writes ``evaluation.json``. The threshold of the balanced accuracy comes from the
validation scores alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.command import InputError, run
from data_shards.files import digest, sha256_file, write_json
from evaluation.score import Score

SCHEMA = 4
"""Raised when the file holds other numbers than an earlier version wrote."""
IN_DOMAIN = ("train", "validation", "test")


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluation.json`` holds."""

    threshold: float
    detection: dict[str, list[Score]]
    gaps: list[Score]
    slices: dict[str, dict[str, Score]]
    """Test and unseen data name → part → AUC. Parts: ``per video`` (where the scores have a column ``video``, with
    several samples of one), each method (all real samples against its fakes, where there are several methods), and each
    ``COLUMN=VALUE`` of the subgroups, and of ``dataset`` where there are several, that holds both classes."""
    reliability: dict[str, list[tuple[float, float, int]]]
    """Data name → reliability curve, see :func:`evaluation.detection.reliability`."""


@dataclass
class Evaluate:
    """Detection metrics of a run whose shard sets have been scored."""

    run: Path
    replicates: int = 1000
    """Bootstrap replicates behind every interval."""
    subgroups: list[str] = field(default_factory=list)
    """Columns of the scores (see columns of trainer.predict) within whose values the AUC is wanted too."""


def evaluate(run_directory: Path, *, replicates: int, subgroups: Sequence[str] = ()) -> Path:
    """Write ``evaluation.json``: ``threshold``, ``detection`` (data name → scores) and ``gaps``. Skipped when it is
    there for the same score files."""
    found = {path.stem: path for path in sorted((run_directory / "scores").glob("*.parquet"))}
    # NAME-last holds the scores of NAME at the last instead of the selected checkpoint.
    files = {
        name: path
        for name, path in found.items()
        if not (name.endswith("-last") and name.removesuffix("-last") in found)
    }
    names = [*IN_DOMAIN, *(name for name in files if name not in IN_DOMAIN)]
    missing = [name for name in IN_DOMAIN if name not in files]
    if missing:
        raise InputError(
            f"{run_directory}: no scores of {missing[0]!r}; make them with: "
            f"python -m trainer.predict run={run_directory} shards='{{{missing[0]}: SHARD_SET}}'"
        )
    inputs = digest([SCHEMA, replicates, {name: sha256_file(files[name]) for name in names}, *subgroups])
    path = run_directory / "evaluation.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["inputs"] == inputs:
        return path
    scored = {name: read_scores(files[name]) for name in names}
    found = _evaluation(scored, replicates)
    judged = [name for name in names if name not in ("train", "validation")]
    slices = {name: _slices(files[name], replicates, subgroups) for name in judged}
    write_json(path, {"inputs": inputs, **found, "slices": slices})
    return path


def read(path: Path) -> Evaluation:
    """The evaluation of a run."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Evaluation(
        threshold=values["threshold"],
        detection={name: [Score.from_dict(s) for s in scores] for name, scores in values["detection"].items()},
        gaps=[Score.from_dict(s) for s in values["gaps"]],
        slices={
            data: {name: Score.from_dict(score) for name, score in found.items()}
            for data, found in values.get("slices", {}).items()
        },
        reliability={data: [tuple(each) for each in curve] for data, curve in values.get("reliability", {}).items()},
    )


def read_scores(path: Path) -> tuple[Any, Any, Any]:
    """Arrays (label, logit, group) of a score file."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=["label", "logit", "group"])
    return tuple(table[name].to_numpy() for name in ("label", "logit", "group"))


def _evaluation(scored: dict[str, tuple[Any, Any, Any]], replicates: int) -> dict[str, Any]:
    from evaluation.delong import delong
    from evaluation.detection import balanced_threshold, detection, reliability
    from evaluation.overfitting import gap

    label, logit, _ = scored["validation"]
    threshold = balanced_threshold(label, logit)
    unseen = [name for name in scored if name not in IN_DOMAIN]
    pairs = [("train", "validation"), ("validation", "test"), *(("test", name) for name in unseen)]
    return {
        "threshold": threshold,
        "detection": {
            name: [
                score.to_dict()
                for score in (*detection(*arrays, threshold=threshold, replicates=replicates), delong(*arrays))
            ]
            for name, arrays in scored.items()
        },
        "reliability": {name: reliability(label, logit) for name, (label, logit, _) in scored.items()},
        "gaps": [gap(f"{a} − {b}", scored[a], scored[b], replicates=replicates).to_dict() for a, b in pairs],
    }


def _slices(path: Path, replicates: int, subgroups: Sequence[str]) -> dict[str, Any]:
    import numpy as np
    import pyarrow.parquet as parquet

    from evaluation.detection import detection, per_video

    table = parquet.read_table(path)
    label, logit, group, method = (table[name].to_numpy() for name in ("label", "logit", "group", "method"))
    parts = {}
    if "video" in table.column_names:
        videos = per_video(label, logit, group, table["video"].to_numpy())
        if len(videos[0]) < len(label):
            parts["per video"] = videos
    methods = np.unique(method[label == 1])
    for name in methods if len(methods) > 1 else []:
        kept = (label == 0) | (method == name)
        parts[str(name)] = label[kept], logit[kept], group[kept]
    for column in [name for name in (*subgroups, "dataset") if name in table.column_names]:
        values = table[column].to_numpy()
        known = sorted({value for value in values.tolist() if value is not None}, key=str)
        for value in known if column in subgroups or len(known) > 1 else []:
            kept = values == value
            if len(np.unique(label[kept])) == 2:
                parts[f"{column}={value}"] = label[kept], logit[kept], group[kept]
    scored = {name: detection(*arrays, threshold=0, replicates=replicates)[0] for name, arrays in parts.items()}
    return {name: score.to_dict() for name, score in scored.items()}


def main(config: Evaluate) -> None:
    path = evaluate(config.run, replicates=config.replicates, subgroups=config.subgroups)
    for name, scores in read(path).detection.items():
        print(
            name, *(f"{score.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" for score in scores), sep="  "
        )
    print(path)


if __name__ == "__main__":
    run(Evaluate, main)
