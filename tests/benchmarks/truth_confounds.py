"""What the verdicts on confounds say of simulated sets whose truth is known; a Markdown table on stdout.

The label depends on brightness alone, or also shifts one feature; features follow brightness linearly, by powers and
saturation, or by waves. With two nuisances the label depends on the sum of both.

    python -m tests.benchmarks.truth_confounds [tiny]     # about two CPU-minutes
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from evaluation.confounds import confounds

KINDS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "linear": lambda z: [z],
    "powers and saturation": lambda z: [z**3 / 3, np.tanh(2 * z)],
    "waves": lambda z: [np.sin(2 * z), np.cos(2 * z), np.sin(4 * z), np.cos(4 * z)],
}
WORDS = ("no longer separates", "undecided", "still separates", "not asked")


def verdict(
    kind: str,
    n: int,
    slope: float,
    effect: float,
    seed: int,
    nuisances: int = 1,
    *,
    skewed: bool = False,
    replicates: int = 100,
) -> str:
    """One of :data:`WORDS`: that on one nuisance, or on all of them together.

    The logit of a fake is ``slope`` times the sum of the nuisances, standard normal; ``effect`` is by how much the
    label itself shifts a feature of standard deviation 0.3. ``skewed`` nuisances are known by their exponentials.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(nuisances, n))
    label = (rng.random(n) < 1 / (1 + np.exp(-slope * z.sum(axis=0)))).astype(int)
    shown = np.array([feature for each in z for feature in KINDS[kind](each)])
    others = 0.3 * rng.normal(size=(3, n))
    others[-1] += effect * label
    features = np.vstack([shown + 0.1 * rng.normal(size=shown.shape), others]).T
    named = {f"nuisance {i}": np.exp(each) if skewed else each for i, each in enumerate(z)}
    found = confounds(features, label, np.arange(n), named, replicates=replicates)[-1].verdict
    return "undecided" if "undecided" in found else next(word for word in WORDS if word in found)


def main(tiny: bool) -> None:
    sets, replicates = (2, 20) if tiny else (24, 100)
    print(f"Verdicts on {sets} sets each: no longer separates, undecided, still separates.\n")
    print("| samples | nuisances | slope | label shifts a feature by | " + " | ".join(KINDS) + " |")
    print(f"|---|---|---|---|{'---|' * len(KINDS)}")
    cases = [(400, 1, False), (800, 1, False), (800, 1, True), (800, 2, False), (800, 2, True)]
    for n, nuisances, skewed in cases[:1] if tiny else cases:
        for slope, effect in itertools.product((2, 6), (0.0, 0.6)):
            cells = []
            for kind in KINDS:
                options = {"nuisances": nuisances, "skewed": skewed, "replicates": replicates}
                counts = Counter(verdict(kind, n, slope, effect, seed, **options) for seed in range(sets))
                cells.append(", ".join(str(counts[word]) for word in WORDS[:3]))
            shape = ", skewed" if skewed else ""
            print(f"| {n} | {nuisances}{shape} | {slope} | {effect:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["tiny"]):
        sys.exit("usage: python -m tests.benchmarks.truth_confounds [tiny]")
    main(sys.argv[1:] == ["tiny"])
