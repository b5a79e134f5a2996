"""The benchmark of resuming counts what it says: on our own loader, and on one that loses samples by design."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("bench_resume")


@pytest.mark.parametrize(("name", "exact"), [("ours, ranks", True), ("webdataset, default shuffle, skip", False)])
def test_parts_of_an_epoch(bench, tmp_path, name, exact):
    folder = str(bench.make_shards(tmp_path, 400))  # 7 batches of 64, stopped after 3
    run = bench.Loader(bench.LOADERS[name].epoch, (1, 2) if exact else (0, 0), "", ())
    bench.LOADERS[name] = run
    first = bench.part(name, folder, run.workers[0], None, 3)
    rest = bench.part(name, folder, run.workers[1], first["state"], None)
    whole = bench.part(name, folder, run.workers[0], None, None)
    assert len(first["seen"]) == 3 * 64
    assert sorted(whole["seen"]) == list(range(400))
    # A shuffle of its own for each process: two random halves agree in all samples with a chance below 1e-100.
    assert (first["seen"] + rest["seen"] == whole["seen"]) == exact
    assert (sorted(first["seen"] + rest["seen"]) == list(range(400))) == exact
