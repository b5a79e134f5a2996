"""Mixup (Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018): training on blends of two pictures.

Partners are the neighbours 2k and 2k + 1 of the global sample order, each of which is blended with the other (timm's
mode ``pair``), by a share that follows from the seed and k. So neither the number of processes nor a resumption
matters, as long as no pair is torn apart: passes hold an even number of samples (``FinetuneConfig.rank_batch``).
"""

from __future__ import annotations

import numpy as np
import torch

from trainer.augment import uniform

NO_EPOCH = -1
"""Numbers of augmentation are drawn by epoch; ours are apart from those of all epochs."""


def shares(position: int, count: int, *, alpha: float, seed: int) -> torch.Tensor:
    """What the samples at the ``count`` positions from ``position`` on keep of themselves: float32 (count,), drawn from
    Beta(alpha, alpha), the same for both samples of a pair."""
    from scipy.special import betaincinv

    pair = np.arange(position, position + count) // 2
    u = uniform(pair, np.full_like(pair, NO_EPOCH), seed, 1)[:, 0]
    return torch.from_numpy(betaincinv(alpha, alpha, u).astype(np.float32))


def partners(values: torch.Tensor) -> torch.Tensor:
    """``values`` (b, ...), b even, with the two of each pair exchanged."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def blend(values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """``share`` (b,) of each of ``values`` (b, ...), and of its partner what is missing to 1."""
    share = share.to(values).view(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * partners(values)
