"""Start MLflow's UI on the store, and print a link that shows the newest comparison: `cnnlab ui`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import mlflow

from cnnlab.errors import LabError, masked
from cnnlab.tracking.mlflow_internals import show_runs
from cnnlab.tracking.pagination import OURS, all_experiments
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import artifacts_folder, is_server, local_database
from cnnlab.tracking.tag_names import TAG, matches
from cnnlab.utils.environment import read_variable
from cnnlab.utils.log import log
from cnnlab.utils.ports import LOOPBACK, address, choose_port, names_of

START_TIMEOUT = 90  # seconds
DEFAULT_PORT = 5000
UI_VIEW = "cnnlab"
UI_COLUMNS = (
    *(f"attributes.`{name}`" for name in ("Created", "Duration")),
    *(f"metrics.`{name}`" for name in ("test_accuracy", "test_loss", "val_accuracy", "accuracy", "train_seconds")),
    *(f"params.`{name}`" for name in ("model", "learning_rate", "epochs")),
)


def serve_ui(host: str = "127.0.0.1", port: int | None = None) -> None:
    """Start MLflow's server on the store and block until it ends. Of a store on a server only print the link.

    Raises:
        ArgumentError: the port is taken.
        LabError: the server did not start.
    """
    with opened_store(writes=False):
        uri = mlflow.get_tracking_uri()
        if is_server(uri):
            log.info(f"The store is a server already:\n{_links(masked(uri).replace('***@', '').rstrip('/'))}")
            return
        port = choose_port(host, port, DEFAULT_PORT)
        server = _start(uri, host, port)
        try:
            _wait_until_up(server, address(host, port))
            log.info(f"MLflow UI:\n{_links(address(host, port))}\nCtrl-C ends it.")
            # Read what the server writes, or its pipe fills up and blocks it.
            for _ in server.stderr or ():
                pass
            server.wait()
        except KeyboardInterrupt:
            log.info("stopped")
        finally:
            server.terminate()
            server.wait()


def _start(uri: str, host: str, port: int) -> subprocess.Popen[bytes]:
    arguments = ["--app-name", "cnnlab", "--host", host, "--port", str(port), "--workers", "1"]
    database = local_database(uri)
    if database:
        # From its folder: an address that needs no escaping, which MLflow's server does not undo everywhere.
        arguments += ["--backend-store-uri", f"sqlite:///{database.name}"]
        arguments += ["--artifacts-destination", artifacts_folder(database).as_uri()]
    else:
        arguments += ["--backend-store-uri", uri]
    if host not in LOOPBACK:
        allowed = read_variable("MLFLOW_SERVER_ALLOWED_HOSTS") or ",".join(names_of(host, port))
        arguments += ["--allowed-hosts", allowed]
        log.info(
            f"Whoever reaches {host} can read and change the store. It answers to these names only: {allowed} "
            "(MLFLOW_SERVER_ALLOWED_HOSTS for others)."
        )
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments],
        cwd=database.parent if database else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Its job queue is for GenAI evaluations: seven more processes, and seconds more to start and to stop.
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


def ui_links(server_url: str) -> dict[str, str]:
    """Return links into the MLflow UI at `server_url` that show the newest comparison, with columns of its metrics.

    "runs" is one to the runs, and of a comparison or a search "figures" one to the figures on its parent run. What the
    UI lists, and how, is a tag of the experiment, which is set here.
    """
    client = mlflow.MlflowClient()
    newest = client.search_runs(all_experiments(client), OURS, order_by=["attributes.start_time DESC"], max_results=1)
    if not newest:
        return {"runs": server_url}
    [run] = newest
    experiment_id = run.info.experiment_id
    parent = run.data.tags.get("mlflow.parentRunId")
    # A comparison of stored runs has no runs below it: it has the figures itself, and names the runs that it compared.
    owner = client.get_run(parent) if parent else run
    condition = matches("tags.mlflow.parentRunId", parent) if parent else ""
    if compared := run.data.tags.get(TAG + "runs"):
        condition = f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in compared.split(','))})"
    # The UI folds children away under a parent without scores; filtered, they are rows of their own.
    view = show_runs(client, experiment_id, UI_VIEW, UI_COLUMNS, condition)
    runs = f"{server_url}/#/experiments/{experiment_id}/runs"
    links = {"runs": f"{runs}?{view}"}
    figure = owner.data.tags.get(TAG + "figure", "")
    if parent or figure:
        links["figures"] = f"{runs}/{owner.info.run_id}/artifacts/{figure}?workflowType=machine_learning"
    return links


def _links(url: str) -> str:
    return "\n".join(f"  {what:8} {link}" for what, link in ui_links(url).items())


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            # Past any proxy: it is this machine.
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + "/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    server.terminate()
    lines = (server.stderr.read() if server.stderr else b"").decode(errors="replace").strip().splitlines()
    raise LabError(f"Expected the MLflow server to answer at {url}. Received: {lines[-1] if lines else 'nothing'}.")
