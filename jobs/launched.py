"""A trial in processes of its own: several, for a backbone that does not fit on one GPU, or DeepSpeed.

The trial's own process holds no CPU and no GPU. It starts jobs.ray_train, whose workers get those of all processes, on
one node or on several, and passes on the evaluations as the run writes them.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_shards.command import InputError, to_dict, write_yaml
from data_shards.files import atomic
from jobs import plan, record

if TYPE_CHECKING:
    from jobs.trial import Place
    from trainer.config import FinetuneConfig

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 30
"""What Ray Train gets to end its workers."""
PR_SET_PDEATHSIG = 1


class LaunchFailed(RuntimeError):
    """The processes ended without a result, for a reason that has no name of its own here."""


def is_launched(config: FinetuneConfig) -> bool:
    """Whether a trial needs processes of its own."""
    return (config.processes or 1) > 1 or config.deepspeed_stage > 0


def run(row: plan.Row, on_row: Callable[[dict[str, Any]], None], place: Place) -> dict[str, Any]:
    """Train and score ``row`` on the Ray of this process; returns its result, as of trainer.loop.fit.

    ``on_row`` gets each evaluation within a second of its end. Raises what training and scoring do where that has a
    name, else LaunchFailed. All processes end with this one.
    """
    import ray

    folder = row.run.parent / "rows"
    file, error = folder / f"{row.run.name}.yaml", folder / f"{row.run.name}.error.json"
    folder.mkdir(parents=True, exist_ok=True)
    error.unlink(missing_ok=True)
    address = ray.get_runtime_context().gcs_address
    with atomic(file) as temporary:
        values = {"row": to_dict(row), "place": to_dict(place), "address": address, "root": str(Path.cwd())}
        write_yaml(temporary, {**values, "error": str(error.resolve())})
    last: deque[str] = deque(maxlen=200)
    seen = _Evaluations(row, on_row)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.ray_train", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(die_with_parent, signal.SIGINT),  # which Ray Train passes on
    )
    reader = threading.Thread(target=_keep_last, args=(process.stderr, last), daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            seen.pass_on()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seen.pass_on()
    finally:  # a scheduler stops a trial by an exception out of its report
        _end(process)
        shutil.rmtree(place.folder / "ray" / row.run.name, ignore_errors=True)  # Ray Train's own notes
    reader.join(timeout=5)
    if process.returncode:
        raise _error(error, record.last_error(last, process.returncode))
    return json.loads((row.run / "result.json").read_text(encoding="utf-8"))


def _end(process: subprocess.Popen[str]) -> None:
    """Let Ray Train end its workers, which it does when interrupted; Ray itself ends them where it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    process.kill()
    process.wait()


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


def _error(file: Path, otherwise: str) -> Exception:
    """What jobs.ray_train wrote, as it was raised there; ``otherwise`` where it came to write nothing."""
    import torch

    from data_shards.reader import CorruptSample
    from trainer.loop import NonFiniteLoss, Stopped

    if not file.is_file():
        return LaunchFailed(otherwise)
    told = json.loads(file.read_text(encoding="utf-8"))
    kinds = (InputError, CorruptSample, NonFiniteLoss, Stopped, torch.OutOfMemoryError, MemoryError)
    for kind in kinds:
        if kind.__name__ == told["kind"]:
            return kind(*told["arguments"])
    return LaunchFailed(f"{told['kind']}: {' '.join(told['arguments'])}")


def _keep_last(source: IO[str], last: deque[str]) -> None:
    last.extend(source)


def die_with_parent(by: int = signal.SIGTERM) -> None:
    """End by this signal when the parent ends, were it by a kill, as Ray ends a trial."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
