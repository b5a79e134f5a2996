"""Overfitting sweep with Ray Tune: ``python -m jobs.sweep SWEEP.yaml``.

Each trial is one fine-tuning run with a run directory of its own, found again by its name: the same command after a
kill goes on, finished trials are not repeated. Ray sees validation scores only; test and unseen sets are scored when a
trial's training has ended. See docs/OVERFITTING.md.
"""

from __future__ import annotations

import fcntl
import logging
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import InputError, run, write_yaml
from data_shards.files import atomic
from jobs import leaks, population, ray_session, trial
from jobs.search import Listed, Range, Space, Tpe, Values, parse_space
from jobs.sweep_plan import (
    Journal,
    Sweep,
    Trial,
    best_auc,
    check,
    distinct,
    first_trials,
    first_values,
    listed,
    make_trial,
    maker,
    pack_subsets,
    prepare_shared,
)

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory
    from ray.tune.schedulers import TrialScheduler

MOST_PER_TASK = 25


def sweep(config: Sweep) -> list[Trial]:
    """Run what is missing of the sweep; returns all its trials. A failed trial does not stop the others."""
    space = check(config)
    leaks.check(config.data.by_name())
    with _alone(config):
        with atomic(config.folder / "sweep.yaml") as temporary:
            write_yaml(temporary, config)
        pack_subsets(config, space)
        if config.scheduler == "pbt":
            return _populations(config, space)
        if config.sampler == "tpe":
            return _sampled(config, space)
        return _listed(config, space)


@contextmanager
def _alone(config: Sweep) -> Iterator[None]:
    """Hold the sweep's folder; InputError if another process has it. A lock goes with its process."""
    config.folder.mkdir(parents=True, exist_ok=True)
    with open(config.folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process runs the sweep in {config.folder}; wait for it or stop it") from None
        yield


def _listed(config: Sweep, space: Space) -> list[Trial]:
    """A grid or random draws."""
    trials = listed(config, space)
    todo = _in_turn(config, trials)
    if todo:
        _tune(config, Listed([(each.backbone, each.values) for each in todo]), todo, len(trials), len(todo))
    return trials


def _sampled(config: Sweep, space: Space) -> list[Trial]:
    """What TPE proposes."""
    journal = Journal(config)
    proposed = journal.proposals()
    todo = _in_turn(config, proposed)
    had = Counter(each.backbone for each in proposed)
    # One whose budget was lowered has its trials: they take none from the others.
    total = sum(max(budget, had[backbone]) for backbone, budget in enumerate(config.budgets))
    left = total - len(proposed) + len(todo)
    if left > 0:
        make = maker(config)
        source = Tpe(
            space,
            config.budgets,
            config.seed,
            known=[
                (each.backbone, each.values, best_auc(each))
                for each in proposed
                if trial.ended(each.row, config.scheduler)
            ],
            unfinished=[(each.backbone, each.values) for each in todo],
            note=journal.note,
            run_of=lambda *proposal: make(*proposal).row.run,
        )
        _tune(config, source, first_trials(config, space), total, left)
    return distinct(journal.proposals())


def _in_turn(config: Sweep, trials: Iterable[Trial]) -> list[Trial]:
    """What is to be done. Trials that were begun before come last: one that takes its process along must not do so
    first, again and again. (Their first start in this call finds them with a clean slate.)"""
    todo = [each for each in trials if not trial.ended(each.row, config.scheduler)]
    return sorted(todo, key=lambda each: trial.starts(each.row) > 0)


def _tune(config: Sweep, source: Listed | Tpe, some: list[Trial], total: int, left: int) -> None:
    """Run the trials of the proposals; ``some`` of them stand for all whose features are needed."""
    print(f"{config.name}: {total} trials, {total - left} of them done before", file=sys.stderr, flush=True)
    prepare_shared(config, some)
    make = maker(config)

    def begin(backbone: int, values: Values) -> Trial:
        proposed = make(backbone, values)
        trial.begin_anew(proposed.row)
        return proposed

    with ray_session.join(config) as processes:
        from ray import tune

        from jobs.tune_parts import Books, Proposals

        storage = config.folder.resolve() / "ray"
        shutil.rmtree(storage, ignore_errors=True)  # Ray's own notes: the run directories are the record
        per_task = trials_per_task(config, left, processes)
        proposals = Proposals(source, begin, config.place, trials_per_task=per_task, room=processes)
        books = Books(lambda: total - source.repeats, total - left, proposals.rows, stops=config.scheduler == "asha")
        try:
            tuner = tune.Tuner(
                tune.with_resources(trial.trainable, partial(_resources, config)),
                tune_config=tune.TuneConfig(
                    search_alg=proposals,
                    scheduler=_scheduler(config),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_dirname_creator=lambda each: f"trial-{each.trial_id}",
                ),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(storage.parent),
                    verbose=0,
                    callbacks=[books],
                    # As often as each trial of a task may be started.
                    failure_config=tune.FailureConfig(max_failures=(trial.LOST_PROCESSES + 1) * per_task - 1),
                ),
            )
            with trial.silent():
                tuner.fit()
        finally:
            books.close()


def _populations(config: Sweep, space: Space) -> list[Trial]:
    def now() -> list[Trial]:
        return [each for place in range(len(config.backbones)) for each in population.members(config, space, place)]

    before = now()
    done = sum(trial.ended(each.row) for each in before)
    if done < len(before):
        print(f"{config.name}: {len(before)} trials, {done} of them done before", file=sys.stderr, flush=True)
        prepare_shared(config, before)
        with ray_session.join(config):
            from jobs.tune_parts import Books

            for backbone in range(len(config.backbones)):
                books = Books(lambda: len(before), done, lambda task: [_member(config, space, task).row])
                try:
                    population.tune_population(
                        config,
                        space,
                        backbone,
                        resources={"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial},
                        failures=trial.LOST_PROCESSES,
                        books=books,
                    )
                finally:
                    books.close()
    return now()


def _member(config: Sweep, space: Space, task: Any) -> Trial:
    """The member that a task of Ray's is, as it is now; its config may be another's."""
    member = int(Path(task.local_path).name.removeprefix("member-"))
    return population.members(config, space, task.config["backbone"])[member]


def _resources(config: Sweep, task: dict[str, Any]) -> PlacementGroupFactory:
    """Of one task's process. Where the trial has processes of its own, for which Ray Train finds a place, it is a byte
    of memory: Ray Tune wants it to ask for something."""
    from ray.tune import PlacementGroupFactory

    shares = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    return PlacementGroupFactory([{"memory": 1} if task["launched"] else shares])


def trials_per_task(config: Sweep, left: int, at_once: int) -> int:
    """How many trials a process takes at a time. Several where a trial takes about a second, so that Ray's own work is
    little beside it; but no more than leaves each process with a few turns."""
    if not config.head_only or config.scheduler != "none":
        return 1
    return max(1, min(MOST_PER_TASK, left // (4 * at_once)))


def _scheduler(config: Sweep) -> TrialScheduler | None:
    if config.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="epoch", metric="auc", mode="max", max_t=most_epochs(config), grace_period=1, reduction_factor=2
    )


def most_epochs(config: Sweep) -> int:
    """Of any trial, rounded up: ASHA stops a trial that has so many, which must not happen before its last one."""
    space = parse_space(config.space)
    if "epochs" in space:
        epochs = space["epochs"].high if isinstance(space["epochs"], Range) else max(space["epochs"])
    else:
        first = [make_trial(config, place, first_values(space)) for place in range(len(config.backbones))]
        epochs = max(each.row.config.epochs for each in first)
    return max(2, math.ceil(epochs))


def main(config: Sweep) -> None:
    from jobs import sweep_report

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    trials = sweep(config)
    sweep_report.log_all(config, trials)
    path, text = sweep_report.write(config, trials)
    print(text)
    print(f"report: {path.resolve()}")
    records = [trial.read_record(each.row) for each in trials]
    failed = [record for record in records if record is None or record["status"] == "failed"]
    if failed:
        print(f"{len(failed)} of {len(trials)} trials failed; the report says why", file=sys.stderr)
    if len(failed) == len(trials):
        sys.exit("error: every trial failed")


if __name__ == "__main__":
    run(Sweep, main)
