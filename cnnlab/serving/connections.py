"""Connections that end when nothing comes of them: uvicorn waits for a request for as long as it takes to arrive."""

from uvicorn.protocols.http.h11_impl import H11Protocol

from cnnlab.serving.guard import TIME

HEADERS_TIME = 15  # seconds for a request's headers
ANSWER_TIME = TIME + 10  # and for a request and its answer, which the app itself ends before, where it still can
EVERY = 1


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with an end to waiting. Its attributes are not documented; seen in uvicorn 0.54."""

    _since = _watched = _timer = None

    def connection_made(self, transport):
        super().connection_made(transport)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(EVERY, self._look)

    def connection_lost(self, exc):
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self):
        answering = self.cycle is not None and not self.cycle.response_complete
        watched = self.cycle, answering
        if watched != self._watched:
            self._watched, self._since = watched, self.loop.time()
        if self.loop.time() - self._since > (ANSWER_TIME if answering else HEADERS_TIME):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(EVERY, self._look)
