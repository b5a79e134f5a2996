"""From decoded pixels to what a backbone expects; the same for features and fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.card import BackboneCard


def normalize(
    images: Tensor,
    card: BackboneCard,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """``uint8 (b, S, S, 3)`` RGB pixels, S being the card's input size, to ``(b, 3, S, S)``: ``(x / 255 - mean) / std``
    per channel, computed in float32 on the images' device, then cast to ``dtype``."""
    size = card.input_size
    if images.dtype != torch.uint8 or images.shape[1:] != (size, size, 3):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"{card.name} needs images as torch.uint8 (b, {size}, {size}, 3), not {found}")
    # One new tensor, changed in place: fresh memory for each operation costs several times what the arithmetic does.
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format, copy=True)
    mean = torch.tensor(card.mean, device=images.device).view(3, 1, 1) * 255
    scale = 1 / (torch.tensor(card.std, device=images.device).view(3, 1, 1) * 255)
    return pixels.sub_(mean).mul_(scale).to(dtype)
