"""Population based training (Jaderberg et al., Population Based Training of Neural Networks, 2017): after each
evaluation the members of a population that validate worst go on from a state of one of the best, with other
hyperparameters. It aims at a good model; its curves are of several settings each, so the study of overfitting does
without it.

A member is a folder, ``RUNS/SWEEP/BACKBONE-member-00``: ``lineage.jsonl`` says which hyperparameters it had since when
and whose state it took, and the one run directory in it is the run that it is now.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.command import InputError, from_dict, to_dict
from data_shards.files import atomic, write_json
from jobs import trial
from jobs.search import Range, Space, Values, random_draws
from jobs.sweep_plan import Sweep, Trial, make_trial

CHANGEABLE = ("learning_rate", "weight_decay", "layer_decay", "label_smoothing", "augmentation", "flip", "clip")
"""Hyperparameters that are in no saved state, so that a run can go on with others."""
FEWEST = 2
KEPT_CHECKPOINTS = 4

Pause = Callable[[Path, dict[str, float]], None]


def check(sweep: Sweep, space: Space) -> None:
    """InputError on what population based training cannot do."""
    fixed = sorted(set(space) - set(CHANGEABLE))
    if fixed:
        raise InputError(
            f"space.{fixed[0]} cannot change while a run goes on; with scheduler=pbt search {', '.join(CHANGEABLE)}"
        )
    if sweep.sampler != "random" or min(sweep.budgets) < FEWEST:
        raise InputError("scheduler=pbt needs sampler=random and trials=N, at least 2: the members of a population")


def member_trial(sweep: Sweep, backbone: int, member: int, values: Values) -> Trial:
    """The run of a member with these hyperparameters, in the member's folder."""
    made = make_trial(sweep, backbone, values)
    folder = f"{sweep.backbones[backbone].label}-member-{member:02d}"
    return replace(
        made, row=replace(made.row, finetune={**made.row.finetune, "runs": str(sweep.folder), "experiment": folder})
    )


def members(sweep: Sweep, space: Space, backbone: int) -> list[Trial]:
    """The members of a backbone's population, as they are now."""
    found = []
    for member, drawn in enumerate(random_draws(space, sweep.budgets[backbone], sweep.seed)):
        first = member_trial(sweep, backbone, member, drawn)
        past = lineage(first.row.run.parent)
        found.append(member_trial(sweep, backbone, member, past[-1]["values"]) if past else first)
    return found


def lineage(folder: Path) -> list[dict[str, Any]]:
    """``values`` of a member from ``epoch`` on, and the run whose state it then took (``from``; null at the start)."""
    file = folder / "lineage.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def trainable(config: dict[str, Any]) -> None:
    """What Ray calls, in a process of the member's own, at its start and after every exchange."""
    from ray import tune

    trial.enter(config["root"], config["gpus"])
    # The config comes from whoever's state is taken over; the folder is the member's own.
    member = int(Path(tune.get_context().get_trial_dir()).name.removeprefix("member-"))
    sweep = from_dict(Sweep, config["sweep"])
    now = member_trial(sweep, config["backbone"], member, config["values"])
    taken = tune.get_checkpoint()
    if taken is None:
        take_note(now, source=None, epoch=0.0)
    else:
        with taken.as_directory() as folder:
            adopt(now, Path(folder))

    def pause(run: Path, told: dict[str, float]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            snapshot(run, Path(folder))
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))

    trial.run_trial(now.row, lambda told: None, sweep.place, pause=pause)


def snapshot(run: Path, folder: Path) -> None:
    """Copy what another run needs to go on from here."""
    shutil.copytree(run / "state", folder / "state")
    shutil.copyfile(run / "metrics.jsonl", folder / "metrics.jsonl")
    write_json(folder / "origin.json", {"run": str(run)})


def adopt(now: Trial, taken: Path) -> None:
    """Make the state in ``taken`` that of the member's run, which may have other hyperparameters; nothing if it is that
    run's own."""
    run = trial.as_run(now.row).run
    source = json.loads((taken / "origin.json").read_text(encoding="utf-8"))["run"]
    if source == str(run):
        return
    rows = (taken / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".taken-") as folder:
        copy = Path(folder) / run.name
        shutil.copytree(taken / "state", copy / "state")
        shutil.copyfile(taken / "metrics.jsonl", copy / "metrics.jsonl")
        if run.exists():
            shutil.rmtree(run)
        os.replace(copy, run)
    take_note(now, source=source, epoch=json.loads(rows[-1])["epoch"])
    for old in run.parent.iterdir():
        if old.is_dir() and old != run:
            shutil.rmtree(old)


def take_note(now: Trial, *, source: str | None, epoch: float) -> None:
    folder = now.row.run.parent
    past = lineage(folder)
    entry = {"values": now.values, "from": source, "epoch": epoch}
    if source is None and past:
        return  # it goes on after a kill
    with atomic(folder / "lineage.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(each) + "\n" for each in [*past, entry]), encoding="utf-8")


def tune_population(
    sweep: Sweep, space: Space, backbone: int, *, resources: dict[str, float], failures: int, books: Any
) -> None:
    """Train the members that have not ended, all of one backbone, inside a running Ray."""
    import random

    import numpy as np
    from ray import tune

    now = members(sweep, space, backbone)
    todo = [member for member, each in enumerate(now) if not trial.ended(each.row)]
    if not todo:
        return
    for member in todo:
        trial.begin_anew(now[member].row)
    random.seed(sweep.seed)  # of the scheduler's choices
    np.random.seed(sweep.seed)
    storage = sweep.folder.resolve() / "ray"
    shutil.rmtree(storage, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={
            "sweep": to_dict(sweep),
            "backbone": backbone,
            "root": str(Path.cwd()),
            "gpus": resources["gpu"],
            "member": tune.grid_search(todo),
            "values": tune.sample_from(lambda spec: dict(now[spec.config.member].values)),
        },
        tune_config=tune.TuneConfig(
            scheduler=scheduler(space),
            reuse_actors=True,
            trial_dirname_creator=lambda each: f"member-{each.config['member']:02d}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(storage.parent),
            verbose=0,
            callbacks=[books],
            failure_config=tune.FailureConfig(max_failures=failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
        ),
    )
    with trial.silent():
        tuner.fit()


def scheduler(space: Space) -> Any:
    """Ray's, which compares all members after each evaluation and lets the worst quarter take over from the best."""
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    def draw(values: list[Any] | Range) -> Any:
        if isinstance(values, list):
            return values
        if values.integer:
            return tune.randint(values.low, values.high + 1)
        return tune.loguniform(values.low, values.high) if values.log else tune.uniform(values.low, values.high)

    def within(config: dict[str, Any]) -> dict[str, Any]:
        """Ray multiplies by 0.8 or 1.2 and does not look at the ends of the range."""
        values = config["values"]
        kept = {key: s.rounded(values[key]) if isinstance(s, Range) else values[key] for key, s in space.items()}
        return {**config, "values": kept}

    return PopulationBasedTraining(
        time_attr="training_iteration",
        metric="auc",
        mode="max",
        perturbation_interval=1,
        hyperparam_mutations={"values": {key: draw(values) for key, values in space.items()}},
        custom_explore_fn=within,
        synch=True,
    )
