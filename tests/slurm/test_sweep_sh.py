"""``sbatch --nodes=2 slurm/sweep.sh``: Ray over the nodes of a job, one of which is lost."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from data_shards.command import from_dict
from jobs import trial
from jobs.sweep_plan import Sweep
from tests.jobs.sweeping import SAMPLE, planned

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_sweep_over_two_nodes_outlives_the_loss_of_one(cluster, tiny, tmp_path):
    if not cluster.namespaces:
        pytest.skip("a node can only be lost in namespaces: run as root")
    tiny.write_experiment(tmp_path)
    values = {
        "name": "tiny",
        "data": {split: str(SAMPLE / split) for split in ("train", "validation", "test")},
        "backbones": [{"name": "tiny_test_resnet", "initialisation": "random"}],
        "space": {"learning_rate": [1e-3, 2e-3]},
        "finetune": {
            "epochs": 46,  # long enough for both trials to be under way at once on a busy machine
            "evaluate_every": 23,
            "batch_size": 16,
            "threads": 1,
            "checkpoint_steps": 10,
            "log_every": 1,
        },
        "cards": str(tmp_path / "cards.yaml"),
        "runs": str(tmp_path / "runs"),
        "replicates": 20,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    first, second = (each.row for each in planned(from_dict(Sweep, copy.deepcopy(values))))
    options = ("--nodes=2", "--cpus-per-task=1", "--mem=1000")
    environment = {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix, "RANK": "1", "WORLD_SIZE": "2"}
    job = cluster.sbatch(*options, "slurm/sweep.sh", tmp_path / "sweep.yaml", cwd=ROOT, env=environment)

    def both_under_way() -> bool:
        ended = set(cluster.states(job).values()) & cluster.ENDED
        assert not ended, cluster.logs(60)
        return all((row.run / "state" / "latest").is_file() for row in (first, second))

    cluster.wait_until(both_under_way, timeout=240)  # one CPU on each node: a trial on each
    cluster.kill_node("n2")
    try:
        assert cluster.wait(job, timeout=420) == {job: "COMPLETED"}, cluster.logs(60)
    finally:
        cluster.start_node("n2")
        cluster.wait_idle()
    assert [trial.read_record(row)["status"] for row in (first, second)] == ["finished", "finished"]
    for row in (first, second):  # each update once, whatever happened
        rows = [json.loads(line) for line in (row.run / "metrics.jsonl").read_text().splitlines()]
        steps = [found["step"] for found in rows if "train/loss" in found]
        assert steps == list(range(1, len(steps) + 1))
    # Nothing is left of this job's Ray.
    assert not Path(f"/tmp/ray-{job}-0").exists()
    left = [p for p in psutil.process_iter(["cmdline"]) if f"/tmp/ray-{job}-0" in " ".join(p.info["cmdline"] or ())]
    assert not left
    assert "RAY_AUTH_TOKEN" not in (cluster.folder / f"job-{job}.log").read_text()
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
