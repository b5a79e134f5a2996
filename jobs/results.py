"""The results page of an experiment: ``python -m jobs.results EXPERIMENT.yaml out=docs/RESULTS.md``.

Markdown with tables and verdicts, and its figures as PNG in a folder beside it, all from what is on disk.
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
    """Shell commands that made the results; default: that of the benchmark."""


def results(config: Results) -> Path:
    """Write the page and its figures."""
    from evaluation.report import save_figures
    from evaluation.results_page import results_page
    from jobs import report

    experiment = from_yaml(Experiment, config.experiment)
    content = report.build(experiment)
    folder = config.out.with_suffix("")
    figures = [path.relative_to(config.out.parent) for path in save_figures(content, folder, pdf=False)]
    commands = config.commands or [f"python -m jobs.benchmark {config.experiment}"]
    text = results_page(content, [*commands, f"python -m jobs.results {config.experiment}"], figures, _commit())
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
