"""What the numbers of a sweep's report claim of themselves, on trials whose truth is known; Markdown tables on stdout.

python -m tests.benchmarks.truth_overfitting [tiny]     # about a CPU-minute
"""

from __future__ import annotations

import sys

import numpy as np

from evaluation.overfitting_verdict import at_equal_validation

BACKBONES, TRIALS = 0.05, 0.03
"""Standard deviation of the gap at equal validation AUC over backbones, and over the trials of one."""


def verdict_holds(members: int, others: int, seed: int, trials: int = 20) -> bool:
    """Does the interval of the difference at equal validation AUC hold the truth? Members validate .03 better and their
    population overfits as the others' does; of one backbone the truth is its own effect less the mean of the others."""
    rng = np.random.default_rng([seed, members, others])
    effect = rng.normal(0, BACKBONES, members + others)
    backbone = np.repeat(np.arange(members + others), trials)
    member = backbone < members
    level = 0.7 + rng.normal(0, 0.02, members + others) + 0.03 * (np.arange(members + others) < members)
    validation = level[backbone] + rng.normal(0, 0.05, len(backbone))
    gap = 0.1 + 1.5 * (validation - 0.7) + effect[backbone] + rng.normal(0, TRIALS, len(backbone))
    family = members > 1
    found = at_equal_validation(validation, gap, backbone.astype(str), member, family=family)
    truth = 0.0 if family else effect[0] - effect[1:].mean()
    return found.low <= truth <= found.high


def verdicts(sets: int) -> None:
    print(f"Difference at equal validation AUC: intervals that hold the truth in {sets} sweeps of 20 trials each.\n")
    print("| backbones | intervals that hold the truth |\n|---|---|")
    for members, others in ((2, 2), (2, 7), (3, 6), (1, 8)):
        held = np.mean([verdict_holds(members, others, seed) for seed in range(sets)])
        print(f"| {members} against {others}{' (over trials)' if members == 1 else ''} | {held:.1%} |", flush=True)
    print()


def main(tiny: bool) -> None:
    verdicts(20 if tiny else 4000)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["tiny"]):
        sys.exit("usage: python -m tests.benchmarks.truth_overfitting [tiny]")
    main(sys.argv[1:] == ["tiny"])
