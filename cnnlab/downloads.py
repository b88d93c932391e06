"""Downloads through Keras, which has no timeout of its own and raises bare exceptions."""

import socket
from contextlib import contextmanager

TIMEOUT = 15  # seconds of silence from a host


@contextmanager
def download_timeout():
    """Sockets opened inside give up after `TIMEOUT`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
