"""Features under way: what is computed lies on disk part by part, and an extraction that was killed goes on there."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import numpy as np

from data_shards.files import atomic

SECONDS = 60.0
"""Between two parts: the most work that a kill loses."""


class Parts:
    """Consecutive rows of a features file to be, a file for each minute, in a hidden folder beside it."""

    def __init__(self, path: Path) -> None:
        self.folder = path.with_name(f".{path.name}.parts")
        self.kept, self.at = 0, time.monotonic()

    def restore(self, values: np.ndarray) -> int:
        """Fill ``values``, float32 (n, d), with the rows that are there; returns how many these are, from the first on.
        A damaged file counts as absent, and so do all after it."""
        while (file := self._file(self.kept)).is_file():
            try:
                rows = np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError):
                break
            end = self.kept + len(rows)
            if rows.shape[1:] != values.shape[1:] or not self.kept < end <= len(values):
                break
            values[self.kept : end] = rows
            self.kept = end
        return self.kept

    def keep(self, values: np.ndarray, done: int, *, now: bool = False) -> None:
        """``values`` up to row ``done`` are computed; write those that are new, if a minute has passed or ``now``."""
        if done == self.kept or (not now and time.monotonic() - self.at < SECONDS):
            return
        gone = contextlib.suppress(FileNotFoundError)  # another process has finished the same features, and tidied up
        with gone, atomic(self._file(self.kept)) as temporary, open(temporary, "wb") as file:
            np.save(file, values[self.kept : done])
        self.kept, self.at = done, time.monotonic()

    def discard(self) -> None:
        """The features file itself is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:010d}.npy"
