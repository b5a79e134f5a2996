"""Does A separate better than B? Paired differences on the same samples, corrected for asking many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Sampled, centred
from evaluation.score import Score

if TYPE_CHECKING:
    from evaluation.panel import Panel


@dataclass(frozen=True)
class Difference:
    """One pair of a comparison: ``score`` is a minus b."""

    a: str
    b: str
    score: Score
    p: float  # two-sided, of no difference
    p_holm: float  # corrected for all pairs of the comparison (Holm 1979)

    @property
    def significant(self) -> bool:
        """At a family-wise error of 5 % over all pairs."""
        return self.p_holm < 0.05

    def to_dict(self) -> dict[str, Any]:
        numbers = {"p": self.p, "p_holm": self.p_holm}
        plain = {key: None if np.isnan(value) else value for key, value in numbers.items()}
        return {"a": self.a, "b": self.b, "score": self.score.to_dict(), **plain}


def difference(a: Sampled, b: Sampled) -> Score:
    """Score of ``a`` minus that of ``b`` with the interval of the paired difference.

    Both must come from the same samples, groups, seed and number of replicates: then every resample draws the same
    groups for both, and what they share cancels. Raises ValueError where name, n or replicates differ.
    """
    if (a.score.name, a.score.n, len(a.draws)) != (b.score.name, b.score.n, len(b.draws)):
        raise ValueError(
            "a paired difference needs one score on the same samples and resamples, got "
            f"{a.score.name} (n={a.score.n}, {len(a.draws)}) and {b.score.name} (n={b.score.n}, {len(b.draws)})"
        )
    value = a.score.value - b.score.value
    interval = centred(value, a.draws - b.draws, (-np.inf, np.inf))
    how = f"difference on the same samples; {interval.note}, paired"
    return Score(a.score.name, value, interval.low, interval.high, a.score.higher_is_better, a.score.n, how)


def differences(backbones: Mapping[str, Sampled]) -> list[Difference]:
    """All pairs of ``backbones`` (name → one score with its draws), in their order, p-values corrected by Holm.

    ``p`` is that of the difference over its standard deviation in the paired resamples, under a normal distribution: a
    count of resamples ends at one in their number, which Holm's factor for dozens of pairs lifts above 5 %. NaN where
    the difference is undefined, or where it is the same in all resamples, which then cannot show its uncertainty.
    """
    pairs = list(combinations(backbones, 2))
    scores = [difference(backbones[a], backbones[b]) for a, b in pairs]
    draws = [backbones[a].draws - backbones[b].draws for a, b in pairs]
    ps = np.array([_p(score.value, drawn) for score, drawn in zip(scores, draws, strict=True)])
    return [
        Difference(a, b, score, float(p), float(holm))
        for (a, b), score, p, holm in zip(pairs, scores, ps, holm_adjusted(ps), strict=True)
    ]


def compared(panels: Mapping[str, Panel]) -> list[Difference]:
    """:func:`differences` of the headline scores, backbone name → panel. Only panels of the score, samples and
    resamples that most have can be compared; the others are left out."""
    drawn = {name: panel.headline for name, panel in panels.items()}
    kinds = [(each.score.name, each.score.n, len(each.draws)) for each in drawn.values()]
    common = max(kinds, key=kinds.count, default=None)
    return differences({name: each for (name, each), kind in zip(drawn.items(), kinds, strict=True) if kind == common})


def _p(value: float, draws: NDArray[np.float64]) -> float:
    from scipy.special import ndtr

    kept = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(kept) < max(2, len(draws) / 2):
        return float("nan")
    error = kept.std(ddof=1)
    if error == 0:
        return 1.0 if value == 0 else float("nan")
    return float(2 * ndtr(-abs(value) / error))


def holm_adjusted(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down p-values ``(m,)``; undefined ones stay NaN and do not count as asked."""
    adjusted = np.full(len(p), np.nan)
    asked = np.flatnonzero(np.isfinite(p))
    order = asked[np.argsort(p[asked], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
