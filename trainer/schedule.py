"""When a run evaluates and ends, and its learning rate: functions of the number of updates alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.config import FinetuneConfig


@dataclass(frozen=True)
class Schedule:
    """Updates and evaluations of a run, from numbers of samples."""

    samples: int
    batch_size: int
    epochs: float
    evaluate_every: float

    @property
    def steps(self) -> int:
        """Updates of the whole run; the last one completes ``epochs``."""
        return max(1, math.ceil(self.epochs * self.samples / self.batch_size - 1e-9))

    def epoch(self, step: int) -> float:
        """Samples seen divided by training samples."""
        return step * self.batch_size / self.samples

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation follows update ``step``: the first one to complete a multiple of ``evaluate_every``
        epochs, and the last of the run."""
        completed = [math.floor(self.epoch(s) / self.evaluate_every + 1e-9) for s in (step - 1, step)]
        return completed[1] > completed[0] or step == self.steps


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, config: FinetuneConfig, steps: int
) -> Callable[[int], float]:
    """A function that sets the learning rate of the update after ``step`` updates, and returns the head's.

    Linear warm-up over the first W = warmup x steps updates, as peak x (step + 1) / (W + 1), then a cosine to 0
    (Loshchilov and Hutter, SGDR, 2017); a group's ``lr_scale`` multiplies it. A function of the step alone: nothing to
    save, and not multiplied by the number of processes. Equal to timm's CosineLRScheduler to the last bit (a test);
    here because a head on features needs nothing else of timm, whose import takes as long as many a head.
    """
    peak, rising = config.learning_rate, min(round(config.warmup * steps), steps - 1)
    first = peak / (rising + 1)

    def apply(step: int) -> float:
        if step < rising:
            rate = first + step * ((peak - first) / rising)
        else:
            rate = 0.5 * peak * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return optimizer.param_groups[0]["lr"]

    return apply
