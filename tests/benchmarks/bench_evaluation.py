"""Speed and truth of the evaluation, as Markdown tables on stdout.

Speed: CPU-seconds of the pass over pairwise distances against scikit-learn's ``silhouette_score``, and of the whole
panel. Truth: how often 95 % intervals hold the known truth on simulated groups, and whether p-values are uniform where
the label means nothing.

    python -m tests.benchmarks.bench_evaluation            # up to n = 50,000, and tests.benchmarks.truth: half an hour
    python -m tests.benchmarks.bench_evaluation speed      # without the latter
    python -m tests.benchmarks.bench_evaluation tiny       # that it runs
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.bootstrap import Sampled
from evaluation.checks import components
from evaluation.distances import normalised
from evaluation.panel import panel
from evaluation.separability import distance_scores
from tests.benchmarks import truth

MOST_REPLICATED = 10_000  # samples, above which replicates would take minutes


def cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def features_like(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with a spectrum that falls like a power, a label with a shift, and groups of two."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    features = rng.normal(size=(n, d)) / np.sqrt(1 + np.arange(d)) + 0.3 * label[:, None] * (np.arange(d) == 0)
    return features.astype(np.float32), label, np.arange(n) // 2


def one_pass(features: np.ndarray, label: np.ndarray, group: np.ndarray, replicates: int) -> list[Sampled]:
    """All scores that need distances."""
    order = np.argsort(label, kind="stable")
    space, label = normalised(features[order].astype(np.float64)), label[order]
    component = components(group[order], len(label))
    return distance_scores(space, label, component, replicates=replicates, seed=0)


def speed(sizes: list[int], replicates: int, panel_size: int) -> None:
    from sklearn.metrics import silhouette_score

    print("| n, d = 768 | scikit-learn silhouette, CPU s | distance scores, CPU s | ratio | with", end=" ")
    print(f"{replicates} replicates, CPU s | difference of silhouettes |\n|---|---|---|---|---|---|")
    for n in tqdm(sizes, desc="speed", disable=not sys.stderr.isatty()):
        features, label, group = features_like(n, 768)
        theirs, expected = cpu(lambda x=features, y=label: silhouette_score(x.astype(np.float64), y))
        ours, found = cpu(lambda x=features, y=label, g=group: one_pass(x, y, g, 2))
        many = "–"
        if n <= MOST_REPLICATED:
            many = f"{cpu(lambda x=features, y=label, g=group: one_pass(x, y, g, replicates))[0]:.1f}"
        silhouette = next(each.score.value for each in found if each.score.name == "silhouette")
        gap = abs(silhouette - expected)
        print(f"| {n:,} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} | {many} | {gap:.1e} |")
    features, label, group = features_like(panel_size, 768)
    nuisances = {"a": np.random.default_rng(1).normal(size=panel_size), "b": features[:, 1]}
    wall, one = time.perf_counter(), np.full(len(label), "one")
    seconds, _ = cpu(lambda: panel(features, label, group, one, nuisances, replicates=replicates))
    wall = time.perf_counter() - wall
    print(
        f"\nWhole panel, n = {panel_size:,}, d = 768, two nuisances, {replicates} replicates: {seconds:.0f} CPU s, ",
        end="",
    )
    print(f"{wall:.0f} s\n")


def main(which: str, tiny: bool) -> None:
    print("### Speed\n")
    speed([400] if tiny else [5_000, 10_000, 50_000], 20 if tiny else 1000, 300 if tiny else 5_000)
    if which == "all":
        truth.main("all", tiny)


if __name__ == "__main__":
    words = sys.argv[1:]
    if set(words) - {"speed", "tiny"}:
        sys.exit("usage: python -m tests.benchmarks.bench_evaluation [speed] [tiny]")
    main("speed" if "speed" in words else "all", "tiny" in words)
