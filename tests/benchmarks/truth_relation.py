"""What the relation over backbones claims of itself, on benchmarks whose truth is known; Markdown tables on stdout.

Coverage and mean width of the 95 % intervals of its three coefficients, beside those of a jackknife on Fisher's z; and
how often a true correlation is called supported, beside the power that the results page goes by.

    python -m tests.benchmarks.truth_relation [tiny]     # about two CPU-minutes
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from evaluation.coefficients import COEFFICIENTS, Coefficient
from evaluation.inversion import backbones_needed, power
from evaluation.relation import relation

BACKBONES, CORRELATIONS = (6, 9, 13, 20, 30), (0.0, 0.5, 0.8, 0.9)
HEAVY = 0.8  # correlation of the heavy-tailed benchmarks: Student's t with three degrees of freedom

Pair = tuple[np.ndarray, np.ndarray]


class Kept(NamedTuple):
    """Of one coefficient over sets: do the intervals hold the truth, and how wide are they?"""

    held: float
    width: float


def benchmark(m: int, correlation: float, rng: np.random.Generator, heavy: bool = False) -> Pair:
    """Two sides of ``m`` backbones, normal or, ``heavy``, from a bivariate t distribution."""
    x, noise = rng.normal(size=(2, m))
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    scale = np.sqrt(rng.chisquare(3, m) / 3) if heavy else 1.0
    return x / scale, y / scale


def jackknife(coefficient: Coefficient, x: np.ndarray, y: np.ndarray, value: float) -> tuple[float, float]:
    """Delete-one jackknife on Fisher's z with Student's quantile, at least as wide as normal theory has it."""
    m = len(x)
    kept = np.array([np.delete(np.arange(m), i) for i in range(m)])
    z = np.array([_z(coefficient, x[k], y[k], v) for k, v in zip(kept, coefficient(x[kept], y[kept]), strict=True)])
    error = math.sqrt((m - 1) / m * np.sum((z - z.mean()) ** 2))
    width = max(stdtrit(m - 1, 0.975) * error, ndtri(0.975) / math.sqrt(m - 3))
    centre = _z(coefficient, x, y, value)
    return min(value, math.tanh(centre - width)), max(value, math.tanh(centre + width))


def _z(coefficient: Coefficient, x: np.ndarray, y: np.ndarray, value: float) -> float:
    """atanh of the coefficient; of a perfect one, that after the exchange of two neighbours which changes it least."""
    if abs(value) < 1 - 1e-12:
        return math.atanh(value)
    order, exchanged = np.argsort(x), np.tile(x, (len(x) - 1, 1))
    for row, pair in zip(exchanged, itertools.pairwise(order), strict=True):
        row[list(pair)] = row[list(pair[::-1])]
    others = np.sign(value) * coefficient(exchanged, y)
    return math.copysign(1, value) * math.atanh(others[others < 1 - 1e-12].max())


def kept(m: int, correlation: float, sets: int, heavy: bool) -> dict[str, tuple[Kept, Kept]]:
    """Of each coefficient, the jackknife and the interval in use. The truth is its mean over m such backbones."""
    many = [benchmark(m, correlation, np.random.default_rng([0, m, i]), heavy) for i in range(20 * sets)]
    x, y = (np.array(side) for side in zip(*many, strict=True))
    truth = {name: coefficient(x, y).mean() for name, coefficient in COEFFICIENTS.items()}
    ends: dict[str, list[tuple[float, ...]]] = {name: [] for name in COEFFICIENTS}
    for one, other in many[:sets]:
        for each in relation(one, list(other), permutations=1):
            score, coefficient = each.score, COEFFICIENTS[each.score.name]
            ends[score.name].append((*jackknife(coefficient, one, other, score.value), score.low, score.high))
    return {name: _kept(truth[name], np.array(found)) for name, found in ends.items()}


def _kept(truth: float, ends: np.ndarray) -> tuple[Kept, Kept]:
    old_low, old_high, low, high = ends.T
    sides = ((old_low, old_high), (low, high))
    return tuple(Kept(float(np.mean((a <= truth) & (truth <= b))), float(np.mean(b - a))) for a, b in sides)


def coverage(sets: int) -> None:
    print(f"95 % intervals that hold the truth, and their mean width, in {sets} benchmarks: jackknife → in use.\n")
    print(f"| backbones | correlation | {' | '.join(COEFFICIENTS)} |\n|---|---|{'---|' * len(COEFFICIENTS)}")
    cases = [(correlation, False) for correlation in CORRELATIONS] + [(HEAVY, True)]
    for m, (correlation, heavy) in itertools.product(BACKBONES, cases):
        cells = [
            f"{old.held:.1%}, {old.width:.2f} → {new.held:.1%}, {new.width:.2f}".replace("%", " %")
            for old, new in kept(m, correlation, sets, heavy).values()
        ]
        print(f"| {m} | {correlation:g}{', t(3)' if heavy else ''} | {' | '.join(cells)} |", flush=True)
    print()


def verdicts(sets: int, permutations: int) -> None:
    print(f"Benchmarks of normal data in which the weighted tau is called supported (and p ≤ .05), of {sets}.\n")
    print("| backbones | correlation | supported | power by simulation | jackknife |\n|---|---|---|---|---|")
    for m, correlation in [(9, 0.0), (9, 0.8), (13, 0.74), (13, 0.8), (20, 0.7), (30, 0.0), (30, 0.5)]:
        found, old = 0, 0
        for i in range(sets):
            x, y = benchmark(m, correlation, np.random.default_rng([1, m, i]))
            tau = relation(x, list(y), permutations=permutations)[0]
            found += tau.verdict == "supported" and tau.p <= 0.05
            old += jackknife(COEFFICIENTS["weighted_kendall"], x, y, tau.score.value)[0] > 0 and tau.p <= 0.05
        expected = power("weighted_kendall", m, correlation)
        print(f"| {m} | {correlation:g} | {found / sets:.0%} | {expected:.0%} | {old / sets:.0%} |".replace("%", " %"))
    print(flush=True)


def needed(correlations: tuple[float, ...]) -> None:
    print("Backbones that a true correlation needs, power 80 %.\n")
    print(f"| correlation | {' | '.join(COEFFICIENTS)} |\n|---|{'---|' * len(COEFFICIENTS)}")
    for correlation in correlations:
        counts = (str(backbones_needed(correlation, name=name)) for name in COEFFICIENTS)
        print(f"| {correlation:g} | {' | '.join(counts)} |")
    print(flush=True)


def main(tiny: bool) -> None:
    print("### Intervals over backbones\n")
    coverage(10 if tiny else 1000)
    print("### Verdicts over backbones\n")
    verdicts(5 if tiny else 500, 99 if tiny else 499)
    needed((0.8,) if tiny else (0.9, 0.8, 0.74, 0.6, 0.5))


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["tiny"]):
        sys.exit("usage: python -m tests.benchmarks.truth_relation [tiny]")
    main(sys.argv[1:] == ["tiny"])
