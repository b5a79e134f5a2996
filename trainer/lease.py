"""Who may write a run directory: the newest incarnation of the run, and no other.

A scheduler that loses sight of a node starts the run again elsewhere while the old processes live on, out of its reach.
So every incarnation takes the next *term*, a number, by exclusive creation of ``RUN/.lease/TERM.json``; the highest is
the owner. The older one sees that within a second and stops. The newer one waits until the older has gone or has given
no sign of life for ``PATIENCE`` seconds. Should an older one wake up after that, ``check`` keeps it from saving
(fencing: Kleppmann, How to do distributed locking, 2016).

Sign of life: ``TERM.beat.COUNT`` is renamed to the next count each second. A rename needs no space on a full disk, no
common clock, and makes an NFS client fetch the directory anew.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from data_shards.command import InputError

HEARTBEAT = 1.0
"""Seconds between two signs of life."""
PATIENCE = 15.0
"""Seconds without a sign of life after which an incarnation counts as dead."""
VARIABLE = "RUN_TERM"
"""Environment variable that tells the processes of an incarnation its term."""


class Superseded(InputError):
    """A newer incarnation of this run has taken over; this one must not write any more."""


def check(run: Path) -> None:
    """Raise Superseded if this process belongs to an incarnation that is no longer the newest of the run. Processes
    that were started without a lease are not concerned."""
    term = os.environ.get(VARIABLE)
    if term is not None and max(_terms(run / ".lease"), default=0) > int(term):
        raise Superseded(f"{run}: a newer incarnation of this run has taken over; this one stops")


def beats(run: Path) -> set[str]:
    """The signs of life in a run directory; if they differ a few heartbeats later, somebody is at work in it."""
    folder = run / ".lease"
    return {path.name for path in folder.glob("*.beat.*")} if folder.is_dir() else set()


def owner(run: Path) -> dict[str, Any] | None:
    """What the newest incarnation said of itself: ``holder, host, pid, started, progress, stuck``."""
    folder = run / ".lease"
    terms = sorted(_terms(folder))
    return _read(folder, terms[-1]) if terms else None


class Lease:
    """A term of a run directory. Use as a context manager; entering it may take PATIENCE seconds.

    ``lost`` turns true when a newer incarnation takes over; the main thread is then sent SIGUSR1, once.
    ``stuck`` counts the incarnations before this one that began where this one begins (``progress``).
    """

    def __init__(self, run: Path, holder: str, progress: str) -> None:
        self.run, self.folder = run, run / ".lease"
        self.holder, self.progress = holder, progress
        self.term = self.stuck = 0
        self.lost = False
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._take()
        self._thread.start()
        try:
            self._outwait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._beat().unlink(missing_ok=True)

    def check(self) -> None:
        """Raise Superseded if this is no longer the newest incarnation."""
        if self.lost or max(_terms(self.folder), default=self.term) > self.term:
            raise Superseded(f"{self.run}: a newer incarnation of this run has taken over; this one stops")

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            before = max(_terms(self.folder), default=0)
            last = _read(self.folder, before) if before else {}
            self.term = before + 1
            self.stuck = last.get("stuck", -1) + 1 if last.get("progress") == self.progress else 0
            me = psutil.Process()
            note = {
                "holder": self.holder,
                "host": _host(),
                "pid": me.pid,
                "started": me.create_time(),
                "progress": self.progress,
                "stuck": self.stuck,
            }
            try:
                with open(self.folder / f"{self.term}.json", "x", encoding="utf-8") as file:
                    json.dump(note, file)
            except FileExistsError:
                continue  # another one was faster: the next number
            # A still newer one may have looked for this beat before it was there: _outwait ends with a check.
            self._beat().touch()
            return

    def _outwait(self) -> None:
        """Wait until all older incarnations have gone or are taken for dead, and remove what they left here."""
        seen: dict[int, tuple[str, float]] = {}
        while older := {term: name for term, name in _beating(self.folder).items() if term < self.term}:
            for term, name in older.items():
                if seen.get(term, ("", 0.0))[0] != name:
                    seen[term] = name, time.monotonic()
                if time.monotonic() - seen[term][1] > PATIENCE or _died_here(_read(self.folder, term)):
                    (self.folder / name).unlink(missing_ok=True)
            self.check()
            time.sleep(HEARTBEAT / 5)
        self.check()
        for term in _terms(self.folder):
            if term < self.term:
                (self.folder / f"{term}.json").unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._over.wait(HEARTBEAT):
            before = self._beat()
            self._count += 1
            try:
                before.rename(self._beat())
            except FileNotFoundError:  # taken for dead, or the run directory is gone: in both cases not ours any more
                self.lost = True
            except OSError:  # the file system does not answer: that alone is no reason to stop
                self._count -= 1
                continue
            if self.lost or max(_terms(self.folder), default=self.term) > self.term:
                self.lost = True
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                return

    def _beat(self) -> Path:
        return self.folder / f"{self.term}.beat.{self._count}"


def _terms(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()]


def _beating(folder: Path) -> dict[int, str]:
    return {int(path.name.split(".")[0]): path.name for path in folder.glob("*.beat.*")}


def _read(folder: Path, term: int) -> dict[str, Any]:
    """The note of a term; empty where a kill or a full disk has cut it short."""
    try:
        return json.loads((folder / f"{term}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _died_here(note: dict[str, Any]) -> bool:
    """Whether the incarnation ran on this host and its process is no more: then there is nothing to wait for."""
    if note.get("host") != _host():
        return False
    try:
        return abs(psutil.Process(note["pid"]).create_time() - note["started"]) > 1
    except psutil.NoSuchProcess:
        return True


def _host() -> str:
    """This host and its space of process numbers: containers may share a host's name."""
    return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
