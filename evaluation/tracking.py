"""The only code that talks to MLflow: one run per result, logged once.

Run directories are the record and MLflow is fed from them, so a dead server loses nothing: :func:`log_result` raises
:class:`TrackingError`, the caller says so and goes on, and a later call logs what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import math
import numbers
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

SECRET_KEY = re.compile(
    r"(password|passwd|secret|credentials?|(api|access|private|secret)_?key|(auth|access|api|hf|hub)_?token|(^|[.])token)$",
    re.I,
)
URI_SECRET = re.compile(r"(://)[^/\s@]+(?=@)|([?&](?:\w*passw(?:or)?d|pwd)=)[^&\s]+", re.I)
HIDDEN = r"\1\2[hidden]"
CUT = " … [cut at MLflow's limit]"


class TrackingError(RuntimeError):
    """MLflow cannot be reached or refuses; the message names the store and the remedy."""


def log_result(
    tracking_uri: str,
    experiment: str,
    key: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    curves: Sequence[Mapping[str, Any]] = (),
    figures: Mapping[str, Figure] | None = None,
    artifacts: Sequence[Path] = (),
    tags: Mapping[str, str] | None = None,
    status: Literal["FINISHED", "RUNNING", "KILLED", "FAILED"] = "FINISHED",
) -> str:
    """Log one result as the one MLflow run that carries the tag ``key``; return its run id.

    Equal content is not logged again. Changed content, and a run that was cut off while being logged, are replaced by a
    new run, because MLflow's parameters and curves cannot be taken back; the old run goes to MLflow's trash.

    ``curves`` are rows ``{"step": 10, "time": seconds since 1970, "split": "train", "loss": 0.7, …}``: every number
    becomes the metric ``curve/SPLIT/NAME`` at that step, everything else is left out (``time`` and ``split`` may be
    missing; the run began at the first time and ended at the last); names that begin with ``system/`` are kept, since
    MLflow has a page for them. ``figures`` map a name to a figure (stored as ``figures/NAME.png``). ``artifacts`` are
    files or folders. Too long values are cut, and say so; values of keys that name a secret are hidden; NaN metrics are
    left out. ``status``: what MLflow calls a result that is not whole yet.

    ``tracking_uri`` is ``sqlite:///PATH`` (made on first use, safe with several processes; artifacts lie beside it),
    a server (``http://HOST:PORT``) or another database that MLflow knows. Raises TrackingError.
    """
    _check_uri(tracking_uri)
    if set(key) & set("'\"`\\"):
        raise ValueError(f"a result's key must not hold quotes or backslashes, got {key!r}")
    images = {name: _png(figure) for name, figure in (figures or {}).items()}
    summary = _summary_metrics(metrics)
    points = _curve_metrics(curves)
    parameters = _texts(params, limit=6000)
    labels = _texts(tags or {}, limit=8000)
    content = _content(parameters, summary, points, images, artifacts, {**labels, "status": status})

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # licensed data, closed networks: nothing is sent out
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with _tracking_errors(tracking_uri), _exclusive(tracking_uri):
        client = _client(tracking_uri)
        experiment_id = _experiment_id(client, tracking_uri, experiment)
        run_id, others = _find(client, experiment_id, key, content)
        if run_id is None:
            # MLflow's times, and so its duration, are those of the work and not of its being logged
            times = [when for *_, when in points if when is not None]
            began, ended = (min(times), max(times)) if times else (None, None)
            new = client.create_run(experiment_id, began, {**labels, "key": key}, run_name=key).info.run_id
            _log_files(client, new, images, artifacts)
            _log_numbers(client, new, parameters, summary, points)
            if status != "RUNNING":  # which it is from the start
                client.set_terminated(new, status, ended)
            client.set_tag(new, "content", content)  # last: its presence means that everything is there
            run_id, others = _after_logging(client, tracking_uri, experiment_id, key, content, new, others)
        for other in others:
            client.delete_run(other)
        return run_id


def _after_logging(
    client: MlflowClient, uri: str, experiment_id: str, key: str, content: str, new: str, others: list[str]
) -> tuple[str, list[str]]:
    """As ``_find``, when ``new`` has been logged beside ``others``. A server is asked again: others may have logged the
    same, and one that dies after it has made a run, but before it says so, is asked to make another. A SQLite store is
    this process's alone."""
    return (new, others) if _sqlite_path(uri) else _find(client, experiment_id, key, content)


def _find(client: MlflowClient, experiment_id: str, key: str, content: str) -> tuple[str | None, list[str]]:
    """The complete run of this key and content, and the key's other runs. If two processes have logged it at once, both
    take the same one."""
    found = client.search_runs([experiment_id], f"tags.key = '{key}'")
    whole = [(run.info.start_time, run.info.run_id) for run in found if run.data.tags.get("content") == content]
    run_id = min(whole)[1] if whole else None
    return run_id, [run.info.run_id for run in found if run.info.run_id != run_id]


def log_model(
    tracking_uri: str,
    experiment: str,
    key: str,
    data: Path,
    loader: Path,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    requirements: Sequence[str],
) -> str:
    """Log a model as the one MLflow run with the tag ``key``; return its address for ``mlflow.pyfunc.load_model``.

    ``data`` is the folder with the model; ``loader`` a Python file that stands alone and whose ``_load_pyfunc(folder)``
    gives an object with ``predict`` (nothing is pickled). ``inputs`` and ``outputs`` are columns and MLflow's types of
    them (``binary``, ``string``, ``double`` …); inputs may be left out one by one. The same model is not logged again,
    another one replaces it. Raises TrackingError.
    """
    _check_uri(tracking_uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(kind, name, required=False) for name, kind in inputs.items()]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
    )
    content = _content(dict(inputs), {}, [], {}, [data, loader], {"requirements": " ".join(requirements)})
    with _tracking_errors(tracking_uri), _exclusive(tracking_uri):
        client = _client(tracking_uri)
        experiment_id = _experiment_id(client, tracking_uri, experiment)
        run_id, others = _find(client, experiment_id, key, content)
        if run_id is None:
            new = client.create_run(experiment_id, run_name=key, tags={"key": key}).info.run_id
            with tempfile.TemporaryDirectory() as folder:
                mlflow.pyfunc.save_model(
                    f"{folder}/model",
                    loader_module=loader.stem,
                    data_path=str(data),
                    code_paths=[str(loader)],
                    signature=signature,
                    pip_requirements=list(requirements),
                )
                client.log_artifacts(new, f"{folder}/model", "model")
            client.set_terminated(new, "FINISHED")
            client.set_tag(new, "content", content)  # last: its presence means that everything is there
            run_id, others = _after_logging(client, tracking_uri, experiment_id, key, content, new, others)
        for other in others:
            client.delete_run(other)
        return f"runs:/{run_id}/model"


def _content(
    params: dict[str, str],
    summary: dict[str, float],
    points: list[tuple[str, float, int, int | None]],
    images: dict[str, bytes],
    artifacts: Sequence[Path],
    tags: dict[str, str],
) -> str:
    """Digest of everything that would be logged."""
    files = [
        (str(path.relative_to(Path(root).parent)), _sha256(path.read_bytes()))
        for root in artifacts
        for path in ([Path(root)] if Path(root).is_file() else sorted(p for p in Path(root).rglob("*") if p.is_file()))
    ]
    pictures = {name: _sha256(data) for name, data in images.items()}
    return _sha256(json.dumps([params, summary, points, pictures, files, tags], sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _summary_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(metrics[old]) for name, old in _legal_names(metrics).items() if _is_number(metrics[old])}


def _curve_metrics(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, int, int | None]]:
    """(name, value, step, milliseconds since 1970 or None) of every finite number in the rows."""
    points = []
    for row in rows:
        if "step" not in row:
            raise ValueError(f"a row of a curve needs 'step', got {dict(row)}")
        prefix = "/".join(str(part) for part in ("curve", row.get("split")) if part)
        when = round(1000 * row["time"]) if "time" in row else None
        found = {name: float(row[name]) for name in row if name not in ("step", "time") and _is_number(row[name])}
        values = {name if name.startswith("system/") else f"{prefix}/{name}": found[name] for name in found}
        points += [(name, values[old], int(row["step"]), when) for name, old in _legal_names(values).items()]
    return points


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _legal_names(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Name that MLflow allows → name as given; raises ValueError where two names would become one."""
    legal: dict[str, str] = {}
    for name in mapping:
        allowed = re.sub(r"[^\w.\- :/]", "_", name.replace("−", "-"), flags=re.ASCII)
        allowed = "/".join(part for part in allowed.split("/") if part not in ("", ".", ".."))[:250] or "_"
        if allowed in legal:
            raise ValueError(f"{name!r} and {legal[allowed]!r} are both {allowed!r} in MLflow; rename one")
        legal[allowed] = name
    return legal


def _texts(values: Mapping[str, Any], *, limit: int) -> dict[str, str]:
    """Parameters or tags as MLflow takes them: legal names, texts within ``limit`` characters, no secrets."""
    texts = {}
    values = dict(_flat(values))
    for name, old in _legal_names(values).items():
        text = "[hidden]" if SECRET_KEY.search(old) else URI_SECRET.sub(HIDDEN, str(values[old]))
        texts[name] = text if len(text) <= limit else text[: limit - len(CUT)] + CUT
    return texts


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``("a.b", 1)``, so that a secret inside is found by its key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _log_numbers(
    client: MlflowClient,
    run_id: str,
    params: dict[str, str],
    summary: dict[str, float],
    points: list[tuple[str, float, int, int | None]],
) -> None:
    from mlflow.entities import Metric, Param

    now = round(1000 * time.time())
    metrics = [Metric(name, value, now, 0) for name, value in summary.items()]
    metrics += [Metric(name, value, now if when is None else when, step) for name, value, step, when in points]
    entries = [Param(name, text) for name, text in params.items()]
    while entries or metrics:  # MLflow's limits for one request: 100 parameters, 1000 of both
        client.log_batch(run_id, params=entries[:100], metrics=metrics[: 1000 - len(entries[:100])])
        metrics = metrics[1000 - len(entries[:100]) :]
        entries = entries[100:]


def _log_files(client: MlflowClient, run_id: str, images: dict[str, bytes], artifacts: Sequence[Path]) -> None:
    """All in one call: MLflow reads the run again, with all its numbers, at each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in map(Path, artifacts):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, folder / path.name)
        for name, data in images.items():
            (folder / "figures").mkdir(exist_ok=True)
            (folder / "figures" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.png").write_bytes(data)
        if images or artifacts:
            client.log_artifacts(run_id, temporary)


def _check_uri(uri: str) -> None:
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise TrackingError(f"{uri}: MLflow's file store is no longer kept up; use sqlite:///PATH/mlflow.db")
    if scheme not in ("http", "https"):
        return
    if urllib.parse.urlsplit(uri).username:
        raise TrackingError(
            f"{URI_SECRET.sub(HIDDEN, uri)}: give credentials in the environment (MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD), not in the address"
        )
    try:  # MLflow's own client would retry for minutes before it says that nobody is there
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            pass
    except urllib.error.HTTPError:
        pass  # somebody answers; what MLflow says to a request will tell more
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"{uri}: no MLflow server answers ({error}); start it (mlflow server --backend-store-uri "
            "sqlite:///mlflow.db) or use tracking_uri=sqlite:///PATH/mlflow.db, then run the same command again"
        ) from None


@contextmanager
def _tracking_errors(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        reason = URI_SECRET.sub(HIDDEN, " ".join(str(error).split()))[:500]
        # what an MLflow that was killed while it made or changed its tables leaves, it cannot take up again
        remedy = "move this store away and " if "_alembic_tmp_" in reason else ""
        raise TrackingError(
            f"{URI_SECRET.sub(HIDDEN, uri)}: MLflow refused: {reason}; the run directories hold everything, {remedy}"
            "run the same command again once MLflow works"
        ) from error


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


@contextmanager
def _exclusive(uri: str) -> Iterator[None]:
    """One process at a time writes a SQLite store: neither its tables, nor an experiment, nor a key is made twice."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        yield


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # lines about tables on first use
    path = _sqlite_path(uri)
    if path is not None and not path.exists():
        _make_store(path)
    return MlflowClient(tracking_uri=uri)


def _make_store(path: Path) -> None:
    """A new SQLite store, whole or not there. MLflow makes its tables in dozens of steps, and neither uses nor mends a
    file in which it was killed between two of them. Under the lock of ``_exclusive``."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.new")
    for leftover in (new, new.with_name(f"{new.name}-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "mlartifacts").as_uri()).engine.dispose()
    os.replace(new, path)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        if found.lifecycle_stage == "deleted":
            raise MlflowException(f"experiment {name!r} is in MLflow's trash (restore it: mlflow experiments restore "
                                  f"-x {found.experiment_id})")  # fmt: skip
        return found.experiment_id
    path = _sqlite_path(uri)
    location = None if path is None else (path.parent / "mlartifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri()
    tags = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's pages open in their GenAI view
    try:
        return client.create_experiment(name, artifact_location=location, tags=tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id  # another process was faster
