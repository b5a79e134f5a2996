"""The Ray of a sweep: one of its own, which ends with it, or a cluster that it joins."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from data_shards.command import InputError
from jobs import trial
from jobs.sweep_plan import Sweep, processes_per_trial

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nothing reads Ray's own notes: a sweep goes on from its run directories
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports nothing
}
SERVERS = ("gcs_server", "raylet")
SECONDS_BETWEEN_LOOKS = 2


@contextmanager
def join(config: Sweep) -> Iterator[int]:
    """Start Ray, or join the cluster at ``address``. No dashboard, no telemetry, no chatter, no launch variables.
    Yields how many processes of trials run at a time. If Ray's servers on this machine are lost, this process ends with
    status 1."""
    trial.clear_launch_variables()
    os.environ.update(SETTINGS)
    import ray

    folder = None
    if config.address is not None:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        # Sockets lie in it, whose paths may be 107 characters long; TMPDIR of a cluster's job often is too deep.
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        _start(folder)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    over = threading.Event()
    threading.Thread(target=_watch, args=(_servers(), over, folder), daemon=True).start()
    try:
        yield _processes(config)
    finally:
        over.set()
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str) -> None:
    """Start Ray, again where a busy machine does not let it in the 30 seconds that Ray gives itself."""
    import ray

    for last in (False, False, True):
        try:
            ray.init(
                address="local",
                _temp_dir=folder,
                object_store_memory=2**27,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises this very class
            ray.shutdown()
            if last or "timed out" not in str(error):
                raise


def _servers() -> list[psutil.Process]:
    """Ray's servers of this session on this machine."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    [socket] = [node["ObjectStoreSocketName"] for node in ray.nodes() if node["NodeID"] == here]
    session = Path(socket).parents[1].name
    found = psutil.process_iter(["name", "cmdline"])
    return [each for each in found if each.info["name"] in SERVERS and session in " ".join(each.info["cmdline"] or ())]


def _watch(servers: list[psutil.Process], over: threading.Event, folder: str | None) -> None:
    """End the process when a server is lost: without its raylet, Ray Tune waits for ever."""
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        lost = [each.info["name"] for each in servers if not _runs(each)]
        if lost and not over.is_set():
            print(f"error: Ray's {lost[0]} was lost (killed, or out of memory); ", end="", file=sys.stderr)
            print("the same command goes on where the sweep stopped", file=sys.stderr, flush=True)
            if folder:
                for each in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)  # the main thread hangs in Ray


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _processes(config: Sweep) -> int:
    """How many processes of trials the nodes have room for; InputError if those of one trial are more."""
    import ray

    shares = {"CPU": config.cpus_per_trial, "GPU": config.gpus_per_trial}
    asked = {kind: share for kind, share in shares.items() if share}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min((int(node.get(kind, 0) / share) for kind, share in asked.items()), default=1) for node in nodes)
    processes = max(processes_per_trial(config))
    if room < processes:
        has = " and ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in asked)
        asks = " ".join(f"{kind.lower()}s_per_trial={share:g}" for kind, share in asked.items())
        of = f" for each of {processes} processes" if processes > 1 else ""
        raise InputError(f"{asks}{of}, but Ray has {has} on {len(nodes)} nodes, room for {room}; ask for less")
    return room
