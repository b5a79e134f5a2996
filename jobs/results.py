"""The results page of an experiment: ``python -m jobs.results EXPERIMENT.yaml out=docs/RESULTS.md``.

Markdown with tables and verdicts, and its figures as PNG in a folder beside it, all from what is on disk; with the
dose-response of its backbones where ``python -m jobs.dose`` wrote it to ``RUNS/NAME/dose``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.command import from_yaml, run
from data_shards.files import atomic
from jobs.experiment import Experiment


@dataclass
class Results:
    """The results of an experiment as a Markdown page."""

    experiment: Path
    """Experiment file; a bare FILE.yaml is taken for it."""
    out: Path = Path("docs/RESULTS.md")
    """The page; its figures go into a folder of the same name beside it."""
    commands: list[str] = field(default_factory=list)
    """Shell commands that the page shows, all that made it; default: that of the benchmark and that of the page."""


def results(config: Results) -> Path:
    """Write the page and its figures."""
    from evaluation.report import save_figures
    from evaluation.results_page import Page, results_page
    from jobs import dose, report

    experiment = from_yaml(Experiment, config.experiment)
    content = report.build(experiment)
    made = [
        f"python -m jobs.benchmark {config.experiment}",
        f"python -m jobs.results {config.experiment} out={config.out}",
    ]
    figures, pictures = (
        [path.relative_to(config.out.parent) for path in paths]
        for paths in save_figures(content, config.out.with_suffix(""), pdf=False)
    )
    page = Page(config.commands or made, _commit(), figures, pictures, dose.read(experiment.folder / "dose"))
    text = results_page(content, page)
    with atomic(config.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return config.out


def _commit() -> str:
    """The checkout's commit, with a plus where files differ from it; ``unknown`` outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def main(config: Results) -> None:
    print(results(config))


if __name__ == "__main__":
    arguments = [f"experiment={word}" if re.fullmatch(r"[^=]+\.ya?ml", word) else word for word in sys.argv[1:]]
    run(Results, main, arguments)
