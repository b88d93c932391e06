"""MLflow's server as `cnnlab ui` runs it: `mlflow server --app-name cnnlab`.

A server on loopback answers every process of the machine and, by way of the browser, every page that its user opens.
MLflow 3.17's carries an assistant that runs commands in the name of whoever started the server, a gateway that spends
their API keys, jobs, and webhooks that call addresses. None of that belongs to a lab's UI: those routes are closed, and
the assistant's panel and button are gone. What changes something is only taken from the server's own pages.
"""

import re
from pathlib import Path

from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from cnnlab.utils.ports import is_foreign

CLOSED = re.compile(
    r"/(ajax-)?api/[\d.]+/(mlflow/)?(assistant|gateway|gateway-proxy|genai|jobs|webhooks|mcp|mcp-servers?|scorers?|demo"
    r"|prompt-optimization|issues/invoke|runs/create-promptlab-run|ui-telemetry)(/|$)|/(gateway|mcp)(/|$)"
)
# The panel opens itself on a local server, unless it has been open before; and the page complains where there is no
# gateway to ask for its endpoints.
NO_ASSISTANT = """<style>[data-assistant-ui="true"]{display:none!important}</style><script>
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
{
  const asked = window.fetch;
  window.fetch = (what, ...how) => String(what.url ?? what).includes("mlflow/gateway-proxy")
    ? Promise.resolve(Response.json({endpoints: []})) : asked(what, ...how);
}
</script>"""


def make_app():
    """MLflow's app behind the guard, as ASGI has it; imports it here, since `mlflow server` only looks at this file."""
    import mlflow.server
    from mlflow.server.fastapi_app import app as server

    index = Path(mlflow.server.__file__).parent / "js" / "build" / "index.html"
    page = index.read_text(encoding="utf-8").replace("<head>", "<head>" + NO_ASSISTANT, 1)

    async def app(scope, receive, send):
        answer = refusal(scope) if scope["type"] == "http" else None
        if answer is None and scope.get("path") in ("/", "/index.html"):
            answer = HTMLResponse(page)
        await (answer or server)(scope, receive, send)

    return app


def refusal(scope):
    """The answer to a request that is not let in, or `None`."""
    path = re.sub("/+", "/", scope["path"].lower())
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if CLOSED.match(path):
        return JSONResponse({}, 404)
    if is_foreign(scope["method"], headers):
        return PlainTextResponse("Expected a request of the UI's own pages. Received one of another origin.", 403)
    return None
