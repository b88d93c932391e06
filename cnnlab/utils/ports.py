"""Choose a free port, and decide by its Host and Origin headers whether a local server answers a request."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from contextlib import closing
from urllib.parse import urlsplit

from cnnlab.errors import ArgumentError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
READING = ("GET", "HEAD", "OPTIONS")


def choose_port(host: str, port: int | None, usual: int) -> int:
    """Find a free port to listen on: the given one, or without one the usual one where it is free, else any.

    Raises:
        ArgumentError: the given port is taken, or the host is none of this machine.
    """
    reason: OSError | None = None
    for candidate in (port,) if port else (usual, 0):
        try:
            family, kind, _, _, where = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with closing(socket.socket(family, kind)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                return probe.getsockname()[1]
        except OSError as error:
            reason = error
    raise ArgumentError(
        f"Expected a free port on {host}. Received: {port or 'any'}, {reason and reason.strerror}. "
        + ("Leave --port out." if port else "Use an address of this machine as --host.")
    )


def address(host: str, port: int) -> str:
    """Write the URL of a host, which may be an IPv6 address, and a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_of(host: str, port: int) -> list[str]:
    """List the values of the header `Host` for a server: the names of loopback, and of this machine if it is public."""
    names = {host, *LOOPBACK}
    if host not in LOOPBACK:
        names |= {socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):
            names |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return [
        value
        for name in sorted(names - {"0.0.0.0", "::"})
        for host in [f"[{name}]" if ":" in name else name]
        for value in (host, f"{host}:{port}")
    ]


def is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a request would change something and comes from a page of another server, as browsers say.

    The names of the headers are in lower case.
    """
    if method in READING:
        return False
    origin = headers.get("origin")
    try:
        other = origin is not None and urlsplit(origin).netloc != headers.get("host")
    except ValueError:  # no address
        other = True
    return other or headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
