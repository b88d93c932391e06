"""Test which requests `cnnlab ui` lets in: pytest tests/tracking/test_ui_middleware.py"""

import pytest

from cnnlab.tracking import ui_middleware


def status(path, method="GET", **headers):
    """Of the refusal of a request, or 200 where it goes on to MLflow."""
    given = {"host": "127.0.0.1:5000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        **{"type": "http", "method": method, "path": path},
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    refused = ui_middleware.refusal(scope)
    return refused.status_code if refused else 200


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/config",
        "/api/3.0/mlflow/assistant/sessions/1/message",
        "//ajax-api//3.0/mlflow/ASSISTANT/config",
        "/ajax-api/2.0/mlflow/gateway-proxy",
        "/ajax-api/3.0/mlflow/gateway/secrets/create",
        "/gateway/proxy/x",
        "/ajax-api/3.0/mlflow/jobs",
        "/api/2.0/mlflow/webhooks",
        "/ajax-api/3.0/mlflow/scorer/invoke",
        "/ajax-api/2.0/mlflow/runs/create-promptlab-run",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_paths_that_act_for_the_user_are_closed(path, method):
    assert status(path, method) == 404


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/ajax-api/2.0/mlflow/runs/search",
        "/ajax-api/2.0/mlflow/artifacts/list",
        "/api/2.0/mlflow-artifacts/artifacts/jobs/x",
        "/get-artifact",
        "/static-files/static/js/gateway.js",
        "/ajax-api/3.0/mlflow/server-info",
    ],
)
def test_paths_that_a_lab_needs_are_open(path):
    assert status(path) == status(path, "POST", origin="http://127.0.0.1:5000") == status(path, "POST") == 200


def test_pages_of_other_servers_change_nothing():
    for origin in ("http://evil.example", "http://localhost:5000", "http://127.0.0.1:3000", "null"):
        assert status("/ajax-api/2.0/mlflow/runs/delete", "POST", origin=origin) == 403
    assert status("/ajax-api/2.0/mlflow/runs/delete", "POST", sec_fetch_site="same-site") == 403
    assert status("/ajax-api/2.0/mlflow/runs/search", "GET", sec_fetch_site="cross-site") == 200
    assert status("/ajax-api/2.0/mlflow/runs/delete", "POST", sec_fetch_site="same-origin") == 200
