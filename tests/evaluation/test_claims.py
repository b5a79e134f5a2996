import dataclasses
import math

import pytest

from evaluation.claims import Claim, claims, conclusions, samples_needed
from evaluation.score import Score


def score(value, half=0.1, n=100):
    return Score("auc", value, value - half, value + half, True, n, "")


def made(verdict, measure="AUC on test", *, lacking="", needed=None, samples=None):
    return Claim("Faces are closest", measure, score(0.1), verdict, lacking, needed, samples)


@pytest.mark.parametrize(
    ("verdicts", "expected", "words"),
    [
        (["supported", "supported"], "supported", "2 of 2 measures support it"),
        (["supported", "not supported", "undecided"], "not supported", "1 of 3 measures support it; excluded by 1"),
        (
            ["supported", "undecided"],
            "undecided",
            "1 of 2 measures support it; needs 9 backbones per side and 1,200 samples (1)",
        ),
        (["undecided"], "undecided", "0 of 1 measures support it; needs 9 backbones per side and 1,200 samples"),
    ],
)
def test_one_verdict_over_all_measures(verdicts, expected, words):
    [found] = conclusions([made(each, str(i), needed=9, samples=1200) for i, each in enumerate(verdicts)])
    assert (found.verdict, found.words) == (expected, words)


def test_what_would_decide():
    assert made("undecided", lacking="face-recognition", needed=9).remedy == (
        "needs at least two backbones of face-recognition"
    )
    assert made("undecided", needed=9).remedy == "needs 9 backbones per side"
    assert made("undecided").remedy == "needs more than 1,000 backbones per side"
    assert made("supported", needed=9).remedy == ""
    lower = dataclasses.replace(made("undecided", needed=9), score=score(-0.05))
    assert lower.remedy == "needs 9 backbones per side to be excluded"


def test_samples_needed_by_hand():
    # Half as wide takes four times the samples.
    assert samples_needed([score(0.8, 0.1, 100), score(0.7, 0.1, 100)], -0.05) == 400
    assert samples_needed([score(0.8, 0.15), score(0.7, 0.05)], 0.05) == pytest.approx(400, abs=1)  # their mean is .1
    assert samples_needed([score(0.8, 0.1)], 0.1) is None  # no wider as it is
    assert samples_needed([score(0.8, math.nan)], 0.1) is None
    assert samples_needed([score(0.8, 0.1)], 0.0) is None
    assert samples_needed([score(0.8, 0.1)], 1e-4) is None  # a million times the samples


def test_claims_of_a_benchmark(benchmark):
    backbones = [each for each in benchmark(9, seeds=(0, 1)).backbones if not each.is_control]
    found = claims(backbones, ["test", "resample"])
    faces = [each for each in found if each.text == "Face recognition is closest"]
    assert [each.measure for each in faces] == ["separability on train", "separability on resample"]
    assert {each.remedy for each in faces} == {"needs at least two backbones of face-recognition"}
    ours = next(each for each in found if each.measure == "separability on train" and "supervised" in each.text)
    # Levels .21, .16, .19 against the one of .12.
    assert ours.score.value == pytest.approx(0.56 / 3 - 0.12)
    assert ours.lacking == "supervised"
    verdicts = {each.text: each for each in conclusions(found)}
    assert verdicts["Face recognition is closest"].words == (
        "0 of 2 measures support it; needs at least two backbones of face-recognition"
    )
    # The mean of the levels is .187, and the only language-supervised backbone has .18.
    wins = [each for each in found if each.text == "Self-supervised wins after fine-tuning"]
    assert {each.score.name for each in wins} == {"self-supervised minus the best other family (language-supervised)"}
    assert wins[0].score.value == pytest.approx(0.56 / 3 - 0.18)
    assert verdicts["Self-supervised wins after fine-tuning"].words == (
        "0 of 2 measures support it; needs at least two backbones of language-supervised"
    )
    # The gap is .28 - level: smaller for self-supervised ones.
    assert verdicts["… and overfits more, by the gap train − validation alone"].verdict == "not supported"


def of_family(benchmark, **values):
    """Backbones with these headlines on the training set, family → values."""
    made = benchmark(9).backbones[0]
    return [
        dataclasses.replace(made, name=f"{family} {i}", family=family, separability={"train": [score(value)]}, runs=[])
        for family, found in values.items()
        for i, value in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("others", "verdict", "rival"),
    [
        # Above the mean of all others, .62, and below the family that is best.
        ({"expression": [0.79, 0.80, 0.81], "segmentation": [0.5, 0.52, 0.51], "clip": [0.54, 0.55]}, "undecided",
         "expression"),
        ({"expression": [0.90, 0.91, 0.92], "segmentation": [0.5, 0.52, 0.51]}, "not supported", "expression"),
        ({"expression": [0.60, 0.61, 0.62], "segmentation": [0.5, 0.52, 0.51]}, "supported", "expression"),
        # Not the best, but so spread that nothing can be said of it.
        ({"expression": [0.60, 0.61, 0.62], "segmentation": [0.3, 0.5, 0.9]}, "undecided", "expression"),
        ({"expression": [0.60, 0.61, 0.62], "segmentation": [0.5]}, "supported", "expression"),
    ],
)  # fmt: skip
def test_to_be_closest_is_to_be_above_every_other_family(benchmark, others, verdict, rival):
    backbones = of_family(benchmark, **{"face-recognition": [0.78, 0.80, 0.79]}, **others)
    found = next(each for each in claims(backbones, []) if each.text == "Face recognition is closest")
    assert (found.verdict, found.score.name) == (verdict, f"face-recognition minus the best other family ({rival})")
    if verdict == "undecided":
        assert found.remedy.startswith("needs ")
        assert found.needed is None or found.needed > 3


def test_a_family_that_is_absent(benchmark):
    backbones = [each for each in benchmark(9).backbones if each.family == "self-supervised"]
    for each in claims(backbones, ["test"]):
        assert (each.verdict, each.needed) == ("undecided", None)
        assert each.remedy.startswith("needs at least two backbones of ")
