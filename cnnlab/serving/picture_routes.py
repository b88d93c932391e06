"""Answer questions about one picture, whose file is the body of the request: `POST /classify` and `POST /explain`."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cnnlab.evaluation import gradcam, html_pages
from cnnlab.evaluation.classifier import Classifier
from cnnlab.serving.request_batching import Batcher

MOST_PIXELS = 50_000_000  # that a picture is decoded to; a JPEG may have four times as many
EXPLAINED_CLASSES = 5
SIDE = 512  # pixels at most of the picture as the model sees it, on the page


def picture_routes(classifier: Classifier, batcher: Batcher, top: int) -> tuple[list[Route], bool]:
    """Make the routes of `/classify`, which answers with `top` classes, and `/explain`; say if it has heat maps."""
    heat_maps = gradcam.heat_maker(classifier.model)
    one_at_a_time = asyncio.Semaphore(1)  # a heat map is not batched, and costs as much as a step of a training

    def decode(body: bytes) -> npt.NDArray[np.uint8]:
        return classifier.image(body, most_pixels=MOST_PIXELS)[None]

    async def classify(request: Request) -> Response:
        [probabilities] = await batcher.ask(decode, await request.body())
        return JSONResponse({"predictions": _predictions(classifier.top(probabilities, top))})

    async def explain(request: Request) -> Response:
        """Answer with more classes, the picture as the model sees it, and the heat map of one class."""
        images = []

        def decode_and_keep(body: bytes) -> npt.NDArray[np.uint8]:
            images.append(decode(body))
            return images[0]

        [probabilities] = await batcher.ask(decode_and_keep, await request.body())
        order = (-probabilities).argsort(kind="stable")[:EXPLAINED_CLASSES].tolist()
        predictions = _predictions(classifier.top(probabilities, EXPLAINED_CLASSES))
        wanted = request.query_params.get("class", "")
        chosen = int(wanted) if wanted.isdecimal() and int(wanted) < len(probabilities) else order[0]
        async with one_at_a_time:
            heat = await asyncio.to_thread(heat_maps, images[0], [chosen]) if heat_maps else None
        return JSONResponse(
            {
                "predictions": [{**one, "index": i} for one, i in zip(predictions, order, strict=True)],
                "seen": html_pages.data_uri(images[0][0], SIDE),
                "explained": chosen,
                "heat": None if heat is None else heat[0].round(3).tolist(),
            }
        )

    routes = [Route("/classify", classify, methods=["POST"]), Route("/explain", explain, methods=["POST"])]
    return routes, heat_maps is not None


def _predictions(best: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": round(probability, 6)} for name, probability in best]
