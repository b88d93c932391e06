"""A port to listen on, what it is called by, and by whom."""

import contextlib
import socket
from contextlib import closing
from urllib.parse import urlsplit

from cnnlab.errors import ArgumentError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
READING = ("GET", "HEAD", "OPTIONS")


def choose_port(host, port, usual) -> int:
    """A port to listen on: the given one, or without one the usual one where it is free, else any.

    Args:
        host: a name or an address, of IPv4 or IPv6.

    Raises:
        ArgumentError: the given port is taken, or the host is none of this machine.
    """
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
        f"Expected a free port on {host}. Received: {port or 'any'}, {reason.strerror}. "
        + ("Leave --port out." if port else "Use an address of this machine as --host.")
    )


def address(host, port) -> str:
    """The URL of a host, which may be an IPv6 address, and a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_of(host, port) -> list[str]:
    """The names that a server may be called by, as `Host` headers give them: those of loopback, and of this machine
    where it listens to others.
    """
    names = {host, *LOOPBACK}
    if host not in LOOPBACK:
        names |= {socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):
            names |= {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    names = sorted(names - {"0.0.0.0", "::"})
    return [
        name for host in names for name in (f"[{host}]" if ":" in host else host,) for name in (name, f"{name}:{port}")
    ]


def is_foreign(method, headers) -> bool:
    """Whether a request would change something and comes from a page of another server, which browsers say.

    Args:
        headers: names in lower case to values.
    """
    if method in READING:
        return False
    origin = headers.get("origin")
    try:
        elsewhere = origin is not None and urlsplit(origin).netloc != headers.get("host")
    except ValueError:  # no address
        elsewhere = True
    return elsewhere or headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
