"""One cluster of two nodes with two fake GPUs each for all Slurm tests; a test that breaks a node mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

UPDATES = 360
"""Of a row that is disturbed: some ten seconds."""


def _load(file: str):
    """The tests are no package, so that a module beside this file is loaded by its path."""
    name = f"slurm_test_{file}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{file}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def skip_or_fail(reason: str) -> None:
    """Skip on a user's machine, fail in CI (the variable CI is set): there the packages belong to the set-up."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (a failure, not a skip, because CI is set)")
    pytest.skip(reason)


@pytest.fixture
def cluster(running_cluster):
    """The cluster without jobs; what a failed test leaves behind is cancelled."""
    yield running_cluster
    running_cluster.cancel_all()


@pytest.fixture
def machines(cluster):
    """The cluster, whose nodes have names of their own and can crash."""
    if not cluster.namespaces:
        skip_or_fail("nodes share this host's name, and cannot crash, without namespaces: run as root")
    return cluster


@pytest.fixture(scope="session")
def running_cluster():
    module = _load("cluster")
    if missing := module.missing_programs():
        packages = "slurmctld slurmd slurm-client munge"
        skip_or_fail(f"no {', '.join(missing)}: apt-get install -y --no-install-recommends {packages}")
    folder = tempfile.mkdtemp(prefix="slurm-")
    small = Path(folder) / "small"
    small.mkdir()
    # Before the nodes start: what is mounted later they do not see. Where it may not be, one test skips.
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(small)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        with module.SlurmCluster(folder, nodes=2, cpus=4, gpus=2) as running:
            yield running
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", small], check=True)
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(cluster):
    """A folder on a disk of 32 MB that all nodes see."""
    folder = cluster.folder / "small"
    if not folder.is_mount():
        skip_or_fail("a small disk could not be mounted: only root may")
    yield folder
    cluster.cancel_all()  # nobody writes there any more
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="session")
def tiny():
    """The module tiny.py beside this file."""
    return _load("tiny")


@pytest.fixture
def experiment(tiny, tmp_path) -> Path:
    """Experiment file of a minute's work, all in tmp_path."""
    return tiny.write_experiment(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory, worker_id) -> Path:
    """The run directory of row 0 of a plan of two, which take a while and were left alone. Made once for all of
    pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            _train_undisturbed(tiny, folder)
            (folder / "complete").touch()
    (done,) = folder.glob("runs/tiny/*-s0-*/done.json")
    return done.parent


def _train_undisturbed(tiny, folder: Path) -> None:
    # 12 training samples in updates of 4: 3 updates an epoch
    path = tiny.write_experiment(folder, epochs=UPDATES / 3, evaluate_every=100, log_every=1, checkpoint_steps=50)
    settings = yaml.safe_load(path.read_text())
    del settings["backbones"][1:]
    settings["seeds"] = [0, 1]
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "jobs.run", f"plan={tiny.make_plan(path)}", "rows=all", "at_once=2"]
    subprocess.run(command, cwd=tiny.ROOT, check=True, env=os.environ | tiny.ENVIRONMENT)


@pytest.fixture
def row(cluster, tiny, undisturbed, tmp_path):
    """The same in a folder of its own: the plan, and the run directory of row 0 to be."""
    settings = yaml.safe_load((undisturbed.parents[2] / "tiny.yaml").read_text()) | {"runs": str(tmp_path / "runs")}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    plan = tiny.make_plan(path)
    yield plan, plan.parent / undisturbed.name
    cluster.cancel_all()
    shutil.rmtree(plan.parent)


@pytest.fixture
def workplace(tmp_path):
    """A folder with slurm/ of this repository and a stand-in as its python, from which to submit."""
    return _load("standin").Workplace(tmp_path)
