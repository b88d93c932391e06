"""Close routes of MLflow's server that a lab does not need, and refuse changes asked for by pages of other servers.

`cnnlab ui` starts it as `mlflow server --app-name cnnlab`. A server on loopback answers every process of the machine
and, through the browser, every page that its user opens. MLflow 3.17's server has an assistant that runs commands as
whoever started the server, a gateway that spends their API keys, jobs, and webhooks that call addresses.
"""

from __future__ import annotations

import re

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cnnlab.utils.ports import is_foreign

CLOSED = re.compile(
    r"/(ajax-)?api/[\d.]+/(mlflow/)?(assistant|gateway|gateway-proxy|genai|jobs|webhooks|mcp|mcp-servers?|scorers?|demo"
    r"|prompt-optimization|issues/invoke|runs/create-promptlab-run|ui-telemetry)(/|$)|/(gateway|mcp)(/|$)"
)


class ClosedRoutes:
    """ASGI middleware that answers requests which are not let in with 404 or 403."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = refusal(scope) if scope["type"] == "http" else None
        await (refused or self.app)(scope, receive, send)


def make_app() -> FastAPI:
    """Return MLflow's app with the middleware. MLflow is imported here, since `mlflow server` only finds this file."""
    from mlflow.server.fastapi_app import app

    app.add_middleware(ClosedRoutes)
    return app


def refusal(scope: Scope) -> Response | None:
    """Return the answer to a request that is not let in, `None` for one that is."""
    path = re.sub("/+", "/", scope["path"].lower())
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if CLOSED.match(path):
        return JSONResponse({}, 404)
    if is_foreign(scope["method"], headers):
        return PlainTextResponse("Expected a request of the UI's own pages. Received one of another origin.", 403)
    return None
