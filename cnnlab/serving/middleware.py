"""Limit and count requests in front of the app of `cnnlab serve`: who may ask, how many bytes, for how long."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnnlab.serving.server_metrics import Metrics
from cnnlab.utils.ports import is_foreign

MOST_BYTES = 2**26  # of a request
MOST_WAITING = 2**30  # bytes that have arrived of all requests that are not answered yet
TIME = 60  # seconds for a request and its answer
PAGE = "/"  # asks for the token, and holds nothing that needs one


class FullError(Exception):
    """Report that more bytes have arrived than may wait."""


@dataclass
class CountRequests:
    """ASGI middleware that counts requests by route and status, and measures their seconds."""

    app: ASGIApp
    metrics: Metrics  # told of every request
    paths: Collection[str]  # counted by their names; all others together as "other"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when it is over."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), "none"

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            route = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.answered(route, status, time.perf_counter() - started)


@dataclass
class LimitRequests:
    """ASGI middleware that refuses requests, ends those that take too long, and answers errors of the app."""

    app: ASGIApp
    names: Sequence[str] | None = None  # and `token`: as in `refusal`
    token: str | None = None
    waiting: int = 0  # bytes that have arrived of requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length, begun, disconnected = 0, False, False

        async def send_tolerantly(message: Message) -> None:
            nonlocal begun, disconnected
            begun = True
            try:
                await send(message)
            except Exception:  # uvicorn has answered already, as what came was not HTTP
                disconnected = True

        async def receive_limited() -> Message:
            nonlocal length, disconnected
            message = await receive()
            disconnected |= message["type"] == "http.disconnect"
            # Only what has arrived counts: who announces much and sends nothing keeps nobody out.
            length += len(message.get("body", b""))
            self.waiting += len(message.get("body", b""))
            if self.waiting > MOST_WAITING:
                raise FullError
            return message

        answer = refusal(scope["method"], scope["path"], headers, self.names, self.token)
        try:
            if not answer:
                async with asyncio.timeout(TIME):
                    await self.app(scope, receive_limited, send_tolerantly)
        except TimeoutError:
            answer = 408, f"Expected a request and its answer within {TIME} seconds. Received neither."
        except FullError:
            sentence = f"Expected at most {MOST_WAITING:,} bytes of all requests at a time. Received more: try again."
            answer = 503, sentence
        except Exception:
            if not disconnected:  # else the client left in the middle of the request, and waits for no answer
                logging.getLogger("uvicorn.error").exception("%s %s", scope["method"], scope["path"])
                answer = 500, "Expected an answer of the model. Received an error, which the server's own log explains."
        finally:
            self.waiting -= length
        if answer and not begun:
            await error(*answer)(scope, receive, send_tolerantly)


def refusal(
    method: str, path: str, headers: Mapping[str, str], names: Sequence[str] | None = None, token: str | None = None
) -> tuple[int, str] | None:
    """Return the status and the sentence of a request that is refused; `None` for one that is let in.

    Args:
        names: values of the header `Host` that are accepted; `None` for any.
        token: a bearer token that the request has to carry, except for the page.
    """
    host, length = headers.get("host"), headers.get("content-length", "")
    if names is not None and host not in names:
        return 403, f"Expected one of the names {', '.join(names)}. Received: '{host}'."
    if is_foreign(method, headers):
        return 403, "Expected a request that no page of another server makes. Received one of those."
    given = headers.get("authorization", "").encode()
    if token and path != PAGE and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        sentence = (
            "Expected the header 'Authorization: Bearer TOKEN' with this server's token. Received another or none."
        )
        return 401, sentence
    if method == "POST" and (not length.isdecimal() or "transfer-encoding" in headers):
        return 411, "Expected a Content-Length. Received none."
    if length.isdecimal() and int(length) > MOST_BYTES:
        return 413, f"Expected at most {MOST_BYTES:,} bytes. Received: {int(length):,}."
    return None


def error(status: int, sentence: str) -> JSONResponse:
    """Make an answer with an error: `{"error": sentence}`."""
    return JSONResponse({"error": sentence}, status)
