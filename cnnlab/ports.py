"""A port to listen on, and what it is called by."""

import socket
from contextlib import closing

from cnnlab.errors import ArgumentError


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
