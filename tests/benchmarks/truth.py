"""What the evaluation claims of itself, on simulated sets; Markdown tables on stdout.

Coverage: how often 95 % intervals hold what the score is on average. Null: whether p-values are uniform where the
label means nothing.
Power: how often each score finds a difference, of several kinds, all of which a headline should see.

    python -m tests.benchmarks.truth coverage|null|power|all [tiny]     # about ten CPU-minutes for all
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.detection import detection
from evaluation.null import separability_null
from evaluation.separability import separability_draws

SHIFT, DIMENSIONS, PER_GROUP = 0.8, 8, 4

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def grouped(groups: int, rng: np.random.Generator, dimensions: int = DIMENSIONS) -> Sample:
    """Groups of four samples of one label with a common displacement, which makes them dependent; no difference."""
    of_group = rng.integers(0, 2, groups)
    of_group[:2] = 0, 1
    label = np.repeat(of_group, PER_GROUP)
    common = np.repeat(rng.normal(size=(groups, dimensions)), PER_GROUP, axis=0)
    features = 0.7 * common + 0.7 * rng.normal(size=(len(label), dimensions))
    return features, label, np.repeat(np.arange(groups), PER_GROUP)


def with_fakes(groups: int, rng: np.random.Generator) -> Sample:
    """A real sample with the two fakes made of it, or in each fourth group with one; no difference."""
    size = np.where(np.arange(groups) % 4 < 3, 3, 2)
    group = np.repeat(np.arange(groups), size)
    label = np.concatenate([[0, 1, 1][:each] for each in size])
    common = 2 * rng.normal(size=(groups, DIMENSIONS))[group]
    return common + rng.normal(size=(len(group), DIMENSIONS)), label, group


def shifted(groups: int, rng: np.random.Generator, by: float = SHIFT, dimensions: int = DIMENSIONS) -> Sample:
    """Two compact clouds, moved along one direction."""
    features, label, group = grouped(groups, rng, dimensions)
    features[:, 0] += by * label
    return features, label, group


def widened(groups: int, rng: np.random.Generator) -> Sample:
    """The same centre, but fakes are spread by a third more."""
    features, label, group = grouped(groups, rng)
    return features * np.where(label == 1, 1.35, 1)[:, None], label, group


def islands(groups: int, rng: np.random.Generator) -> Sample:
    """Eight clusters, each richer in one of the labels; the centres of the classes are alike."""
    features, label, group = grouped(groups, rng)
    corner = rng.integers(0, 4, groups)[group]
    own = 2 * corner + np.where(rng.random(groups)[group] < 0.75, label, 1 - label)  # three of four on their islands
    centres = np.random.default_rng(0).normal(size=(8, DIMENSIONS)) * 1.5
    return features * 0.6 + centres[own], label, group


def faint(groups: int, rng: np.random.Generator) -> Sample:
    """A shift hidden among 128 dimensions, most of which vary more."""
    features, label, group = grouped(groups, rng, 128)
    features[:, :8] += 0.75 * label[:, None]
    return features, label, group


KINDS: dict[str, Callable[[int, np.random.Generator], Sample]] = {
    "shift": lambda groups, rng: shifted(groups, rng, 0.6),
    "wider": widened,
    "islands": islands,
    "faint shift, d = 128": faint,
}


def over(sets: int, what: str) -> Any:
    return tqdm(range(sets), desc=what, disable=not sys.stderr.isatty())


def coverage(sets: int, groups: int, replicates: int) -> None:
    """The truth is the mean of the estimates at the same number of groups, which an unbiased interval is about."""
    found: dict[str, list[Any]] = {}
    for number in over(sets, "coverage"):
        features, label, group = shifted(groups, np.random.default_rng([1, number]))
        scores = [each.score for each in separability_draws(features, label, group, replicates=replicates, seed=number)]
        scores += detection(label, features[:, 0], group, threshold=SHIFT / 2, replicates=replicates, seed=number)
        for score in scores:
            found.setdefault(score.name, []).append(score)
    print(f"Intervals from {replicates} replicates that hold the truth, of {sets} sets of {groups} groups of four.\n")
    print("| score | truth | held |\n|---|---|---|")
    for name, scores in found.items():
        truth = float(np.mean([score.value for score in scores]))
        held = np.mean([score.low <= truth <= score.high for score in scores])
        print(f"| `{name}` | {truth:.4f} | {100 * held:.1f} % |")
    print(flush=True)


def p_values(
    kind: Callable[[int, np.random.Generator], Sample], sets: int, groups: int, permutations: int, stream: int
):
    found: dict[str, list[float]] = {}
    for number in over(sets, kind.__name__):
        sample = kind(groups, np.random.default_rng([stream, number]))
        for null in separability_null(*sample, permutations=permutations, seed=number):
            found.setdefault(null.name, []).append(null.p)
    return {name: np.array(ps) for name, ps in found.items()}


def uniformity(sets: int, groups: int, permutations: int) -> None:
    from scipy.stats import kstest

    found = [p_values(kind, sets, groups, permutations, 2) for kind in (grouped, with_fakes)]
    print(f"P-values of {permutations} permutations in {sets} sets of {groups} groups without a difference: of four")
    print("samples with one label, and of a real with one or two fakes. KS: Kolmogorov-Smirnov p of uniformity.\n")
    print("| score | one label: p ≤ .05 | KS | real and fakes: p ≤ .05 | KS |\n|---|---|---|---|---|")
    for name in found[0]:
        cells = []
        for ps in (each[name] for each in found):
            middle = ps - 0.5 / (permutations + 1)  # p takes the values 1/(permutations + 1) … 1
            cells += [f"{100 * np.mean(ps <= 0.05):.1f} %", f"{kstest(middle, 'uniform').pvalue:.3f}"]
        print(f"| `{name}` | {' | '.join(cells)} |")
    print(flush=True)


def power(sets: int, groups: int, permutations: int) -> None:
    found = {name: p_values(kind, sets, groups, permutations, 3) for name, kind in KINDS.items()}
    print(f"Sets in which p ≤ .05, of {sets}, {groups} groups of four, {permutations} permutations.\n")
    print(f"| score | {' | '.join(KINDS)} | least |\n|---|{'---|' * (len(KINDS) + 1)}")
    for score in next(iter(found.values())):
        shares = [100 * np.mean(ps[score] <= 0.05) for ps in found.values()]
        print(f"| `{score}` | {' | '.join(f'{share:.0f} %' for share in shares)} | {min(shares):.0f} % |")
    print(flush=True)


def main(which: str, tiny: bool) -> None:
    if which in ("coverage", "all"):
        print("### Coverage of 95 % intervals\n")
        coverage(3 if tiny else 500, 80, 30 if tiny else 500)
    if which in ("null", "all"):
        print("### P-values under the null\n")
        uniformity(4 if tiny else 500, 40, 19 if tiny else 199)
    if which in ("power", "all"):
        print("### Power\n")
        power(3 if tiny else 200, 40, 19 if tiny else 199)


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0] not in ("coverage", "null", "power", "all") or words[1:] not in ([], ["tiny"]):
        sys.exit("usage: python -m tests.benchmarks.truth coverage|null|power|all [tiny]")
    main(words[0], words[1:] == ["tiny"])
