"""What is on disk about the end of a plan's row: ``RUN/done.json``, or ``RUN/failed.json`` with the reason.

Read without any heavy import: whether a row is finished is asked thousands of times.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from data_shards.command import to_dict
from data_shards.files import digest, write_json
from jobs import plan
from trainer.finished import changes, manifest_digest, read_result

FAILURES = 2
"""A row that fails this often in the same way, one after the other, is given up."""
STARTS = 10
"""A row that starts this often without getting any further is given up."""


@dataclass(frozen=True)
class Failure:
    """Why a row has no result."""

    reason: str
    """Its last error, one line."""
    status: int
    attempts: int
    """Failed attempts, all together."""
    same: int
    """The last failed attempts in a row that failed in this way."""
    given_up: bool
    """It is not tried again until it is resubmitted."""
    log: str
    """Where its messages are; empty if they went to a terminal."""
    host: str
    time: float
    """Seconds since 1970."""


def is_done(row: plan.Row) -> bool:
    """Whether all of this row, as it is planned and with the data as they are, is finished."""
    try:
        done = json.loads((row.run / "done.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    result = row.run / "result.json"
    files = [result, row.run / "evaluation.json", *(row.run / "scores" / f"{name}.parquet" for name in row.score)]
    if done != _content(row) or not all(file.is_file() for file in files):
        return False
    return not any(changes(row.config, json.loads(result.read_text(encoding="utf-8"))))


def is_trained(row: plan.Row) -> bool:
    """Whether fine-tuning has ended; scores may be missing. InputError where data or card have changed since."""
    return read_result(row.config) is not None


def mark_done(row: plan.Row) -> None:
    write_json(row.run / "done.json", _content(row))
    clear_failure(row)


def failure(row: plan.Row) -> Failure | None:
    """Why the last attempt at the row failed; None if it did not."""
    try:
        return Failure(**json.loads((row.run / "failed.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def mark_failed(row: plan.Row, reason: str, status: int, log: str, *, give_up: bool = False) -> Failure:
    """Add a failed attempt to the row's record."""
    before = failure(row)
    same = before.same + 1 if before and _kind(before.reason) == _kind(reason) and before.status == status else 1
    failed = Failure(
        reason=reason,
        status=status,
        attempts=before.attempts + 1 if before else 1,
        same=same,
        given_up=give_up or same >= FAILURES,
        log=log,
        host=socket.gethostname(),
        time=time.time(),
    )
    write_json(row.run / "failed.json", asdict(failed))
    return failed


def clear_failure(row: plan.Row) -> None:
    """Forget the failed attempts: the row succeeded, or is to be tried again."""
    (row.run / "failed.json").unlink(missing_ok=True)


def progress(row: plan.Row) -> str:
    """How far the row has got, as a text that changes with every saved state and result."""
    latest = row.run / "state" / "latest"
    results = [path.name for path in (row.run / "result.json", *sorted(row.run.glob("scores/*.parquet")))]
    return digest([latest.read_text() if latest.is_file() else "", [n for n in results if (row.run / n).exists()]])


def last_error(lines: Iterable[str], status: int) -> str:
    """The one line of a command's messages that says why it ended: our own ``error: …``, else an exception."""
    reason = f"exit status {status}"
    found_own = False
    for line in lines:
        line = re.sub(r"^\[(rank|default)?\d+\]:? ?", "", line.strip())
        if line.startswith("error: "):
            reason, found_own = line.removeprefix("error: "), True
        elif not found_own and re.match(r"[\w.]*(Error|Exception|Interrupt)\b(?!.*:$)", line):
            # launchers add their own, which say only that a process failed
            reason = reason if re.search(r"ChildFailedError|CalledProcessError|SignalException", line) else line
    return reason[:500]


def _kind(reason: str) -> str:
    """A reason without what differs from one attempt to the next: addresses, process numbers, ports."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", reason)


def _content(row: plan.Row) -> dict[str, Any]:
    without_effect = ("number", "processes", "tracking_uri", "resources")
    values = {key: value for key, value in to_dict(row).items() if key not in without_effect}
    if not row.subgroups:  # as rows were recorded before there were any
        del values["subgroups"]
    return {"row": digest(values), "data": {name: manifest_digest(path) for name, path in row.score.items()}}
