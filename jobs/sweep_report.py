"""What comes out of a sweep: a table, the report, and the numbers behind both."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import to_dict
from data_shards.files import atomic
from data_shards.manifest import ShardSet
from data_shards.splits import components
from jobs import evaluate, overfit, report, sweep_tracking, trial
from jobs.subset import KEYS
from trainer.card import get_card

if TYPE_CHECKING:
    from evaluation.overfitting_results import SweepReport, TrialResult
    from jobs.sweep_plan import Sweep, Trial

PACKAGES = ("torch", "timm", "ray", "optuna", "scikit-learn")


def log_all(config: Sweep, trials: list[Trial]) -> None:
    """Log the trials that ended to MLflow, see jobs.sweep_tracking."""
    sweep_tracking.log_all(config, trials, partial(_values, config))


def write(config: Sweep, trials: list[Trial]) -> tuple[Path, str]:
    """Write ``RUNS/SWEEP/report.html`` and its pictures, ``RUNS/SWEEP/figures/*.png``, and log them to MLflow; returns
    the report's path and the table for the terminal."""
    from evaluation.overfitting_report import render, text_table

    content = build(config, trials)
    page, drawn = render(content)
    path = config.folder / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    for title, figure, _ in drawn:
        file = config.folder / "figures" / f"{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.png"
        file.parent.mkdir(exist_ok=True)
        figure.set_layout_engine("none")  # it is laid out, by render, which takes half of the time of drawing it
        figure.savefig(file, dpi=80)
    sweep_tracking.log_report(config, trials, path)
    return path, text_table(content.trials)


def build(config: Sweep, trials: list[Trial]) -> SweepReport:
    """Gather the report's content from the run directories."""
    from evaluation.overfitting_results import SweepReport

    space = "; ".join(f"{key}: {values}" for key, values in to_dict(config)["space"].items())
    return SweepReport(
        title=config.title,
        notice=config.notice,
        command=f"python -m jobs.sweep {config.folder / 'sweep.yaml'}",
        versions={name: version(name) for name in PACKAGES},
        machine=report.machine(),
        searched={"Space": space, "Sampler": config.sampler, "Scheduler": config.scheduler},
        trials=[_result(config, each) for each in trials],
    )


def _result(config: Sweep, each: Trial) -> TrialResult:
    from evaluation.overfitting_results import TrialResult

    backbone = config.backbones[each.backbone]
    run = trial.as_run(each.row).run
    record = trial.read_record(each.row) or {"status": "not run", "reason": "the same command runs it"}
    common = {
        "run": run.name,
        "backbone": backbone.label,
        "family": get_card(backbone.name, config.cards).family,
        "values": _values(config, each),
        "status": record["status"],
        "reason": record["reason"],
        "evaluations": overfit.curve(run),
        "train_samples": _samples(each.row.config.train),
        "note": trial.out_of_memory(each.row),
    }
    if record["status"] != "finished":
        return TrialResult(**common)
    found = evaluate.read(run / "evaluation.json")
    aucs = {name: next(s for s in found.detection[name] if s.name == "auc") for name in each.row.score}
    return TrialResult(**common, detection=aucs, gaps=found.gaps, **overfit.read(run))


def _values(config: Sweep, each: Trial) -> dict[str, Any]:
    """Hyperparameters as tables and figures show them: with what chose the training set even where all trials share it,
    and all groups as their number, to stand among the others."""
    values = {**{key: config.finetune[key] for key in KEYS if key in config.finetune}, **each.values}
    if values.get("train_groups", 0) is not None:
        return values
    return {**values, "train_groups": _groups(config.data.train)}


@lru_cache
def _groups(shards: Path) -> int | None:
    if not (shards / "manifest.json").is_file():
        return None
    return int(components(ShardSet.open(shards).column("group")).max()) + 1


@lru_cache
def _samples(shards: Path) -> int:
    return len(ShardSet.open(shards)) if (shards / "manifest.json").is_file() else 0
