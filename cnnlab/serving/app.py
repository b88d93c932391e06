"""Build the web app of `cnnlab serve`: MLflow's scoring server with routes for pictures, a page, health and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cnnlab.data.decoding import UndecodableError
from cnnlab.errors import LabError, first_line
from cnnlab.evaluation.classifier import Classifier
from cnnlab.serving import middleware, server_metrics
from cnnlab.serving.array_routes import UnusualError, checked, is_json, read_images
from cnnlab.serving.page import HEADERS, PAGE
from cnnlab.serving.picture_routes import picture_routes
from cnnlab.serving.request_batching import Batcher
from cnnlab.tracking.mlflow_internals import scoring_app

# What MLflow raises on some bodies that it cannot read, instead of answering them.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError)


def make_app(
    classifier: Classifier,
    top: int = 3,
    *,
    about: dict[str, Any] | None = None,
    names: Sequence[str] | None = None,
    token: str | None = None,
) -> Starlette:
    """Build the ASGI app of a classifier.

    Args:
        classifier: answers the requests.
        top: number of classes that `POST /classify` answers with.
        about: what the page says of the model: its "name", "version" and "card".
        names: values of the header `Host` that are accepted, as `ports.names_of` gives them; by default any.
        token: a bearer token that every request but that for the page has to carry; by default none.

    Returns:
        The app, with the routes `/`, `/classify`, `/explain`, `/model`, `/health`, `/metrics` and `/invocations`. All
        other requests go to MLflow's scoring server.
    """
    about = {"name": classifier.uri, "version": None, "card": None, **(about or {})}
    metrics = server_metrics.Metrics()
    batcher = Batcher(classifier.probabilities, metrics.computed)
    mlflow_app, invocations = _array_route(classifier, batcher)
    pictures, has_heat = picture_routes(classifier, batcher, top)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE, headers=HEADERS)

    async def model(request: Request) -> Response:
        facts = {"classes": len(classifier.class_names), "image_size": classifier.image_size}
        facts |= {"fit": classifier.resize_mode, "heat": has_heat, "most_bytes": middleware.MOST_BYTES}
        return JSONResponse({**about, **facts})

    async def health(request: Request) -> Response:
        return JSONResponse({"model": about["name"], "version": about["version"], "ready": True})

    async def numbers(request: Request) -> Response:
        return Response(metrics.text(), media_type=server_metrics.KIND)

    getters = {"/": page, "/model": model, "/health": health, "/metrics": numbers}
    routes = [*(Route(path, endpoint) for path, endpoint in getters.items()), *pictures, invocations]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(middleware.CountRequests, metrics=metrics, paths={route.path for route in routes}),
            Middleware(middleware.LimitRequests, names=names, token=token),
        ],
        exception_handlers={UndecodableError: _answer_undecodable, LabError: _answer_failed, 405: _answer_wrong_method},
    )
    app.router.redirect_slashes = False
    app.router.default = mlflow_app
    return app


def _array_route(classifier: Classifier, batcher: Batcher) -> tuple[Any, Route]:
    """Return MLflow's scoring app, and a route in front of its `/invocations`, which it leaves unusual requests to."""
    shape = (classifier.image_size, classifier.image_size, 3)

    def predict(images):
        return classifier.probabilities(checked(images, shape))

    mlflow_app: Any = scoring_app(predict, shape, len(classifier.class_names))
    [mlflow_invocations] = [route.endpoint for route in mlflow_app.routes if route.path == "/invocations"]

    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type")
        if not kind:
            return middleware.error(415, "Expected the header 'Content-Type: application/json'. Received none.")
        try:
            if not is_json(kind):
                raise UnusualError
            output = await batcher.ask(lambda body: read_images(body, shape), await request.body())
        except UnusualError:
            return await _answer_of_mlflow(mlflow_invocations, request)
        return Response(json.dumps({"predictions": output.tolist()}), media_type="application/json")

    return mlflow_app, Route("/invocations", invocations, methods=["POST"])


async def _answer_of_mlflow(invocations, request: Request) -> Response:
    try:
        return await invocations(request)
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        sentence = f"Expected a body as 'mlflow models serve' takes it. Received one that is none ({reason})."
        return middleware.error(400, sentence)


async def _answer_undecodable(request: Request, error: Exception) -> Response:
    assert isinstance(error, UndecodableError)
    return middleware.error(400, f"Expected the body to be a picture file. Received: {error.reason}.")


async def _answer_failed(request: Request, error: Exception) -> Response:
    return middleware.error(500, str(error))  # of a model that does not answer with finite numbers


async def _answer_wrong_method(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method = min(request.scope["route"].methods)  # GET stands before HEAD
    return middleware.error(405, f"Expected {method} {request.url.path}. Received: {request.method}.")
