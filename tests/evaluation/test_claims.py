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
    # AUC on test is .68 + level and on the unseen set .55 + level / 2, so that both intervals are above zero.
    assert verdicts["Self-supervised wins after fine-tuning"].verdict == "supported"
    # The gap is .28 - level: smaller for self-supervised ones.
    assert verdicts["… and overfits more"].verdict == "not supported"


def test_a_family_that_is_absent(benchmark):
    backbones = [each for each in benchmark(9).backbones if each.family == "self-supervised"]
    for each in claims(backbones, ["test"]):
        assert (each.verdict, each.needed) == ("undecided", None)
        assert each.remedy.startswith("needs at least two backbones of ")
