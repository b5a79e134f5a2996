"""Signals that ask a run to stop with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The stop signals that have arrived, in a list that fills. SIGTERM and SIGUSR1 stop a run at its next update; only
    a main thread can take them."""
    arrived: list[int] = []
    before = {}
    main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGUSR1) if main else ():
        before[number] = signal.signal(number, lambda received, _: arrived.append(received))
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
