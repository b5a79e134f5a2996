"""Memory that fine-tuning takes, computed without weights or a GPU: ``python -m trainer.memory backbones='[NAME]'``.

The model is built of tensors that have a shape and no content, one forward pass is made, and what autograd keeps for
the backward pass is added up. Weights, gradients and AdamW's two moments follow from the number of parameters. With
``measure=true`` an update is made for real beside it, of random images and weights, in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.command import InputError, run, to_dict
from trainer.card import ONNX, BackboneCard, get_card, load_cards
from trainer.config import FinetuneConfig

FLOAT, HALF = 4, 2
"""Bytes of a float32 and of a bfloat16."""
GB = 1e9


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, without what the framework itself takes, and what is freed again within a pass."""

    parameters: int
    trainable: int
    weights: float
    gradients: float
    optimizer: float
    """AdamW's moments; with DeepSpeed and bf16 also its float32 weights, with ema the averaged weights."""
    activations: float
    """What a forward pass keeps for the backward pass."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(config: FinetuneConfig, card: BackboneCard, processes: int = 1) -> Memory:
    """What each of ``processes`` processes needs. InputError if the processes do not divide the batch, and for ONNX
    cards, whose graph is known only with its weights.

    ZeRO (Rajbhandari et al., 2020) divides the optimizer state by the processes, from stage 2 on the gradients, in
    stage 3 the weights as well."""
    samples = config.rank_batch(processes) // config.accumulation
    parameters, trainable, activations = _count(config, card, samples)
    stage, mixed = config.deepspeed_stage, bool(config.deepspeed_stage) and config.precision == "bf16"
    weight = HALF if mixed else FLOAT
    optimizer = trainable * FLOAT * (3 if mixed else 2) + (parameters * FLOAT if config.ema is not None else 0)
    if config.deepspeed_offload:
        optimizer = 0
    return Memory(
        parameters=parameters,
        trainable=trainable,
        weights=parameters * weight / (processes if stage == 3 else 1),
        gradients=trainable * (FLOAT / processes if stage >= 2 else weight),
        optimizer=optimizer / (processes if stage else 1),
        activations=activations,
    )


def _count(config: FinetuneConfig, card: BackboneCard, samples: int) -> tuple[int, int, int]:
    """Parameters, those that learn, and bytes kept by a forward pass of ``samples`` images."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = _model(config, card, "meta")
    numbers = [parameter.numel() for parameter in model.parameters()]
    trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    with FakeTensorMode():  # unlike meta tensors these are on a device, as autocast wants them
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=value.requires_grad)
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        state = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        kept = {}  # with the storage itself, so that none is freed and its number used again

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in state:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _loss(model, config, card, samples, "cpu")
    return sum(numbers), sum(trainable), sum(storage.nbytes() for storage in kept.values())


def _model(config: FinetuneConfig, card: BackboneCard, device: str) -> Any:
    """The model as fine-tuning builds it, with random weights."""
    import torch

    from trainer.backbones import Backbone, build_timm_model, feature_width
    from trainer.classifier import Classifier, checkpoint_gradients, freeze

    if card.architecture == ONNX:
        raise InputError(f"card {card.name} is an ONNX graph, whose size is not known without its weights")
    with torch.device(device):
        network = build_timm_model(card)
    model = Classifier(Backbone(card, network, feature_width(card, network), "random", ""), seed=0)
    freeze(model, config)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    return model.train()


def _loss(model: Any, config: FinetuneConfig, card: BackboneCard, samples: int, device: str) -> Any:
    import torch

    images = torch.zeros(samples, 3, card.input_size, card.input_size, device=device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(images)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def measure(config: FinetuneConfig, card: BackboneCard) -> float:
    """Bytes that three real updates take at their highest, on the GPU if there is one. On a CPU it is the growth of the
    process, so call it in a process of its own."""
    import psutil
    import torch

    from trainer.classifier import optimizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":  # what the first use of the libraries takes is not the model's
        torch.nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 32, 32)).sum().backward()
    before = psutil.Process().memory_info().rss
    model = _model(config, card, "cpu").to(device)
    engine = optimizer(model, learning_rate=1e-4, weight_decay=0.01)
    for _ in range(3):
        for _ in range(config.accumulation):
            _loss(model, config, card, config.batch_size // config.accumulation, device).backward()
        engine.step()
        engine.zero_grad()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@dataclass
class MemoryTable:
    """Memory of one process that fine-tunes, per backbone, as a Markdown table."""

    backbones: list[str] = field(default_factory=list)
    """Cards; none: all of them."""
    cards: str | None = None
    """YAML file with further cards."""
    mode: Literal["head", "last_blocks", "full", "lora", "norm"] = "full"
    batch_size: int = 32
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    measure: bool = False
    """Also make three updates for real, of each backbone in a process of its own."""


def main(table: MemoryTable) -> None:
    names = table.backbones or list(load_cards(table.cards))
    print(
        f"| backbone | parameters, M | weights | gradients | optimizer | activations at {table.batch_size} | all, GB |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in names:
        try:
            found = memory(_config(table, name), get_card(name, table.cards))
        except InputError as error:
            print(f"| {name} | {error} |")
            continue
        parts = (found.weights, found.gradients, found.optimizer, found.activations)
        numbers = " | ".join(f"{part / GB:.2f}" for part in parts)
        measured = f" (measured {_measured(table, name) / GB:.2f})" if table.measure else ""
        print(f"| {name} | {found.parameters / 1e6:.1f} | {numbers} | {found.total / GB:.2f}{measured} |", flush=True)


def _config(table: MemoryTable, name: str) -> FinetuneConfig:
    return FinetuneConfig(
        backbone=name,
        train=Path("train"),
        validation=Path("validation"),
        mode=table.mode,
        batch_size=table.batch_size,
        precision=table.precision,
        gradient_checkpointing=table.gradient_checkpointing,
    )


def _measured(table: MemoryTable, name: str) -> float:
    code = "import json, sys; from trainer import memory; print(memory.measure_one(**json.loads(sys.argv[1])))"
    options = json.dumps({**to_dict(table), "backbones": [name]})
    command = [sys.executable, "-c", code, options]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def measure_one(**options: Any) -> float:
    """``measure`` for the one backbone of a table's options."""
    table = MemoryTable(**options)
    (name,) = table.backbones
    return measure(_config(table, name), get_card(name, table.cards))


if __name__ == "__main__":
    run(MemoryTable, main)
