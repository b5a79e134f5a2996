"""Memory of a process that computes on the CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next update. glibc gives large blocks back at once, and the kernel
    clears them anew each time: a third of the CPU time of training MobileNetV2. Without effect where a GPU computes,
    beside which only little is allocated, and with another C library."""
    import torch

    if torch.cuda.is_available():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, MOST)


def give_back_freed_memory() -> None:
    """What this process has freed, to the system. Between models: what one leaves does not fit the next, and a process
    that trained a dozen small ones one after the other held 6 GB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
