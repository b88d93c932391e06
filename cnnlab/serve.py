"""Serve a registered model: MLflow's scoring server, with routes for picture files and a page to drop one on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from cnnlab.classify import load_classifier
from cnnlab.errors import ArgumentError, first_line
from cnnlab.evaluation.classifier import Classifier
from cnnlab.serving.app import make_app
from cnnlab.serving.idle_connections import TimedProtocol
from cnnlab.serving.middleware import MOST_BYTES
from cnnlab.serving.picture_routes import MOST_PIXELS
from cnnlab.tracking import logged_models
from cnnlab.utils.log import log
from cnnlab.utils.ports import LOOPBACK, address, choose_port, names_of

DEFAULT_PORT = 5001  # beside the UI's
MOST_CONNECTIONS = 512  # at a time; more are answered 503


def serve(model: str | None, host: str, port: int | None, token: str | None = None) -> None:
    """Load a model and serve it until the process is told to end.

    Args:
        model: as in `load_classifier`.
        host: name or address to listen on.
        port: to listen on; by default 5001 where it is free, else any.
        token: that requests have to carry, as in `make_app`.

    Raises:
        ArgumentError: the port is taken.
        LabError: as `load_classifier`.
    """
    port = choose_port(host, port, DEFAULT_PORT)
    np.set_printoptions(threshold=0, edgeitems=1)  # MLflow puts the whole array before each error
    classifier = load_classifier(model)
    side = classifier.image_size
    classifier.probabilities(np.zeros((1, side, side, 3), np.uint8))  # the first call compiles
    about = logged_models.about(classifier.uri)
    app = make_app(classifier, about=about, names=names_of(host, port), token=token)
    limits: Any = {"http": TimedProtocol, "ws": "none", "limit_concurrency": MOST_CONNECTIONS, "use_colors": False}
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", **limits)
    listening = config.bind_socket()
    listening.listen()  # so that the curl line works from the moment it is printed
    log.info(_welcome(classifier, host, port, token))
    uvicorn.Server(config).run(sockets=[listening])


def _welcome(classifier: Classifier, host: str, port: int, token: str | None) -> str:
    """Write what the screen says when the server has started: its address and how it is asked."""
    url, side = address(host, port), classifier.image_size
    header = '-H "Authorization: Bearer TOKEN" ' if token else ""
    public = f"It listens on {host}: whoever reaches it may ask{' with the token' if token else '; see --token'}.\n"
    return (
        f"{'' if host in LOOPBACK else public}"
        f"{classifier.uri} at {url}, {side} x {side} pixels, {len(classifier.class_names)} classes\n"
        f"  in a browser:    {url}/\n"
        f"  a picture file:  curl {header}--data-binary @picture.jpg {url}/classify\n"
        f"  arrays:          POST {url}/invocations, as 'mlflow models serve' takes them: "
        '{"inputs": [image, ...]}, whole numbers from 0 to 255\n'
        "  base64 or a form: not taken; send the file's bytes as the body of /classify\n"
        f"  at most:         {MOST_BYTES:,} bytes a request, {MOST_PIXELS:,} pixels a picture\n"
        "Ctrl-C ends it."
    )


def read_token(given: str | None) -> str | None:
    """Return a token as it was given, or what the file of `@FILE` holds.

    Raises:
        ArgumentError: the file cannot be read, or the token is empty or not of printable ASCII.
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
