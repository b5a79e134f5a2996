"""slurm/mlflow_server.sh: who may reach the server, and by which names."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest


def test_the_tracking_server_is_closed_to_others_unless_it_asks_for_a_password(workplace):
    def serve(**settings):
        env = os.environ | {"CLUSTER_ENV": "env-test.sh", "RUNS": str(workplace.folder / "r"), **settings}
        command = ["bash", "slurm/mlflow_server.sh"]
        return subprocess.run(command, cwd=workplace.folder, env=env, capture_output=True, text=True, check=False)

    assert serve().returncode == 0
    arguments = workplace.calls("mlflow")[-1]["arguments"]
    assert arguments[:3] == ["server", "--host", "127.0.0.1"]
    assert f"sqlite:///{workplace.folder}/r/mlflow.db" in arguments
    refused = serve(MLFLOW_BIND="0.0.0.0")
    assert (refused.returncode, len(workplace.calls("mlflow"))) == (2, 1)
    assert "can be reached by others" in refused.stderr
    for store in ("postgresql://me:secret@host/db", "postgresql://host/db?sslmode=require&password=secret"):
        assert "holds a password" in serve(MLFLOW_STORE=store).stderr
    secret = {"MLFLOW_AUTH_CONFIG_PATH": "auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "very secret"}
    open_to_all = serve(MLFLOW_BIND="0.0.0.0", MLFLOW_STORE="postgresql://host/db", **secret)
    assert open_to_all.returncode == 0, open_to_all.stderr
    call = workplace.calls("mlflow")[-1]["arguments"]
    assert call[-4:-1] == ["--app-name", "basic-auth", "--allowed-hosts"]
    assert "very secret" not in " ".join(call) + open_to_all.stdout + open_to_all.stderr


@pytest.mark.slow
def test_the_tracking_server_answers_by_the_name_of_its_node(workplace):
    """The real server, with the hosts that the script allows; by default MLflow knows none but localhost."""
    secret = {"MLFLOW_AUTH_CONFIG_PATH": "auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "very secret"}
    env = os.environ | {"CLUSTER_ENV": "env-test.sh", "MLFLOW_BIND": "0.0.0.0", **secret}
    subprocess.run(["bash", "slurm/mlflow_server.sh"], cwd=workplace.folder, env=env, check=True)
    hosts = workplace.calls("mlflow")[-1]["arguments"][-1]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{workplace.folder}/mlflow.db", "--allowed-hosts", hosts]
    server = subprocess.Popen(command, cwd=workplace.folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while ask(port, "localhost") is None and time.monotonic() < deadline:
            time.sleep(0.5)
        names = (socket.gethostname(), f"{socket.gethostname()}:{port}", f"127.0.0.1:{port}", "elsewhere.example")
        assert [ask(port, name) for name in names] == [200, 200, 200, 403]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def ask(port: int, host: str) -> int | None:
    """Status of a request to MLflow under a host name; None if nobody answers."""
    address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host}), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
