"""What the machines of one row tell each other, by notes in its run directory.

srun returns the highest status of all machines and ends the others as soon as one ends badly. So machine 0 decides what
becomes of a row. Another machine always ends with status 0 and leaves a note of what went wrong there; machine 0 then
ends its own processes, which may wait for that machine for long, and puts the reason on record.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from data_shards.files import write_json


def tell(run: Path, machine: int, holder: str | None, reason: str) -> None:
    """On machine 1 and above: this machine's part of the row has ended without a result."""
    write_json(run / f"machine-{machine}.json", {"holder": holder, "reason": reason})


def forget(run: Path) -> None:
    """Remove all notes, at the end of an attempt: at its beginning another machine may have failed already."""
    for path in run.glob("machine-*.json"):
        path.unlink(missing_ok=True)


def told(run: Path, machines: int, holder: str | None) -> list[str]:
    """Reasons that other machines of the same attempt gave, in their order."""
    found = []
    for machine in range(1, machines):
        try:
            note = json.loads((run / f"machine-{machine}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        if note["holder"] == holder:
            found.append(f"machine {machine}: {note['reason']}")
    return found


def wait(run: Path, machines: int, holder: str | None, seconds: float) -> list[str]:
    """``told``, when all have spoken or some seconds have passed."""
    deadline = time.monotonic() + seconds
    while len(found := told(run, machines, holder)) < machines - 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
