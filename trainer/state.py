"""The run directory: claims it, resumes it, and keeps it consistent under a kill at any moment.

Rules. A state is a folder that appears whole, by a rename, after all processes have written their part; ``latest``
names it and moves last. Whatever a state refers to is deleted only after ``latest`` has moved on, and the state before
the newest is kept for the case that a disk loses that one. ``result.json`` is written last of all. Tensors are
safetensors and scalars JSON, never pickle.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_shards.command import InputError, read_yaml, to_dict, write_yaml
from data_shards.files import apply_umask, atomic, write_json
from trainer import lease, startup, zero
from trainer.classifier import save_weights
from trainer.config import FinetuneConfig, result_fields
from trainer.distributed import Engine
from trainer.finished import read_result

if TYPE_CHECKING:
    from trainer.distributed import Accelerator

Scalar = int | float
KEPT_STATES = 2


@dataclass
class Progress:
    """Where a run stands, in plain values: the same on every process."""

    step: int = 0
    """Updates made."""
    best: dict[str, Scalar] | None = None
    """The selected evaluation: its row of metrics.jsonl."""
    evaluations_without_gain: int = 0
    """Evaluations since the last one with a higher validation AUC than all before."""
    loss_sum: float = 0.0
    """Of the updates since the last training row of metrics.jsonl, and how many."""
    loss_count: int = 0
    seconds: float = 0.0
    """Time spent training, over all resumptions."""
    bad: list[int] = field(default_factory=list)
    """With on_bad=skip: the different damaged samples met so far, rows of the training set's index."""


class RunDirectory:
    """``RUNS/EXPERIMENT/RUN`` of one config. Everything here but ``save`` and ``load`` is for rank 0 alone."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.path = config.directory
        self.states = self.path / "state"
        self.metrics = self.path / "metrics.jsonl"
        self.stop_file = self.path / "stop"
        self.stopped_file = self.path / "stopped.json"
        self.config = config
        self._lock = -1

    def result(self, weights_sha256: str | None = None) -> dict[str, Any] | None:
        """The result of a finished run (see read_result). Removes the state that a kill just after the end may have
        left."""
        result = read_result(self.config, weights_sha256)
        if result is not None:
            self.discard_state()
        return result

    def claim(self) -> None:
        """Make the directory ours, or raise InputError: another process works in it, or it holds another config."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            self._claim()
        except BaseException:
            self.release()
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training {self.path}; wait for it or stop it") from None
        config_file = self.path / "config.yaml"
        if config_file.is_file():
            _check_same_config(config_file, self.config)
        else:
            with atomic(config_file) as temporary:
                write_yaml(temporary, self.config)
        self.stopped_file.unlink(missing_ok=True)
        if self.stop_file.exists() and self.stop_file.stat().st_mtime < startup.command_start():
            self.stop_file.unlink()  # meant for a process that is gone; a younger one is meant for us

    def stopped(self, step: int) -> None:
        """Take note that a stop request was followed."""
        write_json(self.stopped_file, {"step": step})
        self.stop_file.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others claim the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def latest(self) -> Path | None:
        """The state to resume from: the newest, or the one before where a disk has lost some of it."""
        newest = self._newest()
        if newest is None:
            return None
        for state in sorted((path for path in self.states.glob("step-*") if path <= newest), reverse=True):
            if self._is_whole(state):
                if state != newest:
                    print(f"{newest} is damaged; going on from {state}", file=sys.stderr, flush=True)
                    self._point_to(state)
                return state
        raise InputError(f"{newest} is damaged, and there is no other whole state; move {self.path} away to begin anew")

    def _newest(self) -> Path | None:
        """The state that ``latest`` names."""
        file = self.states / "latest"
        return self.states / file.read_text().strip() if file.is_file() else None

    def _point_to(self, state: Path) -> None:
        with atomic(self.states / "latest") as temporary:
            temporary.write_text(state.name + "\n")
        _flush(self.states)

    def _is_whole(self, state: Path) -> bool:
        """Whether its files are there, and as long as they say."""
        from safetensors import SafetensorError, safe_open

        parts = ("model", "optimizer") if self.config.ema is None else ("model", "optimizer", "ema")
        try:
            saved = json.loads((state / "state.json").read_text(encoding="utf-8"))
            needed = {state / f"{part}.safetensors" for part in parts}
            processes = saved.get("processes", 0)  # an older state does not say
            needed |= {_random_file(state, process) for process in range(processes)}
            for file in needed | set(state.glob("*.safetensors")):
                with safe_open(file, "pt"):
                    pass
        except (OSError, ValueError, SafetensorError):
            return False
        return True

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl, in one write."""
        lease.check(self.path)
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind(self, progress: Progress) -> None:
        """Remove what was written after the state that ``progress`` belongs to, so that nothing doubles."""
        lease.check(self.path)
        rows = [row for row in read_metrics(self.path) if row["step"] <= progress.step]
        with atomic(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._prune(progress)

    def best_weights(self, step: int) -> Path:
        """Weights selected at ``step``, while the run goes on: a later selection has another name, so that a state
        always finds the file that belongs to it."""
        return self.states / f"best-{step:08d}.safetensors"

    def save(self, accelerator: Accelerator, engine: Engine, progress: Progress, facts: dict[str, Any]) -> None:
        """Save the full state. All processes call it. ``facts`` must be the same again at resumption."""
        name = f"step-{progress.step:08d}"
        partial = self.states / f".{name}.partial"
        if accelerator.is_main_process:
            lease.check(self.path)  # a newer incarnation may need what would be deleted here
            self._prune(progress)
            partial.mkdir(parents=True)
            saved = {"progress": asdict(progress), "facts": facts, "processes": accelerator.num_processes}
            write_json(partial / "state.json", saved)
        accelerator.wait_for_everyone()
        try:
            _save_random_state(_random_file(partial, accelerator.process_index))
            save_engine(engine, partial)
        except Exception:  # a full disk, likely: what is half-written must not take the room of a note that says so
            shutil.rmtree(partial, ignore_errors=True)
            raise
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            lease.check(self.path)
            _flush(partial)
            os.replace(partial, self.states / name)
            _flush(self.states)  # a power failure must not undo the rename, and keep what follows
            self._point_to(self.states / name)
            self._prune(progress)

    def load(self, accelerator: Accelerator, engine: Engine, state: Path, facts: dict[str, Any]) -> Progress:
        """Restore the state. All processes call it. InputError when the run cannot be the same one any more."""
        saved = json.loads((state / "state.json").read_text(encoding="utf-8"))
        for key, value in facts.items():
            was = saved["facts"].get(key, value)
            if was != value:
                raise InputError(f"{self.path}: {key} was {was} and is {value}; restore it or start a new run")
        load_engine(engine, state)
        _load_random_state(_random_file(state, accelerator.process_index))
        return Progress(**saved["progress"])

    def _prune(self, progress: Progress) -> None:
        """Delete half-written and old states, and selected weights that neither a kept state nor ``progress`` needs."""
        latest = self._newest()
        for leftover in self.states.glob(".*.partial"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        steps = sorted(path for path in self.states.glob("step-*"))
        dead = [path for path in steps if latest is None or path > latest]
        kept = [path for path in steps if path not in dead]
        for path in [*dead, *kept[:-KEPT_STATES]]:
            shutil.rmtree(path)
        best = [progress.best]
        for path in kept[-KEPT_STATES:]:
            best.append(json.loads((path / "state.json").read_text(encoding="utf-8"))["progress"]["best"])
        needed = {self.best_weights(int(row["step"])) for row in best if row}
        for path in self.states.glob("best-*.safetensors"):
            if path not in needed:
                path.unlink()

    def save_weights(self, file: Path, tensors: dict[str, torch.Tensor], provenance: dict[str, Any]) -> None:
        lease.check(self.path)
        save_weights(file, tensors, provenance)

    def publish_best(self, step: int) -> None:
        """Make the selected weights ``best.safetensors``. The original stays: a kill may yet follow."""
        lease.check(self.path)
        with atomic(self.path / "best.safetensors") as temporary:
            shutil.copyfile(self.best_weights(step), temporary)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; with it the run is finished and its state of no more use."""
        lease.check(self.path)
        write_json(self.path / "result.json", result)
        self.discard_state()

    def discard_state(self) -> None:
        shutil.rmtree(self.states, ignore_errors=True)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that a kill cut short is left out."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def save_engine(engine: Engine, folder: Path) -> None:
    """Write weights, optimizer state and moving average into ``folder``, whole tensors in one form for DDP and every
    stage of DeepSpeed. All processes call it, rank 0 writes."""
    from safetensors.torch import save_file

    parts = {"model": {}, "optimizer": {}}
    if engine.stage:
        parts["model"], parts["optimizer"] = zero.consolidate(engine)
    elif engine.accelerator.is_main_process:
        parts["model"] = engine.module.state_dict()
        # By name: the optimizer's numbers depend on what is frozen, which depends on the number of processes.
        names = list(engine.parameters)
        parts["optimizer"] = {
            f"{names[number]}.{key}": torch.as_tensor(value)
            for number, entries in engine.optimizer.state_dict()["state"].items()
            for key, value in entries.items()
        }
        if engine.ema is not None:
            parts["ema"] = engine.ema.module.state_dict()
    if engine.accelerator.is_main_process:
        for name, tensors in parts.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(plain, folder / f"{name}.safetensors")
            apply_umask(folder / f"{name}.safetensors")
            _flush(folder / f"{name}.safetensors")


def load_engine(engine: Engine, folder: Path) -> None:
    """Restore what ``save_engine`` wrote, on any number of processes. The optimizer's parameter groups come from the
    config, and the learning rate from the step: only its tensors are state."""
    from safetensors.torch import load_file

    model, optimizer = (load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer"))
    unknown = {key.rpartition(".")[0] for key in optimizer} - engine.parameters.keys()
    if unknown:
        raise InputError(
            f"{folder} has optimizer state of {min(unknown)!r}, which does not learn here: it was saved by another "
            "version of this software; go on with that one, or move the run's folder away"
        )
    if engine.stage:
        zero.restore(engine, model, optimizer)
        return
    engine.module.load_state_dict(model)
    if engine.ema is not None:
        engine.ema.module.load_state_dict(load_file(folder / "ema.safetensors"))
    numbers = {name: number for number, name in enumerate(engine.parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for path, tensor in optimizer.items():
        name, _, key = path.rpartition(".")
        state.setdefault(numbers[name], {})[key] = tensor
    groups = engine.optimizer.state_dict()["param_groups"]
    engine.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_file(state: Path, process: int) -> Path:
    return state / f"random-{process:05d}.safetensors"


def _save_random_state(file: Path) -> None:
    """Training draws from torch's generators only (dropout, stochastic depth); augmentation has no state."""
    from safetensors.torch import save_file

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, file)
    _flush(file)


def _load_random_state(file: Path) -> None:
    """A process that did not exist before keeps the generators it was seeded with."""
    from safetensors.torch import load_file

    if file.is_file():
        states = load_file(file)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def _flush(path: Path) -> None:
    """A file's bytes, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_same_config(file: Path, config: FinetuneConfig) -> None:
    saved = read_yaml(file)
    # A field that did not exist when the file was written stood at its default.
    saved = {field.name: field.default for field in fields(config) if field.default is not MISSING} | saved
    now = to_dict(config)
    differing = [key for key in {**result_fields(config), **saved} if saved.get(key) != now.get(key)]
    differing = [key for key in differing if key in result_fields(config) or key not in now]
    if differing:
        shown = ", ".join(f"{key} ({saved.get(key)!r}, now {now.get(key)!r})" for key in differing)
        raise InputError(f"{file.parent} was made with another config: {shown}; move the folder away")
