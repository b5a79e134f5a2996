"""Sweeps whose file changed after trials had ended, without Ray: what is done again, and what is kept."""

from data_shards.command import from_dict
from jobs import sweep_report, trial
from jobs.sweep_plan import Sweep, check, listed
from tests.jobs.sweeping import SAMPLE, sweep_values

SHORT = {"mode": "full", "epochs": 2, "batch_size": 16, "threads": 1}


def made(folder, cards, **changes):
    """The sweep and its trials."""
    values = sweep_values(folder, cards, **{"space": {"learning_rate": [1e-3]}, "finetune": SHORT, **changes})
    config = from_dict(Sweep, values)
    return config, listed(config, check(config))


def run(trials):
    for each in trials:
        if not trial.ended(each.row):
            trial.run_trial(each.row, lambda told: None)
        assert trial.read_record(each.row)["status"] == "finished"


def test_a_set_that_is_no_longer_in_the_sweep_file_is_in_no_number(tmp_path, tiny_cards):
    config, trials = made(tmp_path, tiny_cards)
    data = sweep_values(tmp_path, tiny_cards)["data"]
    two_unseen = {**data, "unseen": {"foreign": str(SAMPLE / "unseen"), **data["unseen"]}}
    run(made(tmp_path, tiny_cards, data=two_unseen)[1])
    run_directory = trials[0].row.run
    assert (run_directory / "scores" / "foreign-last.parquet").is_file()
    assert "foreign" in (run_directory / "overfitting.json").read_text()

    config, trials = made(tmp_path, tiny_cards, space={"learning_rate": [1e-3, 2e-3]})  # and one more trial
    run(trials)
    for file in ("evaluation.json", "overfitting.json"):
        assert "foreign" not in (run_directory / file).read_text()
    gaps = ["train − validation", "validation − test", "test − resample"]
    for found in sweep_report.build(config, trials).trials:
        assert [gap.name for gap in found.gaps] == [gap.name for gap in found.last_gaps] == gaps
    path, _ = sweep_report.write(config, trials)
    assert "foreign" not in path.read_text()
