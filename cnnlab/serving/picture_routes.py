"""What is asked about one picture, whose file is the body of the request."""

import asyncio

from fastapi.responses import JSONResponse

from cnnlab.evaluation import gradcam, html_pages

MOST_PIXELS = 50_000_000  # that a picture is decoded to; a JPEG may have four times as many
SHOWN = 5  # classes, and
SIDE = 512  # pixels at most of the picture as the model sees it, on the page


def picture_routes(classifier, batches, top):
    """`classify` and `explain`, from a request to its answer, and whether there is heat to explain by.

    Args:
        classifier: a `predict.Classifier`.
        batches: `Batcher` of it.
        top: classes that `classify` names.
    """
    look = gradcam.heat_maker(classifier.model)
    looking = asyncio.Semaphore(1)  # not batched, and as much as a step of a training

    def decoded(body):
        return classifier.image(body, most_pixels=MOST_PIXELS)[None]

    async def classify(request):
        [probabilities] = await batches.ask(decoded, await request.body())
        return JSONResponse({"predictions": _named(classifier.top(probabilities, top))})

    async def explain(request):
        """What the page shows: more classes, the picture as the model sees it, and what spoke for one class of it."""
        images = []

        def kept(body):
            images.append(decoded(body))
            return images[0]

        [probabilities] = await batches.ask(kept, await request.body())
        order = (-probabilities).argsort(kind="stable")[:SHOWN].tolist()
        named = _named(classifier.top(probabilities, SHOWN))
        wanted = request.query_params.get("class", "")
        chosen = int(wanted) if wanted.isdecimal() and int(wanted) < len(probabilities) else order[0]
        async with looking:
            heat = await asyncio.to_thread(look, images[0], [chosen]) if look else None
        return JSONResponse(
            {
                "predictions": [{**one, "index": i} for one, i in zip(named, order, strict=True)],
                "seen": html_pages.data_uri(images[0][0], SIDE),
                "explained": chosen,
                "heat": None if heat is None else heat[0].round(3).tolist(),
            }
        )

    return classify, explain, look is not None


def _named(best):
    return [{"class": name, "probability": round(p, 6)} for name, p in best]
