"""Fine-tuning of a trial in processes of its own: several, for a backbone that does not fit on one GPU, or DeepSpeed.

The trial's process stays with Ray. It starts Accelerate's launcher on the GPUs and CPUs that Ray gave the trial, passes
on the evaluations as the run writes them, and scores when training has ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_shards.command import InputError, to_dict, write_yaml
from data_shards.files import atomic
from jobs import plan, record
from trainer.config import FinetuneConfig
from trainer.finished import read_result

if TYPE_CHECKING:
    from jobs.trial import Place

WORKER = Path(__file__).with_name("launched_worker.py")
SECONDS_BETWEEN_LOOKS = 0.5
PR_SET_PDEATHSIG = 1


class LaunchFailed(RuntimeError):
    """The launched processes ended without a result, for a reason that has no name of its own here."""


def is_launched(config: FinetuneConfig) -> bool:
    """Whether the config needs a launcher."""
    return (config.processes or 1) > 1 or config.deepspeed_stage > 0


def fit(row: plan.Row, on_row: Callable[[dict[str, Any]], None], place: Place | None = None) -> dict[str, Any]:
    """Train ``row`` to its end on ``processes`` processes of this machine; returns its result, as of trainer.loop.fit.

    ``on_row`` gets each evaluation within a second of its end. ``place``: of what the sweep's trials share.
    Raises what ``trainer.loop.fit`` does where the run's last line tells it, else LaunchFailed. Processes and launcher
    end with the trial's process.
    """
    from trainer import launch

    config = row.config
    if (result := read_result(config)) is not None:
        return result
    processes = config.processes or 1
    file = row.run.parent / "rows" / f"{row.run.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        write_yaml(temporary, {"finetune": row.finetune, "place": place and to_dict(place)})
    line = launch.command(file, processes=processes, deepspeed_stage=config.deepspeed_stage, script=WORKER)
    (row.run / "stopped.json").unlink(missing_ok=True)  # else a launcher that fails would read as stopped
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or processes) // processes)  # Ray says how many all may use
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    last: deque[str] = deque(maxlen=200)
    seen = _Evaluations(row, on_row)
    process = subprocess.Popen(
        line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent
    )
    reader = threading.Thread(target=_keep_last, args=(process.stderr, last), daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            seen.pass_on()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seen.pass_on()
    finally:  # a scheduler stops a trial by an exception out of its report
        process.terminate()
        process.wait()
    reader.join(timeout=5)
    status = launch.exit_status(row.run, process.returncode)
    if status:
        raise _error(status, last)
    return json.loads((row.run / "result.json").read_text(encoding="utf-8"))


class _Evaluations:
    """Those of a run that were not there before, each once; a resumed run writes some of them again."""

    def __init__(self, row: plan.Row, on_row: Callable[[dict[str, Any]], None]) -> None:
        self._run, self._on_row = row.run, on_row
        self._until = max((found["epoch"] for found in self._read()), default=0.0)

    def pass_on(self) -> None:
        for found in self._read():
            if found["epoch"] > self._until:
                self._until = found["epoch"]
                self._on_row(found)

    def _read(self) -> list[dict[str, Any]]:
        from trainer.state import read_metrics

        return [found for found in read_metrics(self._run) if "validation/auc" in found]


def _error(status: int, lines: Collection[str]) -> Exception:
    import torch

    from data_shards.reader import CorruptSample
    from trainer.finetune import STOPPED
    from trainer.loop import NonFiniteLoss, Stopped

    reason = record.last_error(lines, status)
    foreseen = any(f"error: {reason}" in line for line in lines)
    if status == STOPPED:
        return Stopped(reason)
    if "not finite" in reason:
        return NonFiniteLoss(reason)
    if "OutOfMemoryError" in reason:
        return torch.OutOfMemoryError(reason)
    if foreseen:
        corrupt = re.fullmatch("(.*?): sample '(.*?)': (.*)", reason)
        return CorruptSample(*corrupt.groups()) if corrupt else InputError(reason)
    return LaunchFailed(reason)


def _keep_last(source: IO[str], last: deque[str]) -> None:
    last.extend(source)


def die_with_parent() -> None:
    """End by SIGTERM (which a launcher passes on) when the parent ends, were it by a kill, as Ray ends a trial."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
