"""What a process uses of its machine, for the record of a run: cheap enough for every row of metrics.jsonl."""

from __future__ import annotations

import os

import psutil
import torch


class Usage:
    """CPU, memory and GPU of this process. The names begin with ``system/``, which MLflow has a page for."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self._process.cpu_percent()  # the first call begins the interval

    def row(self) -> dict[str, float]:
        """``cpu_share``: of the cores that the process may run on, since the last call; ``memory_mib``: resident now;
        ``gpu_memory_mib``: in use on its GPU now, by whomever; ``gpu_share``: of NVML's last sample period in which a
        kernel ran (needs the package nvidia-ml-py). Shares are from 0 to 1."""
        cores = len(os.sched_getaffinity(0))
        row = {
            "system/cpu_share": self._process.cpu_percent() / 100 / cores,
            "system/memory_mib": self._process.memory_info().rss / 2**20,
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            row |= {"system/gpu_memory_mib": (total - free) / 2**20, **_gpu_share(self._device)}
        return row


def _gpu_share(device: torch.device) -> dict[str, float]:
    try:
        return {"system/gpu_share": torch.cuda.utilization(device) / 100}
    except Exception:  # NVML is not installed, or does not tell (a slice of a GPU): not worth a run
        return {}
