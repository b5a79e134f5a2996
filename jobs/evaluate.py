"""Detection metrics and gaps of a scored run: ``python -m jobs.evaluate run=runs/NAME/RUN``.

Reads ``scores/*.parquet``, writes ``evaluation.json``: metrics of the samples and of whole videos, of each set and of
its parts. The thresholds of balanced accuracy and F1 come from the validation scores alone, one for each level.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import InputError, run
from data_shards.files import digest, sha256_file, write_json
from evaluation.score import Score

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 5
"""Raised when the file holds other numbers than an earlier version wrote."""
IN_DOMAIN = ("train", "validation", "test")
PER_VIDEO = "per video"

Curve = list[tuple[float, float, int]]


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluation.json`` holds."""

    threshold: float
    detection: dict[str, list[Score]]
    gaps: list[Score]
    slices: dict[str, dict[str, list[Score]]]
    """Test and unseen data name → part → the scores of ``detection`` on it. Parts: each method (all real samples
    against its fakes, where there are several methods), and each ``COLUMN=VALUE`` of the subgroups, and of ``dataset``
    where there are several. A part without one of the classes has the score ``auc`` alone, undefined, which says so.
    The mean logits of the videos of the set are the part ``per video``, and those of a part ``PART, per video``, where
    the scores have a column ``video`` with several samples of one."""
    reliability: dict[str, Curve]
    """Data name → reliability curve, see :func:`evaluation.detection.reliability`."""
    video_threshold: float = math.nan
    """That of the mean logit of a video; NaN in the file of a trial or of an earlier version."""
    slice_reliability: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """As ``slices``."""


@dataclass
class Evaluate:
    """Detection metrics of a run whose shard sets have been scored."""

    run: Path
    replicates: int = 1000
    """Bootstrap replicates behind every interval."""
    subgroups: list[str] = field(default_factory=list)
    """Columns of the scores (see columns of trainer.predict) within whose values the metrics are wanted too."""


def evaluate(run_directory: Path, *, replicates: int, subgroups: Sequence[str] = ()) -> Path:
    """Write ``evaluation.json``, see :class:`Evaluation`. Skipped when it is there for the same score files."""
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
    thresholds = found["threshold"], _video_threshold(files["validation"], found["threshold"])
    judged = {
        name: _slices(files[name], *thresholds, replicates=replicates, subgroups=subgroups)
        for name in names
        if name not in ("train", "validation")
    }
    parts = {key: {name: each[key] for name, each in judged.items()} for key in ("slices", "slice_reliability")}
    write_json(path, {"inputs": inputs, **found, "video_threshold": thresholds[1], **parts})
    return path


def read(path: Path) -> Evaluation:
    """The evaluation of a run; an earlier version's file has the AUC alone of each part."""
    values = json.loads(path.read_text(encoding="utf-8"))

    def scores(found: list[dict[str, Any]] | dict[str, Any]) -> list[Score]:
        return [Score.from_dict(score) for score in (found if isinstance(found, list) else [found])]

    def curves(found: dict[str, Any]) -> dict[str, Curve]:
        return {name: [tuple(point) for point in curve] for name, curve in found.items()}

    return Evaluation(
        threshold=values["threshold"],
        detection={name: scores(found) for name, found in values["detection"].items()},
        gaps=scores(values["gaps"]),
        slices={
            data: {part: scores(found) for part, found in parts.items()}
            for data, parts in values.get("slices", {}).items()
        },
        reliability=curves(values.get("reliability", {})),
        video_threshold=values.get("video_threshold", math.nan),
        slice_reliability={data: curves(found) for data, found in values.get("slice_reliability", {}).items()},
    )


def read_scores(path: Path) -> tuple[Any, Any, Any]:
    """Arrays (label, logit, group) of a score file."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        table = file.read(columns=["label", "logit", "group"])
    return tuple(table[name].to_numpy() for name in ("label", "logit", "group"))


def _evaluation(scored: dict[str, tuple[Any, Any, Any]], replicates: int) -> dict[str, Any]:
    from evaluation.detection import balanced_threshold, reliability
    from evaluation.overfitting import gap

    label, logit, _ = scored["validation"]
    threshold = balanced_threshold(label, logit)
    unseen = [name for name in scored if name not in IN_DOMAIN]
    pairs = [("train", "validation"), ("validation", "test"), *(("test", name) for name in unseen)]
    return {
        "threshold": threshold,
        "detection": {name: _metrics(arrays, threshold, replicates) for name, arrays in scored.items()},
        "reliability": {name: reliability(label, logit) for name, (label, logit, _) in scored.items()},
        "gaps": [gap(f"{a} − {b}", scored[a], scored[b], replicates=replicates).to_dict() for a, b in pairs],
    }


def _metrics(arrays: tuple[Any, Any, Any], threshold: float, replicates: int) -> list[dict[str, Any]]:
    from evaluation.delong import delong
    from evaluation.detection import detection

    label = arrays[0]
    if label.min() == label.max():
        how = f"undefined: all of its samples are {'fake' if label[0] else 'real'}"
        return [Score("auc", math.nan, math.nan, math.nan, True, len(label), how).to_dict()]
    found = (*detection(*arrays, threshold=threshold, replicates=replicates), delong(*arrays))
    return [score.to_dict() for score in found]


def _video_threshold(validation: Path, of_samples: float) -> float:
    """Where the validation scores name no videos, each of its samples is one, and the threshold theirs."""
    import pyarrow.parquet as parquet

    from evaluation.detection import balanced_threshold, per_video

    if "video" not in parquet.read_schema(validation).names:
        return of_samples
    video = parquet.read_table(validation, columns=["video"])["video"].to_numpy()
    label, logit, _ = per_video(*read_scores(validation), video)
    return balanced_threshold(label, logit)


def _slices(
    path: Path, threshold: float, video_threshold: float, *, replicates: int, subgroups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """``slices`` and ``slice_reliability`` of a score file."""
    import numpy as np
    import pyarrow.parquet as parquet

    from evaluation.detection import per_video, reliability

    table = parquet.read_table(path)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    parts, scored = {"": np.ones(len(table), bool), **_parts(columns, subgroups)}, {}
    for part, kept in parts.items():
        arrays = tuple(columns[name][kept] for name in ("label", "logit", "group"))
        if part:
            scored[part] = arrays, threshold
        if "video" in columns and arrays[0].min() < arrays[0].max():
            videos = per_video(*arrays, columns["video"][kept])
            if len(videos[0]) < len(arrays[0]):
                scored[f"{part}, {PER_VIDEO}" if part else PER_VIDEO] = videos, video_threshold
    return {
        "slices": {part: _metrics(arrays, at, replicates) for part, (arrays, at) in scored.items()},
        "slice_reliability": {
            part: reliability(label, logit)
            for part, ((label, logit, _), _) in scored.items()
            if label.min() < label.max()
        },
    }


def _parts(columns: dict[str, np.ndarray], subgroups: Sequence[str]) -> dict[str, np.ndarray]:
    """Name of a part → which samples it has, ``(n,)``."""
    import numpy as np

    label, method, parts = columns["label"], columns["method"], {}
    methods = np.unique(method[label == 1])
    for name in methods if len(methods) > 1 else []:
        parts[str(name)] = (label == 0) | (method == name)
    for column in [name for name in (*subgroups, "dataset") if name in columns]:
        named = {value for value in columns[column].tolist() if value is not None and value == value}  # without NaN
        known = sorted(named, key=str)
        for value in known if column in subgroups or len(known) > 1 else []:
            parts[f"{column}={value}"] = columns[column] == value
    return parts


def main(config: Evaluate) -> None:
    path = evaluate(config.run, replicates=config.replicates, subgroups=config.subgroups)
    found = read(path)
    for data, scores in found.detection.items():
        print(data, *map(_words, scores), sep="  ")
        for part, of_part in found.slices.get(data, {}).items():  # of parts of the set the AUC alone: the file has all
            print(f"{data}, {part}", *map(_words, of_part if part == PER_VIDEO else of_part[:1]), sep="  ")
    print(path)


def _words(score: Score) -> str:
    undefined = f" ({score.how})" if math.isnan(score.value) else ""
    return f"{score.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]{undefined}"


if __name__ == "__main__":
    run(Evaluate, main)
