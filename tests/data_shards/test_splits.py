"""Splits: no group straddles, content alone decides, and they come out balanced."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.command import InputError
from data_shards.splits import LEFT_OUT, assign_splits, balance, check_fractions, components

THREE = {"train": 0.6, "validation": 0.2, "test": 0.2}


def table(groups, labels=None, methods=None):
    labels = labels or ["real"] * len(groups)
    methods = methods or ["pristine" if label == "real" else "swap" for label in labels]
    return pd.DataFrame({"label": labels, "method": methods, "group": groups})


def test_components_by_hand():
    # a-b and b-c tie a, b, c; d stands alone; e-f; "c|g" adds g to the first
    groups = ["a|b", "d", "b|c", "e|f", "g|c", "f", "a"]
    assert components(groups).tolist() == [0, 1, 0, 2, 0, 2, 0]


def test_long_chains_do_not_exhaust_the_stack():
    chain = [f"{i}|{i + 1}" for i in range(20_000)]
    assert components(chain).max() == 0
    assert components(chain[::-1]).max() == 0


ids = st.sampled_from("abcdefghij")
group_names = st.lists(ids, min_size=1, max_size=3).map("|".join)
rows = st.lists(st.tuples(group_names, st.sampled_from(["pristine", "swap", "blend"])), min_size=1, max_size=40)


@given(rows)
@settings(deadline=None)
def test_components_are_the_transitive_closure(rows):
    sets = [set(group.split("|")) for group, _ in rows]
    reach = np.array([[bool(one & two) for two in sets] for one in sets])
    for _ in sets:
        reach = reach @ reach
    found = components([group for group, _ in rows])
    assert np.array_equal(found[:, None] == found[None, :], reach)


@given(rows, st.integers(0, 9), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_no_component_straddles_and_row_order_does_not_matter(rows, seed, random):
    groups, methods = zip(*rows, strict=True)
    faces = table(list(groups), ["real" if m == "pristine" else "fake" for m in methods], list(methods))
    split = assign_splits(faces, THREE, seed)
    assert (split.groupby(components(faces["group"])).nunique() == 1).all()
    order = list(range(len(faces)))
    random.shuffle(order)
    again = assign_splits(faces.iloc[order], THREE, seed)
    assert again.loc[faces.index].tolist() == split.tolist()


def test_frozen_example():
    """The same on every machine and version: a change here silently moves images between splits of users."""
    faces = table([f"v{i}" for i in range(10)])
    split = assign_splits(faces, THREE, 0)
    assert "".join(name[:2] for name in split) == "trtrtrtrtevavatrtetr"


def test_three_groups_fill_three_splits():
    assert sorted(assign_splits(table(["a", "b", "c"]), THREE, 0)) == ["test", "train", "validation"]


def test_balance_of_uneven_groups():
    """1,000 videos of 1-30 frames with fakes by two methods of some: every stratum within 1 % of the wanted share."""
    rng = np.random.default_rng(0)
    parts = []
    for video in range(1000):
        for label, method, chance in (("real", "pristine", 1), ("fake", "swap", 0.5), ("fake", "blend", 0.2)):
            if rng.random() < chance:
                parts.append(
                    pd.DataFrame({"label": label, "method": method, "group": [f"v{video}"] * rng.integers(1, 31)})
                )
    faces = pd.concat(parts, ignore_index=True)
    faces["split"] = assign_splits(faces, THREE, 3)
    report = balance(faces, THREE)
    assert len(report) == 9
    assert report["deviation"].abs().max() < 0.01
    assert report["images"].sum() == len(faces)
    assert (faces["split"] != assign_splits(faces, THREE, 4)).any()


def test_balance_by_hand():
    faces = table(["a", "a", "b|c", "c", "d"], ["real", "fake", "real", "fake", "real"])
    faces["split"] = ["train", "train", "train", "train", "test"]
    report = balance(faces, {"train": 0.5, "test": 0.5})
    # reals: 2 of 3 in train, in the components {a} and {b, c}; the 2 fakes are all there
    rows = [tuple(row) for row in report.drop(columns=["share", "deviation"]).itertuples(index=False)]
    assert rows == [
        ("train", "fake", "swap", 2, 2, 0.5),
        ("train", "real", "pristine", 2, 2, 0.5),
        ("test", "real", "pristine", 1, 1, 0.5),
    ]
    assert report["share"].tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert report["deviation"].tolist() == pytest.approx([0.5, 1 / 6, -1 / 6])


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.5, "test": 0.6}, "must sum to 1"),
        ({"train": 0.0}, "must sum to 1"),
        ({"train": 1.2, "test": -0.2}, "no fraction"),
        ({"train": float("nan")}, "no fraction"),
        ({"trian": 1.0}, "did you mean 'train'"),
    ],
)
def test_fractions_are_checked(fractions, message):
    with pytest.raises(InputError, match=message):
        check_fractions(fractions)


def test_fractions_in_fixed_order_without_zeros():
    assert list(check_fractions({"test": 0.5, "validation": 0.0, "train": 0.5}).items()) == [
        ("train", 0.5),
        ("test", 0.5),
    ]


def test_fractions_below_one_leave_whole_groups_out():
    rows = [(f"{g}-{label}.jpg", label, f"g{g}") for g in range(40) for label in ("real", "fake")]
    faces = pd.DataFrame(rows, columns=["path", "label", "group"]).assign(method="m", dataset="d")
    split = assign_splits(faces, {"train": 0.25, "test": 0.25}, seed=0)
    # 40 equal groups: 10 to each split, 20 to none
    assert split.value_counts().to_dict() == {"train": 20, "test": 20, LEFT_OUT: 40}
    assert (faces.assign(split=split).groupby("group")["split"].nunique() == 1).all()
