"""Leak-free splits: made on connected components of groups, stratified by label and method, the same everywhere."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from data_shards.command import InputError, nearest
from data_shards.faces import SPLITS
from data_shards.table import ROWS

if TYPE_CHECKING:
    import pandas as pd

LEFT_OUT = "left out"
"""Instead of a split, for faces that belong to none."""


def components(groups: Sequence[str]) -> np.ndarray:
    """Connected component (n,) int64 of each row, where ``a|b`` ties everything of ``a`` to everything of ``b``.

    Components are numbered in order of first appearance.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    row_to_name, names = pd.factorize(pd.Series(groups, dtype=object if not len(groups) else None).astype("str"))
    nodes = pa.array(names, pa.large_string())
    # Only names that tie become objects of Python: these take several times the memory.
    parent: dict[str, str] = {}

    def find(node: str) -> str:
        top = node
        while parent.setdefault(top, top) != top:
            top = parent[top]
        while parent[node] != top:  # path compression keeps later searches short
            parent[node], node = top, parent[node]
        return top

    first_ids: dict[str, str] = {}
    for name in nodes.filter(pc.match_substring(nodes, "|")).to_pylist():
        first, *others = name.split("|")
        first_ids[name] = first
        for other in others:
            parent[find(other)] = find(first)
        find(first)
    for mapping in (first_ids, {node: find(node) for node in list(parent)}):
        if mapping:
            place = pc.index_in(nodes, value_set=pa.array(list(mapping), nodes.type))
            nodes = pc.coalesce(pa.array(list(mapping.values()), nodes.type).take(place), nodes)
    return pd.factorize(nodes.to_numpy(zero_copy_only=False))[0].astype(np.int64)[row_to_name]


def check_fractions(fractions: dict[str, float]) -> dict[str, float]:
    """The wanted splits in their fixed order, without those of fraction 0; InputError if they sum to more than 1 or
    to 0. What they leave of 1 is left out of the sets."""
    for name, value in fractions.items():
        if name not in SPLITS:
            raise InputError(f"there is no split {name!r}{nearest(name, SPLITS)}")
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value} is no fraction; give a number from 0 to 1")
    if not 0 < sum(fractions.values()) <= 1 + 1e-6:
        given = " + ".join(f"{name}={value:g}" for name, value in fractions.items())
        raise InputError(f"the fractions {given} must sum to 1, or to less to leave faces out")
    return {name: fractions[name] for name in SPLITS if fractions.get(name, 0) > 0}


def assign_splits(
    faces: pd.DataFrame, fractions: dict[str, float], seed: int, images: Sequence[int] | None = None
) -> pd.Series:
    """Split of each row, aligned with ``faces.index``; a function of the rows' content, not of their order.

    Components go one by one, the largest first and equals in the order of a hash of (seed, group ids), to the split
    where they lower most (or raise least) the distance of the counts to the wanted ones,
    chi-square = sum over splits s and strata k of (C_sk - f_s T_k)^2 / (f_s T_k), with strata k = (label, method),
    C the counts so far, T the totals and f the fractions. Ties go to the relatively emptiest split. Fractions that sum
    to less than 1 leave whole components out: their rows get LEFT_OUT. With ``images`` a row stands for so many.
    """
    import pandas as pd

    fractions = check_fractions(fractions)
    rest = 1 - sum(fractions.values())
    if rest > 1e-6:
        fractions = {**fractions, LEFT_OUT: rest}
    weight = np.ones(len(faces), np.int64) if images is None else np.asarray(images, dtype=np.int64)
    strata = pd.factorize(faces["label"].astype(str) + "\0" + faces["method"].astype(str), sort=True)[0]
    component = components(faces["group"])
    rows_of = _Members(component)

    totals: Counter[int] = Counter()
    for stratum, count in zip(strata.tolist(), weight.tolist(), strict=True):
        totals[stratum] += count
    wanted = {split: {k: fraction * total for k, total in totals.items()} for split, fraction in fractions.items()}
    filled: dict[str, Counter[int]] = {split: Counter() for split in fractions}
    chosen = np.empty(len(rows_of), dtype=object)
    for number in _largest_first(component, weight, faces["group"], seed).tolist():
        rows = rows_of[number]
        counts: Counter[int] = Counter()
        for stratum, count in zip(strata[rows].tolist(), weight[rows].tolist(), strict=True):
            counts[stratum] += count
        # Sorted strata: a sum of floats depends on its order, and the result must not depend on that of the rows.
        vector = sorted(counts.items())

        def cost(split: str, vector: list[tuple[int, int]] = vector) -> tuple[float, float]:
            have, want = filled[split], wanted[split]
            change = sum(count * (2 * (have[k] - want[k]) + count) / want[k] for k, count in vector)
            return round(change, 9), round(have.total() / fractions[split], 9)

        chosen[number] = min(fractions, key=cost)
        filled[chosen[number]].update(counts)
    return pd.Series(chosen[component], index=faces.index, name="split", dtype=object)


class _Members:
    """The rows of each component, by its number: 16 bytes per row, where lists would take hundreds."""

    def __init__(self, component: np.ndarray) -> None:
        self._rows = np.argsort(component, kind="stable")
        self._ends = np.cumsum(np.bincount(component))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> np.ndarray:
        return self._rows[self._ends[number - 1] if number else 0 : self._ends[number]]


def _largest_first(component: np.ndarray, weight: np.ndarray, groups: pd.Series, seed: int) -> np.ndarray:
    """Numbers of the components, those of most images first, equals in the order of a hash of seed and group ids."""
    order = np.argsort(component, kind="stable")

    def rows() -> Iterator[tuple[int, str]]:
        for first in range(0, len(order), ROWS):  # a name as an object of Python takes several times its memory
            part = order[first : first + ROWS]
            yield from zip(component[part].tolist(), groups.iloc[part].tolist(), strict=True)

    hashed = bytearray()
    for _, members in groupby(rows(), key=itemgetter(0)):
        names = sorted({name for _, name in members})
        hashed += hashlib.sha256(f"{seed}\0{'|'.join(names)}".encode()).digest()
    words = np.frombuffer(hashed, ">u8").reshape(-1, 4)  # compare as the bytes do
    size = np.bincount(component, weight).astype(np.int64)
    return np.lexsort((*words.T[::-1], -size))


def balance(
    faces: pd.DataFrame, fractions: dict[str, float] | None = None, images: Sequence[int] | None = None
) -> pd.DataFrame:
    """How even the splits came out: one row per split × label × method, in sorted order. With ``images`` a row of
    ``faces`` stands for so many.

    Columns: ``split, label, method, images, groups`` (components), ``share`` (of that label and method, in this split),
    and with ``fractions`` also ``wanted`` and ``deviation`` = share - wanted.
    """
    keys = ["split", "label", "method"]
    weight = 1 if images is None else np.asarray(images)
    tagged = faces[keys].assign(images=weight, component=components(faces["group"]))
    table = tagged.groupby(keys).agg(images=("images", "sum"), groups=("component", "nunique")).reset_index()
    table["share"] = table["images"] / table.groupby(["label", "method"])["images"].transform("sum")
    if fractions is not None:
        table["wanted"] = table["split"].map(fractions).astype(float) / sum(fractions.values())
        table["deviation"] = table["share"] - table["wanted"]
    order = {split: position for position, split in enumerate(SPLITS)}
    return table.sort_values(keys, key=lambda c: c.map(order) if c.name == "split" else c, ignore_index=True)
