"""The ``accelerate launch`` command line of a config: ``python -m trainer.launch finetune=FILE.yaml processes=2``.

The same for one process, several on this machine, and several machines (one launch on each). Only the flags differ
that have to; what the processes then are is checked by ``trainer.distributed``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from data_shards.command import InputError, run
from trainer import startup
from trainer.finetune import STOPPED
from trainer.finished import read_result

SCRIPT = Path(__file__).with_name("finetune.py")
DEFAULTS = Path(__file__).with_name("accelerate.yaml")
REPEAT = 1.0
"""Seconds between two looks at whether a stop request was overlooked."""


@dataclass
class Launch:
    """Fine-tune on one or several processes and machines, through accelerate launch."""

    finetune: Path
    """YAML file of a FinetuneConfig."""
    processes: int = 1
    """Processes on this machine: one for each of its GPUs."""
    machines: int = 1
    machine_rank: int = 0
    head: str | None = None
    """Address of machine 0, when there are several."""
    port: int | None = None
    """Rendezvous port; default on one machine: a free one."""


def command(
    config_path: Path,
    *,
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    head: str | None = None,
    port: int | None = None,
    deepspeed_stage: int = 0,
) -> list[str]:
    """The command that runs ``config_path`` on ``processes`` processes of each of ``machines`` machines.

    To be run on every machine, with its ``machine_rank`` (0 to machines - 1). ``deepspeed_stage`` must be the config's.
    InputError if several machines are given without head and port, or numbers do not fit.
    """
    if processes < 1 or machines < 1 or not 0 <= machine_rank < machines:
        raise InputError(f"processes={processes}, machines={machines}, machine_rank={machine_rank} do not fit together")
    if machines > 1 and (head is None or port is None):
        raise InputError("several machines need head=ADDRESS and port=NUMBER of machine 0")
    total = processes * machines
    flags = [
        *("--config_file", str(DEFAULTS)),
        *("--num_processes", str(total), "--num_machines", str(machines), "--machine_rank", str(machine_rank)),
        *("--main_process_port", str(port or 0)),
        *("--num_cpu_threads_per_process", str(_threads(processes))),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--quiet"),
    ]
    if head is not None:
        flags += ["--main_process_ip", head]
    if deepspeed_stage:
        # Several machines: by default Accelerate would start them itself, over pdsh and a hostfile.
        flags += ["--use_deepspeed", "--zero_stage", str(deepspeed_stage), "--deepspeed_multinode_launcher", "standard"]
    elif total > 1:
        flags += ["--multi_gpu"]  # on CPUs too: --cpu would run one process whatever --num_processes says
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*accelerate, *flags, str(SCRIPT), "--config", str(config_path), f"--processes={total}"]


def exit_status(run_directory: Path, launcher_status: int) -> int:
    """What a launch came to: 0 finished, 85 stopped on request, otherwise the launcher's own status. Launchers report
    any status of their processes as 1, hence the files."""
    if (run_directory / "result.json").is_file():
        return 0
    if (run_directory / "stopped.json").is_file():
        return STOPPED
    return launcher_status or 1


def start(line: list[str], run_directory: Path) -> int:
    """Run a command of ``command`` to its end; returns its exit status, as of trainer.finetune.

    SIGTERM and SIGUSR1 to this process ask the run to stop at its next update, through the file that all its processes
    agree on: Accelerate's launchers forward neither of them in every case. It is made again where it was gone but not
    followed: a beginning run takes it for one to its predecessor if the disk's clock is behind. Main thread only."""
    stop, asked = run_directory / "stop", []

    def ask(*_: object) -> None:
        asked.append(True)
        run_directory.mkdir(parents=True, exist_ok=True)
        stop.touch()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        environment = {**os.environ, startup.VARIABLE: str(startup.process_start())}
        with subprocess.Popen(line, env=environment) as process:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(REPEAT)
                # In this order: a run that follows it says so first.
                if asked and not stop.exists() and not (run_directory / "stopped.json").exists():
                    ask()
            return exit_status(run_directory, process.wait())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _threads(processes: int) -> int:
    """OpenMP threads of a process: what OMP_NUM_THREADS says, or a fair share of the cores this launch may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else max(1, len(os.sched_getaffinity(0)) // processes)


def launch(options: Launch) -> None:
    """Run the command and exit with the status of the run."""
    from data_shards.command import parse
    from data_shards.manifest import ShardSet
    from trainer.card import get_card
    from trainer.config import FinetuneConfig

    # Mistakes that show before anything starts are one line; after it, launchers add theirs.
    config = parse(FinetuneConfig, ["--config", str(options.finetune)])
    config.rank_batch(options.processes * options.machines)
    read_result(config)  # one that does not belong to the data of now
    get_card(config.backbone, config.cards)
    for path in (config.train, config.validation):
        ShardSet.open(path)
    line = command(
        options.finetune,
        processes=options.processes,
        machines=options.machines,
        machine_rank=options.machine_rank,
        head=options.head,
        port=options.port,
        deepspeed_stage=config.deepspeed_stage,
    )
    if options.machine_rank == 0:
        # Of an earlier launch: if this one failed before training began, it would read as stopped.
        (config.directory / "stopped.json").unlink(missing_ok=True)
    sys.exit(start(line, config.directory))


if __name__ == "__main__":
    run(Launch, launch)
