import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.overfitting_curves import auc_error, curve_scores, first_overfitting

EPOCH = [1.0, 2.0, 3.0, 4.0, 5.0]
TRAIN = [0.70, 0.80, 0.90, 0.96, 1.00]
VALIDATION = [0.65, 0.75, 0.80, 0.79, 0.76]


def values(*curve, noise=0.005):
    return {score.name: score.value for score in curve_scores(*curve, noise=noise)}


def test_the_error_of_an_auc_by_hand():
    # AUC .8 on 50 fakes and 50 reals: Q1 = .8 / 1.2 = .66667, Q2 = 1.28 / 1.8 = .71111, AUC^2 = .64; the variance is
    # (.16 + 49 x .02667 + 49 x .07111) / 2500 = 4.95111 / 2500 = .0019804.
    assert auc_error(0.8, 50, 50) == pytest.approx(0.044502, abs=1e-6)
    assert auc_error(0.65, 211, 210) == pytest.approx(0.027, abs=5e-4)  # a validation set of 421 images
    # A coin: Q1 = Q2 = 1/3, (m + n + 1) / (12 m n), as of the Mann-Whitney statistic.
    assert auc_error(0.5, 30, 20) == pytest.approx(math.sqrt(51 / (12 * 600)))


def test_a_curve_by_hand():
    # Validation peaks at epoch 3 while training goes on, so overfitting begins there. The gap is .10 at epoch 3, .17 at
    # 4 and .24 at 5; its growth since epoch 3 is 0, .07, .14, and the trapezoids are .035 + .105 = .14.
    found = values(EPOCH, TRAIN, VALIDATION)
    assert found == pytest.approx(
        {
            "first_overfit_epoch": 3.0,
            "overfitting_area": 0.14,
            "fall_from_peak": 0.04,
            "gap_at_peak": 0.10,
            "gap_at_end": 0.24,
        }
    )


def test_noise_moves_the_point_forward():
    # With noise .06 the gain of .05 from epoch 2 to 3 is none: overfitting begins at epoch 2. Growth of the gap since
    # then (.05): 0, .05, .12, .19; trapezoids .025 + .085 + .155 = .265.
    found = values(EPOCH, TRAIN, VALIDATION, noise=0.06)
    assert (found["first_overfit_epoch"], found["overfitting_area"]) == pytest.approx((2.0, 0.265))


def test_what_validation_gains_to_the_end_counts_together_and_need_not_fall():
    train, validation = [0.60, 0.65, 0.70, 0.75], [0.600, 0.608, 0.616, 0.624]
    assert first_overfitting(train, validation, noise=0.027) == 0  # .024 in all, though it never falls
    # Small steps that add up to more than the noise are a gain until less than that is left: .016 after the second.
    assert first_overfitting(train, validation, noise=0.02) == 1
    assert first_overfitting(train, validation, noise=0.005) is None


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ([0.7, 0.8, 0.9], [0.6, 0.7, 0.8]),  # validation still rises
        ([0.9, 0.9, 0.9], [0.8, 0.8, 0.7]),  # training no longer does
        ([0.9], [0.8]),  # one evaluation has no after
    ],
)
def test_no_overfitting_is_not_a_number_and_area_zero(train, validation):
    assert first_overfitting(train, validation, noise=0.005) is None
    found = values(range(1, len(train) + 1), train, validation)
    assert math.isnan(found["first_overfit_epoch"])
    assert found["overfitting_area"] == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_area_and_fall_are_never_negative_and_the_point_keeps_its_promise(curve):
    train, validation = map(np.array, zip(*curve, strict=True))
    found = values(np.arange(len(train)), train, validation)
    assert found["overfitting_area"] >= 0
    assert found["fall_from_peak"] >= 0
    if not math.isnan(found["first_overfit_epoch"]):
        first = int(found["first_overfit_epoch"])
        assert validation[first + 1 :].max() <= validation[first] + 0.005
        assert train[first + 1 :].max() > train[first] + 0.005


def test_misfits_are_errors():
    with pytest.raises(ValueError, match="shapes"):
        values([1, 2], [0.5], [0.5])
    with pytest.raises(ValueError, match="rise"):
        values([1, 1], [0.5, 0.6], [0.5, 0.5])
    with pytest.raises(ValueError, match="validation holds NaN"):
        values([1, 2], [0.5, 0.6], [0.5, math.nan])
