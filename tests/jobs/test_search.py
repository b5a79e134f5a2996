"""The search space, and the three sources of proposals."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.command import InputError, from_yaml
from jobs.search import Listed, Range, Tpe, grid, parse_space, random_draws
from jobs.sweep_plan import Sweep
from tests.jobs.sweeping import planned

SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "unfrozen_blocks": [1, 4], "flip": [True, False]}


def test_lists_are_choices_and_mappings_are_ranges():
    space = parse_space({**SPACE, "seed": {"low": 0, "high": 3}})
    assert space["learning_rate"] == Range(1e-5, 1e-2, True)
    assert space["unfrozen_blocks"] == [1, 4]
    assert space["seed"].integer
    assert not space["learning_rate"].integer


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "empty"),
        ({"seed": []}, "space.seed is empty"),
        ({"seed": [1, 1]}, "twice"),
        ({"seed": 3}, "list of choices"),
        ({"seed": {"low": 1, "hgih": 3}}, "did you mean 'high'"),
        ({"seed": {"low": 1}}, "no 'high'"),
        ({"seed": {"low": 3, "high": 3}}, "low must be below high"),
        ({"seed": {"low": 0, "high": 3, "log": True}}, "above 0"),
        ({"learning_rate": {"low": "1e-4", "high": 1.0}}, "1.0e-4"),  # YAML reads 1e-4 as text
    ],
)
def test_anything_else_is_refused_by_name(space, message):
    with pytest.raises(InputError, match=message):
        parse_space(space)


def test_a_grid_is_every_combination_in_order():
    assert grid(parse_space({"a": [1, 2], "b": ["x", "y"]})) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    with pytest.raises(InputError, match="learning_rate is a range"):
        grid(parse_space(SPACE))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), trials=st.integers(1, 20))
def test_random_draws_lie_in_the_space_and_more_of_them_begin_the_same(seed, trials):
    space = parse_space({**SPACE, "batch_size": {"low": 8, "high": 64, "log": True}})
    draws = random_draws(space, trials, seed)
    assert random_draws(space, trials + 5, seed)[:trials] == draws
    for values in draws:
        assert 1e-5 <= values["learning_rate"] <= 1e-2
        assert values["unfrozen_blocks"] in (1, 4)
        assert isinstance(values["batch_size"], int)
        assert 8 <= values["batch_size"] <= 64


def test_log_ranges_are_drawn_evenly_per_decade():
    draws = random_draws(parse_space({"lr": {"low": 1e-4, "high": 1.0, "log": True}}), 4000, 0)
    # Four decades: a quarter of the draws in each; 3.3 standard errors of sqrt(.25 x .75 / 4000) are 0.023.
    share = sum(values["lr"] < 1e-3 for values in draws) / 4000
    assert share == pytest.approx(0.25, abs=0.023)


def run(source, best):
    """Ask and tell until the source is empty; AUC falls with the distance from ``best`` in decades."""
    import math

    seen = []
    while proposals := source.next():
        [(backbone, values)] = proposals
        auc = 1 - 0.1 * abs(math.log10(values["learning_rate"]) - math.log10(best))
        source.tell(backbone, values, auc)
        seen.append((backbone, values, auc))
    return seen


def test_tpe_comes_closer_to_what_validates_best_and_keeps_to_each_backbones_budget():
    seen = run(Tpe(parse_space(SPACE), trials=[30, 35], seed=0), best=1e-4)
    for backbone in (0, 1):
        aucs = [auc for number, _, auc in seen if number == backbone]
        assert len(aucs) == [30, 35][backbone]
        # Ten random draws come first; 1e-4 lies 1 and 2 decades from the ends: they average at 0.92.
        assert sum(aucs[-10:]) / 10 > sum(aucs[:10]) / 10 + 0.02


def test_tpe_goes_on_with_what_is_known_and_begun():
    space = parse_space(SPACE)
    seen = run(Tpe(space, trials=[20], seed=0), best=1e-4)
    begun = {"learning_rate": 3e-3, "unfrozen_blocks": 4, "flip": False}
    source = Tpe(space, [22], seed=0, known=[*seen[:19], (*seen[19][:2], None)], unfinished=[(0, begun)])
    assert source.next() == [(0, begun)]
    [other] = source.next()
    assert other[1] not in [values for _, values, _ in seen]
    assert source.next() == []
    source.tell(0, begun, None)
    source.tell(*other, 0.5)


def test_tpe_ends_what_was_begun_and_gives_the_others_theirs_where_a_budget_was_lowered():
    space = parse_space(SPACE)
    begun = [{"learning_rate": rate, "unfrozen_blocks": 4, "flip": False} for rate in (1e-3, 2e-3, 3e-3)]
    source = Tpe(space, [1, 2], seed=0, known=[(0, begun[0], 0.5), (0, begun[1], 0.6)], unfinished=[(0, begun[2])])
    proposed = [each for _ in range(4) for each in source.next()]
    assert sorted(backbone for backbone, _ in proposed) == [0, 1, 1]
    assert (0, begun[2]) in proposed


def test_tpe_gives_a_repeat_the_known_result_and_reaches_its_total():
    # Three combinations stand for two runs, and TPE is to make twelve trials of them.
    space = parse_space({"mode": ["full", "last_blocks"], "unfrozen_blocks": [1, 2]})
    noted = []

    def run_of(backbone, values):
        return (values["mode"], values["unfrozen_blocks"] if values["mode"] == "last_blocks" else None)

    options = {"note": lambda *proposal: noted.append(proposal), "run_of": run_of}
    source = Tpe(space, trials=[12], seed=0, **options)
    proposed = []
    while found := source.next():  # twins under way: nothing is told before all are proposed
        proposed += found
    assert len({run_of(*each) for each in proposed}) == len(proposed) == 3
    assert (source.repeats, len(noted)) == (9, 12)
    for place, each in enumerate(proposed):
        source.tell(*each, 0.5 + place / 10)
    known = {run_of(*each): 0.5 + place / 10 for place, each in enumerate(proposed)}
    trials = source._studies[0].trials
    values = [source._decoded(each.params) for each in trials]
    assert [each.value for each in trials] == [known[run_of(0, each)] for each in values]
    # The same again from the notes: nothing is left; of two further trials one is a repeat, or both.
    results = [(*each, known[run_of(*each)]) for each in noted]
    assert Tpe(space, [12], 0, known=results, **options).next() == []
    assert Tpe(space, [14], 0, known=results, **options).next() == []
    assert len(noted) == 14


def test_a_list_is_handed_out_once():
    source = Listed([(0, {"a": 1}), (1, {"a": 1})])
    assert [source.next(), source.next(), source.next()] == [[(0, {"a": 1})], [(1, {"a": 1})], []]


def test_several_proposals_at_a_time_are_of_one_backbone():
    source = Listed([(backbone, {"a": a}) for a in range(3) for backbone in (0, 1)])
    assert source.next(2) == [(0, {"a": 0}), (0, {"a": 1})]
    assert source.next(5) == [(1, {"a": 0}), (1, {"a": 1}), (1, {"a": 2})]
    assert source.next(5) == [(0, {"a": 2})]
    asked = Tpe(parse_space(SPACE), trials=[3, 4], seed=0)
    assert [[backbone for backbone, _ in asked.next(3)] for _ in range(4)] == [[1, 1, 1], [0, 0, 0], [1], []]


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("sweep_*.yaml")))
def test_the_sweeps_that_come_along_are_valid(file, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    sweep = from_yaml(Sweep, file)
    trials = planned(sweep)
    assert len({each.row.run for each in trials}) == len(trials) >= 4
