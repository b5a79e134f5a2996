"""The sweep's report: what it shows, what it recommends, and that nothing in it is taken for markup."""

import dataclasses
import math
import re

import numpy as np
import pytest

from evaluation.overfitting_curves import curve_scores
from evaluation.overfitting_report import (
    _marginal_tables,
    markdown,
    recommended_table,
    render,
    surface_axes,
    text_table,
    trial_table,
)
from evaluation.overfitting_results import SweepReport, TrialResult, clean, finished, recommended
from evaluation.score import Score
from evaluation.sweep_figures import overfitting_curves, surface, validation_versus_unseen
from tests.evaluation.browser import opened


def score(name, value, width=0.02):
    return Score(name, value, value - width, value + width, True, 100, f"how {name}")


def make(backbone, rate, depth, validation, unseen, **more):
    """A trial whose gap train − validation at the end is rate + depth / 100."""
    epoch, train = [1.0, 2.0, 3.0], [0.7, 0.85, 0.95]
    curve = [0.7, validation, validation - 0.05]
    data = {"train": 0.95, "validation": validation, "test": validation - 0.01, "resample": unseen}
    gap = Score("train − validation", rate + depth / 100, -1, 1, False, 200, "how")
    return TrialResult(
        run=f"{backbone}-{rate}-{depth}",
        backbone=backbone,
        family="family",
        values={"learning_rate": rate, "unfrozen_blocks": depth, "mode": "full", **more},
        status="finished",
        detection={name: score("auc", value) for name, value in data.items()},
        gaps=[gap],
        last_gaps=[gap],
        drops=[],
        curve=curve_scores(epoch, train, curve, noise=0.005),
        evaluations=[
            {"epoch": e, "train/auc": t, "validation/auc": v} for e, t, v in zip(epoch, train, curve, strict=True)
        ],
    )


@pytest.fixture
def trials():
    random = np.random.default_rng(0)
    made = [
        make(backbone, rate, depth, float(random.uniform(0.75, 0.9)), float(random.uniform(0.5, 0.7)))
        for backbone in ("vit <b>", "resnet")
        for rate in (0.001, 0.01, 0.1)
        for depth in (1, 4)
    ]
    failed = TrialResult("lost", "resnet", "family", made[0].values, "failed", "loss is <script>not</script> finite")
    return [*made, failed]


def page(trials):
    return render(SweepReport("A sweep", "Toy data.", "python -m jobs.sweep", {"ray": "1"}, "box", {}, trials))[0]


def test_the_recommendation_looks_at_validation_only(trials):
    best = recommended(trials, "resnet")
    of = [each for each in trials if each.backbone == "resnet" and each.finished]
    assert best.detection["validation"].value == max(each.detection["validation"].value for each in of)
    tempting = make("resnet", 0.5, 1, 0.5, 0.99)  # best on unseen data, worst on validation
    assert recommended([*trials, tempting], "resnet") == best
    assert [row[0].text for row in recommended_table(trials).rows] == ["vit <b>", "resnet"]


def test_trials_with_flipped_labels_are_neither_recommended_nor_averaged_with_the_others(trials):
    true = [dataclasses.replace(each, values={**each.values, "flipped_labels": 0.0}) for each in trials]
    # Best on validation, with a gap far from that of the others.
    probe = make("resnet", 0.001, 1, 0.99, 0.6, flipped_labels=0.2)
    probe = dataclasses.replace(probe, last_gaps=[dataclasses.replace(probe.last_gaps[0], value=-0.9)])
    mixed = [*true, probe]
    assert recommended(mixed, "resnet") == recommended(true, "resnet")
    assert [recommended_table(each).rows[1][-1].text for each in (true, mixed)] == ["6", "6"]
    with_and_without = [
        [text.get_text() for axes in surface(each, "learning_rate", "unfrozen_blocks", "train − validation").axes
         for text in axes.texts]
        for each in (mixed, true)
    ]  # fmt: skip
    assert with_and_without[0] == with_and_without[1]
    for title, table in dict(_marginal_tables(clean(mixed))).items():
        assert table == dict(_marginal_tables(clean(true)))[title]
    html = page(mixed)
    assert "-0.9" not in re.sub("<section id=.trials.>.*?</section>", "", html, flags=re.S)  # but in the list of trials
    # Nothing but probes: they are listed, and nothing is recommended.
    assert recommended_table([probe]).rows == []
    assert "No finished trial to draw" not in page([probe])  # validation against unseen AUC means what it meant


def test_the_page_holds_every_part_and_escapes_names(trials):
    html = page(trials)
    assert html.count("<figure>") == 4  # surface, scatter, curves, importance
    assert "vit <b>" not in html
    assert "<script>not" not in html
    assert "loss is &lt;script&gt;not" in html
    assert "mode" not in re.findall(r"<th[^>]*><button[^>]*>(\w+)", html)  # did not vary
    assert page(trials[:3]) == page(trials[:3])


def test_a_sweep_without_a_finished_trial_still_has_a_report(trials):
    html = page([trials[-1]])
    assert "No finished trial to draw yet" in html
    assert text_table([trials[-1]]) == "no finished trial"


def test_the_tables_are_sorted_by_validation(trials):
    given = [each.detection["validation"].value for each in finished(trials)]
    best_first = sorted(given, reverse=True)
    assert given != best_first
    head, *lines = text_table(trials).splitlines()
    start = head.index("AUC validation")
    assert [line[start:].split()[0] for line in lines] == [f"{auc:.3f}" for auc in best_first]
    table = trial_table(finished(trials))
    column = table.columns.index(("AUC ↑", "validation"))
    assert [row[column].sort for row in table.rows] == best_first
    assert markdown(table).count("\n") == 13  # a line for each of twelve trials below the head and its rule


def test_the_surface_averages_what_is_not_on_its_axes(trials):
    axes = surface_axes(["mode", "unfrozen_blocks", "learning_rate"])
    assert axes == ("learning_rate", "unfrozen_blocks")
    assert surface_axes(["learning_rate", "seed"]) is None
    figure = surface(trials, *axes, "train − validation")
    texts = [text.get_text() for text in figure.axes[0].texts]
    # One trial per cell: rate + depth / 100, rows from depth 1 upwards.
    assert texts == ["0.011", "0.020", "0.110", "0.041", "0.050", "0.140"]
    twice = surface([*trials, make("resnet", 0.001, 1, 0.8, 0.6)], *axes, "train − validation")
    assert twice.axes[1].texts[0].get_text() == "0.011\n(2)"


def test_depth_and_data_are_drawn_even_where_a_learning_rate_was_searched(trials):
    crossed = [
        dataclasses.replace(each, values={**each.values, "mode": mode, "train_groups": groups})
        for each in trials
        for mode in ("last_blocks", "full")
        for groups in (80, 40)
    ]
    titles = [title for title, _, _ in render(SweepReport("A sweep", "", "", {}, "box", {}, crossed))[1]]
    assert titles[:3] == [
        "Gap train − validation over learning_rate × unfrozen_blocks",
        "Gap train − validation over unfrozen depth × train_groups",
        "AUC on resample over unfrozen depth × train_groups",
    ]
    assert "Unfrozen depth × data size" in page(crossed)
    only = [  # mode and groups, as in jobs/configs/sweep_real_deep.yaml: no surface is drawn twice
        dataclasses.replace(each, values={key: each.values[key] for key in ("mode", "train_groups")})
        for each in crossed
        if each.finished
    ]
    titles = [title for title, _, _ in render(SweepReport("A sweep", "", "", {}, "box", {}, only))[1]]
    assert [title for title in titles if " over " in title] == [
        "Gap train − validation over unfrozen depth × train_groups",
        "AUC on resample over unfrozen depth × train_groups",
    ]
    assert "This sweep did not vary both" in page(trials)


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_opens_the_page_without_a_console_message(trials, tmp_path):
    probe = make("resnet", 0.001, 1, 0.8, 0.6)
    names = ("memorisation", "validation_error", "memorisation_above_error")
    probe = dataclasses.replace(
        probe,
        values={**probe.values, "flipped_labels": 0.2},
        curve=[*probe.curve, *(score(name, 0.4) for name in names)],
    )
    true = [dataclasses.replace(each, values={**each.values, "flipped_labels": 0.0}) for each in trials]
    path = tmp_path / "report.html"
    path.write_text(page([*true, probe]), encoding="utf-8")
    # A click on the test AUC of the recommended settings.
    head = "AUC ↑test"
    script = f"""for (const button of document.querySelectorAll("#recommended th button"))
        if (button.textContent.startsWith("{head}")) {{ button.click(); button.click(); }}"""
    pages = opened(path, script)
    assert pages[0].headings[:5] == [
        "Recommended setting of each backbone",
        "Which family does best, and which overfits?",
        "Learning curves",
        "Unfrozen depth × data size",
        "Flipped labels learnt by heart",
    ]
    assert len([tag for tag, a in pages[0].tags if tag == "img"]) == 4
    column = pages[0].tables[0][0].index(head)
    first, sorted_ = ([float(row[column].split()[0]) for row in each.tables[0][1:]] for each in pages)
    assert sorted_ == sorted(first)
    # What was searched is in the table of recommended settings, the share of flipped labels with it.
    assert {"learning_rate", "unfrozen_blocks", "flipped_labels"} <= set(pages[0].tables[0][0])
    assert "loss is <script>not</script> finite" in pages[0].text


def test_curves_mark_the_first_overfitting(trials):
    figure = overfitting_curves(trials[:1])
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "v" and len(line.get_xdata())]
    # Validation peaks at epoch 2 while training rises on.
    assert [list(mark.get_xdata()) for mark in marks] == [[2.0]]
    assert math.isclose(marks[0].get_ydata()[0], trials[0].detection["validation"].value)


def test_nothing_to_draw_is_an_error(trials):
    for draw in (
        lambda t: surface(t, "a", "b", "g"),
        overfitting_curves,
        lambda t: validation_versus_unseen(t, "x"),
    ):
        with pytest.raises(ValueError, match="no finished trial"):
            draw([trials[-1]])
