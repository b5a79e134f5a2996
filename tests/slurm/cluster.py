"""A real Slurm cluster for tests: slurmctld and several slurmd on loopback, all in one folder.

Needs Debian's packages ``slurmctld slurmd slurm-client munge``, but neither systemd, /etc/slurm nor /etc/munge. As root
every node is a PID, host name and mount namespace: it has its own host name, knows the other nodes by name, and its
death takes every process of its jobs along, as a crash does. Without that right the nodes are plain processes that
share this host's name, and ``kill_node`` is refused.

    with SlurmCluster(folder, nodes=2) as cluster:
        job = cluster.sbatch("--wrap", "hostname")
        assert cluster.wait(job) == {job: "COMPLETED"}
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
LONGEST_FOLDER = 75  # Slurm's unix sockets lie below it; 84 characters hang when a job is launched

# The first process of a node: it starts slurmd and then only reaps orphans; when it dies, the kernel kills the node.
NODE_INIT = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
slurmd -N "$1"
while :; do sleep 1000 & wait; done
"""


def missing_programs() -> list[str]:
    """The programs of Slurm and munge that are not installed here."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class SlurmCluster:
    """Nodes ``n1 … nN`` of ``cpus`` CPUs and ``gpus`` fake GPUs each, run from ``folder``.

    Jobs of the partition ``high`` take the nodes from those of ``main``, the default, and of ``spot``, which are
    requeued; those of ``spot`` get their signal 20 seconds before.

    The numbers are declared, not enforced: two real cores can be a cluster of 4 × 16. A context manager; ``stop``
    ends every process of the cluster and of its jobs and leaves the folder with its logs.
    """

    ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"})

    def __init__(self, folder: str | Path, nodes: int = 2, cpus: int = 4, gpus: int = 0) -> None:
        self.folder = Path(folder).resolve()
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise ValueError(f"{self.folder}: longer than {LONGEST_FOLDER} characters; set TMPDIR to a shorter path")
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus, self.gpus = cpus, gpus
        self.namespaces = subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
        self.env = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.env["PATH"] += ":/usr/sbin:/sbin"
        for name in [name for name in self.env if name.startswith(("SLURM_", "SBATCH_"))]:
            if name != "SLURM_CONF":  # the test itself may run inside a job of another cluster
                del self.env[name]
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> SlurmCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ commands

    def run(self, *command: str | Path, cwd: str | Path | None = None, env: dict[str, str] | None = None) -> str:
        """Standard output of a command that sees this cluster; RuntimeError with its standard error if it fails."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr}")
        return done.stdout.strip()

    def sbatch(self, *arguments: str | Path, cwd: str | Path | None = None, env: dict[str, str] | None = None) -> str:
        """Submit; returns the job id. Without an ``--output`` among the arguments the log goes to the folder."""
        return self.run("sbatch", "--parsable", f"--output={self.folder}/job-%j.log", *arguments, cwd=cwd, env=env)

    def squeue(self, *arguments: str) -> str:
        return self.run("squeue", "--noheader", "--array", *arguments)

    def scontrol(self, *arguments: str) -> str:
        return self.run("scontrol", *arguments)

    def states(self, job: str | None = None) -> dict[str, str]:
        """State of every job (of one job or array), ended ones too: ``{"7": "RUNNING", "8_0": "COMPLETED"}``."""
        chosen = [f"--jobs={job}"] if job else []
        lines = self.squeue("--states=all", "--format=%i %T", *chosen).splitlines()
        return dict(line.split() for line in lines)

    def restarts(self, job: str) -> int:
        """How often a job (``"7"`` or ``"8_0"``) was requeued."""
        return int(re.search(r"\bRestarts=(\d+)", self.scontrol("show", "job", "--oneliner", job)).group(1))

    def wait(self, job: str | None = None, timeout: float = 180) -> dict[str, str]:
        """Wait until the job, or every task of the array, or (None) every job has ended; returns the states."""

        def ended() -> bool:
            return self.ENDED.issuperset(self.states(job).values())

        self.wait_until(ended, timeout)
        return self.states(job)

    def cancel_all(self) -> None:
        """Cancel every job that has not ended, and wait until it has."""
        if left := [job for job, state in self.states().items() if state not in self.ENDED]:
            self.run("scancel", *left)
            self.wait()

    def wait_until(self, condition, timeout: float = 180):
        """Poll until ``condition()`` is true and return its value; TimeoutError shows the queue and the logs."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout} s; the queue:\n{self.squeue('--states=all')}\n{self.logs()}")
            time.sleep(0.1)
        return value

    def logs(self, lines: int = 15) -> str:
        """The last lines of the daemons' and the jobs' logs."""
        found = sorted([*self.folder.glob("log/*.log"), *self.folder.glob("job-*.log")])
        tails = ["\n".join(path.read_text(errors="replace").splitlines()[-lines:]) for path in found]
        return "\n".join(f"--- {path.name}\n{tail}" for path, tail in zip(found, tails, strict=True))

    # ------------------------------------------------------------------ the machines

    def start(self) -> None:
        """Start everything and wait until every node is idle (a second or two)."""
        if missing := missing_programs():
            raise RuntimeError(f"not installed: {', '.join(missing)}")
        for name in ("munge", "state", "spool", "log", "dev"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "munge" / "key").touch(mode=0o600)
        (self.folder / "munge" / "key").write_bytes(os.urandom(64))
        self._write_configuration()
        munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon(
            "munged", "--foreground", *(f"--{option}={self.folder}/munge/{to}" for option, to in munge.items())
        )
        self.wait_until((self.folder / "munge" / "socket").exists, timeout=10)
        self._daemon("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self.wait_idle()

    def wait_idle(self, timeout: float = 30) -> None:
        """Wait until the controller answers and every node is idle."""

        def idle() -> bool:
            if self._daemons["slurmctld"].poll() is not None:
                raise RuntimeError(f"slurmctld has ended\n{self.logs()}")
            # not `sinfo --states=idle`, which also lists nodes that are still UNKNOWN
            shown = subprocess.run(
                ["sinfo", "-hN", "-pmain", "-o%T"], env=self.env, capture_output=True, text=True, check=False
            )
            return shown.stdout.split() == ["idle"] * len(self.nodes)

        self.wait_until(idle, timeout)

    def start_node(self, node: str) -> None:
        """Start a node, as after ``kill_node``, or only its slurmd, as after ``kill_slurmd``."""
        if not self.namespaces:
            self._daemon("slurmd", "-D", "-N", node, name=node)
        elif node in self._daemons and self._daemons[node].poll() is None:
            enter = ["nsenter", f"--target={self._init(node).pid}", "--pid", "--mount", "--uts"]
            self.run(*enter, "slurmd", "-N", node)
        else:
            self._daemon(*_UNSHARE, "bash", "-c", NODE_INIT, "init", node, str(self.folder), name=node)

    def kill_node(self, node: str) -> None:
        """A crash: slurmd and every process of the node's jobs, at once."""
        if not self.namespaces:
            raise RuntimeError("kill_node needs namespaces: run as root")
        init = self._init(node)
        init.kill()
        self._daemons[node].wait(timeout=10)

    def kill_slurmd(self, node: str) -> None:
        """The node's daemon only: the processes of its jobs live on."""
        top = psutil.Process(self._daemons[node].pid)
        (slurmd,) = [child for child in [top, *top.children(recursive=True)] if _name(child) == "slurmd"]
        slurmd.kill()
        psutil.wait_procs([slurmd], timeout=10)

    def restart_controller(self) -> None:
        """Kill slurmctld and start it again; jobs go on meanwhile."""
        self._daemons["slurmctld"].kill()
        self._daemons["slurmctld"].wait(timeout=10)
        self._daemon("slurmctld", "-D")
        self.wait_until(lambda: subprocess.run(["squeue"], env=self.env, capture_output=True).returncode == 0)

    def stop(self) -> None:
        """End every process of the cluster and of its jobs. May be called in any state, and again."""
        controller = self._daemons.get("slurmctld")
        if not self.namespaces and controller and controller.poll() is None:
            self.cancel_all()
        tops = [psutil.Process(daemon.pid) for daemon in self._daemons.values() if daemon.poll() is None]
        processes = [process for top in tops for process in [top, *top.children(recursive=True)]]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # the death of a node's first process kills the others
                process.kill()
        for daemon in self._daemons.values():
            daemon.wait(timeout=10)
        self._daemons.clear()
        _, left = psutil.wait_procs(processes, timeout=10)
        if alive := [process for process in left if _status(process) != psutil.STATUS_ZOMBIE]:
            raise RuntimeError(f"still running: {alive}")

    # ------------------------------------------------------------------ inside

    def _daemon(self, program: str, *arguments: str, name: str | None = None) -> None:
        """Start a daemon in the foreground. It dies with this process, so that a killed test leaves no cluster."""
        name = name or program
        with open(self.folder / "log" / f"{name}.out.log", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _init(self, node: str) -> psutil.Process:
        """The first process inside the node's namespaces: the only child of its `unshare`."""
        (init,) = psutil.Process(self._daemons[node].pid).children()
        return init

    def _write_configuration(self) -> None:
        ports = _free_ports(len(self.nodes) + 1)
        gres = self._write_gres()
        # Without a mounted cgroup file system slurmd starts only with this plugin, even when nothing uses cgroups.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = ["127.0.0.1 localhost", *(f"127.0.1.{i} {node}" for i, node in enumerate(self.nodes, 1))]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        user = psutil.Process().username()
        settings = f"""
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a requeued job waits until its old credential has expired; Slurm's own default is two minutes
AuthInfo=socket={self.folder}/munge/socket,cred_expire=5
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MaxArraySize=6
# the ports of rows are made from job ids: another cluster on this machine shall not use the same ones
FirstJobId={random.randrange(1, 2000)}
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=10
MinJobAge=3600
Waittime=0
{"GresTypes=gpu" if gres else ""}
"""
        for node, port in zip(self.nodes, ports[1:], strict=True):
            settings += f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} "
            settings += f"CPUs={self.cpus} RealMemory=64000 {gres}\n"
        partition = "Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP"
        settings += f"PartitionName=main {partition} Default=YES PriorityTier=1 PreemptMode=REQUEUE\n"
        settings += f"PartitionName=spot {partition} Default=NO PriorityTier=1 PreemptMode=REQUEUE GraceTime=20\n"
        settings += f"PartitionName=high {partition} Default=NO PriorityTier=10 PreemptMode=OFF\n"
        (self.folder / "slurm.conf").write_text(settings)

    def _write_gres(self) -> str:
        """Declare stand-ins for the GPUs; nothing opens them. Slurm sets CUDA_VISIBLE_DEVICES for character devices
        only; 240 is a major number for local use without a driver."""
        if self.gpus == 0:
            return ""
        for number in range(self.gpus):
            self.run("mknod", self.folder / "dev" / f"gpu{number}", "c", "240", str(number))
        (self.folder / "gres.conf").write_text(f"Name=gpu Type=fake File={self.folder}/dev/gpu[0-{self.gpus - 1}]\n")
        return f"Gres=gpu:fake:{self.gpus}"


_UNSHARE = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave")


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:  # a child of a job that has just ended
        return ""


def _free_ports(count: int) -> list[int]:
    """A run of free TCP ports, below the range from which the system takes ports for clients."""
    for _ in range(100):
        first = random.randrange(12000, 19000)
        ports = list(range(first, first + count))
        if all(map(_is_free, ports)):
            return ports
    raise RuntimeError("no free run of ports between 12000 and 19000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
