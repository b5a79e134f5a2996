import contextlib
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from evaluation import tracking
from evaluation.tracking import CUT, TrackingError, log_result

PARAMS = {"backbone": "dinov2_vits14", "family": "self-supervised", "seed": 0}
METRICS = {"test/AUC": 0.75, "test/gap train − test": 0.125, "undefined": float("nan")}
CURVES = [
    {"step": step, "time": 1.7e9 + step, "split": split, "loss": 1 / (1 + step), "note": "text", "stopped": False}
    for step in range(0, 1500, 5)
    for split in ("train", "validation")
]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """One SQLite store for the whole module: making its tables takes seconds. Tests use experiments of their own."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def picture(height: float) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, height])
    return figure


def runs_of(uri: str, experiment: str) -> list:
    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_everything_arrives_in_one_run_and_nothing_in_the_working_directory(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "report.txt"
    report.write_text("table")
    run_id = log_result(
        database,
        "all",
        "run-1",
        PARAMS,
        METRICS,
        CURVES,
        {"embedding of test": picture(1)},
        [report],
        {"machine": "2 cores"},
    )
    assert list(tmp_path.iterdir()) == [report]
    client = MlflowClient(tracking_uri=database)
    run = client.get_run(run_id)
    assert run.info.run_name == "run-1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"backbone": "dinov2_vits14", "family": "self-supervised", "seed": "0"}
    assert run.data.tags["key"] == "run-1"
    assert run.data.tags["machine"] == "2 cores"
    # the minus sign is not a legal character in MLflow; NaN is left out; texts and booleans are not curves
    assert run.data.metrics == {
        "test/AUC": 0.75,
        "test/gap train - test": 0.125,
        "curve/train/loss": 1 / 1496,
        "curve/validation/loss": 1 / 1496,
    }
    history = client.get_metric_history(run_id, "curve/train/loss")
    assert [(point.step, point.timestamp) for point in history[:2]] == [(0, 1_700_000_000_000), (5, 1_700_000_005_000)]
    assert len(history) == 300
    # as long as the work took, however quickly it was logged
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, max(point.timestamp for point in history))
    assert {item.path for item in client.list_artifacts(run_id)} == {"report.txt", "figures"}
    assert [item.path for item in client.list_artifacts(run_id, "figures")] == ["figures/embedding_of_test.png"]
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert (
        experiment.artifact_location
        == (Path(database.removeprefix("sqlite:///")).parent / "mlartifacts" / "all").as_uri()
    )


def test_equal_content_is_logged_once_and_changed_content_replaces_it(database, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("one")

    def log(metric=0.5, height=1.0):
        return log_result(
            database, "once", "run", PARAMS, {"AUC": metric}, CURVES[:2], {"f": picture(height)}, [report]
        )

    first = log()
    assert log() == first
    ids = {first}
    for change in (lambda: log(metric=0.6), lambda: log(height=2.0), lambda: report.write_text("two") and log()):
        ids.add(change())
        [run] = runs_of(database, "once")
        assert run.info.run_id in ids
    assert len(ids) == 4
    assert run.data.metrics["AUC"] == 0.5


@pytest.mark.parametrize("at", ["log_artifacts", "set_terminated", "set_tag"])
def test_a_run_that_was_cut_off_while_being_logged_is_replaced(database, monkeypatch, at, tmp_path):
    def power_cut(*_):
        raise KeyboardInterrupt

    (tmp_path / "table").write_text("1")
    result = (database, f"cut at {at}", "run", PARAMS, METRICS)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, at, power_cut)
        with pytest.raises(KeyboardInterrupt):
            log_result(*result, artifacts=[tmp_path / "table"])
    [half] = runs_of(database, f"cut at {at}")
    run_id = log_result(*result, artifacts=[tmp_path / "table"])
    [whole] = runs_of(database, f"cut at {at}")
    assert whole.info.run_id == run_id != half.info.run_id
    assert whole.data.metrics["test/AUC"] == 0.75
    assert whole.info.status == "FINISHED"


def test_a_run_that_a_dying_server_made_twice_is_one_in_the_end(database, monkeypatch):
    """The client asks again after a lost answer, so that the server has made two runs for one request."""
    create = MlflowClient.create_run

    def create_twice(*arguments, **options):
        create(*arguments, **options)
        return create(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", create_twice)
        patch.setattr(tracking, "_sqlite_path", lambda uri: None)  # the store as a server has it
        run_id = log_result(database, "twice", "run", PARAMS, METRICS)
    assert [run.info.run_id for run in runs_of(database, "twice")] == [run_id]
    assert log_result(database, "twice", "run", PARAMS, METRICS) == run_id


def test_two_keys_are_two_runs(database):
    for key in ("a", "b"):
        log_result(database, "keys", key, PARAMS, METRICS)
    assert sorted(run.data.tags["key"] for run in runs_of(database, "keys")) == ["a", "b"]


def test_limits_of_mlflow_cut_with_notice_and_secrets_stay_out(database):
    many = {f"parameter {i}": i for i in range(250)}
    params = {
        **many,
        "note": "x" * 7000,
        "hf_token": "hf_abc",
        "registry": {"api_key": "k", "token": "t", "url": "u"},
        "password": "p",
        "pool": "cls_token",
        "cls_token": "yes",
        "uri": "postgresql://me:pw@host/db",
        "a=b(c)": 1,
    }
    run_id = log_result(database, "limits", "run", params, {})
    logged = MlflowClient(tracking_uri=database).get_run(run_id).data.params
    assert len(logged) == 260
    assert len(logged["note"]) == 6000
    assert logged["note"].endswith(CUT)
    hidden = {name for name, value in logged.items() if value == "[hidden]"}
    assert hidden == {"hf_token", "password", "registry.api_key", "registry.token"}
    assert logged["registry.url"] == "u"
    assert logged["uri"] == "postgresql://[hidden]@host/db"
    assert logged["cls_token"] == "yes"
    assert logged["a_b_c_"] == "1"


def test_names_that_become_one_in_mlflow_are_refused(database):
    with pytest.raises(ValueError, match=r"'a\(b' and 'a=b' are both 'a_b' in MLflow"):
        log_result(database, "names", "run", {}, {"a=b": 1, "a(b": 2})


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "use sqlite:///"),
        ("file:///tmp/mlruns", "use sqlite:///"),
        ("http://127.0.0.1:9", "no MLflow server answers .* start it .* or use tracking_uri=sqlite"),
        ("http://me:hunter2@127.0.0.1:9", r"^http://\[hidden\]@127.0.0.1:9: .*MLFLOW_TRACKING_PASSWORD"),
        ("nonsense://x", "nonsense://x: MLflow refused"),
    ],
)
def test_a_store_that_cannot_be_used_names_the_remedy_at_once(uri, message):
    start = time.monotonic()
    with pytest.raises(TrackingError, match=message):
        log_result(uri, "e", "run", PARAMS, METRICS)
    assert time.monotonic() - start < 60  # MLflow's own client would try for minutes


def test_a_deleted_experiment_names_the_remedy(database):
    log_result(database, "gone", "run", PARAMS, METRICS)
    client = MlflowClient(tracking_uri=database)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        log_result(database, "gone", "run", PARAMS, METRICS)


def log_from_another_process(uri: str, barrier, number: int) -> None:
    barrier.wait()
    log_result(uri, "race", "shared", PARAMS, METRICS)
    log_result(uri, "race", f"own-{number}", PARAMS, METRICS)


@pytest.mark.slow
def test_processes_that_start_at_once_make_one_store_one_experiment_and_one_run_per_key(tmp_path):
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=log_from_another_process, args=(uri, barrier, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(run.data.tags["key"] for run in runs_of(uri, "race")) == ["own-0", "own-1", "own-2", "shared"]


KILLED = """
import os, signal, sys
from alembic.operations.batch import ApplyBatchImpl
from evaluation.tracking import log_result
ApplyBatchImpl._create = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
log_result(sys.argv[1], "killed", "run", {}, {})
"""


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_makes_the_store_leaves_none(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert subprocess.run([sys.executable, "-c", KILLED, uri], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    log_result(uri, "killed", "run", PARAMS, METRICS)
    assert len(runs_of(uri, "killed")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_store_that_mlflow_left_half_made_names_the_remedy(tmp_path):
    file = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as store:
        store.execute("create table _alembic_tmp_params (key text)")
    with pytest.raises(TrackingError, match=r"table _alembic_tmp_params already exists.*move this store away and run"):
        log_result(f"sqlite:///{file}", "half", "run", PARAMS, METRICS)


@pytest.fixture
def server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        f"{tmp_path}/files",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
        uri = f"http://127.0.0.1:{port}"
        try:
            wait_for(f"{uri}/health", process, tmp_path / "server.log")
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"mlflow server did not start:\n{log.read_text()[-2000:]}")


@pytest.mark.slow
def test_a_real_server_takes_the_same_result(server, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("table")
    arguments = (server, "served", "run", PARAMS, METRICS, CURVES, {"f": picture(1)}, [report])
    run_id = log_result(*arguments)
    assert log_result(*arguments) == run_id
    client = MlflowClient(tracking_uri=server)
    assert client.get_run(run_id).data.metrics["test/AUC"] == 0.75
    assert len(client.get_metric_history(run_id, "curve/train/loss")) == 300
    assert {item.path for item in client.list_artifacts(run_id)} == {"report.txt", "figures"}
