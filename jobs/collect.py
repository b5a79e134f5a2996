"""Gathers what an experiment has on disk, for the report and for MLflow. Nothing is computed here but names."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import to_dict
from evaluation.score import Score
from jobs import evaluate, layers, pixels, plan, robustness, separability
from jobs.experiment import Backbone, Experiment
from trainer.card import get_card

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
    """Where small pictures of the samples of the separability sets lie, in the order of the embeddings."""
    return experiment_folder / "separability" / "thumbnails.npy"


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
        embeddings=_embeddings(experiment, backbone.label),
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

    found = evaluate.read(row.run / "evaluation.json")
    return RunResult(
        seed=row.config.seed,
        detection=found.detection,
        gaps=found.gaps,
        curves=_metrics(row.run),
        selected_step=json.loads((row.run / "result.json").read_text(encoding="utf-8"))["selected"]["step"],
        directory=str(row.run),
        slices=found.slices,
        reliability=found.reliability,
    )


def _metrics(run: Path) -> list[dict[str, Any]]:
    with open(run / "metrics.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _embeddings(experiment: Experiment, backbone: str) -> dict[str, dict[str, Any]]:
    import numpy as np

    path = embedding_file(experiment.folder, backbone)
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        embedding = dict(arrays)
    faces = thumbnail_file(experiment.folder)
    if experiment.show_faces and faces.is_file():
        embedding["thumbnail"] = np.load(faces, allow_pickle=False)
    return {" + ".join(experiment.separability_sets): embedding}


def log_row(row: plan.Row, tags: dict[str, str] | None = None) -> None:
    """Log a finished row, with the separability of its backbone where that is known, as one MLflow run.

    The record is on disk: a tracking server that is away costs a warning, and the next report logs what it missed."""
    from evaluation.tracking import TrackingError, log_result

    found = evaluate.read(row.run / "evaluation.json")
    metrics: dict[str, float] = {}
    for name, scores in found.detection.items():
        metrics |= _numbers(name, scores)
    metrics |= _numbers("gap", found.gaps)
    files = sorted((row.run.parent / "separability").glob(f"{row.backbone}--*.json"))
    for path in files:
        panel, _ = separability.read(path)
        if panel:  # the headline alone: MLflow's table has no room for all, which are in the artifact
            metrics |= _numbers(f"separability/{path.stem.removeprefix(row.backbone + '--')}", panel.scores[:1])
    config = to_dict(row.config)
    card = get_card(row.config.backbone, row.config.cards)
    try:
        log_result(
            row.tracking_uri,
            row.config.experiment,
            key=row.run.name,
            params={"label": row.backbone, "pretext_task": card.pretext_task, "family": card.family, **config},
            metrics=metrics,
            curves=_metrics(row.run),
            figures={},
            artifacts=[*(row.run / name for name in ("config.yaml", "result.json", "evaluation.json")), *files],
            tags={"directory": str(row.run), **(tags or {})},
        )
    except TrackingError as error:
        log.warning("%s: not logged to MLflow (%s); jobs.report logs it later", row.run.name, error)


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
