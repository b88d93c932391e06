"""What a server wants to see and a screen must not: pytest tests/tracking/test_servers.py"""

import contextlib
import http.server
import logging
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cnnlab
from cnnlab import cli
from cnnlab.errors import masked
from cnnlab.tracking import store as stores

logging.getLogger("urllib3").setLevel(logging.ERROR)


class Noting(http.server.BaseHTTPRequestHandler):
    """Answers 200 to all, and keeps what it was asked."""

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def noting(context=None):
    """A server on loopback: its port, and the list of what it was asked."""
    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Noting,), {"asked": asked})) as server:
        server.handle_error = lambda *_: None  # a client that is refused hangs up
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def certificate(name):
    """`NAME.pem` with a key and a certificate that signs itself, in the working folder; skips without openssl."""
    made = shutil.which("openssl") and subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        ],
        check=False,
        capture_output=True,
    )
    if not made or made.returncode:
        pytest.skip("no openssl here")
    both = Path(f"{name}.pem").resolve()
    both.write_text(Path("key.pem").read_text() + Path("cert.pem").read_text())
    return str(both)


def test_certificates_of_both_sides(workplace, monkeypatch):
    ours, theirs = certificate("client"), certificate("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs)
    context.load_verify_locations(ours)
    context.verify_mode = ssl.CERT_REQUIRED
    with noting(context) as (port, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://localhost:{port}")
        with pytest.raises(cnnlab.LabError, match=r"certificate: MLFLOW_TRACKING_SERVER_CERT_PATH"):
            stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", theirs)
        with pytest.raises(cnnlab.LabError, match=r"name its file: MLFLOW_TRACKING_CLIENT_CERT_PATH"):
            stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", ours)
        stores.expect_usable_store()
        assert [path for path, _ in asked] == ["/health"]


def test_who_asks_is_said_to_the_server(monkeypatch):
    basic = "Basic YW5uOnNlY3JldA=="  # ann:secret
    with noting() as (port, asked):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
        stores.expect_usable_store()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
        stores.expect_usable_store()
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        stores.expect_usable_store()
    assert [said for _, said in asked] == [basic, "Bearer a-token", basic]


def test_a_proxy_is_asked(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab.invalid:5000")
    with noting() as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        stores.expect_usable_store()
    assert [path for path, _ in asked] == ["http://lab.invalid:5000/health"]
    with pytest.raises(cnnlab.LabError, match=r"Correct HTTPS_PROXY and HTTP_PROXY"):
        stores.expect_usable_store()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:se@cret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ann:se/cret@host/lab", "postgresql://***@host/lab"),
        ("mysql://host/lab?user=ann&password=secret&ssl=1", "mysql://host/lab?user=ann&password=***&ssl=1"),
        ("http://host:5000/x@champion", "http://host:5000/x@champion"),
    ],
)
def test_passwords_are_masked(address, shown):
    assert masked(f"at {address}, and a@b") == f"at {shown}, and a@b"


def test_a_traceback_shows_no_password(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["cnnlab", "models", "--debug"])
    with pytest.raises(SystemExit):
        cli.main()
    said = "".join(capsys.readouterr())
    assert "Traceback" in said
    assert "secret" not in said


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(address, monkeypatch, workplace):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(cnnlab.LabError, match="which is in memory"):
        stores.open_store()
    assert list(workplace.iterdir()) == []


def test_a_port_that_is_none_is_one_sentence(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab.example.org:mlflow")
    with pytest.raises(cnnlab.LabError, match=r"Expected an MLflow server at http://lab\.example\.org:mlflow"):
        stores.open_store()
