import dataclasses
import math
import re

import pytest

from evaluation.report import BackboneResult, Report, markdown_table, render, text_table
from evaluation.results import over_seeds, pretty
from evaluation.score import Score
from evaluation.tables import (
    TERMINAL_WIDTH,
    Cell,
    Table,
    backbone_table,
    detection_table,
    headline_table,
    markdown,
    slice_table,
)
from tests.evaluation.browser import Page, opened

HOSTILE = """</script><script>console.error('owned')</script><img src=x onerror=alert(1)>"'|`*$x$\x1b[31m"""
TABLES = 18


@pytest.fixture(scope="module")
def report(benchmark) -> Report:
    return benchmark()


@pytest.fixture(scope="module")
def text(report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def hostile(report: Report) -> Report:
    first = dataclasses.replace(
        report.backbones[0], name=HOSTILE, licence=HOSTILE, family=HOSTILE, pretext_task=HOSTILE, missing=[HOSTILE]
    )
    return dataclasses.replace(
        report,
        title=HOSTILE,
        notice=HOSTILE,
        command=HOSTILE,
        backbones=[first, *report.backbones[1:]],
        definitions={HOSTILE: HOSTILE},
        data=[{"name": HOSTILE, "digest": HOSTILE}],
    )


def test_mean_over_seeds_is_the_mean_of_values_and_of_bounds():
    scores = [Score("auc", value, value - 0.1, value + 0.2, True, 10, "how") for value in (0.5, 0.6, 0.7)]
    mean = over_seeds(scores)
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.6, 0.5, 0.8))
    assert mean.how == "mean over 3 seeds (bounds too); how"
    assert over_seeds(scores[:1]) is scores[0]
    assert over_seeds([]) is None


@pytest.mark.parametrize(
    ("name", "written"),
    [("auc", "AUC"), ("tpr_at_fpr_0.1pct", "TPR at FPR 0.1 %"), ("kmeans_ami_k8", "kmeans AMI k8"), ("tsne", "t-SNE")],
)
def test_names_are_written_as_people_do(name, written):
    assert pretty(name) == written


def test_headline_is_sorted_by_separability_and_shows_value_and_interval(report):
    table = headline_table(report)
    assert [name for name, _ in table.columns][3:] == ["kNN AUC ↑", "AUC ↑", "AUC ↑", "AUC gap"]
    assert [second for _, second in table.columns][3:] == [
        "train, frozen", "test", "resample, unseen", "train − validation",
    ]  # fmt: skip
    assert [row[0].text for row in table.rows] == [
        "dinov2_vits14", "mae_vitb16", "imagenet_efficientnet_lite0", "dinov2_vits14-random",
    ]  # fmt: skip
    assert [row[3].text for row in table.rows] == ["0.710", "0.660", "0.620", "0.510"]
    assert table.rows[0][4].text == "0.890"
    assert table.rows[0][4].interval == "[0.850, 0.938]"
    assert table.controls == [False, False, False, True]


def test_a_score_that_is_better_when_lower_sorts_the_other_way(report):
    def flipped(backbone: BackboneResult) -> BackboneResult:
        first, *rest = backbone.separability["train"]
        return dataclasses.replace(
            backbone, separability={"train": [dataclasses.replace(first, higher_is_better=False), *rest]}
        )

    table = headline_table(dataclasses.replace(report, backbones=[flipped(b) for b in report.backbones]))
    assert table.columns[3][0] == "kNN AUC ↓"
    assert [row[3].text for row in table.rows] == ["0.510", "0.620", "0.660", "0.710"]


def test_several_seeds_show_their_mean_and_each_value(benchmark):
    table = detection_table(benchmark(seeds=(0, 1, 2)), "auc")
    assert [name for name, _ in table.columns[1:]] == ["train", "validation", "test", "resample"]
    cell = table.rows[0][3]  # test AUC of the seeds: 0.89, 0.87, 0.85
    assert (cell.text, cell.seeds) == ("0.870", "0.890 0.870 0.850")


def test_parts_of_a_set_stand_behind_the_sets_in_all_tables_but_that_of_the_auc(benchmark):
    made = benchmark(3, seeds=(0, 1))
    undefined = Score("auc", math.nan, math.nan, math.nan, True, 7, "undefined: all of its samples are fake")
    of_videos = [Score("auc", 0.7, 0.6, 0.8, True, 30, ""), Score("eer", 0.2, 0.1, 0.3, False, 30, "")]
    slices = {"test": {"per video": of_videos, "age=9": [undefined]}}
    runs = [dataclasses.replace(run, slices=slices) for run in made.backbones[0].runs]
    changed = dataclasses.replace(made, backbones=[dataclasses.replace(made.backbones[0], runs=runs)])
    assert detection_table(changed, "auc").columns == detection_table(made, "auc").columns
    table = detection_table(changed, "eer")
    assert table.columns[-2:] == [("resample", "unseen"), ("test", "per video")]
    assert (table.rows[0][-1].text, table.rows[0][-1].seeds) == ("0.200", "0.200 0.200")
    parts = slice_table(changed, "test")
    assert parts.columns[1:] == [("per video", "AUC"), ("age=9", "AUC")]
    assert parts.rows[0][1].text == "0.700"
    assert (parts.rows[0][2].text, "all of its samples are fake" in parts.rows[0][2].hint) == ("–", True)


def test_page_has_its_sections_in_order_and_every_number(page):
    assert page.headings == [
        "Results", "Figures", "Separability of the frozen features", "Does separability predict fine-tuning?",
        "Detection after fine-tuning", "Gaps between the sets", "Pictures of the feature spaces",
        "How each number is computed", "Provenance", "What is missing",
    ]  # fmt: skip
    headline = page.tables[0]
    assert headline[1][0] == "dinov2_vits14"
    assert " ".join(headline[1][4].split()) == "0.890 [0.850, 0.938]"
    assert "may not be concluded. The faces are generated and the forgeries are scripted" in page.text
    for words in ("python -m jobs.benchmark", "2 cores, 24 GiB", "0123456789ab", "synthetic kmeans_ami_k8"):
        assert words in page.text
    made = " ".join(page.text.split())
    assert "at commit 0123abc on Some processor, 2 cores" in made
    assert "an earlier commit or another machine may have computed them" in made
    # headline; all scores on two sets, differences, methods, treatments, confounds, transferability on one; claims,
    # families; 4 detection metrics, gaps, data, backbones, runs
    assert len(page.tables) == TABLES
    assert "No relation is computed: too few: 3 fine-tuned backbones besides controls, a relation needs 4." in page.text


def test_page_reaches_for_nothing_outside_itself(page, text):
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "action", "poster") if key in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    images = [a for tag, a in page.tags if tag == "img"]
    # two forests, overfitting, relation, learning curves; PCA and t-SNE of four backbones
    assert len(images) == 5 + 8
    assert all(image["alt"] for image in images)


def test_equal_results_give_equal_bytes(benchmark):
    assert render(benchmark(2)) == render(benchmark(2))


def test_names_from_data_cannot_become_markup(benchmark, caplog):
    page = Page(render(hostile(benchmark(2))))
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json", None]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert HOSTILE.replace("\x1b", "")[:20] in page.text
    assert not caplog.records  # matplotlib took no name for mathematics


def test_what_is_missing_is_listed_and_leaves_dashes(benchmark):
    report = benchmark(2)
    empty = dataclasses.replace(
        report.backbones[0],
        separability={},
        panels={},
        embeddings={},
        runs=[],
        parameters=0,
        missing=["weights: no hub"],
    )
    partial = dataclasses.replace(report, backbones=[empty, *report.backbones[1:]])
    page = Page(render(partial))
    assert "dinov2_vits14 : weights: no hub" in page.text
    assert [cell.text for cell in headline_table(partial).rows[-1][2:]] == ["–"] * 5
    nothing = Page(render(dataclasses.replace(report, backbones=[empty])))
    for words in ("No result to draw yet", "No backbone has been fine-tuned", "Not computed yet", "None made yet"):
        assert words in nothing.text
    assert "dinov2_vits14" in text_table(dataclasses.replace(report, backbones=[empty]))


def test_an_undefined_value_shows_a_dash_with_its_reason(report):
    undefined = Score("knn_auc", float("nan"), float("nan"), float("nan"), True, 3, "one group only")
    backbone = dataclasses.replace(report.backbones[0], separability={"train": [undefined]})
    table = headline_table(dataclasses.replace(report, backbones=[backbone, *report.backbones[1:]]))
    assert (table.rows[-1][3].text, table.rows[-1][3].hint) == ("–", "one group only")


@pytest.mark.parametrize("unseen", [(), ("resample",), ("celebdf_v2", "faceforensics", "dfdc", "stylegan")])
def test_text_table_fits_a_terminal_and_lines_up(benchmark, unseen):
    text = text_table(benchmark(9, unseen=unseen))
    lines = text.splitlines()
    assert max(map(len, lines)) <= TERMINAL_WIDTH
    column = lines[1].index("train, frozen")
    assert {line[column : column + 15] for line in lines[3:5]} == {".710 [.67, .76]", ".690 [.65, .74]"}
    assert text.count("mobilesam_tiny_vit_5m") == len(text.split("\n\n"))
    for name in unseen:
        assert f"{name}, unseen" in text


def test_text_table_sends_no_control_characters_to_the_terminal(report):
    assert "\x1b" not in text_table(hostile(report))


def test_markdown_table_has_one_line_per_backbone_and_equal_columns(report):
    lines = markdown_table(hostile(report)).splitlines()
    assert len(lines) == 2 + 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}  # seven columns
    assert "0.890 [0.850, 0.938]" in lines[2]


def test_free_text_cannot_break_a_markdown_table():
    cell = Cell("0.5", 0.5, "[0.4, 0.6]", "p < 0.01, <b>dinov2|test")
    lines = markdown(Table("", [("AUC", "")], [[cell]], [False])).splitlines()
    assert lines[2] == r"| 0.5 [0.4, 0.6] p < 0.01, \<b\>dinov2\|test |"


def test_a_random_control_has_neither_pretext_task_nor_licence_nor_accuracy(report):
    first = dataclasses.replace(report.backbones[0], imagenet_top1=71.9)
    table = backbone_table(
        dataclasses.replace(report, backbones=[first, dataclasses.replace(first, initialisation="random")])
    )
    pretrained, control = ([cell.text for cell in row] for row in table.rows)
    assert pretrained[2:5] + pretrained[-1:] == [first.pretext_task, first.family, first.licence, "71.9"]
    assert control[2:5] + control[-1:] == ["–", "random control", "–", "–"]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_a_browser_opens_the_page_without_a_console_message(benchmark, text, tmp_path, kind):
    path = tmp_path / "report.html"
    path.write_text(text if kind == "plain" else render(hostile(benchmark())), encoding="utf-8")
    # a click on a column's head and on the last backbone, every choice of the scatter plot, the pointer over it all
    script = """document.querySelectorAll("table")[0].tHead.rows[0].cells[3].querySelector("button").click();
        const [backbone, kind, factor] = document.querySelectorAll(".scatter select");
        const canvas = document.querySelector(".scatter canvas"), box = canvas.getBoundingClientRect(), seen = [];
        for (const select of [kind, backbone, factor]) for (const { value } of [...select.options]) {
          select.value = value;
          select.dispatchEvent(new Event("change"));
          if (select === factor) seen.push(value + ": " + document.querySelector(".legend").textContent);
          for (let step = 0; step < 20; step++) canvas.dispatchEvent(new PointerEvent("pointermove",
            { clientX: box.left + box.width * step / 20, clientY: box.top + box.height * step / 20 }));
          if (backbone.value === backbone.options[0].value) factor.dataset.most = factor.options.length;
        }
        document.querySelector("#results tbody tr:last-child th a").click();
        document.querySelector(".scatter figcaption").textContent =
          [factor.dataset.most, factor.options.length, backbone.value, ...seen].join("; ");"""
    pages = opened(path, script)
    page, sorted_page = pages
    assert len(page.tables) == TABLES
    assert [a for tag, a in page.tags if a.get("class") == "scatter"] == [{"class": "scatter"}]  # shown, so drawn
    # label, method, data set, group, and but for the control, which is the last backbone, the probability
    assert "5; 4; dinov2_vits14-random; label: realfake; " in sorted_page.text
    assert "group: 60 groups, colours repeat" in sorted_page.text
    values = [[row[3].split()[0] for row in p.tables[0][1:]] for p in pages]
    assert values[0] == ["0.710", "0.660", "0.620", "0.510"]
    assert values[1] == values[0]  # first click: best first, as it was
    assert [a.get("aria-sort") for tag, a in sorted_page.tags if tag == "th"][3] == "descending"
