"""Every test works in an empty folder with a store, a cache and a Keras home of its own, and without a network."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

# Before Keras is imported: it reads these once. The proxy refuses at once, so that nothing is ever downloaded.
os.environ.update(
    KERAS_HOME=tempfile.mkdtemp(prefix="cnnlab-keras-"),
    KERAS_BACKEND="tensorflow",
    TF_CPP_MIN_LOG_LEVEL="2",
    https_proxy="http://127.0.0.1:9",
    http_proxy="http://127.0.0.1:9",
    no_proxy="127.0.0.1,localhost",
)

import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab.evaluation import plots
from cnnlab.tracking.mlflow_store import open_store

plots.DPI = 40  # drawing figures of full size takes a tenth of a small training

# A shell starts what it puts in the background with SIGINT ignored; the tests and what they start need it.
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(shutil.rmtree, os.environ["KERAS_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def store_template(tmp_path_factory):
    """A migrated MLflow database; migrating takes seconds, copying it a millisecond."""
    folder = tmp_path_factory.mktemp("template")
    before = Path.cwd()
    os.chdir(folder)
    open_store()
    os.chdir(before)
    return folder / "mlruns" / "mlflow.db"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    return tmp_path


@pytest.fixture
def store(store_template, workplace):
    """A ready store in the working folder."""
    (workplace / "mlruns").mkdir()
    shutil.copy(store_template, workplace / "mlruns" / "mlflow.db")
    open_store()
    import mlflow

    return mlflow.MlflowClient()


@pytest.fixture(scope="session")
def digits():
    """150 training images (15 of them held out) and 37 test images of scikit-learn's digits."""
    return cnnlab.load_dataset("digits", limit=150)


@pytest.fixture
def small_cnn():
    """A recipe that trains in a second."""
    return cnnlab.Recipe(model="cnn", dataset="digits", filters=(8, 8), dense_units=16, epochs=2, limit=150)


@pytest.fixture
def picture_folder(workplace):
    """`pictures/{train,test}/{red,blue}/N.png`: 6 and 2 plain 8x8 pictures a class."""
    for part, count in (("train", 6), ("test", 2)):
        for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
            folder = workplace / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8, 3), colour, np.uint8)
                pixels[0, 0] = i
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return workplace / "pictures"
