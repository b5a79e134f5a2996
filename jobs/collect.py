"""Gathers what an experiment has on disk, for the report and for MLflow. Nothing is computed here but names."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_shards.command import from_yaml, to_dict
from evaluation.score import Score
from jobs import evaluate, layers, pixels, plan, robustness, separability
from jobs.experiment import Backbone, Experiment
from trainer.card import get_card
from trainer.config import FinetuneConfig

if TYPE_CHECKING:
    from evaluation.panel import Panel
    from evaluation.results import BackboneResult, RunResult

log = logging.getLogger(__name__)


def separability_file(experiment_folder: Path, backbone: str, data: str) -> Path:
    """Where the separability scores of a backbone on a data set lie."""
    return experiment_folder / "separability" / f"{backbone.replace(' ', '-')}--{data}.json"


def embedding_file(experiment_folder: Path, backbone: str) -> Path:
    """Where the two-dimensional pictures' points lie: all separability sets of a backbone together."""
    return experiment_folder / "separability" / f"{backbone}--embedding.npz"


def thumbnail_file(experiment_folder: Path) -> Path:
    """Where small pictures of the samples of the separability sets lie, in the order of the embeddings, and beside them
    the digests of those sets."""
    return experiment_folder / "separability" / "thumbnails.npz"


def backbone_results(experiment: Experiment) -> list[BackboneResult]:
    """All that is there for each backbone of the experiment, and last the pixel statistics; what is not there is named
    in ``missing``."""
    rows = plan.make(experiment)
    return [
        *(
            _backbone_result(experiment, backbone, [row for row in rows if row.backbone == backbone.label])
            for backbone in experiment.backbones
        ),
        _pixel_result(experiment),
    ]


def _backbone_result(experiment: Experiment, backbone: Backbone, rows: list[plan.Row]) -> BackboneResult:
    from evaluation.results import BackboneResult

    card = get_card(backbone.name, experiment.cards)
    panels, missing = _panels(experiment, backbone.label)
    missing += [f"fine-tuning of {row.run.name}" for row in rows if not (row.run / "evaluation.json").is_file()]
    finished = [row for row in rows if (row.run / "evaluation.json").is_file()]
    runs = [_run_result(row) for row in finished]
    return BackboneResult(
        name=backbone.label,
        initialisation=backbone.initialisation,
        pretext_task=card.pretext_task,
        family=card.family,
        licence=card.licence,
        imagenet_top1=math.nan if card.imagenet_top1 is None else card.imagenet_top1,
        **_size(experiment, backbone.label),
        separability={data: panel.scores for data, panel in panels.items()},
        embeddings=_embeddings(experiment, backbone.label, finished),
        runs=runs,
        missing=missing,
        panels=panels,
        robustness=_robustness(finished),
        layers={
            data: found
            for data in experiment.separability_sets
            if (found := layers.read(layers.layers_file(experiment, backbone.label, data)))
        },
    )


def _robustness(rows: list[plan.Row]) -> dict[str, list[tuple[float, Score]]]:
    """Mean over the seeds that have it."""
    from evaluation.results import over_seeds

    seeds = [found for row in rows if (found := robustness.read(row.run / "robustness.json"))]
    return {
        kind: [(level, over_seeds([seed[kind][place][1] for seed in seeds])) for place, (level, _) in enumerate(points)]
        for kind, points in (seeds[0] if seeds else {}).items()
    }


def _pixel_result(experiment: Experiment) -> BackboneResult:
    from evaluation.results import CONTROL, BackboneResult

    panels, missing = _panels(experiment, pixels.LABEL)
    measured = {
        data
        for data in panels
        if any(layers.layers_file(experiment, backbone.label, data).is_file() for backbone in experiment.backbones)
    }
    return BackboneResult(
        name=pixels.LABEL,
        initialisation="none",
        pretext_task="colour, sharpness and JPEG traces, no backbone",
        family=CONTROL,
        licence="none needed",
        **_size(experiment, pixels.LABEL),
        separability={data: panel.scores for data, panel in panels.items()},
        embeddings={},
        runs=[],
        missing=missing,
        panels=panels,
        # No network, so a single layer: what every layer of the others is held against.
        layers={data: panel.scores[:1] for data, panel in panels.items() if data in measured},
    )


def _panels(experiment: Experiment, label: str) -> tuple[dict[str, Panel], list[str]]:
    """What is there by data set, and what is not."""
    panels, missing = {}, []
    for data in experiment.separability_sets:
        path = separability_file(experiment.folder, label, data)
        if not path.is_file():
            missing.append(f"separability on {data}")
            continue
        panel, current = separability.read(path)
        if panel:
            panels[data] = panel
        if not current:
            missing.append(f"separability on {data} by this version (what is there is an earlier one's; run it again)")
    return panels, missing


def _size(experiment: Experiment, label: str) -> dict[str, int]:
    """Parameters and width, as far as a separability file tells them."""
    paths = (separability_file(experiment.folder, label, data) for data in experiment.separability_sets)
    found = next((json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()), {})
    return {key: found.get(key, 0) for key in ("parameters", "num_features")}


def _run_result(row: plan.Row) -> RunResult:
    from evaluation.results import RunResult
    from trainer.state import read_metrics

    found = evaluate.read(row.run / "evaluation.json")
    return RunResult(
        seed=row.config.seed,
        detection=found.detection,
        gaps=found.gaps,
        curves=read_metrics(row.run),
        selected_step=json.loads((row.run / "result.json").read_text(encoding="utf-8"))["selected"]["step"],
        directory=str(row.run),
        slices=found.slices,
        reliability=found.reliability,
    )


def _embeddings(experiment: Experiment, backbone: str, finished: list[plan.Row]) -> dict[str, dict[str, Any]]:
    import numpy as np

    path = embedding_file(experiment.folder, backbone)
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        embedding = dict(arrays)
    embedding |= _samples(experiment, embedding["source"], finished, len(embedding["label"]))
    faces = thumbnail_file(experiment.folder)
    if experiment.show_faces and faces.is_file():
        with np.load(faces, allow_pickle=False) as arrays:
            embedding["thumbnail"] = arrays["faces"]
    return {" + ".join(experiment.separability_sets): embedding}


def _samples(experiment: Experiment, features: Iterable[str], finished: list[plan.Row], n: int) -> dict[str, Any]:
    """``group`` ``(n,)`` of the samples of features files and ``score`` ``(n,)``, their probability of being fake after
    fine-tuning, mean over seeds; as far as there are files of as many samples."""
    import numpy as np
    from scipy.special import expit

    def column(paths: list[Path], name: str) -> list[Any]:
        """As the only one of a list, or none."""
        values = np.concatenate([_column(path, name) for path in paths]) if all(map(Path.is_file, paths)) else []
        return [values] if len(values) == n else []

    found = {}
    for group in column([experiment.runs / "features" / name for name in features], "group"):
        found["group"] = group.astype(str)
    runs = [[row.run / "scores" / f"{data}.parquet" for data in experiment.separability_sets] for row in finished]
    if seeds := [logits for paths in runs for logits in column(paths, "logit")]:
        found["score"] = expit(seeds).mean(axis=0)
    return found


def _column(path: Path, name: str) -> Any:
    """In the order of the samples' index, the same in features and in scores of a shard set."""
    import pyarrow.parquet as parquet

    return parquet.read_table(path, columns=["index", name]).sort_by("index")[name].to_numpy()


def log_row(row: plan.Row, tags: dict[str, str] | None = None) -> None:
    """Log a finished row, with the separability of its backbone where that is known, as one MLflow run.

    The record is on disk: a tracking server that is away costs a warning, and the next report logs what it missed."""
    from evaluation.tracking import TrackingError

    try:
        log_run(row.run, row.tracking_uri, tags)
    except TrackingError as error:
        log.warning("%s: not logged to MLflow (%s); jobs.report logs it later", row.run.name, error)


def log_run(run: Path, tracking_uri: str, tags: dict[str, str] | None = None) -> str:
    """Log what a run directory holds so far as the one MLflow run of its name, and return that run's id. What is logged
    already and has not changed is left alone, anything else replaced. Raises TrackingError."""
    from evaluation.tracking import log_result
    from trainer.state import read_metrics

    config = from_yaml(FinetuneConfig, run / "config.yaml")
    card = get_card(config.backbone, config.cards)
    label = Backbone(config.backbone, config.initialisation).label
    origin, commit = _origin(run)
    separabilities = sorted((run.parent / "separability").glob(f"{label}--*.json"))
    files = [run / name for name in ("config.yaml", "result.json", "evaluation.json")]
    return log_result(
        tracking_uri,
        config.experiment,
        key=run.name,
        params={
            "label": label,
            "pretext_task": card.pretext_task,
            "family": card.family,
            **to_dict(config),
            **origin,
        },
        metrics={**_detection(run), **_separability(label, separabilities)},
        curves=read_metrics(run),
        artifacts=[*(file for file in files if file.is_file()), *separabilities],
        tags={"directory": str(run.resolve()), **commit, **(tags or {})},
        status=_status(run),
    )


def _status(run: Path) -> Literal["FINISHED", "RUNNING", "KILLED"]:
    """MLflow's word for where a run stands. A run that was killed cannot say so, and counts as running."""
    if (run / "result.json").is_file():
        return "FINISHED"
    return "KILLED" if (run / "stopped.json").is_file() else "RUNNING"


def _origin(run: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a finished run was made from: digests as parameters, and the tag by which MLflow knows the code."""
    file = run / "result.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    digests = {f"{name}_digest": digest for name, digest in result.get("data", {}).items()}
    if "weights" in result:
        digests["weights_sha256"] = result["weights"]["sha256"]
    return digests, {"mlflow.source.git.commit": result["commit"]} if result.get("commit") else {}


def _detection(run: Path) -> dict[str, float]:
    if not (run / "evaluation.json").is_file():
        return {}
    found = evaluate.read(run / "evaluation.json")
    metrics = _numbers("gap", found.gaps)
    for name, scores in found.detection.items():
        metrics |= _numbers(name, scores)
    for name, parts in found.slices.items():
        for part, scores in parts.items():  # of methods and subgroups the AUC alone, as in the report's table
            key = f"{name}/{part}".replace("=", ": ").replace(f", {evaluate.PER_VIDEO}", f"/{evaluate.PER_VIDEO}")
            if re.fullmatch(r"[\w.\- :/]+", key, re.ASCII):  # MLflow would change others, and two might become one
                metrics |= _numbers(key, scores if part == evaluate.PER_VIDEO else scores[:1])
    return metrics


def _separability(label: str, files: list[Path]) -> dict[str, float]:
    """The headline alone: MLflow's table has no room for all, which are in the artifacts."""
    metrics: dict[str, float] = {}
    for path in files:
        panel, _ = separability.read(path)
        if panel:
            metrics |= _numbers(f"separability/{path.stem.removeprefix(label + '--')}", panel.scores[:1])
    return metrics


def _numbers(prefix: str, scores: list[Score]) -> dict[str, float]:
    """Values by metric name; intervals of the headline scores only, since MLflow's table has no room for all (they are
    in the artifact evaluation.json)."""
    numbers = {}
    for place, score in enumerate(scores):
        name = f"{prefix}/{score.name}"
        numbers[name] = score.value
        if score.name == "auc" or place == 0:
            numbers |= {f"{name}_low": score.low, f"{name}_high": score.high}
    return numbers
