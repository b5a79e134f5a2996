"""What a row of the plan asks of a scheduler, from the experiment or from the size of its backbone.

``python -m jobs.resources EXPERIMENT.yaml gpu_memory_gb=80`` shows it for every backbone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data_shards.command import InputError, run

if TYPE_CHECKING:
    from jobs.experiment import Experiment
    from trainer.config import FinetuneConfig
    from trainer.memory import Memory

FREE = 0.8
"""Share of a GPU's memory that a row may fill by calculation: the rest is for what is freed again within a pass,
libraries, and fragments."""
SMALL = 30e6
"""Parameters up to which a row that only trains the head gets one CPU and no GPU."""
MOST = 64
"""GPUs that a row may be given without being asked."""


@dataclass(frozen=True)
class Resources:
    """Of one row. What is not given is left to the options of the cluster file and of the command line."""

    nodes: int | None = None
    gpus: int | None = None
    """Per node; the row runs as one process on each."""
    cpus: int | None = None
    """Per node."""
    memory_gb: float | None = None
    """Per node, of the host."""
    hours: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (value > 0 or (name == "gpus" and value == 0)):
                raise InputError(f"resources.{name}={value}: must be above 0")

    def given(self) -> dict[str, Any]:
        """What is given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def row_resources(experiment: Experiment, own: Resources, finetune: FinetuneConfig) -> dict[str, Any]:
    """What a row asks for: its backbone's, else the experiment's, else (with gpu_memory_gb) as much as it needs."""
    given = experiment.resources.given() | own.given()
    if experiment.gpu_memory_gb is None or "gpus" in given:
        return given
    return sized(finetune, experiment.gpu_memory_gb, experiment.gpus_per_node) | given


def sized(finetune: FinetuneConfig, gpu_memory_gb: float, gpus_per_node: int) -> dict[str, Any]:
    """As many GPUs, 1, 2, 4 …, as the memory of one process asks for; a small backbone whose head alone learns gets one
    CPU. Nothing for an ONNX graph, whose size is not known without its weights. InputError if no number does."""
    from trainer.card import ONNX, get_card

    if finetune.features:  # computed once, by a job of its own; a head on them is a small linear model
        return {"nodes": 1, "gpus": 0, "cpus": 1}
    if get_card(finetune.backbone, finetune.cards).architecture == ONNX:
        return {"nodes": 1, "gpus": 1}
    first = _memory(finetune, 1)
    if finetune.mode == "head" and first.parameters <= SMALL:
        return {"nodes": 1, "gpus": 0, "cpus": 1}
    gpus = 1
    while _memory(finetune, gpus).total > FREE * gpu_memory_gb * 1e9:
        gpus *= 2
        if gpus > MOST or finetune.batch_size % (gpus * finetune.accumulation):
            on_one, on_each = (f"{_memory(finetune, n).total / 1e9:.0f} GB" for n in (1, gpus // 2))
            raise InputError(
                f"{finetune.backbone}, mode={finetune.mode}, batch_size={finetune.batch_size} needs "
                f"{on_one} on one GPU, {on_each} on each of {gpus // 2}; "
                "give it deepspeed_stage=3, gradient_checkpointing=true or precision=bf16, or say resources.gpus"
            )
    on_node = min(gpus, gpus_per_node)
    return {
        "nodes": math.ceil(gpus / gpus_per_node),
        "gpus": on_node,
        "cpus": on_node * (finetune.threads + 1),
        # each process reads all weights before they go to the GPU; Python and libraries take about 4 GB
        "memory_gb": math.ceil(on_node * (4 + 2 * first.weights / 1e9)),
    }


@lru_cache
def _memory(finetune: FinetuneConfig, processes: int) -> Memory:
    from trainer.card import get_card
    from trainer.memory import memory

    return memory(finetune, get_card(finetune.backbone, finetune.cards), processes)


def main(experiment: Experiment) -> None:
    from jobs import plan

    print("| backbone | mode | GB on one GPU | row asks for |")
    print("|---|---|---|---|")
    for row in {row.backbone: row for row in plan.make(experiment)}.values():  # seeds do not differ in this
        try:
            needed = f"{_memory(replace(row.config, deepspeed_stage=0), 1).total / 1e9:.1f}"
        except InputError:
            needed = "unknown (ONNX)"
        asked = ", ".join(f"{name} {value:g}" for name, value in row.resources.items()) or "what the cluster file says"
        print(f"| {row.backbone} | {row.config.mode} | {needed} | {asked} |")


if __name__ == "__main__":
    from jobs.experiment import Experiment

    run(Experiment, main)
