"""The MLflow UI on the lab's store: started, waited for, and left at a link that shows the comparison."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing

from cnnlab import store, tracking
from cnnlab.errors import ArgumentError, LabError

START_TIMEOUT = 90  # seconds
DEFAULT_PORT = 5000


def serve_ui(host="127.0.0.1", port=None) -> None:
    """Start MLflow's server on the store and block until it ends; with a remote store only print the link.

    Raises:
        ArgumentError: the port is taken.
        LabError: the server did not start.
    """
    uri = store.open_store()
    if uri.startswith(("http://", "https://")):
        print(f"The store is a server already:\n{_landing(uri.rstrip('/'))}")
        return
    port = choose_port(host, port, DEFAULT_PORT)
    url = f"http://{host}:{port}"
    arguments = ["--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Its job queue is for GenAI evaluations: seven more processes, and seconds more to start and to stop.
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        _wait_until_up(server, url)
        print(f"MLflow UI:\n{_landing(url)}\nCtrl-C ends it.", flush=True)
        # Drain what the server writes, or its pipe fills up and blocks it.
        for _ in server.stderr:
            pass
        server.wait()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.terminate()
        server.wait()


def _landing(url):
    return "\n".join(f"  {what:8} {link}" for what, link in tracking.ui_links(url).items())


def choose_port(host, port, usual) -> int:
    """A port to listen on: the given one, or without one the usual one where it is free, else any.

    Raises:
        ArgumentError: the given port is taken.
    """
    for candidate in (port,) if port else (usual, 0):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                reason = error
                continue
            return probe.getsockname()[1]
    raise ArgumentError(f"Expected a free port on {host}. Received: {port}, {reason.strerror}. Leave --port out.")


def _wait_until_up(server, url):
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url + "/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    server.terminate()
    lines = server.stderr.read().decode(errors="replace").strip().splitlines()
    raise LabError(f"Expected the MLflow server to answer at {url}. Received: {lines[-1] if lines else 'nothing'}.")
