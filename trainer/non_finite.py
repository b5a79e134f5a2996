"""A loss or gradient that is not finite: what is kept of it, and how it is named."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainer.classifier import save_weights
from trainer.distributed import Engine


class NonFiniteLoss(RuntimeError):
    """Loss or gradient is not a finite number; the update was not made."""


def explain(
    run: Path, engine: Engine, step: int, keys: list[str], losses: torch.Tensor, batch: dict[str, torch.Tensor]
) -> NonFiniteLoss:
    """Write what is needed to look into it, and return the error to raise. All processes call it, before update
    ``step``; ``keys`` and ``losses`` (b,) are of this process's part of the batch, whose tensors ``batch`` holds.

    ``non-finite-RANK.json`` has keys and losses, ``non-finite-RANK.safetensors`` the part as the model was fed it, and
    ``non-finite-weights.safetensors`` the weights that were to be updated (not their moving average), under the
    model's own names.
    """
    rank = engine.accelerator.process_index
    report = {"step": step, "rank": rank, "keys": keys, "losses": losses.tolist()}
    (run / f"non-finite-{rank}.json").write_text(json.dumps(report, indent=1))
    about = {"run": run.name, "step": step, "rank": rank}
    save_weights(run / f"non-finite-{rank}.safetensors", {**batch, "losses": losses}, about)
    weights = engine.weights() if engine.stage else engine.module.state_dict()  # gathered by all under ZeRO-3
    if engine.accelerator.is_main_process:
        save_weights(run / "non-finite-weights.safetensors", weights, about)
    engine.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one leaves
    culprits = [key for key, ok in zip(keys, torch.isfinite(losses).tolist(), strict=True) if not ok]
    where = f"for samples {', '.join(culprits)}" if culprits else f"in a batch with {', '.join(keys)}"
    return NonFiniteLoss(
        f"{run}: loss or gradient is not finite at step {step} {where} (rank {rank}); the update was not made; lower "
        "the learning rate or look at these samples"
    )
