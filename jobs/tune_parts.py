"""What plugs into Ray Tune: the searcher that hands out a sweep's proposals, and the callback that keeps its books."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher
from tqdm import tqdm

from jobs import plan, trial
from jobs.search import Listed, Tpe, Values
from jobs.sweep_plan import Trial, best_auc

SECONDS_TO_APPEAR = 3
"""How long a record that must be there is waited for."""


class Proposals(Searcher):
    """Hands out tasks: one trial each, or a few of one backbone that a process runs one after the other. Nothing of it
    is saved: a sweep goes on from its run directories. ``room``: for how many processes Ray has a place."""

    def __init__(
        self,
        source: Listed | Tpe,
        begin: Callable[[int, Values], Trial],
        place: trial.Place,
        *,
        trials_per_task: int,
        room: int,
    ) -> None:
        super().__init__(metric="auc", mode="max")
        self._source, self._begin, self._place, self._most, self._room = source, begin, place, trials_per_task, room
        self._tasks: dict[str, list[Trial]] = {}
        self._next: list[Trial] = []
        self._launched: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._next = self._next or [self._begin(*proposal) for proposal in self._source.next(self._most)]
        if not self._next:
            return Searcher.FINISHED
        task = trial.task_config([each.row for each in self._next], self._place)
        if task["launched"]:  # its process asks Ray for nothing, which would start all such trials at once
            processes = self._next[0].row.config.processes or 1
            if self._launched and sum(self._launched.values()) + processes > self._room:
                return None
            self._launched[trial_id] = processes
        self._tasks[trial_id], self._next = self._next, []
        return task

    def rows(self, task: Any) -> list[plan.Row]:
        """The rows of a task. Those that were handed out, since a row works out its run directory once."""
        return [each.row for each in self._tasks[task.trial_id]]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray calls it before the callbacks: what was lost or stopped has no record yet."""
        self._launched.pop(trial_id, None)
        for each in self._tasks[trial_id]:
            lost = error and trial.read_record(each.row) is None
            self._source.tell(each.backbone, each.values, None if lost else best_auc(each))

    def save(self, checkpoint_path: str) -> None:
        """See above."""

    def restore(self, checkpoint_path: str) -> None:
        """See above."""


class Books(Callback):
    """Records trials that a scheduler stopped or that were lost, and shows progress: one live line on a terminal; in a
    log file one line for each failure. ``stops``: whether the scheduler ends trials before their time."""

    def __init__(
        self, total: Callable[[], int], done: int, rows_of: Callable[[Any], list[plan.Row]], *, stops: bool = False
    ) -> None:
        self._failed, self._best, self._stops = 0, float("-inf"), stops
        self._total, self._rows_of, self._counted = total, rows_of, set()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total(), initial=done, desc="trials", unit="trial", disable=not terminal)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._best = max(self._best, result.get("auc", self._best))
        self._count(trial)
        self._show(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        epoch = trial.last_result.get("epoch")
        if self._stops and epoch is not None and any(epoch < row.config.epochs for row in self._open(trial)):
            self._end(trial, trials, "stopped", f"stopped by the scheduler at epoch {epoch}")
        else:  # it came to its end, and said how
            self._wait_for_records(trial)
            self._show(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._wait_for_records(trial)
        self._end(trial, trials, "failed", trial_lost(trial))

    def close(self) -> None:
        self._bar.close()

    def _end(self, task: Any, trials: list[Any], status: str, reason: str) -> None:
        """The first trial of the task without a record is the one that ran; any after it have not begun."""
        self._count(task)
        for row in self._open(task)[:1]:
            trial.write_record(row, status, reason, "Lost" if status == "failed" else "", replace=False)
        self._count(task)
        self._show(trials)

    def _wait_for_records(self, task: Any) -> None:
        """On a shared file system, what another node has just written may take a moment to be seen; to list its folder
        makes an NFS client ask again."""
        deadline = time.monotonic() + SECONDS_TO_APPEAR
        self._count(task)
        while (missing := self._open(task)) and time.monotonic() < deadline:
            for row in missing:
                for folder in {row.run, trial.record_file(row).parent}:
                    with suppress(FileNotFoundError):
                        os.listdir(folder)
            time.sleep(SECONDS_TO_APPEAR / 10)
            self._count(task)

    def _open(self, task: Any) -> list[plan.Row]:
        return [row for row in self._rows_of(task) if row.run not in self._counted]

    def _count(self, task: Any) -> None:
        for row in self._open(task):
            record = trial.read_record(row)
            if record is None:
                continue
            self._counted.add(row.run)
            if record["status"] == "failed":
                self._failed += 1
                tqdm.write(f"{row.run.name} failed: {record['reason'][:160]}", file=sys.stderr)
            self._bar.update()

    def _show(self, trials: list[Any]) -> None:
        running = sum(each.status == "RUNNING" for each in trials)
        self._bar.total = self._total()
        best = f"{self._best:.3f}" if self._best > float("-inf") else "–"
        self._bar.set_postfix(running=running, failed=self._failed, best=best)

    def __getstate__(self) -> dict[str, Any]:
        """Ray saves its callbacks with its own state, of which we make no use."""
        return {}


def trial_lost(ended: Any) -> str:
    """Why a trial ended without a record, in one line."""
    lines = str(ended.get_error() or "").strip().splitlines()
    return f"{trial.LOST}: {lines[-1] if lines else 'no reason known'}"[:500]
