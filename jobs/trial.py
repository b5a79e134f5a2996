"""One trial of a sweep: a fine-tuning run with its scores, and the record of how it ended.

Ray gets validation results and nothing else. The test and the unseen sets are scored after training has ended, into
the run directory. ``RUN/trial.json`` says how the trial ended; without it the trial is to be run, or to go on.

A trial that runs out of memory in training goes on once as a run of its own with half the micro batch and twice the
accumulation; ``RUN/out_of_memory.json`` says so. In scoring the batches are halved, which changes nothing.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import InputError, to_dict
from data_shards.files import atomic, write_json
from jobs import launched, overfit, plan, sweep_features, sweep_pictures

if TYPE_CHECKING:
    from trainer.config import FinetuneConfig

LAUNCH_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "SLURM_", "PMI_", "PMIX_", "OMPI_", "FSDP_", "DEEPSPEED_")
LAUNCH_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
REPORTED = ("auc", "epoch", "train_auc")
"""What Ray is told: validation AUC, time, and training AUC."""
LOST = "the process of the trial was lost"
LOST_PROCESSES = 2
"""How often a trial whose process was lost is started again before the sweep gives it up."""
SECONDS_TO_WAIT = 60
SCORED_AT_ONCE = 64

Report = Callable[[dict[str, float]], None]
Pause = Callable[[Path, dict[str, float]], None]
"""Called after an evaluation with the run directory, whose state is saved, and what is reported."""


def clear_launch_variables(keep: Collection[str] = ()) -> None:
    """Forget an outer launcher: a trial would wait for ranks that are not there. ``keep``: those of our own."""
    for name in list(os.environ):
        if name not in keep and (name in LAUNCH_VARIABLES or name.startswith(LAUNCH_PREFIXES)):
            del os.environ[name]


@contextmanager
def silent() -> Iterator[None]:
    """Nothing on stdout: Ray Tune prints boxes there whatever the verbosity."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@dataclass(frozen=True)
class Place:
    """Where a sweep's trials run: the folder of its own data, the training set that all its training sets are parts of,
    and the CPUs and GPUs of each process of a trial."""

    folder: Path
    train: Path
    cpus: float = 1
    gpus: float = 0

    @classmethod
    def of(cls, values: dict[str, Any]) -> Place:
        """From plain values, as Ray and files carry them."""
        return cls(**{**values, "folder": Path(values["folder"]), "train": Path(values["train"])})

    @property
    def features(self) -> Path:
        """Folder of the frozen features."""
        return self.folder / "features"

    @property
    def pictures(self) -> Path:
        """Folder of the decoded pictures."""
        return self.folder / "pictures"


def as_run(row: plan.Row) -> plan.Row:
    """The row as it is run: with more accumulation than planned where it ran out of memory."""
    file = row.run / "out_of_memory.json"
    if not file.is_file():
        return row
    accumulation = json.loads(file.read_text(encoding="utf-8"))["accumulation"]
    return replace(row, finetune={**row.finetune, "accumulation": accumulation})


def out_of_memory(row: plan.Row) -> str:
    """How a row came to run otherwise than planned; empty if it did not."""
    file = row.run / "out_of_memory.json"
    return json.loads(file.read_text(encoding="utf-8"))["reason"] if file.is_file() else ""


def record_file(row: plan.Row) -> Path:
    return as_run(row).run / "trial.json"


def read_record(row: plan.Row) -> dict[str, Any] | None:
    """``status`` (finished, failed or stopped), ``reason`` and ``error`` of a trial that ended; None of any other."""
    file = record_file(row)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def ended(row: plan.Row, scheduler: str = "") -> bool:
    """Whether there is nothing to do for the trial. One that failed for a reason outside its hyperparameters (a bad
    file, a lost process) is tried again; one that was scored on other sets, or by an earlier version, is scored anew;
    one that a scheduler stopped goes on where the sweep's is now ``none``, which asks for full curves."""
    record = read_record(row)
    if record is None:
        return False
    if record["status"] == "finished":
        return {key: record.get(key) for key in _scoring(row)} == _scoring(row)
    if record["status"] == "stopped":
        return scheduler != "none"
    return record["error"] == "NonFiniteLoss"


def _scoring(row: plan.Row) -> dict[str, Any]:
    """What the numbers of a finished trial depend on, beside its training."""
    return {"score": row.score, "replicates": row.replicates, "schema": overfit.SCHEMA}


def write_record(row: plan.Row, status: str, reason: str = "", error: str = "", *, replace: bool = True) -> None:
    """Say how the trial ended; unless ``replace``, only where nothing says it yet, seen from here or not."""
    record = {"status": status, "reason": reason, "error": error, **_scoring(row)}
    file = record_file(row)
    file.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        write_json(file, record)
        return
    with suppress(FileExistsError), open(file, "x", encoding="utf-8") as new:  # "x" is for the file's server to decide
        json.dump(record, new)


def trainable(config: dict[str, Any]) -> None:
    """What Ray calls, in a process of its own: the trials of a task, one after the other."""
    from ray import tune

    place = Place.of(config["place"])
    enter(config["root"], 0 if config["launched"] else place.gpus)
    run_trials([plan.Row(**row) for row in config["rows"]], tune.report, place)


def enter(root: str, gpus: float) -> None:
    """Make the process at hand one of a sweep's trials, with its paths from ``root`` on."""
    clear_launch_variables()
    if not gpus:  # Ray leaves all of them visible to a task that asks for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.chdir(root)


def run_trials(rows: Sequence[plan.Row], report: Report, place: Place) -> None:
    """Run what has not ended of some trials. A single one reports its evaluations as they come; of several, which have
    no time in common, each reports once, at its end. What went wrong for reasons unknown is raised at last.

    Ray calls it again when it raised, or when its process was lost: what had been begun then comes last, so that it
    cannot keep the others from their turn, and is given up after a few starts."""
    unknown: Exception | None = None
    for row in sorted(rows, key=starts):
        if ended(row) or starts(row) > LOST_PROCESSES:
            if read_record(row) is None:
                write_record(row, "failed", f"{LOST} {starts(row)} times", "Lost")
            continue
        _note_start(row)
        try:
            run_trial(row, report, place, live=len(rows) == 1)
        except Exception as error:
            unknown = error
        if len(rows) > 1:
            _keep_what_is_loaded()
    if unknown is not None:
        raise unknown


def starts(row: plan.Row) -> int:
    """How often the trial was started by the last call of the sweep that began it."""
    file = row.run / "starts"
    return int(file.read_text()) if file.is_file() else 0


def _note_start(row: plan.Row) -> None:
    row.run.mkdir(parents=True, exist_ok=True)
    with atomic(row.run / "starts") as temporary:
        temporary.write_text(f"{starts(row) + 1}")


def begin_anew(row: plan.Row) -> None:
    """Forget how an earlier call of the sweep left the trial; its run directory stays."""
    record_file(row).unlink(missing_ok=True)
    (row.run / "starts").unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _keep_what_is_loaded() -> None:
    """Once in a process: modules and features stay, so that the collection of garbage at the end of each trial need
    not go through them, which takes longer than a head trains."""
    gc.collect()
    gc.freeze()


def run_trial(
    row: plan.Row, report: Report, place: Place | None = None, *, live: bool = True, pause: Pause | None = None
) -> None:
    """Train, score and evaluate; go on where an earlier call was killed. What goes wrong is recorded; what is not
    foreseen is also raised. Evaluations are reported as they come if ``live``, or given to ``pause``."""
    from data_shards.reader import CorruptSample
    from trainer.loop import NonFiniteLoss

    try:
        selected = _run_within_memory(row, report if live else lambda told: None, place, pause)
    except (InputError, CorruptSample, NonFiniteLoss) as error:
        write_record(row, "failed", str(error), type(error).__name__)
    except Exception as error:
        if is_out_of_memory(error):
            write_record(row, "failed", f"out of memory: {error}", "OutOfMemoryError")
            return
        write_record(row, "failed", f"{type(error).__name__}: {error}", type(error).__name__)
        raise
    else:
        write_record(row, "finished")
        # After the record: a scheduler may end a trial at any report.
        report(_reported(selected))


def _run_within_memory(row: plan.Row, report: Report, place: Place | None, pause: Pause | None) -> dict[str, Any]:
    _wait_until_free(as_run(row).run)
    try:
        return _run(as_run(row), report, place, pause)
    except Exception as error:
        if not is_out_of_memory(error) or not _halve(row, error):
            raise
    return _run(as_run(row), report, place, pause)  # out here: the error held on to the memory of the first attempt


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _halve(row: plan.Row, error: Exception) -> bool:
    """Plan the row with half the micro batch; False where that was done before, cannot be, or would not help since
    training is over."""
    config, processes = row.config, row.config.processes or 1
    if as_run(row) is not row or (row.run / "result.json").is_file():
        return False
    accumulation = 2 * config.accumulation
    try:
        replace(config, accumulation=accumulation).rank_batch(processes)
    except InputError:  # it cannot be parted
        return False
    before, after = (config.batch_size // (processes * each) for each in (config.accumulation, accumulation))
    reason = (
        f"out of memory with a micro batch of {before} ({str(error)[:200]}); goes on with {after} and "
        f"accumulation={accumulation}"
    )
    write_json(row.run / "out_of_memory.json", {"accumulation": accumulation, "reason": reason})
    return True


def _run(row: plan.Row, report: Report, place: Place | None, pause: Pause | None) -> dict[str, Any]:
    if launched.is_launched(row.config):
        result = launched.run(row, lambda metrics: _is_midway(metrics, row) and report(_reported(metrics)), place)
    else:
        result = _fit(row, report, place, pause)
        score(row, place)
    return {**result["selected"], "epoch": result["epoch"]}


def _is_midway(metrics: dict[str, Any], row: plan.Row) -> bool:
    """Whether it is an evaluation, and not the last one, which is reported when all is over."""
    return "validation/auc" in metrics and metrics["epoch"] < row.config.epochs


def _frozen(config: FinetuneConfig, place: Place | None) -> sweep_features.Frozen | None:
    if place is None or config.features is None:
        return None
    return sweep_features.frozen(sweep_features.key(config), place.features, place.train)


def _fit(row: plan.Row, report: Report, place: Place | None, pause: Pause | None) -> dict[str, Any]:
    from trainer.allocator import give_back_freed_memory
    from trainer.distributed import build_accelerator, close
    from trainer.loop import Stopped, fit

    config, told = row.config, {}

    def on_row(metrics: dict[str, Any]) -> None:
        if not _is_midway(metrics, row):
            return
        if pause is None:
            report(_reported(metrics))
        else:
            told.update(_reported(metrics))
            (row.run / "stop").touch()

    frozen, open_shards = _frozen(config, place), sweep_pictures.opener(config, place)
    if frozen is None:
        gc.collect()
        give_back_freed_memory()  # of the trial before, in the same process
    while True:
        accelerator = build_accelerator(config)
        try:
            features = frozen and frozen.for_training(config)
            return fit(config, accelerator, on_row, features=features, open_shards=open_shards)
        except Stopped:
            if not told:  # somebody else's wish
                raise
        finally:
            close(accelerator)
        pause(row.run, dict(told))
        told.clear()


def score(row: plan.Row, place: Place | None) -> None:
    """Open the test and the unseen sets: training is over. What is scored already is left alone."""
    from trainer import predict

    sets = {name: Path(path) for name, path in row.score.items()}
    frozen, open_shards = _frozen(row.config, place), cache(sweep_pictures.opener(row.config, place))
    features = frozen and (lambda path: frozen.of(path).features)
    for checkpoint in ("best", "last"):
        _in_batches_that_fit(
            partial(predict.score, row.run, sets, checkpoint, features=features, open_shards=open_shards)
        )
    overfit.measure(row.run, row.config.train, list(sets), replicates=row.replicates)


def _in_batches_that_fit(scoring: Callable[..., Any]) -> None:
    """Score, in smaller batches where memory runs out; sets that were done are left alone."""
    batch_size = SCORED_AT_ONCE
    while True:
        try:
            scoring(batch_size=batch_size)
            return
        except Exception as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        batch_size //= 2  # out here: the error held on to the memory of the attempt


def _reported(metrics: dict[str, Any]) -> dict[str, float]:
    values = (metrics["validation/auc"], metrics["epoch"], metrics["train/auc"])
    return dict(zip(REPORTED, values, strict=True))


def _wait_until_free(run: Path) -> None:
    """After a kill of the driver its trials live on for a moment, and hold their run directories."""
    if not (run / ".lock").is_file():
        return
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with open(run / ".lock", "rb") as lock:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.5)
            else:
                return  # closing it lets go of it


def task_config(rows: Sequence[plan.Row], place: Place) -> dict[str, Any]:
    """Trials as Ray carries them to a process."""
    return {
        "rows": [to_dict(row) for row in rows],
        "launched": any(launched.is_launched(row.config) for row in rows),
        "place": to_dict(place),
        "root": str(Path.cwd()),
    }
