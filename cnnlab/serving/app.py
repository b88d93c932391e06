"""MLflow's scoring app, with routes for pictures, for a page to drop one on, and for those who watch the server."""

import json

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from cnnlab.data.decoding import UndecodableError
from cnnlab.errors import first_line
from cnnlab.serving import middleware, server_metrics
from cnnlab.serving.array_routes import UnusualError, checked, is_json, read_images
from cnnlab.serving.page import HEADERS, PAGE
from cnnlab.serving.picture_routes import picture_routes
from cnnlab.serving.request_batching import Batcher
from cnnlab.tracking.mlflow_internals import scoring_app

# What MLflow's reading of a body ends in that it has no words for.
UNREAD = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError)


def make_app(classifier, top=3, *, about=None, names=None, token=None):
    """MLflow's scoring app with `POST /classify`, whose body is a picture file, and what the page at `/` asks.

    Args:
        classifier: a `predict.Classifier`.
        top: classes that `/classify` names.
        about: what the page says of the model: its "name", "version" and "card".
        names: that it may be called by, as `ports.names_of` gives them; any without.
        token: a bearer token that every request has to carry, but that for the page; none without.
    """
    side, num_classes = classifier.image_size, len(classifier.class_names)
    shape = (side, side, 3)
    about = {"name": classifier.uri, "version": None, "card": None, **(about or {})}
    counted = server_metrics.Metrics()
    batches = Batcher(classifier.probabilities, counted.computed)
    mlflow = scoring_app(lambda images: classifier.probabilities(checked(images, shape)), shape, num_classes)
    for kind in UNREAD:
        mlflow.add_exception_handler(kind, _unread)
    classify, explain, has_heat = picture_routes(classifier, batches, top)

    async def page(request):
        return HTMLResponse(PAGE, headers=HEADERS)

    async def model(request):
        facts = {"classes": num_classes, "image_size": side, "fit": classifier.resize_mode}
        return JSONResponse({**about, **facts, "heat": has_heat, "most_bytes": middleware.MOST_BYTES})

    async def health(request):
        return JSONResponse({"model": about["name"], "version": about["version"], "ready": True})

    async def numbers(request):
        return Response(counted.text(), media_type=server_metrics.KIND)

    async def invocations(request):
        """The answer to what is quick to read; `None` for what is left to MLflow."""
        kind = request.headers.get("content-type")
        if not kind:
            return middleware.error(415, "Expected the header 'Content-Type: application/json'. Received none.")
        if not is_json(kind):
            return None
        try:
            output = await batches.ask(lambda body: read_images(body, shape), await request.body())
        except UnusualError:
            return None
        return Response(json.dumps({"predictions": output.tolist()}), media_type="application/json")

    routes = {
        "/": ("GET", page),
        "/classify": ("POST", classify),
        "/explain": ("POST", explain),
        "/model": ("GET", model),
        "/health": ("GET", health),
        "/metrics": ("GET", numbers),
        "/invocations": ("POST", invocations),
    }
    return middleware.guarded(_routed(routes, mlflow), counted, names=names, token=token, routes=routes)


def _routed(routes, others):
    """An ASGI app of functions by path, `(method, function)`, and of another one for what has none or gets `None`."""

    async def app(scope, receive, send):
        method, route = routes.get(scope.get("path"), (None, None))
        if route is None:
            await others(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["method"] not in (method, "HEAD" if method == "GET" else method):
            answer = middleware.error(405, f"Expected {method} {scope['path']}. Received: {scope['method']}.")
        else:
            try:
                answer = await route(request)
            except UndecodableError as error:
                answer = middleware.error(400, f"Expected the body to be a picture file. Received: {error.reason}.")
        if answer is None:
            await others(scope, _again(await request.body()), send)
        else:
            await answer(scope, receive, send)

    return app


async def _unread(request, reason):
    said = f"{type(reason).__name__}: {first_line(reason)}"
    return middleware.error(
        400, f"Expected a body as 'mlflow models serve' takes it. Received one that is none ({said})."
    )


def _again(body):
    """A body that was received, to be received once more."""

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
