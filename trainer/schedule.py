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

    Linear warm-up over the first W = warmup x steps updates, as peak x (step + 1) / (W + 1), then timm's cosine to 0.
    A function of the step alone: nothing to save, and not multiplied by the number of processes.
    """
    from timm.scheduler import CosineLRScheduler

    rising = min(round(config.warmup * steps), steps - 1)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=steps - rising,
        warmup_t=rising,
        warmup_lr_init=config.learning_rate / (rising + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )

    def apply(step: int) -> float:
        scheduler.step_update(step)
        return optimizer.param_groups[0]["lr"]

    return apply
