"""The fine-tuned model: a backbone and one linear output, the logit of "fake"; and which of its parts learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data_shards.command import InputError
from data_shards.files import atomic

if TYPE_CHECKING:
    from trainer.config import FinetuneConfig


class Head(nn.Linear):
    """One output for each sample, in float32 whatever the backbone computes with: in bfloat16, which has 8 bits, the
    logits of most faces would be equal to those of others."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, d) -> logits (n,)."""
        kind = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.linear(features.to(kind), self.weight.to(kind), self.bias.to(kind)).squeeze(-1)


class Classifier(nn.Module):
    """``backbone`` and a linear head. Frozen modules stay in evaluation mode whatever ``train()`` says, so that batch
    norm statistics, dropout and stochastic depth of what does not learn never move."""

    def __init__(self, backbone: nn.Module, *, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(backbone.num_features, 1)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (n, 3, size, size) -> logits (n,), float32; above 0 means fake."""
        return self.head(self.backbone(images))

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self


def freeze(model: Classifier, config: FinetuneConfig) -> None:
    """Let the head learn, and of the backbone what ``config.mode`` says: nothing, its last ``unfrozen_blocks`` blocks,
    its normalisation layers, everything, or low-rank updates that are put in here. InputError where there are none."""
    backbone = model.backbone
    if config.mode == "lora":
        add_low_rank(backbone, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
        return
    names = set()
    if config.mode == "last_blocks":
        blocks = backbone.blocks()  # stem first, each (name, parameter names)
        if config.unfrozen_blocks > len(blocks):
            raise InputError(
                f"unfrozen_blocks={config.unfrozen_blocks}: this backbone has {len(blocks)} blocks; use mode=full"
            )
        names = {name for _, parameters in blocks[-config.unfrozen_blocks :] for name in parameters}
    elif config.mode == "norm":
        names = _normalisation(backbone)
        if not names:
            raise InputError("mode=norm: this backbone has no normalisation layers that could learn; use another mode")
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(config.mode == "full" or name in names)


def _normalisation(backbone: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers, torch's and timm's."""
    from timm.layers import RmsNorm, RmsNorm2d

    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d)
    layers = {module for module in backbone.modules() if isinstance(module, kinds)}
    return {
        f"{prefix}.{name}"
        for prefix, module in backbone.named_modules()
        if module in layers
        for name, _ in module.named_parameters(recurse=False)
    }


def add_low_rank(backbone: nn.Module, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze the backbone, and put a learning update ``alpha / rank * B A`` beside every matrix and ungrouped
    convolution (Hu et al., LoRA, 2021), by peft. B is 0 at first; A is drawn from ``seed`` alone."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    if not targets:
        raise InputError("mode=lora: this backbone has no linear or convolution layers to adapt; use another mode")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), backbone)


def plain_weights(state: dict[str, torch.Tensor], config: FinetuneConfig) -> dict[str, torch.Tensor]:
    """A state dict under the names of the architecture alone: low-rank updates are added to the weights they belong
    to, so that nothing that reads a checkpoint needs to know of them."""
    if config.mode != "lora":
        return state
    plain = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        layer, base, kind = name.partition(".base_layer.")
        if base and kind == "weight":
            a, b = (state[f"{layer}.lora_{part}.default.weight"] for part in "AB")  # (rank, in, …) and (out, rank, …)
            update = (b.double().flatten(1) @ a.double().flatten(1)).view_as(value)
            value = (value.double() + config.lora_alpha / config.lora_rank * update).to(value.dtype)
        plain[f"{layer}.{kind}" if base else name] = value
    return plain


def checkpoint_gradients(model: Classifier) -> None:
    """Compute activations again in the backward pass, in timm's own units. InputError where timm has no such thing, and
    where batch norm learns: the second computation would count its batch twice in the running statistics."""
    model.train()
    batch_norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    if any(module.training for module in batch_norms):
        raise InputError(
            "gradient_checkpointing=true would count each batch twice in the statistics of this backbone's batch "
            "norms; leave it out, or use a mode that freezes them"
        )
    try:
        model.backbone.model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # an ONNX graph; timm's models assert that they can
        raise InputError("gradient_checkpointing=true: this backbone does not have it; leave it out") from None


def optimizer(
    model: Classifier, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over what learns; weight decay on matrices only, save those that timm exempts (position embeddings, class
    tokens, tables of relative positions).

    The head learns at ``learning_rate``, the k-th block from it at ``learning_rate * layer_decay**k`` (Clark et al.,
    ELECTRA, 2020; Bao et al., BEiT, 2022). The groups' ``lr_scale`` is what the schedule multiplies by.
    """
    blocks = model.backbone.blocks()
    depth = {f"backbone.{name}": len(blocks) - number for number, (_, names) in enumerate(blocks) for name in names}
    network = getattr(model.backbone, "model", None)  # cached features have none
    exempt = getattr(network, "no_weight_decay", set)()  # names, or parts of them
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.endswith(".bias") or any(part in name for part in exempt)
            decay = 0.0 if plain else weight_decay
            groups.setdefault((layer_decay ** depth.get(name, 0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        lr=learning_rate,
    )


def freeze_unused(model: Classifier, image_size: int) -> None:
    """Freeze what the loss does not reach (a pooling layer of timm's that this card goes around, say). Such parameters
    never learn anyway, but distributed training would wait for their gradients."""
    model.eval()
    with torch.random.fork_rng(devices=[]):
        model(torch.zeros(1, 3, image_size, image_size)).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def save_weights(path: Path, tensors: dict[str, torch.Tensor], provenance: dict[str, Any]) -> None:
    """Write tensors as safetensors, whole or not at all; equal ones give equal bytes, hence one key of metadata only,
    ``provenance`` (JSON): safetensors writes several in random order."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"provenance": json.dumps(provenance, sort_keys=True)})
