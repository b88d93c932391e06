"""Download single files, and give the downloads of Keras a timeout, which they lack."""

from __future__ import annotations

import http.client
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from cnnlab.errors import LabError, expecting

TIMEOUT = 15  # seconds of silence from a host
URLS = ("http://", "https://")


@contextmanager
def download_timeout() -> Iterator[None]:
    """Let sockets that are opened inside of this context give up after `TIMEOUT`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(url: str, most_bytes: int) -> bytes:
    """Download the content of a URL; raise `LabError` where it cannot be had, or is larger than `most_bytes`."""
    kinds = (OSError, ValueError, http.client.HTTPException)
    expected = expecting(f"'{url}' to be a picture", "See whether a browser opens it.", "", kinds)
    with expected, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        content = answer.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise LabError(
            f"Expected at most {most_bytes:,} bytes at '{url}'. Received more. Download it, and name the file."
        )
    return content
