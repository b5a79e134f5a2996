from pathlib import Path

from evaluation.results_page import results_page


def test_page_has_tables_verdicts_figures_and_limits(benchmark):
    report = benchmark(9, seeds=(0, 1))
    page = results_page(report, ["make benchmark-real"], [Path("RESULTS/overfitting.png")], "abc1234")
    for words in (
        "# Results: Quickstart: four backbones", "$ make benchmark-real", "Commit `abc1234`",
        "![overfitting](RESULTS/overfitting.png)", "Three claims of the literature", "Self-supervised separates better",
        "*dinov2_vits14-random*", "*mean rank on other data sets*", "What may not be concluded", "undecided",
    ):  # fmt: skip
        assert words in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 7  # headline, AUC, gaps, two relations, claims, families
    for lines in tables:
        assert {line.count(" | ") for line in lines if r"\|" not in line} == {lines[0].count(" | ")}
    assert "No relation" not in page
    assert "No relation: too few" in results_page(benchmark(3), [], [], "")
