"""Test that idle and half-sent connections are closed: pytest tests/serving/test_idle_connections.py"""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from cnnlab import classify
from cnnlab.serving import idle_connections
from cnnlab.serving.app import make_app
from cnnlab.utils.ports import is_foreign


@pytest.fixture
def connect(monkeypatch):
    """Open a socket to a running server of a model that is never asked."""
    monkeypatch.setattr(idle_connections, "INTERVAL", 0.05)
    monkeypatch.setattr(idle_connections, "HEADERS_TIME", 0.5)
    monkeypatch.setattr(idle_connections, "ANSWER_TIME", 1)
    model = type("NoModel", (), {"layers": [], "inputs": [], "outputs": []})()
    app = make_app(classify.Classifier("models:/x/1", model, ("a", "b"), 8))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", http=idle_connections.TimedProtocol))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield lambda: socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=10)
    server.should_exit = True
    thread.join(20)


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "first",
    [b"", b"GET /hea", GET, GET + b"\r\n" + GET, b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"],
)
def test_connections_without_a_request_end(first, connect):
    began = time.perf_counter()
    with connect() as connection:
        connection.sendall(first)
        received = b""
        try:
            while part := connection.recv(65_536):
                received += part
        except ConnectionResetError:
            pass
    assert 0.3 < time.perf_counter() - began < 5
    assert received.count(b"200 OK") == first.count(b"\r\n\r\n") - first.count(b"POST")


def test_headers_that_trickle_do_not_keep_it_open(connect):
    began = time.perf_counter()
    with connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(GET)
        while time.perf_counter() - began < 5:
            connection.sendall(b"x")
            time.sleep(0.1)
    assert time.perf_counter() - began < 4


def test_endless_headers_are_cut_off(connect, monkeypatch):
    monkeypatch.setattr(idle_connections, "HEADERS_TIME", 60)
    with connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(GET)
        for i in range(100_000):
            connection.sendall(b"X-%d: %d\r\n" % (i, i))
        pytest.fail("it takes headers without an end")


def test_a_body_that_is_too_large_is_told_so(connect):
    with connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + bytes(200_000))
        assert b" 413 " in connection.recv(65_536)


def test_a_client_that_disconnects_early_causes_no_traceback(connect, caplog):
    for request in (
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx",
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with connect() as connection:
            connection.sendall(request)
    with connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert b"200 OK" in connection.recv(65_536)
    time.sleep(0.3)
    assert not [record for record in caplog.get_records("call") if record.exc_info]


def test_an_origin_without_an_address_is_foreign():
    assert is_foreign("POST", {"origin": "http://[", "host": "localhost"})
