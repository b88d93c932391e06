"""Test that importing and installing cnnlab changes nothing for other programs."""

import builtins
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.db import utils as db_utils
from rich.console import Console

from cnnlab.tracking import mlflow_store
from tests.helpers.faulty_proxy import served

# What a program could notice of MLflow, before and after an import.
SEEN = """
import json, logging, os, sys
import mlflow
from mlflow import environment_variables as variables
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry
from mlflow.store.db import utils
from mlflow.tracking import fluent

def seen():
    loggers = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    return {
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW", "LOGNAME"))},
        "defaults": [setting.get() for setting in (variables.MLFLOW_DISABLE_TELEMETRY,
            variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES, variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR)],
        "functions": utils._make_parent_dirs_if_sqlite.__module__,
        "levels": {name: level for name, level in loggers.items()
                   if name.startswith(("mlflow", "alembic", "urllib3", "tensorflow"))},
        "repositories": {scheme: repr(made) for scheme, made in registry._registry.items()},
        "uri": mlflow.get_tracking_uri(),
    }

before = seen()
"""
IMPORTS = """
import cnnlab, cnnlab.tracking.mlflow_store, cnnlab.tracking.mlflow_internals, cnnlab.tracking.recorder
import cnnlab.tracking.maintenance.orphans, cnnlab.tracking.offline.store_copy, cnnlab.tracking.ui_server
"""
# MLflow alone, in a store of its own, without and with a server.
PLAIN = """
from mlflow.exceptions import MlflowException
mlflow.set_tracking_uri("sqlite:///plain.db")
mlflow.set_experiment("theirs")
with mlflow.start_run() as run:
    mlflow.log_metric("x", 1)
    mlflow.log_text("a text", "note.txt")
text = mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt")
# As MLflow's servers name the artifacts of experiments; only a server has them.
mlflow.MlflowClient().create_experiment("of a server", artifact_location="mlflow-artifacts:/7")
try:
    with mlflow.start_run(experiment_id=mlflow.get_experiment_by_name("of a server").experiment_id):
        mlflow.log_text("a text", "note.txt")
    refused = ""
except MlflowException as error:
    refused = str(error)
"""


def output_of(code, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, "LOGNAME": "ann", **variables}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_import_changes_nothing_of_mlflow(workplace):
    before, after = output_of(SEEN + IMPORTS + "print(json.dumps([before, seen()]))")
    # Modules of MLflow that are loaded meanwhile bring loggers of their own.
    levels = {name: level for name, level in after.pop("levels").items() if name in before["levels"]}
    assert levels == before.pop("levels")
    assert after == before


def test_a_verb_leaves_mlflow_as_it_was(workplace):
    work = "from cnnlab.tracking import mlflow_store\nwith mlflow_store.opened():\n    inside = seen()\n"
    before, inside, after = output_of(SEEN + IMPORTS + work + "print(json.dumps([before, inside, seen()]))")
    assert inside["defaults"] == [True, 3, False]
    assert after["defaults"] == before["defaults"] == [False, 7, True]
    assert inside["levels"]["tensorflow"] == logging.ERROR  # no warnings of retracing for each further model
    assert inside["functions"] == "cnnlab.tracking.mlflow_internals"
    assert inside["uri"].endswith("mlruns/mlflow.db")
    assert after["environment"] == before["environment"] | {"LOGNAME": "ann"}
    assert (after["functions"], after["repositories"]) == (before["functions"], before["repositories"])
    assert {name: after["levels"][name] for name in before["levels"]} == before["levels"]


@pytest.mark.parametrize("imports", [pytest.param("", marks=pytest.mark.long), IMPORTS], ids=["without", "with"])
def test_a_plain_script_works_as_without_cnnlab(workplace, imports):
    text, refused, uri = output_of(SEEN + imports + PLAIN + "print(json.dumps([text, refused, run.info.artifact_uri]))")
    assert text == "a text"
    assert "the tracking URI must be a valid http or https URI" in refused  # MLflow's own sentence
    assert uri.startswith((workplace / "mlruns").as_posix())
    assert not (workplace / "artifacts").exists()


def test_a_verb_in_a_notebook_leaves_no_empty_outputs(store, monkeypatch):
    """Keras has rich print a model's summary, and keeps the text; in a notebook rich would display the rest."""
    monkeypatch.setattr(builtins, "get_ipython", type("ZMQInteractiveShell", (), {}), raising=False)
    assert Console().is_jupyter
    with mlflow_store.opened():
        assert not Console().is_jupyter
    assert Console().is_jupyter


def test_artifacts_of_another_program_s_server_are_asked_of_it(workplace):
    database = workplace / "theirs.db"
    theirs = mlflow.MlflowClient(f"sqlite:///{database}")
    theirs.create_experiment("theirs", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(mlflow.MlflowException, match="valid http or https URI"):
        get_artifact_repository("mlflow-artifacts:/7/abc/artifacts", tracking_uri=f"sqlite:///{database}")
    there = get_artifact_repository("mlflow-artifacts:/7/abc/artifacts", tracking_uri="http://127.0.0.1:9")
    assert isinstance(there, MlflowArtifactsRepository)
    assert there.artifact_uri == "http://127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/7/abc/artifacts"


def test_a_server_of_another_program_keeps_artifacts_in_its_own_folder(workplace, store_template):
    (workplace / "theirs").mkdir()
    shutil.copy(store_template, workplace / "theirs" / "theirs.db")
    with served(workplace / "theirs" / "theirs.db") as server:
        client = mlflow.MlflowClient(server.uri)
        experiment_id = client.create_experiment("theirs")
        run_id = client.create_run(experiment_id).info.run_id
        client.log_text(run_id, "a text", "note.txt")
        assert client.get_run(run_id).info.artifact_uri == f"mlflow-artifacts:/{experiment_id}/{run_id}/artifacts"
        assert client.list_artifacts(run_id)[0].file_size == 6
    assert (workplace / "theirs/artifacts" / experiment_id / run_id / "artifacts/note.txt").read_text() == "a text"


def test_artifacts_of_our_stores_are_found_without_cnnlab_s_import(store, digits):
    from cnnlab.tracking import run_logging
    from cnnlab.tracking.recorder import Recorder

    recorder = Recorder()
    with mlflow_store.opened(), recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}) as run_id:
        run_logging.log_results({}, {}, {"note.txt": "a text"})
    code = f"""
import json, mlflow
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
print(json.dumps(mlflow.artifacts.load_text(mlflow.get_run("{run_id}").info.artifact_uri + "/note.txt")))
"""
    assert output_of(code) == "a text"
    ours = get_artifact_repository(f"mlflow-artifacts:/{run_id}/artifacts", tracking_uri="sqlite:///mlruns/mlflow.db")
    assert isinstance(ours, LocalArtifactRepository)
    assert Path(ours.artifact_dir) == Path("mlruns/artifacts", run_id, "artifacts").resolve()
    assert db_utils._make_parent_dirs_if_sqlite.__module__ == "mlflow.store.db.utils"
