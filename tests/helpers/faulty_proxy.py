"""MLflow's own tracking server in a thread, with faults on demand."""

import contextlib
import os
import threading

import mlflow
from mlflow.server import (
    ARTIFACT_ROOT_ENV_VAR,
    ARTIFACTS_DESTINATION_ENV_VAR,
    BACKEND_STORE_URI_ENV_VAR,
    SERVE_ARTIFACTS_ENV_VAR,
    app,
    handlers,
)
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class FaultyServer:
    """A server on a free port, with its store in a folder.

    Attributes:
        fault: of a method and a path, what is wrong with the request: a status to answer it with; "hangs", until
            `goes_on` is set; "lost", done but answered with 502; or `None`.
        asked: all requests so far, `(method, path)`.
    """

    def __init__(self, database):
        self.variables = {
            BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{database}",
            ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            ARTIFACTS_DESTINATION_ENV_VAR: str(database.parent / "artifacts"),
            SERVE_ARTIFACTS_ENV_VAR: "true",
        }
        self.fault = lambda method, path: None
        self.asked, self.goes_on, self.port, self.server = [], threading.Event(), 0, None
        self.start()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=Quiet)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        fault = self.fault(method, path)
        if fault == "hangs":
            self.goes_on.wait(60)
        if fault == "lost":
            b"".join(app(environ, lambda *_: None))
        elif isinstance(fault, int):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault == "lost" or isinstance(fault, int):
            start_response(f"{502 if fault == 'lost' else fault} Trouble", [("Content-Length", "2")])
            return [b"no"]
        return app(environ, start_response)


@contextlib.contextmanager
def served(database):
    """A `FaultyServer` on a database, in this process."""
    stores = ("_tracking_store", "_model_registry_store", "_artifact_repo")
    before = {name: getattr(handlers, name) for name in stores}
    server = FaultyServer(database)
    os.environ.update(server.variables)
    for name in stores:
        setattr(handlers, name, None)
    handlers._get_tracking_store()  # which points MLflow at it, as is right in a process of its own
    handlers._get_model_registry_store()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri("")  # this too, or the tests that follow ask this server's registry
    try:
        yield server
    finally:
        server.goes_on.set()
        with contextlib.suppress(OSError):
            server.stop()
        for name, store in before.items():
            setattr(handlers, name, store)
        for name in server.variables:
            os.environ.pop(name, None)
