"""Files that are either whole or absent, and digests that name their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: str | Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (write a file or make a folder there); renamed on success, removed on
    failure. A folder replaces nothing: it raises FileExistsError when ``path`` is a non-empty folder. A file is on the
    disk before it has its name, unless ``flush`` is false: then it survives a kill, but not a power failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        yield temporary
        if temporary.is_file():
            apply_umask(temporary)
            if flush:
                flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: str | Path) -> None:
    """Return when the file's bytes are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def apply_umask(path: Path) -> None:
    """Give a file the permissions that the user's umask leaves; some libraries write for the owner alone."""
    # from /proc: os.umask tells the mask only by setting another one, which other threads would see
    status = Path("/proc/self/status").read_text(errors="replace")
    mask = next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), 0o077)
    path.chmod(0o666 & ~mask)


def write_json(path: str | Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value in canonical form: equal values give equal digests on every machine."""
    return hashlib.sha256(_canonical(value)).hexdigest()


class ListDigest:
    """``digest`` of a list that comes in parts."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._between = b""

    def update(self, values: list[Any]) -> None:
        if values:
            self._hash.update(self._between + _canonical(values)[1:-1])
            self._between = b","

    def hexdigest(self) -> str:
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
