"""Flipped labels that a model repeats, by hand and on models whose truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import t

from evaluation.overfitting_memorisation import memorisation
from tests.benchmarks.truth_overfitting import memorisation_holds

# Four flipped samples, truly 0, 0, 1, 1; training saw 1, 1, 0, 0. The model repeats the wrong label of the first, third
# and fourth: 3/4. All groups differ.
TRAIN, FLIPPED = ([0, 0, 1, 1, 0, 1], [2.0, -1, -3, -1, -5, 5], np.arange(6)), [1, 1, 1, 1, 0, 0]
VALIDATION = ([0, 0, 1, 1], [-1.0, 0.5, 2.0, 0.0], np.arange(4))  # the second is called wrongly


def wilson(share, n, groups):
    z = t.ppf(0.975, groups - 1)
    centre, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - width) / (1 + z * z / n), (centre + width) / (1 + z * z / n)


def test_memorisation_by_hand():
    memorised, error, above = memorisation(TRAIN, FLIPPED, VALIDATION)
    # Of its true classes half of the first is repeated: each of the two moves the share by (1/2) / 4, the others, all
    # repeated, not at all. Variance 4 / 3 x 2 / 8^2 = 1/24, that of (3/4) (1/4) / (1/24) = 4.5 independent samples.
    assert (memorised.value, memorised.n) == (0.75, 4)
    assert (memorised.low, memorised.high) == pytest.approx(wilson(0.75, 4.5, 4))
    # On validation, too, half of one class, and each class counts half.
    assert error.value == pytest.approx(0.25)
    assert (error.low, error.high) == pytest.approx(wilson(0.25, 4.5, 4))
    assert above.value == pytest.approx(0.5)
    low = 0.5 - math.hypot(0.75 - memorised.low, error.high - 0.25)
    high = 0.5 + math.hypot(memorised.high - 0.75, 0.25 - error.low)
    assert (above.low, above.high) == pytest.approx((low, high))


def test_the_error_on_validation_has_the_classes_of_the_flipped_labels():
    # Three flips are truly real, one fake; of the validation faces half of the reals and no fake are called wrongly.
    train = ([0, 0, 0, 1], [2.0, 2, -1, -1], np.arange(4))
    assert memorisation(train, [1, 1, 1, 1], VALIDATION)[1].value == pytest.approx(3 / 4 * 1 / 2)
    # A model that calls everything fake repeats the three and errs on each real: nothing was learnt by heart.
    fake = memorisation((train[0], np.ones(4), train[2]), [1, 1, 1, 1], (VALIDATION[0], np.ones(4), np.arange(4)))
    assert [score.value for score in fake] == pytest.approx([0.75, 0.75, 0])


def test_frames_of_one_video_count_once():
    def frames(scored, many):
        return [np.repeat(side, many) for side in scored]

    once = memorisation(TRAIN, FLIPPED, VALIDATION)
    often = memorisation(frames(TRAIN, 50), np.repeat(FLIPPED, 50), frames(VALIDATION, 50))
    for one, many in zip(once, often, strict=True):
        assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high))
    names = np.array(["a", "a|b", "b", "c", "d", "e"])  # the first three tie
    tied = memorisation((*TRAIN[:2], names), FLIPPED, VALIDATION)[0]
    assert "2 groups" in tied.how
    alone = memorisation((*TRAIN[:2], np.zeros(6, int)), FLIPPED, VALIDATION)[0]
    assert alone.value == 0.75
    assert math.isnan(alone.low)


def test_labels_that_are_all_learnt_have_an_interval_of_their_groups():
    train = (np.zeros(40, int), np.ones(40), np.arange(40) // 4)
    learnt = memorisation(train, np.ones(40), VALIDATION)[0]
    assert (learnt.value, learnt.high) == (1, 1)
    assert learnt.low == pytest.approx(wilson(1, 10, 10)[0])


def test_the_intervals_hold_the_truth_where_frames_of_a_video_are_alike():
    # Taking images for independent held the three in 93, 10 and 43 %.
    inside = np.mean([memorisation_holds(seed) for seed in range(500)], axis=0)
    assert inside == pytest.approx([0.95] * 3, abs=0.03)


def test_without_a_flipped_label_or_a_class_there_is_nothing_to_say():
    with pytest.raises(ValueError, match="flipped"):
        memorisation(TRAIN, np.zeros(6), VALIDATION)
    with pytest.raises(ValueError, match="both classes"):
        memorisation(TRAIN, FLIPPED, ([0, 0], [1.0, 1.0], [0, 1]))
