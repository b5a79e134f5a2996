"""The plan: one JSON row per fine-tuning run. ``python -m jobs.plan EXPERIMENT.yaml`` writes it, and the
experiment as it is now beside it (experiment.yaml), and prints its path.

A row holds all that its run needs, so that any machine with the files can run any row; the array index of a Slurm
job is the row's number. Equal experiments give equal plans.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_shards.command import InputError, from_dict, run, to_dict, write_yaml
from data_shards.files import atomic
from jobs.experiment import Backbone, Experiment
from jobs.resources import row_resources
from trainer.config import FinetuneConfig


@dataclass(frozen=True)
class Row:
    """One fine-tuning run: its number, what to train, what to score afterwards, where it is logged."""

    number: int
    backbone: str
    """Label of the backbone in tables: the card's name, with ``-random`` for a control."""
    finetune: dict[str, Any]
    """A complete FinetuneConfig. Neither the test set nor an unseen one is in it."""
    score: dict[str, str]
    """Shard sets to score after training has ended, by name."""
    processes: int
    replicates: int
    tracking_uri: str
    subgroups: list[str] = field(default_factory=list)
    """Columns of the face tables within whose values test and unseen sets are evaluated too."""
    resources: dict[str, Any] = field(default_factory=dict)
    """What it asks of a scheduler: keys of jobs.resources.Resources. Without effect on the result."""

    @property
    def config(self) -> FinetuneConfig:
        return FinetuneConfig(**self.finetune)

    @cached_property
    def run(self) -> Path:
        """The run directory."""
        return self.config.directory


def make(experiment: Experiment) -> list[Row]:
    """Rows of ``experiment``: backbones in their order, and for each its seeds."""
    rows = []
    checked: dict[str, FinetuneConfig] = {}  # by what the user wrote: strict parsing takes a hundredth of a second
    for backbone in experiment.backbones:
        own = json.dumps(to_dict(backbone)["finetune"], sort_keys=True)
        if own not in checked:
            checked[own] = _finetune(experiment, backbone)
        resources = row_resources(experiment, backbone.resources, replace(checked[own], backbone=backbone.name))
        for seed in experiment.seeds if backbone.seeds is None else backbone.seeds:
            finetune = replace(checked[own], backbone=backbone.name, initialisation=backbone.initialisation, seed=seed)
            rows.append(
                Row(
                    number=len(rows),
                    backbone=backbone.label,
                    finetune=to_dict(finetune),
                    score={name: str(path) for name, path in experiment.data.by_name().items()},
                    processes=experiment.processes,
                    replicates=experiment.replicates,
                    tracking_uri=experiment.tracking,
                    subgroups=experiment.subgroups,
                    resources=resources,
                )
            )
    return rows


def write(experiment: Experiment) -> Path:
    """Write ``RUNS/NAME/plan.jsonl``, whole or not at all; an unchanged plan is left alone. InputError if a row that
    is queued or running would get another number."""
    path = experiment.folder / "plan.jsonl"
    rows = make(experiment)
    values = ({each.name: getattr(row, each.name) for each in fields(row)} for row in rows)  # plain values
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in values)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        _keep_numbers(path, rows)
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def _keep_numbers(path: Path, rows: list[Row]) -> None:
    """Jobs find their row by its number."""
    from jobs import status

    try:
        before = read(path)
    except InputError:  # there is none, or one that no job can read
        return
    moved = [row for row in before if row.number >= len(rows) or rows[row.number].run != row.run]
    busy = moved and (status.queued(path).keys() | status.under_way(moved)) & {row.number for row in moved}
    if busy:
        raise InputError(
            f"row {min(busy)} of {path} is queued or running, and would be another one by this experiment; wait for it "
            "or cancel it, add backbones at the end, or give the experiment another name"
        )


def read(path: Path) -> list[Row]:
    """Rows of a plan file."""
    return [_row(path, line) for line in _lines(path)]


def row(path: Path, number: int) -> Row | None:
    """One row of a plan file; None if the plan is shorter."""
    if number < 0:
        raise InputError(f"row {number}: rows count from 0")
    line = next(itertools.islice(_lines(path), number, None), None)
    return line and _row(path, line)


def resources(path: Path) -> list[dict[str, Any]]:
    """What each row of a plan file asks of a scheduler; nothing else is read."""
    return [json.loads(line).get("resources", {}) for line in _lines(path)]


def count(path: Path) -> int:
    """Rows of a plan file."""
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise InputError(f"no plan at {path}; make it with: python -m jobs.plan EXPERIMENT.yaml")
    with open(path, encoding="utf-8") as lines:
        yield from lines


def _row(path: Path, line: str) -> Row:
    try:
        row = Row(**json.loads(line))
        row.run  # noqa: B018 - the config is checked here
    except (TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} was made by another version ({error}); make it again: python -m jobs.plan") from None
    return row


def _finetune(experiment: Experiment, backbone: Backbone) -> FinetuneConfig:
    """What all seeds of a backbone share, parsed as strictly as if it had been given on a command line."""
    own = {
        "backbone": backbone.name,
        "initialisation": backbone.initialisation,
        "train": str(experiment.data.train),
        "validation": str(experiment.data.validation),
        "runs": str(experiment.runs),
        "experiment": experiment.name,
        "cards": experiment.cards and str(experiment.cards),
        "weights_dir": experiment.weights_dir and str(experiment.weights_dir),
    }
    asked = {**experiment.finetune, **backbone.finetune}
    clash = sorted({*own, "seed"} & set(asked))
    if clash:
        raise InputError(f"finetune.{clash[0]} is set by the experiment itself; remove it under 'finetune'")
    return from_dict(FinetuneConfig, {**asked, **own})


def keep(experiment: Experiment) -> Path:
    """Write the plan, and beside it the experiment as it is now, for the jobs that follow and whoever reads the
    report; returns the plan's path."""
    path = write(experiment)
    known = [each.name for each in fields(Experiment)]  # a subclass has more
    with atomic(path.with_name("experiment.yaml")) as temporary:
        write_yaml(temporary, {name: value for name, value in to_dict(experiment).items() if name in known})
    return path


def main(experiment: Experiment) -> None:
    print(keep(experiment))


if __name__ == "__main__":
    run(Experiment, main)
