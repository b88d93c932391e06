"""Test the answers of a model's server, without a socket: pytest tests/serving/test_app.py"""

import asyncio
import io
import json
import threading
import time

import keras
import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab import classify, serve
from cnnlab.data.decoding import UndecodableError
from cnnlab.serving import middleware
from cnnlab.serving.app import make_app
from cnnlab.utils import ports

NAMES = ("<b>cat</b>", "dog", "猫")


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    model = cnnlab.build_cnn((8, 8, 3), len(NAMES), filters=(4,), dense_units=4)
    return classify.Classifier("models:/shapes/2", model, NAMES, 8)


def test_an_answer_that_is_not_finite_is_an_error(image):
    model = cnnlab.build_cnn((8, 8, 3), len(NAMES), filters=(4,), dense_units=4)
    model.set_weights([w * np.nan for w in model.get_weights()])
    app = make_app(classify.Classifier("models:/shapes/2", model, NAMES, 8))
    body = json.dumps({"inputs": [image.tolist()]}).encode()
    status, _, answer = asyncio.run(answer_of(app, "/invocations", body, content_type="application/json"))
    assert status == 500
    assert "Expected finite probabilities from 'models:/shapes/2'" in answer


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def scope_of(path, method, body, given):
    path, _, query = path.partition("?")
    given = {"host": "127.0.0.1:5001", "content_length": str(len(body)), **given}
    return {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""},
        **{"method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 5001)},
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }


async def answer_of(app, path="/classify", body=b"x", method="POST", **headers):
    """`(status, headers, body)` of one request to an ASGI app."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope_of(path, method, body, headers), receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), content.decode()


def ask(*request, **headers):
    """The status and the text of one request to an ASGI app."""
    status, _, text = asyncio.run(answer_of(*request, **headers))
    return status, text


def png_of(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def test_posted_pictures_are_classified(classifier, image):
    app, expected = make_app(classifier), classifier.probabilities(image[None])[0]
    status, text = ask(app, "/classify", png_of(image))
    assert status == 200
    best = json.loads(text)["predictions"]
    assert [one["class"] for one in best] == [NAMES[i] for i in np.argsort(-expected)]
    assert [one["probability"] for one in best] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    sentence = '{"error":"Expected the body to be a picture file. Received: it is not in an image format."}'
    assert ask(app, "/classify", b"text") == (400, sentence)
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "png")
    status, text = ask(app, "/classify", large.getvalue())
    assert status == 400
    assert "9000 x 9000 pixels, and at most 50 million are read" in text


def test_the_page_is_given_the_models_name_and_card(classifier, image):
    app = make_app(classifier, about={"name": "shapes", "version": 2, "card": "# A card"})
    status, headers, text = asyncio.run(answer_of(app, "/", b"", "GET"))
    assert status == 200
    assert "default-src 'none'; script-src 'sha256-" in headers[b"content-security-policy"].decode()
    assert "http" not in text.replace("http-equiv", "")  # nothing from elsewhere
    about = json.loads(ask(app, "/model", b"", "GET")[1])
    assert (about["name"], about["version"], about["card"], about["classes"]) == ("shapes", 2, "# A card", 3)
    assert about["heat"] is True
    first = json.loads(ask(app, "/explain", png_of(image))[1])
    assert first["explained"] == first["predictions"][0]["index"] == classifier.probabilities(image[None]).argmax()
    assert first["seen"].startswith("data:image/png;base64,")
    last = first["predictions"][-1]["index"]
    other = json.loads(ask(app, f"/explain?class={last}", png_of(image))[1])
    assert other["explained"] == last
    heats = [np.array(one["heat"]) for one in (first, other)]
    assert [heat.shape for heat in heats] == [(3, 3)] * 2
    assert max(heat.max() for heat in heats) == 1
    assert (heats[0] != heats[1]).any()
    for wrong in ("99", "-1", "x"):
        assert json.loads(ask(app, f"/explain?class={wrong}", png_of(image))[1])["explained"] == first["explained"]


def test_a_model_without_convolutions_gives_no_heat_map(image):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    app = make_app(classify.Classifier("uri", model, NAMES, 8))
    assert json.loads(ask(app, "/model", b"", "GET")[1])["heat"] is False
    assert json.loads(ask(app, "/explain", png_of(image))[1])["heat"] is None


def test_health_and_metrics(classifier, image):
    app = make_app(classifier, about={"name": "shapes", "version": 2})
    assert ask(app, "/health", b"", "GET") == (200, '{"model":"shapes","version":2,"ready":true}')
    assert ask(app, "/classify", png_of(image))[0] == 200
    assert ask(app, "/classify", b"text")[0] == ask(app, "/nowhere/<b>", b"")[0] - 4 == 400
    assert ask(app, "/classify", b"", "GET") == (405, '{"error":"Expected POST /classify. Received: GET."}')
    lines = ask(app, "/metrics", b"", "GET")[1].splitlines()
    for line in (
        'cnnlab_requests_total{route="/classify",status="200"} 1.0',
        'cnnlab_requests_total{route="/classify",status="400"} 1.0',
        'cnnlab_requests_total{route="/classify",status="405"} 1.0',
        'cnnlab_requests_total{route="other",status="404"} 1.0',
        'cnnlab_request_seconds_bucket{le="+Inf",route="/classify"} 3.0',
        'cnnlab_request_seconds_count{route="/classify"} 3.0',
        "cnnlab_batch_images_sum 1.0",
        'cnnlab_batch_images_bucket{le="1.0"} 1.0',
    ):
        assert line in lines


def test_arrays_get_the_answers_of_mlflow(classifier, image, monkeypatch):
    """Those that are read quickly, and those that are left to MLflow."""
    app, slow = make_app(classifier), make_app(classifier)
    expected = classifier.probabilities(np.stack([image, 255 - image]))
    good = np.stack([image, 255 - image])
    quick = [
        {"inputs": good.tolist()},
        {"inputs": good.astype(float).tolist()},
        {"instances": good.tolist()},
    ]
    wrong = {
        "not scaled. Received: values from 0 to 0.99": {"inputs": (good / 256).tolist()},
        "not scaled": {"inputs": (good > 128).astype(float).tolist()},
        "from 0 to 255": {"inputs": (good.astype(int) + 200).tolist()},
        "shape (8, 8, 3)": {"inputs": image.tolist()},
        "exactly one of the input fields": {"images": good.tolist()},
    }
    kind = {"content_type": "application/json"}
    answers = [ask(app, "/invocations", json.dumps(body).encode(), **kind) for body in (*quick, *wrong.values())]
    for status, text in answers[:3]:
        assert status == 200
        assert np.array(json.loads(text)["predictions"]) == pytest.approx(expected, abs=1e-6)
    for (status, text), message in zip(answers[3:], wrong, strict=True):
        assert status == 400
        assert message in text
    assert ask(app, "/invocations", b"{", **kind)[0] == 400
    assert ask(app, "/invocations", b"a\n1", content_type="text/plain")[0] == 415

    monkeypatch.setattr("cnnlab.serving.app.is_json", lambda kind: False)
    assert [
        ask(slow, "/invocations", json.dumps(body).encode(), **kind) for body in (*quick, *wrong.values())
    ] == answers


def test_the_server_refuses_foreign_origins_and_wrong_tokens(classifier):
    """No page of another server, nobody by another name, and with a token nobody without it."""
    app = make_app(classifier, names=ports.names_of("127.0.0.1", 5001))
    assert ask(app)[0] == 400  # let in, and no picture
    assert ask(app, origin="http://127.0.0.1:5001")[0] == 400
    assert ask(app, host="evil.example:5001")[0] == 403
    assert ask(app, host="127.0.0.1.evil.example")[0] == 403
    assert ask(app, "/", b"", "GET", host="evil.example")[0] == 403
    for origin in ("http://evil.example", "http://localhost:3000", "null"):
        assert ask(app, origin=origin)[0] == 403
    assert ask(app, sec_fetch_site="cross-site")[0] == 403
    app = make_app(classifier, token="secret")
    given = [{}, {"authorization": "Bearer other"}, {"authorization": "Bearer secret"}]
    assert [ask(app, **headers)[0] for headers in given] == [401, 401, 400]
    for path, method in (("/invocations", "POST"), ("/explain", "POST"), ("/model", "GET"), ("/health", "GET")):
        assert ask(app, path, b"x", method)[0] == 401
    assert [ask(app, path, b"", "GET")[0] for path in ("/metrics", "/version", "/")] == [401, 401, 200]


def test_the_server_bounds_the_size_of_requests(classifier, monkeypatch):
    monkeypatch.setattr(middleware, "MOST_BYTES", 1000)
    app = make_app(classifier)
    for path in ("/classify", "/explain", "/invocations"):
        assert ask(app, path, content_length="")[0] == 411
        assert ask(app, path, content_length="²")[0] == 411
        assert ask(app, path, transfer_encoding="chunked")[0] == 411
        assert ask(app, path, bytes(1001))[0] == 413
    assert ask(app, "/classify", bytes(1000))[0] == 400


def test_the_server_bounds_the_number_of_waiting_requests(classifier, monkeypatch):
    monkeypatch.setattr(middleware, "MOST_WAITING", 250)
    image, gate = classify.Classifier.image, threading.Event()

    def slow(self, *args, **bounds):
        gate.wait(10)
        return image(self, *args, **bounds)

    monkeypatch.setattr(classify.Classifier, "image", slow)
    app = make_app(classifier)

    async def ask_all():
        asked = [asyncio.ensure_future(answer_of(app, "/classify", bytes(100))) for _ in range(4)]
        await asyncio.sleep(0.1)
        gate.set()
        return [(await one)[0] for one in asked]

    assert asyncio.run(ask_all()) == [400, 400, 503, 503]
    assert ask(app, "/classify", bytes(250))[0] == 400  # all of it is free again


def test_announced_bytes_that_do_not_arrive_block_no_other_request(classifier, image, monkeypatch):
    monkeypatch.setattr(middleware, "MOST_WAITING", middleware.MOST_BYTES)
    app, announced = make_app(classifier), {"content_length": str(middleware.MOST_BYTES)}

    async def ask_all():
        stalled, never = [], asyncio.Event()
        for _ in range(20):
            parts = iter([{"type": "http.request", "body": b"x", "more_body": True}])

            async def receive(parts=parts):
                for part in parts:
                    return part
                await never.wait()

            scope = scope_of("/classify", "POST", b"", announced)
            stalled.append(asyncio.ensure_future(app(scope, receive, None)))
        await asyncio.sleep(0.1)
        answers = [await answer_of(app, "/classify", png_of(image))]
        answers.append(await answer_of(app, "/classify", bytes(middleware.MOST_BYTES - 19)))
        for one in stalled:
            one.cancel()
        await asyncio.wait(stalled)
        answers.append(await answer_of(app, "/classify", bytes(middleware.MOST_BYTES)))
        return [status for status, _, _ in answers]

    # The second is one byte more than there is room for; in the end all of it is free again.
    assert asyncio.run(ask_all()) == [200, 503, 400]


def test_the_token_is_read_from_a_file(workplace):
    (workplace / "token").write_text("secret\n")
    assert serve.read_token(f"@{workplace / 'token'}") == serve.read_token("secret") == "secret"
    assert serve.read_token(None) is None
    for wrong in ("", "@nowhere", "sécret", "a\nb"):
        with pytest.raises(cnnlab.ArgumentError, match="a token of printable ASCII"):
            serve.read_token(wrong)


def test_a_slow_answer_ends(classifier, monkeypatch):
    monkeypatch.setattr(middleware, "TIME", 0.1)

    def slow(*_, **__):
        time.sleep(0.3)
        raise UndecodableError("the file", "it came late")

    monkeypatch.setattr(classify.Classifier, "image", slow)
    assert ask(make_app(classifier))[0] == 408


def test_an_error_of_the_model_is_said(classifier, image, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(classify.Classifier, "probabilities", broken)
    status, text = ask(make_app(classifier), "/classify", png_of(image))
    assert status == 500
    assert "the server's own log explains" in text


@pytest.mark.parametrize(
    "body",
    [
        b'{"dataframe_split": [[]], "inputs": 1}',
        b'{"inputs": ' + b"1" * 5000 + b"}",
        b'{"dataframe_split": [[0]]}',
        b"[" * 100_000,
    ],
)
def test_unreadable_bodies_get_a_sentence_where_mlflow_has_none(classifier, body):
    app = make_app(classifier)
    status, text = ask(app, "/invocations", body, content_type="application/json")
    assert status == 400, text
    assert len(text) < 5000
    assert ask(app, "/invocations", body)[0] == 415
