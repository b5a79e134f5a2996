"""What the numbers of a sweep's report claim of themselves, on trials whose truth is known; Markdown tables on stdout.

python -m tests.benchmarks.truth_overfitting [tiny]     # half a CPU-minute
"""

from __future__ import annotations

import math
import sys

import numpy as np
from scipy.special import ndtri

from evaluation.overfitting_interaction import depth_by_data
from evaluation.overfitting_memorisation import memorisation
from evaluation.overfitting_results import TrialResult
from evaluation.overfitting_scaling import power_law
from evaluation.overfitting_verdict import at_equal_validation, expected
from evaluation.score import Score

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


def exponent_holds(trials: int, seed: int, sizes: int = 3) -> bool:
    """Does the interval of a power law's exponent hold the truth, .25? Sizes of the training set double; trials of a
    size, with a mean of .2 to .1, have a standard deviation of .02."""
    rng = np.random.default_rng([seed, trials, sizes])
    size = np.repeat(50.0 * 2 ** np.arange(sizes), trials)
    found = power_law(size, 0.6 * size**-0.25 + rng.normal(0, 0.02, len(size))).exponent
    return found.low <= 0.25 <= found.high


def interaction_holds(trials: int, seed: int) -> bool:
    """Does the interval of depth x data hold the truth, .1? Trials at the least data vary twice as much."""
    rng = np.random.default_rng([seed, trials])
    made = []
    for mode, groups, mean, deviation in (
        ("full", 40, 0.3, 0.04), ("head", 40, 0.1, 0.04), ("full", 80, 0.2, 0.02), ("head", 80, 0.1, 0.02)
    ):  # fmt: skip
        for value in rng.normal(mean, deviation, trials):
            gap = Score("gap", value, math.nan, math.nan, False, 1, "")
            values = {"mode": mode, "train_groups": groups}
            made.append(TrialResult("run", "a", "f", values, "finished", last_gaps=[gap]))
    found = depth_by_data(made, lambda each: each.last_gaps[0]).interaction
    return found.low <= 0.1 <= found.high


def few_trials(sets: int) -> None:
    print(f"Exponents and interactions: intervals that hold the truth in {sets} sweeps.\n")
    print("| trials at a size or in a corner | exponent, 3 sizes | 5 sizes | interaction |\n|---|---|---|---|")
    for trials in (2, 3, 5, 9):
        held = [np.mean([exponent_holds(trials, seed, sizes) for seed in range(sets)]) for sizes in (3, 5)]
        held.append(np.mean([interaction_holds(trials, seed) for seed in range(sets)]))
        print(f"| {trials} | {' | '.join(f'{share:.1%}' for share in held)} |", flush=True)
    print()


def expected_holds(trials: int, settings: float, luck: float, seed: int) -> bool:
    """Does the interval of the expected test AUC hold that of the setting that validates best, trained again and met
    with all faces? ``settings`` and ``luck`` are standard deviations of the AUC over settings, and over trainings of
    one, which validation and test both show; validation errs by .02 besides, and the faces of the test set by .013."""
    rng = np.random.default_rng([seed, trials])
    setting, trained = rng.normal(0, settings, trials), rng.normal(0, luck, trials)
    validation = 0.7 + setting + trained + rng.normal(0, 0.02, trials)
    test = 0.7 + setting + trained + rng.normal(0, 0.013)
    best = int(np.argmax(validation))
    width = 1.959964 * 0.013
    score = Score("auc", test[best], test[best] - width, test[best] + width, True, 1000, "")
    found = expected(validation, test, score)
    return found.low <= 0.7 + setting[best] + rng.normal(0, luck) <= found.high


def expectations(sets: int) -> None:
    print(f"Expected AUC: intervals that hold that of the setting trained again, in {sets} sweeps.\n")
    print("| deviation over settings | over trainings | 6 trials | 44 trials | 100 trials |\n|---|---|---|---|---|")
    for settings, luck in ((0.03, 0.0), (0.03, 0.01), (0.03, 0.02), (0.02, 0.03), (0.0, 0.03)):
        held = [np.mean([expected_holds(m, settings, luck, seed) for seed in range(sets)]) for m in (6, 44, 100)]
        print(f"| {settings:g} | {luck:g} | {' | '.join(f'{share:.1%}' for share in held)} |", flush=True)
    print()


def memorisation_holds(seed: int, groups: int = 100, frames: int = 8, alike: float = 0.3) -> list[bool]:
    """Do the intervals of the share of flipped labels that are repeated, .8, of the validation error, .3 of reals and
    .6 of fakes, and of the difference hold the truth? Four fifths of training samples are fake, half of validation's;
    ``alike`` is the share of a group in the variance of the normal that decides whether a frame is called wrongly."""
    rng = np.random.default_rng([seed, groups, frames])

    def scored(groups: int, fakes: float, wrong: tuple[float, float]) -> tuple[np.ndarray, ...]:
        group = np.repeat(np.arange(groups), frames)
        label = (rng.random(len(group)) < fakes).astype(int)
        shared, own = rng.normal(size=groups)[group], rng.normal(size=len(group))
        errs = math.sqrt(alike) * shared + math.sqrt(1 - alike) * own < ndtri(np.array(wrong)[label])
        return label, np.where(errs != (label == 1), 1.0, -1.0), group

    train = scored(groups, 0.8, (0.8, 0.8))
    flipped = rng.random(len(train[0])) < 0.2
    validation = scored(groups * 3 // 5, 0.5, (0.3, 0.6))
    error = 0.3 + 0.3 * train[0][flipped].mean()
    found = memorisation(train, flipped, validation)
    return [score.low <= truth <= score.high for score, truth in zip(found, (0.8, error, 0.8 - error), strict=True)]


def flipped_labels(sets: int) -> None:
    print(f"Flipped labels: intervals that hold the truth in {sets} runs.\n")
    print("| groups, frames of each | repeated | error on validation | difference |\n|---|---|---|---|")
    for groups, frames, alike in ((300, 1, 0.0), (100, 8, 0.3), (40, 8, 0.5), (20, 16, 0.5)):
        held = np.mean([memorisation_holds(seed, groups, frames, alike) for seed in range(sets)], axis=0)
        print(f"| {groups}, {frames} | {' | '.join(f'{share:.1%}' for share in held)} |", flush=True)
    print()


def main(tiny: bool) -> None:
    verdicts(20 if tiny else 4000)
    few_trials(20 if tiny else 4000)
    expectations(20 if tiny else 4000)
    flipped_labels(20 if tiny else 2000)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["tiny"]):
        sys.exit("usage: python -m tests.benchmarks.truth_overfitting [tiny]")
    main(sys.argv[1:] == ["tiny"])
