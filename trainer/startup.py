"""Where the time goes between the command and the first update: what ``profile=true`` prints."""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "TRAINER_COMMAND_STARTED"
"""Environment variable in which a launcher leaves its own start, in seconds since 1970."""


class Startup:
    """The parts of a start, in order; each ends with a mark. The first one begins when the operating system started
    this process, or the launcher before it."""

    def __init__(self) -> None:
        self.times = {"command": command_start()}
        if VARIABLE in os.environ:
            self.times["launcher"] = process_start()

    def mark(self, part: str) -> bool:
        """Note that ``part`` has ended; only the first time counts. Returns whether this was it."""
        if part in self.times:
            return False
        self.times[part] = time.time()
        return True

    def __str__(self) -> str:
        names, times = list(self.times), list(self.times.values())
        parts = [f"{name} {end - start:.2f} s" for name, start, end in zip(names[1:], times, times[1:], strict=False)]
        return f"first update {times[-1] - times[0]:.2f} s after the command: {', '.join(parts)}"


def command_start() -> float:
    """When the command was given: start of the launcher, where there is one, or else of this process."""
    return float(os.environ.get(VARIABLE) or process_start())


def process_start() -> float:
    """When Linux started this process, in seconds since 1970, to about 10 ms."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5): starttime
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
