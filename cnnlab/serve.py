"""A registered model behind MLflow's scoring server, which also takes picture files."""

import asyncio
import hmac
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import Request
from fastapi.responses import JSONResponse

from cnnlab.data.images import UndecodableError
from cnnlab.errors import ArgumentError, first_line
from cnnlab.ports import LOOPBACK, address, choose_port, is_foreign, names_of
from cnnlab.predict import load_classifier
from cnnlab.tracking.inside_mlflow import scoring_app

DEFAULT_PORT = 5001  # beside the UI's
MOST_BYTES = 2**26  # of a request
DECODING = 4  # pictures at a time, each up to half a gigabyte
TIME = 60  # seconds for a request and its answer
CONCURRENT = 512  # connections; more are answered 503
MOST_PIXELS = 50_000_000  # that a picture is decoded to; a JPEG may have four times as many


def make_app(classifier, top=3, *, names=None, token=None):
    """MLflow's scoring app with one more route, `POST /classify`, whose body is a picture file.

    Args:
        classifier: a `Classifier`.
        top: classes that `/classify` names.
        names: that it may be called by, as `ports.names_of` gives them; any without.
        token: a bearer token that every request has to carry; none without.
    """
    shape = (classifier.image_size, classifier.image_size, 3)

    def predict(images):
        return classifier.probabilities(_checked(images, shape))

    app = scoring_app(predict, shape, len(classifier.class_names))

    decoding = asyncio.Semaphore(DECODING)

    def classify_bytes(body):
        image = classifier.image(body, most_pixels=MOST_PIXELS)
        return classifier.top(classifier.probabilities(image[None])[0], top)

    @app.post("/classify")
    async def classify(request: Request):
        try:
            body = await request.body()
            async with decoding:
                best = await asyncio.to_thread(classify_bytes, body)
        except UndecodableError as error:
            return _error(400, f"Expected the body to be a picture file. Received: {error.reason}.")
        return {"predictions": [{"class": name, "probability": round(p, 6)} for name, p in best]}

    @app.middleware("http")
    async def bounded(request: Request, call_next):
        if refused := _refusal(request, names, token):
            return _error(*refused)
        try:
            return await asyncio.wait_for(call_next(request), TIME)
        except TimeoutError:
            return _error(408, f"Expected a request and its answer within {TIME} seconds. Received neither.")

    return app


def _refusal(request, names, token):
    """The status and the sentence for a request that is not let in, or `None`."""
    headers = request.headers
    host, length = headers.get("host"), headers.get("content-length", "")
    if names is not None and host not in names:
        return 403, f"Expected one of the names {', '.join(names)}. Received: '{host}'."
    if is_foreign(request.method, headers):
        return 403, "Expected a request that no page of another server makes. Received one of those."
    if token and not hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
        return (
            401,
            "Expected the header 'Authorization: Bearer TOKEN' with this server's token. Received another or none.",
        )
    if request.method == "POST" and not length.isdigit():
        return 411, "Expected a Content-Length. Received none."
    if length.isdigit() and int(length) > MOST_BYTES:
        return 413, f"Expected at most {MOST_BYTES:,} bytes. Received: {int(length):,}."
    return None


def _error(status, sentence):
    return JSONResponse({"error": sentence}, status)


def serve(model, host, port, token=None) -> None:
    """Load a model and serve it until the process is told to end.

    Args:
        token: as in `make_app`.

    Raises:
        ArgumentError: the port is taken.
        LabError: as `load_classifier`.
    """
    port = choose_port(host, port, DEFAULT_PORT)
    np.set_printoptions(threshold=0, edgeitems=1)  # MLflow puts the whole array before each error
    classifier = load_classifier(model)
    side = classifier.image_size
    classifier.probabilities(np.zeros((1, side, side, 3), np.uint8))  # the first call compiles
    app = make_app(classifier, names=names_of(host, port), token=token)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", limit_concurrency=CONCURRENT)
    listening = config.bind_socket()
    listening.listen()  # so that the curl line works from the moment it is printed
    url = address(host, port)
    header = '-H "Authorization: Bearer TOKEN" ' if token else ""
    if host not in LOOPBACK:
        print(f"It listens on {host}: whoever reaches it may ask" + (" with the token." if token else "; see --token."))
    print(
        f"{classifier.uri} at {url}, {side} x {side} pixels, {len(classifier.class_names)} classes\n"
        f"  a picture file:  curl {header}--data-binary @picture.jpg {url}/classify\n"
        f"  arrays:          POST {url}/invocations, as 'mlflow models serve' takes them: "
        '{"inputs": [image, ...]}, whole numbers from 0 to 255\n'
        "  base64 or a form: not taken; send the file's bytes as the body of /classify\n"
        f"  at most:         {MOST_BYTES:,} bytes a request, {MOST_PIXELS:,} pixels a picture\n"
        "Ctrl-C ends it.",
        flush=True,
    )
    uvicorn.Server(config).run(sockets=[listening])


def read_token(given) -> str | None:
    """A token as it was given, or what the file `@FILE` holds.

    Raises:
        ArgumentError: the file cannot be read, or there is nothing in it.
    """
    token, reason = given, "nothing"
    if given and given.startswith("@"):
        try:
            token = Path(given[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            token, reason = "", first_line(error)
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ArgumentError(f"Expected a token of printable ASCII, or @FILE with one. Received: {reason}.")
    return token


def _checked(images, shape):
    """`(N, *shape)` of whole numbers, 0 to 255, as uint8.

    Raises:
        ArgumentError: they are others.
    """
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise _wrong(f"an array of shape (N, {', '.join(map(str, shape))})", f"shape {images.shape}")
    if not np.issubdtype(images.dtype, np.number) or not np.isfinite(images).all():
        raise _wrong("numbers", "others")
    low, high = images.min(), images.max()
    scaled = 0 < high <= 1 or (images != np.round(images)).any()
    if scaled or low < 0 or high > 255:
        raise _wrong("pixels as whole numbers from 0 to 255, not scaled", f"values from {low:g} to {high:g}")
    return images.astype(np.uint8)


def _wrong(expected, received):
    return ArgumentError(f"Expected {expected}. Received: {received}.")
