"""What `cnnlab serve` lets in, for how long, and what is counted of it."""

import asyncio
import hmac
import logging
import time

from fastapi.responses import JSONResponse

from cnnlab.utils.ports import is_foreign

MOST_BYTES = 2**26  # of a request
MOST_WAITING = 2**30  # bytes that have arrived of all requests that are not answered yet
TIME = 60  # seconds for a request and its answer
PAGE = "/"  # it asks for the token, and holds nothing that needs one


class FullError(Exception):
    """More has arrived than there is room for."""


def guarded(app, metrics, *, names=None, token=None, routes=()):
    """An ASGI app behind the bounds, with the names and the token of `make_app`.

    Args:
        metrics: `Metrics`, told of every answer.
        routes: paths that are counted by their names; the others together.
    """

    waiting = 0

    async def inside(scope, receive, send):
        nonlocal waiting
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started, statuses, gone, length = time.perf_counter(), [], [], 0

        async def watched(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            try:
                await send(message)
            except Exception:  # uvicorn has answered already, what came being no HTTP
                gone.append(True)

        async def received():
            nonlocal waiting, length
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.append(True)
            # What has arrived, not what was announced: who announces much and sends nothing keeps nobody out.
            length += len(message.get("body", b""))
            waiting += len(message.get("body", b""))
            if waiting > MOST_WAITING:
                raise FullError
            return message

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            refused = refusal(scope["method"], scope["path"], headers, names, token)
            if refused:
                await error(*refused)(scope, receive, watched)
                return
            try:
                async with asyncio.timeout(TIME):
                    await app(scope, received, watched)
            except TimeoutError:
                if not statuses:
                    late = f"Expected a request and its answer within {TIME} seconds. Received neither."
                    await error(408, late)(scope, receive, watched)
            except FullError:
                full = f"Expected at most {MOST_WAITING:,} bytes of all requests at a time. Received more: try again."
                await error(503, full)(scope, receive, watched)
            except Exception:
                if gone:  # in the midst of a request, and nobody waits for an answer
                    return
                logging.getLogger("uvicorn.error").exception("%s %s", scope["method"], scope["path"])
                if not statuses:
                    failed = "Expected an answer of the model. Received an error, which the server's own log explains."
                    await error(500, failed)(scope, receive, watched)
        finally:
            waiting -= length
            route = scope["path"] if scope["path"] in routes else "other"
            metrics.answered(route, statuses[0] if statuses else "none", time.perf_counter() - started)

    return inside


def refusal(method, path, headers, names=None, token=None):
    """The status and the sentence for a request that is not let in, or `None`.

    Args:
        headers: names in lower case to values.
    """
    host, length = headers.get("host"), headers.get("content-length", "")
    if names is not None and host not in names:
        return 403, f"Expected one of the names {', '.join(names)}. Received: '{host}'."
    if is_foreign(method, headers):
        return 403, "Expected a request that no page of another server makes. Received one of those."
    given = headers.get("authorization", "").encode()
    if token and path != PAGE and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        return (
            401,
            "Expected the header 'Authorization: Bearer TOKEN' with this server's token. Received another or none.",
        )
    if method == "POST" and (not length.isdecimal() or "transfer-encoding" in headers):
        return 411, "Expected a Content-Length. Received none."
    if length.isdecimal() and int(length) > MOST_BYTES:
        return 413, f"Expected at most {MOST_BYTES:,} bytes. Received: {int(length):,}."
    return None


def error(status, sentence):
    return JSONResponse({"error": sentence}, status)
