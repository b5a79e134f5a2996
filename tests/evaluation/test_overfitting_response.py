import math

import numpy as np
import pytest

from evaluation.overfitting_response import _rises, importance, marginal


def trials(m=80, seed=0):
    random = np.random.default_rng(seed)
    return [
        {
            "learning_rate": float(10 ** random.uniform(-5, -1)),
            "mode": str(random.choice(["head", "full"])),
            "seed": int(random.integers(3)),
        }
        for _ in range(m)
    ]


def test_what_moves_the_gap_is_found_and_what_does_not_is_not():
    tried = trials()
    noise = np.random.default_rng(1).normal(scale=0.01, size=len(tried))
    gap = [0.05 * math.log10(each["learning_rate"]) + 0.08 * (each["mode"] == "full") for each in tried] + noise
    found = {score.name: score for score in importance(tried, gap)}
    assert list(found)[-1] == "seed"
    assert found["learning_rate"].low > 0
    assert found["mode"].low > 0
    assert found["seed"].low <= 0 or found["seed"].value < 0.1 * found["mode"].value
    # Shuffling a fair coin that moves the outcome by .08 costs .04 on average: half of the samples keep their value.
    assert found["mode"].value == pytest.approx(0.04, abs=0.015)
    assert importance(tried, gap)[0] == next(iter(found.values()))


def test_the_rise_of_the_error_is_that_of_sklearn():
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import LinearRegression

    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 3))
    y = 2 * x[:, 0] - x[:, 1] + 0.1 * random.normal(size=4000)
    model = LinearRegression().fit(x, y)
    theirs = permutation_importance(model, x, y, scoring="neg_mean_absolute_error", n_repeats=3, random_state=0)
    assert _rises(model.predict, x, y, random) == pytest.approx(theirs.importances_mean, abs=0.05)


def test_marginals_by_hand():
    tried = [{"depth": 4, "mode": "a"}, {"depth": 1, "mode": "b"}, {"depth": 1, "mode": "a"}]
    # depth 1 has the outcomes .2 and .4: mean .3, standard deviation .1414, over sqrt(2) times 12.706 (Student, 1
    # degree of freedom, 97.5 %) is 1.2706.
    (low, first), (high, second) = marginal(tried, [0.5, 0.2, 0.4], "depth")
    assert (low, high) == ("1", "4")
    assert (first.value, first.low, first.high) == pytest.approx((0.3, 0.3 - 1.2706, 0.3 + 1.2706), abs=1e-4)
    assert second.value == 0.5
    assert math.isnan(second.low)
    assert [label for label, _ in marginal(tried, [0.5, 0.2, 0.4], "mode")] == ["a", "b"]


def test_a_range_is_cut_into_quarters_of_the_trials():
    tried = [{"learning_rate": 0.001 * place} for place in range(1, 13)]
    found = marginal(tried, np.arange(12.0), "learning_rate")
    assert [label for label, _ in found] == ["0.001 … 0.003", "0.004 … 0.006", "0.007 … 0.009", "0.01 … 0.012"]
    assert [score.value for _, score in found] == [1, 4, 7, 10]


def test_misfits_are_errors():
    with pytest.raises(ValueError, match="at least 10 trials"):
        importance(trials(9), np.zeros(9))
    with pytest.raises(ValueError, match="NaN"):
        marginal(trials(2), [0.1, math.nan], "mode")
    with pytest.raises(ValueError, match="one outcome per trial"):
        marginal(trials(3), [0.1], "mode")
    with pytest.raises(ValueError, match="no hyperparameter 'depth'"):
        marginal(trials(2), [0.1, 0.2], "depth")
    with pytest.raises(ValueError, match="same hyperparameters"):
        marginal([{"a": 1}, {"b": 1}], [0.1, 0.2], "a")
