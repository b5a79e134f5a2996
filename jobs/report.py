"""The report of an experiment, made of what is there: ``python -m jobs.report EXPERIMENT.yaml``.

Writes ``RUNS/NAME/report.html`` (one self-contained file), ``RUNS/NAME/figures`` (PNG and PDF), and
brings MLflow up to date.
"""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import run
from data_shards.files import atomic
from jobs import collect, plan
from jobs.experiment import Experiment

if TYPE_CHECKING:
    from evaluation.results import Report

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "deepspeed", "ray", "scikit-learn", "mlflow", "numpy")


def write(experiment: Experiment) -> tuple[Path, Report]:
    """Write the HTML report, and beside it its figures as PNG and PDF; returns its path and content."""
    from evaluation.report import render, save_figures

    report = build(experiment)
    path = experiment.folder / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
    save_figures(report, experiment.folder / "figures")
    return path, report


def build(experiment: Experiment) -> Report:
    """Gather the report's content from the run directories."""
    from evaluation.prediction import predict
    from evaluation.results import Report
    from trainer.provenance import git_commit  # torch: not for --help

    backbones = collect.backbone_results(experiment)
    every_score = [
        score
        for backbone in backbones
        for scores in (
            *backbone.separability.values(),
            *(panel.transferability for panel in backbone.panels.values()),
            *(s for r in backbone.runs for s in (*r.detection.values(), r.gaps)),
        )
        for score in scores
    ]
    return Report(
        title=experiment.title,
        notice=experiment.notice,
        command=f"python -m jobs.benchmark {experiment.folder / 'experiment.yaml'}",
        versions={name: version(name) for name in PACKAGES},
        machine=machine(),
        commit=git_commit(),
        data=[_describe(name, path) for name, path in experiment.data.by_name().items()],
        backbones=backbones,
        # Without what is told of one backbone alone; it stays in the hints of the table's cells.
        definitions={score.name: re.sub(r" \(here [^)]*\)", "", score.how) for score in every_score},
        prediction=predict(backbones),
    )


def log_all(experiment: Experiment) -> None:
    """Log every finished row to MLflow; rows that are logged already cost nothing."""
    for row in plan.make(experiment):
        if (row.run / "evaluation.json").is_file():
            collect.log_row(row)


def machine() -> str:
    """Processor, cores, memory and accelerators of this machine, in words."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    accelerators = ", ".join(names) or "no GPU"
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {accelerators}, {platform.system()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _describe(name: str, path: Path) -> dict[str, Any]:
    from data_shards.manifest import ShardSet

    shards = ShardSet.open(path)
    manifest = shards.manifest
    return {
        "name": name,
        "split": shards.split,
        "samples": shards.samples,
        "real": manifest["labels"].get("real", 0),
        "fake": manifest["labels"].get("fake", 0),
        "groups": manifest["groups"],
        "methods": ", ".join(manifest["methods"]),
        "digest": shards.digest[:12],
    }


def main(experiment: Experiment) -> None:
    from evaluation.report import text_table

    log_all(experiment)
    path, report = write(experiment)
    print(text_table(report))
    print(f"report: {path}")


if __name__ == "__main__":
    run(Experiment, main)
