"""Does unfreezing deeper overfit more where there is less data? Depth x data size for each backbone and family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from evaluation.overfitting_results import TrialResult, backbones, clean
from evaluation.score import Score
from evaluation.welch import half_width

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


def depth_by_data(trials: Sequence[TrialResult], outcome: Callable[[TrialResult], Score | None]) -> DepthByData:
    """Of one backbone, from the trials at the ends of depth and data size; others and what else was searched are
    averaged. NaN where one of the four corners has no trial.

    Intervals, 95 %, are Student's over trials, each corner with its own variance; NaN where a corner that is used has a
    single trial, since the luck of training is then unknown and no number of faces tells it.
    """
    kept = [(each, score) for each in with_depth(trials) if (score := outcome(each)) and math.isfinite(score.value)]
    depths = list(dict.fromkeys(each.values[DEPTH] for each, _ in kept))
    sizes = sorted({each.values[DATA] for each, _ in kept})
    n = len(kept)
    if len(depths) < 2 or len(sizes) < 2:
        return DepthByData(*(_none(name, n, "depth or data size did not vary") for name in DepthByData._fields))
    corners = [
        [score.value for each, score in kept if (each.values[DEPTH], each.values[DATA]) == (deep, size)]
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
    return DepthByData(*(_contrast(name, corners, *sign) for name, sign in signs.items()))


def of_family(members: Mapping[str, DepthByData]) -> DepthByData:
    """Mean over a family's backbones with Student's 95 % interval over them, NaN from a single one."""
    from scipy.special import stdtrit

    found = []
    for place, name in enumerate(DepthByData._fields):
        scores = [each[place] for each in members.values() if math.isfinite(each[place].value)]
        if len(scores) < 2:
            how = "one backbone, no interval over backbones"
            alone = [replace(score, low=math.nan, high=math.nan, how=f"{score.how}; {how}") for score in scores]
            found += alone or [_none(name, 0, "no backbone has it")]
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


def _contrast(name: str, corners: list[list[float]], signs: tuple[int, ...], what: str) -> Score:
    used = [(sign, np.array(corner)) for sign, corner in zip(signs, corners, strict=True) if sign]
    value = sum(sign * float(corner.mean()) for sign, corner in used)
    n = sum(len(corner) for _, corner in used)
    if min(len(corner) for _, corner in used) > 1:
        variances = [corner.var(ddof=1) / len(corner) for _, corner in used]
        width = half_width(variances, [len(corner) - 1 for _, corner in used])
        note = "Student's 95 % interval over trials"
    else:
        width, note = math.nan, "one trial in a corner, no interval"
    return Score(name, value, value - width, value + width, False, n, f"{what}; {n} trials; {note}")


def _none(name: str, n: int, why: str) -> Score:
    return Score(name, math.nan, math.nan, math.nan, False, n, why)
