"""Is a fake still told from a real sample that is like it in something else, such as brightness or source?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import bootstrap, sampled
from evaluation.score import Score

ALIKE = 10  # samples of a stratum, at least, and less than twice as many

Ids = NDArray[np.int64]


def strata_of(values: ArrayLike, *, mixed: bool, seed: int = 0) -> Ids:
    """``(n,)`` strata of 10 to 19 samples, numbered from 0, of those that are nearest in ``values`` ``(n,)``.

    ``mixed`` for numbers: neighbours in the order of the values share a stratum, but a value that 10 samples have is
    not mixed with others. Without it, for names or their codes, no stratum holds two; that of a rare one is smaller.
    Samples of one value are dealt to its strata at random. Strata are this narrow because within wide ones the label
    still goes with the value; that they are small costs little, as each sample still meets several others.
    """
    _, code, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    block = np.where(counts[code] >= ALIKE, code + 1, 0) if mixed else code
    order = np.lexsort((np.random.default_rng(seed).random(len(code)), code, block))
    strata, number = np.empty(len(code), np.int64), 0
    for members in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        for part in np.array_split(members, max(1, len(members) // ALIKE)):
            strata[part] = number
            number += 1
    return strata


def pairs_within(strata: Ids, label: Ids) -> tuple[Ids, Ids]:
    """All pairs of a fake and a real sample of one stratum: indices of the fakes ``(p,)`` and of the reals ``(p,)``."""
    order = np.argsort(strata, kind="stable")
    fakes, reals = [], []
    for members in np.split(order, np.flatnonzero(np.diff(strata[order])) + 1):
        fake, real = members[label[members] == 1], members[label[members] == 0]
        fakes.append(np.repeat(fake, len(real)))
        reals.append(np.tile(real, len(fake)))
    return np.concatenate(fakes), np.concatenate(reals)


def matched_score(nearest: Ids, label: Ids, strata: Ids, component: Ids, *, replicates: int, seed: int) -> Score:
    """AUC of the share of fakes among the neighbours ``(n, k)``, over the pairs of a fake and a real sample of one
    stratum; other arguments ``(n,)``. NaN where there is no pair.

    Of a pair neither votes for the other. Samples that are alike have neighbours in common; each of them lacks itself,
    a fake one fake and a real one real, which would put the AUC far below 0.5 where the label means nothing. Without
    those two votes the shares are what they would be if the two changed labels, so that 0.5 is exact.
    """
    n, k = nearest.shape
    pairs = _Pairs(nearest, label, *pairs_within(strata, label))
    value = float(pairs(np.ones((1, n)))[0])
    draws = bootstrap(pairs, component, replicates, seed)
    how = (
        f"AUC of the share of fakes among the {k} nearest neighbours (Euclidean) from other groups, over "
        f"{len(pairs.fake):,} pairs of a fake and a real sample that are alike, neither of which votes for the other; "
        "{interval}, in which neighbours are held fixed and vote as often as they are drawn"
    )
    return sampled(f"knn_auc_k{k}", value, draws, n=n, how=how, bounds=(0, 1)).score


class _Pairs:
    """The AUC as a function of multiplicities ``(r, n)``, of samples and of their votes."""

    def __init__(self, nearest: Ids, label: Ids, fake: Ids, real: Ids) -> None:
        from scipy.sparse import csr_array

        n, k = nearest.shape
        ones = np.ones(n * k, np.float32)
        self.voters = csr_array((ones, nearest.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
        self.label, self.fake, self.real = label, fake, real
        self.of_fake = (nearest[fake] == real[:, None]).any(axis=1)[:, None]  # the real one is a neighbour of the fake
        self.of_real = (nearest[real] == fake[:, None]).any(axis=1)[:, None]

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = weights.T.astype(np.float32)
        votes, fakes = self.voters @ drawn, self.voters @ (drawn * self.label[:, None])
        fake, real = drawn[self.fake], drawn[self.real]
        by_fake = _share(fakes[self.fake], votes[self.fake] - self.of_fake * real)
        by_real = _share(fakes[self.real] - self.of_real * fake, votes[self.real] - self.of_real * fake)
        mass = fake * real
        won = (mass * ((by_fake > by_real) + (by_fake == by_real) / np.float32(2))).sum(axis=0, dtype=np.float64)
        total = mass.sum(axis=0, dtype=np.float64)
        return np.divide(won, total, out=np.full(len(total), np.nan), where=total > 0)


def _share(fakes: NDArray[np.float32], votes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Equal shares are equal to the bit; a sample that no drawn neighbour votes for is undecided."""
    return np.where(votes > 0, fakes / np.maximum(votes, 1), np.float32(0.5))
