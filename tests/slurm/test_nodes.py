"""One row on several nodes."""

from __future__ import annotations

import json
import re

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_nodes_with_two_processes_each_equal_one_process(machines, tiny, tmp_path):
    """Up to the order of summation. A network without batch norm, whose statistics each process has for itself."""
    runs = {}
    for name, options in {"one": (), "four": ("--nodes=2", "--gpus-per-node=2")}.items():
        folder = tmp_path / name
        folder.mkdir()
        experiment = tiny.write_experiment(folder, architectures=["test_vit"], epochs=2, log_every=1)
        plan = tiny.make_plan(experiment)
        job = tiny.submit_row(machines, plan, *options)
        assert machines.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
        (done,) = plan.parent.glob("*/done.json")
        runs[name] = done.parent
    one, four = runs["one"], runs["four"]
    assert (tiny.world(one), tiny.world(four)) == (1, 4)
    assert [row["step"] for row in tiny.metrics(four)] == [row["step"] for row in tiny.metrics(one)]
    for ours, theirs in zip(tiny.metrics(four), tiny.metrics(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert tiny.scores(four).keys() == tiny.scores(one).keys()
    for name, (index, logits) in tiny.scores(four).items():
        assert index == tiny.scores(one)[name][0], "every sample once"
        assert logits == pytest.approx(tiny.scores(one)[name][1], abs=1e-3)


def test_a_row_on_two_nodes_stops_on_request_and_continues(machines, tiny, experiment):
    settings = yaml.safe_load(experiment.read_text())
    settings["finetune"] |= {"epochs": 60, "evaluate_every": 30, "log_every": 1}  # 180 updates: time to be stopped in
    experiment.write_text(yaml.safe_dump(settings))
    plan = tiny.make_plan(experiment)
    job = tiny.submit_row(machines, plan, "--nodes=2")
    machines.wait_until(lambda: list(plan.parent.glob("*/metrics.jsonl")), timeout=120)
    machines.run("scancel", "--signal=USR1", "--batch", f"{job}_0")
    machines.wait_until(lambda: machines.restarts(f"{job}_0") == 1, timeout=60)
    assert machines.wait(job, timeout=240) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
    assert re.search(r"180 updates.* resumed after update [1-9]", tiny.log(plan))
    assert len(list(plan.parent.glob("*/evaluation.json"))) == 1


def test_a_failure_on_the_second_node_is_on_record(machines, tiny, tmp_path):
    plan = tiny.make_plan(tiny.write_experiment(tmp_path, architectures=["test_vit"]))
    fails = """
import os, socket, sys
if socket.gethostname() == "n2" and "RANK" in os.environ:
    print("MemoryError: no room on this node", file=sys.stderr, flush=True)
    os._exit(1)
"""
    (tmp_path / "sitecustomize.py").write_text(fails)
    job = tiny.submit_row(machines, plan, "--nodes=2", PYTHONPATH=str(tmp_path))
    assert machines.wait(job, timeout=400) == {f"{job}_0": "FAILED"}, tiny.log(plan)
    assert machines.restarts(f"{job}_0") == 1, "a second try, and no third"
    (record,) = plan.parent.glob("*/failed.json")
    failure = json.loads(record.read_text())
    assert "machine 1: MemoryError: no room on this node" in failure["reason"]
    assert (failure["given_up"], failure["same"]) == (True, 2)
