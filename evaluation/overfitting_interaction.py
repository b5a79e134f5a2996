"""Does unfreezing deeper overfit more where there is less data? Depth x data size for each backbone and family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import percentile
from evaluation.overfitting_results import TrialResult, backbones, clean
from evaluation.score import Score

DATA = "train_groups"
DEPTH = "unfrozen depth"


class DepthByData(NamedTuple):
    """Effect of depth (deepest minus shallowest) on an outcome at the smallest and at the largest training set, and the
    first minus the second: the interaction."""

    small: Score
    large: Score
    interaction: Score


def depth(values: Mapping[str, Any]) -> tuple[float, str] | None:
    """How much of a backbone learns, as a number to sort by and in words; None where it is no matter of depth (LoRA,
    normalisation alone) or was not searched."""
    mode, blocks = values.get("mode"), values.get("unfrozen_blocks")
    if mode is None:
        return None if blocks is None else (float(blocks), f"{blocks}")
    ends = {"head": 0.0, "full": math.inf}
    if mode in ends:
        return ends[mode], mode
    if mode != "last_blocks":
        return None
    return (1.0, mode) if blocks is None else (float(blocks), f"last {blocks}")


def with_depth(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Finished trials with true labels that have a depth and a data size, shallowest first, with the depth among their
    values."""
    sized = [each for each in clean(trials) if each.values.get(DATA) is not None]
    found = [(known, each) for each in sized if (known := depth(each.values))]
    found.sort(key=lambda pair: pair[0][0])
    return [replace(each, values={**each.values, DEPTH: known[1]}) for known, each in found]


def crossed(trials: Sequence[TrialResult]) -> bool:
    """Whether depth and data size both vary among them, so that there is something to ask."""
    trials = with_depth(trials)
    return all(len({each.values[name] for each in trials}) > 1 for name in (DEPTH, DATA))


def depth_by_data(
    trials: Sequence[TrialResult], outcome: Callable[[TrialResult], Score | None], *, resamples: int = 1000
) -> DepthByData:
    """Of one backbone, from the trials at the ends of depth and data size; others and what else was searched are
    averaged. NaN where one of the four corners has no trial.

    Intervals, 95 %: where all corners have two trials or more, trials are drawn again within each corner. Otherwise
    from the intervals of the corners' scores, which hold the choice of the faces: the four are taken as independent,
    though they were scored on the same faces, which makes the interval too wide rather than too narrow; it does not
    hold the luck of training.
    """
    kept = [(each, score) for each in with_depth(trials) if (score := outcome(each)) and math.isfinite(score.value)]
    depths = list(dict.fromkeys(each.values[DEPTH] for each, _ in kept))
    sizes = sorted({each.values[DATA] for each, _ in kept})
    n = len(kept)
    if len(depths) < 2 or len(sizes) < 2:
        return DepthByData(*(_none(name, n, "depth or data size did not vary") for name in DepthByData._fields))
    corners = [
        [score for each, score in kept if (each.values[DEPTH], each.values[DATA]) == (deep, size)]
        for size in (sizes[0], sizes[-1])
        for deep in (depths[-1], depths[0])
    ]
    if not all(corners):
        return DepthByData(*(_none(name, n, "a corner has no finished trial") for name in DepthByData._fields))
    what = f"{depths[-1]} minus {depths[0]}"
    signs = {
        "small": ((1, -1, 0, 0), f"{what} at {sizes[0]} groups"),
        "large": ((0, 0, 1, -1), f"{what} at {sizes[-1]} groups"),
        "interaction": ((1, -1, -1, 1), f"{what} at {sizes[0]} groups, minus the same at {sizes[-1]}"),
    }
    return DepthByData(*(_contrast(name, corners, *sign, resamples) for name, sign in signs.items()))


def of_family(members: Mapping[str, DepthByData]) -> DepthByData:
    """Mean over a family's backbones; Student's 95 % interval over them, and of a single one its own."""
    from scipy.special import stdtrit

    found = []
    for place, name in enumerate(DepthByData._fields):
        scores = [each[place] for each in members.values() if math.isfinite(each[place].value)]
        if len(scores) < 2:
            found.append(scores[0] if scores else _none(name, 0, "no backbone has it"))
            continue
        values = np.array([score.value for score in scores])
        width = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))
        how = f"mean over {len(values)} backbones; Student's 95 % interval over them"
        mean = float(values.mean())
        found.append(Score(name, mean, mean - width, mean + width, False, sum(score.n for score in scores), how))
    return DepthByData(*found)


def by_side(
    trials: Sequence[TrialResult], outcome: Callable[[TrialResult], Score | None]
) -> list[tuple[str, DepthByData]]:
    """Each backbone, then each family with its members' number."""
    true, families = clean(trials), {}
    found = {name: depth_by_data(clean(trials, name), outcome) for name in backbones(true)}
    for each in true:
        families.setdefault(each.family, {})[each.backbone] = found[each.backbone]
    return [
        *found.items(),
        *((f"{family} (family of {len(members)})", of_family(members)) for family, members in families.items()),
    ]


def _contrast(name: str, corners: list[list[Score]], signs: tuple[int, ...], what: str, resamples: int) -> Score:
    used = [(sign, corner) for sign, corner in zip(signs, corners, strict=True) if sign]
    value = sum(sign * float(np.mean(_values(corner))) for sign, corner in used)
    n = sum(len(corner) for _, corner in used)
    if min(len(corner) for _, corner in used) > 1:
        random = np.random.default_rng(0)
        draws = sum(
            sign * random.choice(_values(corner), (resamples, len(corner))).mean(axis=1) for sign, corner in used
        )
        low, high, note = percentile(draws)
        note = note.replace("group resamples", "resamples of the trials within each corner")
    else:
        width = math.sqrt(sum(np.mean([(s.high - s.low) / 2 for s in corner]) ** 2 for _, corner in used))
        low, high = value - width, value + width
        note = "95 % interval over faces alone, from those of the scores, taken as independent: one trial in a corner"
    return Score(name, value, low, high, False, n, f"{what}; {n} trials; {note}")


def _values(scores: Sequence[Score]) -> NDArray[np.float64]:
    return np.array([score.value for score in scores])


def _none(name: str, n: int, why: str) -> Score:
    return Score(name, math.nan, math.nan, math.nan, False, n, why)
