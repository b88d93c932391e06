"""End connections on which nothing happens: uvicorn waits for a request for as long as it takes to arrive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cnnlab.serving.middleware import TIME

if TYPE_CHECKING:  # one of the two classes that it may be
    from uvicorn.protocols.http.h11_impl import H11Protocol as AutoHTTPProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADERS_TIME = 15  # seconds for a request's headers
MOST_HEADERS = 2**16  # bytes, beyond the part in which they end
ANSWER_TIME = TIME + 10  # seconds for a request and its answer; the app itself ends it before, where it still can
INTERVAL = 1  # seconds between two looks at a connection


class TimedProtocol(AutoHTTPProtocol):
    """uvicorn's HTTP protocol with an end to waiting. Its attributes are not documented; seen in uvicorn 0.54."""

    _since: float
    _watched: Any = None
    _timer: asyncio.TimerHandle
    _headers = 0

    def connection_made(self, transport: Any) -> None:
        """Begin to watch a connection."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(INTERVAL, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching a connection that has ended."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in bytes, and end the connection where they are more headers than are let in."""
        super().data_received(data)
        # What is left of a body that was answered early is no header.
        between = self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)
        self._headers = self._headers + len(data) if between else 0
        if self._headers > MOST_HEADERS:
            self.transport.abort()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _check(self) -> None:
        watched = self.cycle, self._answering()
        if watched != self._watched:
            self._watched, self._since = watched, self.loop.time()
        if self.loop.time() - self._since > (ANSWER_TIME if self._answering() else HEADERS_TIME):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(INTERVAL, self._check)
