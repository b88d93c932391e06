"""A port to listen on."""

import socket
from contextlib import closing

from cnnlab.errors import ArgumentError


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
