"""What rows ask of a scheduler, and how they become arrays."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_shards.command import InputError, from_yaml
from jobs import plan, record
from jobs.arrays import arrays, ranges
from jobs.experiment import Experiment
from jobs.launcher import Local, Slurm
from jobs.resources import sized
from trainer.card import get_card
from trainer.config import FinetuneConfig
from trainer.memory import memory

ROOT = Path(__file__).parents[2]


def test_ranges():
    assert ranges([5, 0, 1, 2, 9, 8]) == "0-2,5,8-9"


def test_rows_are_grouped_by_what_they_ask_for_and_by_the_limit_of_indices():
    large, small = {"nodes": 2, "gpus": 4, "memory_gb": 26.5, "hours": 1.5}, {"cpus": 1, "gpus": 0}
    asked = [small, large, small, {}, large, small, small]
    large_options = ["--nodes=2", "--gpus-per-node=4", "--mem=26500M", "--time=90"]
    small_options = ["--gpus-per-node=0", "--cpus-per-task=1"]
    assert arrays(asked, "0-4,6-8%3", limit=5) == [
        (0, "0,2%3", small_options),
        (0, "1,4%3", large_options),
        (0, "3%3", []),
        (5, "1%3", small_options),
        (5, "2-3%3", []),  # beyond the plan: they exit at once
    ]
    for wrong in ("", "0-", "a", "1;2", "0-3%"):
        with pytest.raises(InputError, match="expected a list like"):
            arrays(asked, wrong, limit=5)


def test_every_row_of_a_large_plan_is_in_one_array():
    asked = [{"gpus": row % 3} for row in range(10_000)]
    found = arrays(asked, "0-9999", limit=1001)
    assert len(found) == 30
    rows = []
    for first, indices, options in found:
        for part in indices.split(","):
            begin, _, end = part.partition("-")
            members = range(int(begin), int(end or begin) + 1)
            assert max(members) < 1001
            rows += [first + index for index in members]
            assert all(options == [f"--gpus-per-node={(first + index) % 3}"] for index in members)
    assert sorted(rows) == list(range(10_000))


def test_what_a_backbone_says_wins_over_the_experiment(write_experiment, tmp_path):
    file = write_experiment(tmp_path, resources={"gpus": 1, "cpus": 8})
    settings = yaml.safe_load(file.read_text())
    settings["backbones"][1]["resources"] = {"gpus": 8, "nodes": 2}
    file.write_text(yaml.safe_dump(settings))
    experiment = from_yaml(Experiment, file)
    written = plan.write(experiment)
    assert plan.resources(written) == [{"gpus": 1, "cpus": 8}, {"nodes": 2, "gpus": 8, "cpus": 8}]
    first = plan.read(written)[0]
    assert record._content(replace(first, resources={})) == record._content(first), "done whatever it asked for"
    with pytest.raises(InputError, match="gpus=-1"):
        from_yaml(Experiment, write_experiment(tmp_path, resources={"gpus": -1}))


def config(**changes) -> FinetuneConfig:
    values = {"backbone": "vit_base_imagenet21k", "train": "a", "validation": "b", "batch_size": 64, **changes}
    return FinetuneConfig(**values)


def test_memory_of_a_vit_by_hand():
    """ViT-B/16 without classifier has 85.8 M parameters (Dosovitskiy et al., 2021, with it: 86.6 M). 4 bytes each for
    weights and gradients and 8 for AdamW; low-rank updates leave gradients and moments to themselves."""
    card = get_card("vit_base_imagenet21k")
    full = memory(config(), card)
    assert full.parameters == full.trainable == 85_798_656 + 769
    assert (full.weights, full.gradients, full.optimizer) == tuple(full.parameters * bytes_ for bytes_ in (4, 4, 8))
    # kept per image: at least 12 blocks of 197 tokens, 768 wide, with 4 x 768 in the MLP before and after GELU
    assert full.activations > 64 * 12 * 197 * (4 + 4 + 4 + 2) * 768 * 4
    assert memory(config(accumulation=4), card).activations == pytest.approx(full.activations / 4, rel=0.02)
    assert memory(config(precision="bf16"), card).activations < 0.75 * full.activations
    assert memory(config(gradient_checkpointing=True), card).activations < 0.2 * full.activations
    assert memory(config(ema=0.0), card).optimizer == memory(config(ema=0.9), card).optimizer > full.optimizer
    low = memory(config(mode="lora"), card)
    assert low.trainable < 0.05 * low.parameters
    assert low.optimizer == 8 * low.trainable
    sharded = memory(config(deepspeed_stage=3), card, processes=8)
    assert sharded.weights + sharded.gradients + sharded.optimizer == full.parameters * 16 / 8


def test_a_row_gets_the_gpus_it_needs():
    assert sized(config(), 80, 8)["gpus"] == 1
    four = sized(config(), 6, 2)
    assert (four["nodes"], four["gpus"], four["cpus"]) == (2, 2, 6)
    assert sized(config(mode="head", backbone="imagenet_mobilenetv2"), 80, 8) == {"nodes": 1, "gpus": 0, "cpus": 1}
    with pytest.raises(InputError, match=r"on one GPU.*deepspeed_stage=3"):
        sized(config(), 1, 8)  # weights, gradients and moments alone are 1.4 GB on each, however many there are
    assert sized(config(deepspeed_stage=3), 1.3, 8)["gpus"] > 1
    giant = config(backbone="dinov2_vitg14", batch_size=128, deepspeed_stage=3, precision="bf16")
    assert sized(giant, 24, 8)["gpus"] == 8


def test_both_launchers_are_asked_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Slurm().rows(Path("p.jsonl"), [0, 1, 5]) == ["bash", "slurm/submit_rows.sh", "p.jsonl", "0-1,5"]
    assert Local().rows(Path("p.jsonl"), [0, 5])[1:] == ["-m", "jobs.run", "plan=p.jsonl", "rows=[0, 5]"]
    assert Slurm().benchmark(Path("e.yaml"), ["--mem=1G"], dry_run=True) == [
        *("bash", "slurm/benchmark.sh", "--dry-run", "e.yaml", "--mem=1G")
    ]
    with pytest.raises(InputError, match="launcher=slurm"):
        Local().benchmark(Path("e.yaml"), ["--mem=1G"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no sbatch"):
        Slurm().benchmark(Path("e.yaml"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="repository's root"):
        Slurm().benchmark(Path("e.yaml"))


def test_the_benchmark_from_python_prints_what_the_scripts_would_submit(write_experiment, tmp_path):
    command = [sys.executable, "-m", "jobs.benchmark", str(write_experiment(tmp_path)), "launcher=slurm"]
    command += ["dry_run=true", "name=changed", "sbatch=[--mem=1G]"]
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    features, rows, evaluation, report = (line for line in done.stderr.splitlines() if line.startswith("sbatch"))
    assert features.endswith(f"slurm/features_all.sh {tmp_path}/runs/changed/experiment.yaml")
    assert "--array=0-1" in rows
    assert rows.endswith(f"--mem=1G slurm/finetune_row.sh {tmp_path}/runs/changed/plan.jsonl 0")
    assert "slurm/evaluate_all.sh" in evaluation
    assert "slurm/report.sh" in report
    assert plan.count(tmp_path / "runs" / "changed" / "plan.jsonl") == 2
