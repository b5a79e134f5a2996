"""What the training and validation sets may not share with any other set."""

from __future__ import annotations

import pandas as pd
import pytest

from data_shards.command import InputError
from data_shards.pack import pack
from jobs import leaks
from tests.data_shards.by_hand import encoded, picture


@pytest.fixture
def packed(tmp_path):
    """Function (name, numbers of pictures, names of groups) → shard set; equal numbers are equal pictures."""

    def make(name, numbers, groups):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for place, (number, group) in enumerate(zip(numbers, groups, strict=True)):
            (folder / f"{place}.jpg").write_bytes(encoded(picture(number)))
            label, method = (("real", "pristine"), ("fake", "swap"))[place % 2]
            rows.append((f"{place}.jpg", label, method, group, "d"))
        faces = pd.DataFrame(rows, columns=["path", "label", "method", "group", "dataset"])
        return pack(faces.assign(split="test"), folder, tmp_path / f"{name}-packed", workers=1, decode=False)["test"]

    return make


@pytest.fixture
def sets(packed):
    """Training, validation and test sets of two pictures each that share nothing."""
    return {
        name: packed(name, [2 * n, 2 * n + 1], [f"{name}:a", f"{name}:b"])
        for n, name in enumerate(("train", "validation", "test"))
    }


def test_sets_that_share_nothing_pass(sets, caplog):
    leaks.check(sets)
    assert not caplog.text


def test_a_shared_id_of_a_group_is_refused(sets, packed):
    other = packed("other", [10, 11], ["x", "y|train:b"])
    with pytest.raises(
        InputError, match=r"group 'train:b' is in both 'train' and 'other', which would leak; .* begin th"
    ):
        leaks.check({**sets, "other": other})


@pytest.mark.parametrize(("name", "number"), [("train", 1), ("validation", 3)])
def test_the_same_picture_under_another_group_is_refused(sets, packed, name, number):
    other = packed("other", [10, number, 12], ["x", "y", "z"])
    with pytest.raises(
        InputError, match=rf"^1 of the pictures of 'other', such as 00000000\d \(1\.jpg\), are in '{name}', t"
    ):
        leaks.check({**sets, "other": other})


def test_the_test_set_may_share_pictures_and_groups_with_an_unseen_one(sets):
    leaks.check({**sets, "clean": sets["test"]})


def test_very_few_pictures_are_a_warning(sets, packed, caplog):
    """1 of 100 is 1 %, which is let through; 2 of 100 are not."""
    few, more = (packed(f"{n}", [*range(n), *range(50, 150 - n)], [f"{n}:{g}" for g in range(100)]) for n in (1, 2))
    leaks.check({**sets, "few": few})
    assert "1 of the pictures of 'few', such as " in caplog.text
    with pytest.raises(InputError, match="2 of the pictures of 'more'"):
        leaks.check({**sets, "more": more})
