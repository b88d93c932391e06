"""Each model, with its defaults and with the options that change its optimizer, its layers or the number of its
networks, from the training to all that is done with it later: pytest tests/test_every_model.py
"""

import asyncio
import io
import json

import keras
import mlflow
import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab import classify, export
from cnnlab.models import export_formats
from cnnlab.reproduction import reproduce
from cnnlab.serving.app import make_app
from cnnlab.tracking import logged_models, model_registry, promotion
from cnnlab.train import train_model

NAME = "cnnlab-digits"
SMALL = {"dataset": "digits", "limit": 150, "epochs": 1}
MY_MODELS = """
import keras
from keras import layers

def build_net(input_shape, num_classes, width=4):
    images = keras.Input(input_shape)
    x = layers.Conv2D(width, 3, strides=2, use_bias=False)(layers.Rescaling(1 / 255)(images))
    x = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(images, layers.Dense(num_classes, activation="softmax")(x))

def compiled(input_shape, num_classes):
    model = build_net(input_shape, num_classes)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

@keras.saving.register_keras_serializable()
class Squared(layers.Layer):
    def call(self, x):
        return x * x

def registered(input_shape, num_classes):
    images = keras.Input(input_shape)
    x = layers.Conv2D(4, 3, strides=2)(layers.Rescaling(1 / 255)(images))
    return keras.Model(images, layers.Dense(num_classes, activation="softmax")(layers.Flatten()(Squared()(x))))
"""
CNN = {"model": "cnn", "filters": (8, 8), "dense_units": 16, "batch_size": 32}
RESNET9 = {"model": "resnet9", "filters": (8, 8), "batch_size": 32}
VGG16 = {"model": "vgg16", "weights": "random"}
SAVED = {"model": "transfer", "backbone": "saved.keras", "batch_size": 32}
OWN = {"model": "my_models.py:build_net", "batch_size": 32}
QUICK = {"model": "resnet9", "filters": (8, 8)}  # but for its filters as it is by default
LONG = [
    {**SAVED, "fine_tune": 1, "fine_tune_from": "all", "layer_decay": 0.5, "optimizer": "muon"},
    CNN,
    {**CNN, "optimizer": "adamw", "ema": 0.9, "augment": "flip,mixup"},
    {**CNN, "optimizer": "sgd", "lookahead": 0.8, "clip_norm": 1.0, "augment": "full"},
    {**CNN, "optimizer": "muon", "schedule": "one-cycle", "augment": "cutmix", "label_smoothing": 0.1},
    {**CNN, "precision": "mixed_bfloat16", "dropout": 0.3},
    {**CNN, "deterministic": True, "augment": "flip,crop"},
    {**RESNET9, "ensemble_size": 2, "deterministic": True},
    {**RESNET9, "ensemble_size": 2, "tta_views": 6, "optimizer": "muon"},
    {**RESNET9, "tta_views": 1, "optimizer": "adam", "bias_lr_scale": 8.0},
    {**RESNET9, "tta_views": 6, "augment": "altflip,cutmix"},
    {**RESNET9, "optimizer": "adamw", "ema": 0.9, "clip_norm": 1.0, "augment": "flip,mixup"},
    {**RESNET9, "progressive_resizing": 0.5, "epochs": 2, "precision": "float32"},
    {**RESNET9, "precision": "mixed_bfloat16", "bias_lr_scale": 1.0, "label_smoothing": 0.0},
    VGG16,
    {**VGG16, "fine_tune": 1, "fine_tune_from": "2", "layer_decay": 0.5, "optimizer": "sgd"},
    {**VGG16, "train_blocks": 1, "pooling": "max", "augment": "flip,mixup"},
    {**VGG16, "precision": "mixed_bfloat16", "frozen_precision": "mixed_bfloat16", "preprocessing": "scale"},
    SAVED,
    {**SAVED, "train_blocks": 1, "pooling": "flatten", "optimizer": "adamw", "bias_lr_scale": 4.0},
    {**SAVED, "fine_tune": 1, "ema": 0.9, "deterministic": True},
    {"model": "mobilenetv3small", "weights": "random"},
    {"model": "mobilenetv3small", "weights": "random", "fine_tune": 1, "fine_tune_from": "all", "layer_decay": 0.7},
    OWN,
    {**OWN, "optimizer": "sgd", "bias_lr_scale": 4.0, "label_smoothing": 0.1},
    {**OWN, "model": "my_models.py:compiled"},
    {**OWN, "model": "my_models.py:registered", "optimizer": "muon", "clip_norm": 1.0},
]


def in_words(fields):
    return " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("filters", "weights"))


CASES = [pytest.param(QUICK, id=in_words(QUICK))]
CASES += [pytest.param(fields, id=in_words(fields), marks=pytest.mark.long) for fields in LONG]


@pytest.fixture
def recipe_of(workplace):
    """Makes a recipe of its fields, in a folder that has what it names."""

    def made(fields):
        (workplace / "my_models.py").write_text(MY_MODELS)
        if fields.get("backbone") == "saved.keras":
            keras.utils.set_random_seed(3)
            cnnlab.build_cnn((32, 32, 3), 5, filters=(8, 16), augment="full").save("saved.keras")
        return cnnlab.Recipe(**{**SMALL, **fields})

    return made


@pytest.mark.parametrize("fields", CASES)
def test_a_model_goes_the_whole_way(fields, recipe_of, store, digits):
    recipe = recipe_of(fields)
    result = train_model(recipe)
    version, _ = model_registry.register_run(result.run_id)
    assert promotion.promote(version).promoted
    classifier = classify.load_classifier()
    assert classifier.uri == f"models:/{NAME}/1"
    images = cnnlab.load_dataset("digits", limit=150, image_size=classifier.image_size).test.images
    rounded = "mixed_bfloat16" in (result.recipe.precision, result.recipe.frozen_precision)
    close = {"abs": 0.05 if rounded else 1e-4}
    answers = classifier.probabilities(images)
    assert answers == pytest.approx(result.test.probabilities, **close)
    assert mlflow.pyfunc.load_model(result.model_uri).predict(images) == pytest.approx(answers, **close)
    names_a_picture(classifier, images[0], answers[0])
    is_served(classifier, images[:3], answers[:3])
    is_exported(result, images)
    is_a_backbone(recipe, images)
    again = reproduce(result.run_id)
    worst = max(figure.difference for figure in again.figures)
    assert worst == 0 if recipe.deterministic else worst < 2e-2, again.figures


def names_a_picture(classifier, image, expected):
    Image.fromarray(image).save("picture.png")
    [(file, found)] = classify.classify_files(classifier, classify.list_pictures(["picture.png"]))
    assert file == "picture.png"
    assert found == pytest.approx(expected, abs=1e-2)


def is_served(classifier, images, expected):
    app = make_app(classifier, about=logged_models.about(classifier.uri))
    png = io.BytesIO()
    Image.fromarray(images[0]).save(png, "png")
    best = json.loads(ask(app, "/classify", png.getvalue()))["predictions"][0]
    assert best["probability"] == pytest.approx(expected[0].max(), abs=1e-2)
    body = json.dumps({"inputs": images.tolist()}).encode()
    served = json.loads(ask(app, "/invocations", body, "application/json"))["predictions"]
    assert np.array(served) == pytest.approx(expected, abs=1e-2)
    explained = json.loads(ask(app, "/explain", png.getvalue()))
    assert explained["explained"] == explained["predictions"][0]["index"]


def is_exported(result, images):
    for file_format in export_formats.ENDINGS:
        try:
            export_formats.expect_packages(file_format)
        except cnnlab.LabError:
            continue
        done = export.export_model(None, file_format)  # which answers for the run's test pictures, or raises
        assert done.difference <= export.TOLERANCE
        assert done.accuracy == pytest.approx(result.test_accuracy, abs=0.1)
        assert export_formats.open_model(done.path, file_format)(images[:3]).shape == (3, 10)


def is_a_backbone(recipe, images):
    other = train_model(cnnlab.Recipe(model="transfer", backbone=f"models:/{NAME}@champion", **SMALL))
    classifier = classify.load_classifier(other.run_id)
    assert classifier.probabilities(images) == pytest.approx(other.test.probabilities, abs=0.05)
    features = mlflow.get_run(other.run_id).data.tags["cnnlab.features"]
    assert features.startswith("the output of ")
    assert len(features.rpartition("(")[2].split(",")) == 3, features  # with places, so without the head
    assert ("the first of its 2 members" in features) == (recipe.ensemble_size == 2)


def ask(app, path, body, kind="image/png"):
    """The text of the answer to a request of an ASGI app."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = {"host": "127.0.0.1:5001", "content-type": kind, "content-length": str(len(body))}
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 5001)},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent).decode()
    assert sent[0]["status"] == 200, text
    return text
