"""Tables that hold backbones and families against each other, by hand."""

from evaluation.overfitting_results import TrialResult
from evaluation.overfitting_tables import (
    interaction_tables,
    learning_curves,
    learning_table,
    memorisation_table,
    verdict_table,
)
from evaluation.score import Score


def score(name, value):
    return Score(name, value, value - 0.02, value + 0.02, True, 100, "how")


def make(backbone, family="f", *, validation=0.7, test=0.7, unseen=0.6, gap=0.1, samples=0, curve=(), **values):
    aucs = {"validation": validation, "test": test, "stylegan": unseen}
    gaps = [Score("train − validation", gap, gap - 0.02, gap + 0.02, False, 100, "how")]
    return TrialResult(
        f"{backbone}-{values}",
        backbone,
        family,
        values,
        "finished",
        detection={name: score("auc", value) for name, value in aucs.items()},
        gaps=gaps,
        last_gaps=gaps,
        curve=[score(name, value) for name, value in curve],
        train_samples=samples,
    )


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_learning_curves_leave_flipped_labels_out():
    # 1 - AUC is .4, .2, .1 at 100, 200, 400: exponent 1, .1 at 400 and .05 at 800. The gap is .2 everywhere.
    sizes = {100: 0.6, 200: 0.8, 400: 0.9}
    trials = [make("a", samples=n, validation=auc, gap=0.2, flipped_labels=0.0) for n, auc in sizes.items()]
    probe = make("a", samples=400, validation=0.1, gap=0.9, flipped_labels=0.2)
    assert learning_curves([*trials, probe]).keys() == {"a"}
    [row] = texts(learning_table([*trials, probe]))
    assert row[:3] == ["a", "1.000", "0.100, 0.050"]
    assert (abs(float(row[3])), row[4]) == (0, "0.200, 0.200")
    assert learning_curves(trials[:1]) == {}


def test_the_verdict_by_hand():
    # Members validate at .70 to .74 as the others do, their gap is .05 larger throughout, their unseen AUC .02 lower.
    trials = []
    for backbone, family, test, gap, unseen in (
        ("a", "self", 0.80, 0.15, 0.58),
        ("b", "self", 0.78, 0.15, 0.58),
        ("c", "other", 0.71, 0.10, 0.60),
        ("d", "other", 0.69, 0.10, 0.60),
    ):
        trials += [
            make(backbone, family, validation=0.70 + step / 100, test=test, gap=gap, unseen=unseen) for step in range(5)
        ]
    probe = make("c", "other", validation=0.99, test=0.99, gap=0.9, flipped_labels=0.2)
    rows = {row[0]: row for row in texts(verdict_table([*trials, probe]))}
    assert list(rows) == ["self (family)", "other (family)", "a", "b", "c", "d"]
    assert rows["self (family)"][1:5] == ["2", "0.090", "0.050", "-0.020"]
    # .79 - .70 = .09; Welch: both variances .0002, error sqrt(.0001 + .0001), two degrees of freedom: .0608.
    cell = verdict_table(trials).rows[0][2]
    assert cell.interval == "[0.029, 0.151]"
    assert rows["self (family)"][-1] == "does better; overfits more"
    assert rows["a"][-1].startswith("too few")
    assert [row[0] for row in texts(verdict_table(trials[:10]))] == ["a", "b"]  # one family is no comparison


def test_memorisation_is_a_table_of_its_own_by_hand():
    def probe(share, memorised, error):
        found = {"memorisation": memorised, "validation_error": error, "memorisation_above_error": memorised - error}
        return make("a", curve=found.items(), flipped_labels=share)

    trials = [probe(0.2, 0.9, 0.3), probe(0.2, 0.7, 0.4), probe(0.1, 0.5, 0.5), make("a", flipped_labels=0.0)]
    table = memorisation_table(trials)
    # At .2: means .8 and .35, differences .6 and .3.
    assert texts(table) == [["a", "0.1", "1", "0.500", "0.500", "0.000"], ["a", "0.2", "2", "0.800", "0.350", "0.450"]]
    # Student with one degree of freedom: .45 -+ 12.706 x .15.
    assert (table.rows[1][-1].interval, table.rows[0][-1].interval) == ("[-1.456, 2.356]", "")
    assert memorisation_table(trials[3:]).rows == []


def test_depth_by_data_has_a_table_for_the_gap_and_each_unseen_set():
    cells = {("head", 40): 0.10, ("head", 80): 0.05, ("full", 40): 0.30, ("full", 80): 0.08}
    trials = [
        make(name, gap=gap, unseen=0.6 - gap, mode=mode, train_groups=groups)
        for name in ("a", "b")
        for (mode, groups), gap in cells.items()
    ]
    tables = dict(interaction_tables(trials))
    assert list(tables) == ["Gap train − validation at the end", "AUC on stylegan"]
    gaps, unseen = map(texts, tables.values())
    assert gaps[0] == ["a", "0.200", "0.030", "0.170"]
    assert unseen[0] == ["a", "-0.200", "-0.030", "-0.170"]
    assert gaps[2] == ["f (family of 2)", "0.200", "0.030", "0.170"]
    assert tables["AUC on stylegan"].rows[0][3].interval == ""  # one trial in a corner
    assert tables["AUC on stylegan"].rows[2][3].interval == "[-0.170, -0.170]"  # two backbones that agree
    assert interaction_tables([each for each in trials if each.values["mode"] == "full"]) == []
