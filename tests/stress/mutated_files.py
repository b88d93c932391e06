"""Mutated files of every kind against what reads them: python tests/stress/mutated_files.py [COUNT [KIND ...]]

Good files are cut, changed in one to eight bytes, or, where they are archives or JSON, changed inside and put together
again. Each is opened by the code that a command uses, in a process of its own with a bound on its memory. It must be
read, or give the one sentence; anything else, a crash or a pass of time is counted as a fault, and kept in ./faults.
"""

import contextlib
import copy
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

KINDS = ("picture", "keras", "weights", "predictions", "features", "shards", "recipe", "search", "database")
TIME, MEMORY = 60, 2**31  # seconds for a file, and bytes more than with the good file
HOSTILE = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    0.5,
    float("nan"),
    1e308,
    "",
    "x",
    "../../etc/passwd",
    "\x00",
    "\ud800",
)
HOSTILE += ([], {}, [[]], {"class_name": "Lambda", "config": {}}, ["x"] * 1000)


def mutated(content, chance):
    """Bytes, cut or changed in a few places."""
    content = bytearray(content)
    kind = chance.random()
    if kind < 0.35 and content:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(1 if kind < 0.85 else 8):
        # More often in the head, where the structure is.
        place = chance.randrange(min(len(content), 200) if chance.random() < 0.6 else len(content))
        content[place] = chance.randrange(256)
    return bytes(content)


def mutated_json(content, chance):
    """A text of JSON with a few of its values or keys replaced or left out."""
    tree = copy.deepcopy(json.loads(content))
    for _ in range(chance.choice((1, 1, 1, 4))):
        node = tree
        while True:
            if not node:
                break
            key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.85:
                node = node[key]
                continue
            if chance.random() < 0.2:
                del node[key]
            elif isinstance(node, dict) and chance.random() < 0.1:
                node[f"{key}x"] = node.pop(key)
            else:
                node[key] = chance.choice(HOSTILE)
            break
    return json.dumps(tree).encode()


def mutated_archive(content, chance):
    """A ZIP archive with one member changed, whole otherwise."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    name = chance.choice(list(parts))
    parts[name] = mutated_json(parts[name], chance) if name.endswith(".json") else mutated(parts[name], chance)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, part in parts.items():
            new.writestr(name, part)
    return made.getvalue()


def changed(name, content, chance):
    """A file of that name, mutated in a way that fits it."""
    if chance.random() < 0.6:
        if name.endswith(".json"):
            return mutated_json(content, chance)
        if name.endswith((".keras", ".npz")):
            return mutated_archive(content, chance)
    return mutated(content, chance)


# Of each kind: good files, as {name: bytes} that lie in one folder and the names of those that are changed, and how
# they are opened there.


def pictures():
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0)
    for width, height in ((40, 30), (33, 64)):
        image = Image.fromarray(pixels.integers(0, 255, (height, width, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x011A] = 6, "camera", 72.5
        for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
            options = [{}, {"exif": exif}] if name in ("PNG", "JPEG", "WEBP", "TIFF") else [{}]
            if name == "TIFF":
                options += [{"compression": kind} for kind in ("tiff_lzw", "tiff_deflate", "jpeg")]
            for one in options:
                file = io.BytesIO()
                image.save(file, name, **one)
                yield {"picture": file.getvalue()}


def open_picture(folder):
    from cnnlab.data.decoding import decode_image

    assert decode_image(Path(folder, "picture").read_bytes(), 32).shape == (32, 32, 3)


def network():
    import keras

    x = images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, strides=2)(keras.ops.cast(x, "float32") / 255)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, outputs)


def saved(name, write):
    with tempfile.TemporaryDirectory() as folder:
        write(str(Path(folder, name)))
        return {name: Path(folder, name).read_bytes()}


def models():
    yield saved("model.keras", network().save)


def open_model(folder):
    from cnnlab.models.pretrained import load_backbone

    load_backbone(str(Path(folder, "model.keras")), None, None)


def weights():
    import h5py
    import keras

    model = network()
    yield saved("model.weights.h5", model.save_weights)

    def legacy(path):  # as keras.applications' own files
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
            for layer in model.layers:
                group = file.create_group(layer.name)
                names = [f"{layer.name}/w{i}".encode() for i in range(len(layer.weights))]
                group.attrs["weight_names"] = names
                for name, weight in zip(names, layer.weights, strict=True):
                    group[name] = keras.ops.convert_to_numpy(weight)

    yield saved("model.h5", legacy)


def open_weights(folder, cached=[]):  # noqa: B006
    from cnnlab.models.backbones import BACKBONES
    from cnnlab.models.pretrained import _load_weights

    cached = cached or cached.append(network()) or cached
    [file] = Path(folder).iterdir()
    _load_weights(cached[0], str(file), BACKBONES["vgg16"])


def predictions():
    import numpy as np

    from cnnlab.evaluation.predictions import Predictions, save_predictions

    shares = np.random.default_rng(0).dirichlet(np.ones(3), 50).astype("float32")
    part = Predictions(shares, np.arange(50) % 3, "0" * 64)
    yield saved("predictions.npz", lambda path: save_predictions(path, ("a", "b", "c"), val=part, test=part))


def open_predictions(folder):
    from cnnlab.evaluation.predictions import load_predictions

    _, parts = load_predictions(str(Path(folder, "predictions.npz")))
    assert parts["test"].scores
    assert parts["val"].interval


def front():
    import keras

    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(images))


def the_images():
    import numpy as np

    return np.arange(20 * 8 * 8 * 3, dtype=np.uint8).reshape(20, 8, 8, 3)


def _features(folder):
    import numpy as np

    from cnnlab.training.frozen_features import load_or_compute
    from cnnlab.utils import user_cache

    with _cache(folder):
        known = np.array([str(i) for i in range(20)], "S32")
        with contextlib.redirect_stderr(io.StringIO()):
            made = load_or_compute(_features.front, [the_images()], np.arange(20), known)
        assert made.shape == (20, 3)
        user_cache.entries()


@contextlib.contextmanager
def _cache(folder):
    before = os.environ.get("CNNLAB_CACHE")
    os.environ["CNNLAB_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("CNNLAB_CACHE")
        if before:
            os.environ["CNNLAB_CACHE"] = before


def features():
    _features.front = front()
    yield _made(_features)


def _made(write):
    """What `write(folder)` leaves there, without its locks."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        files = [file for file in Path(folder).rglob("*") if file.is_file() and file.suffix != ".lock"]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _shards(folder):
    from cnnlab.data.decoded_cache import decode_folder
    from cnnlab.utils import user_cache

    with _cache(folder):
        with contextlib.redirect_stderr(io.StringIO()):
            made = decode_folder(_shards.pictures, ["a.png", "b.png"], {"a.png": (1, 1), "b.png": (2, 2)}, 8, "crop")
        assert made.pixels.shape == (2, 8, 8, 3)
        assert made.sizes.shape == (2, 2)
        user_cache.entries()


def shards():
    from PIL import Image

    _shards.pictures = tempfile.mkdtemp()
    for name in "ab":
        Image.new("RGB", (9, 8), (40, 80, ord(name))).save(f"{_shards.pictures}/{name}.png")
    yield _made(_shards)


def recipes():
    import cnnlab

    for model in ("cnn", "resnet9", "mobilenetv2"):
        yield {"recipe.json": cnnlab.Recipe(model=model, dataset="digits", limit=100).to_json().encode()}


def open_recipe(folder):
    from cnnlab.recipe import ResolvedRecipe
    from cnnlab.tracking.run_queries import text_of

    recipe = ResolvedRecipe.from_json(text_of(Path(folder, "recipe.json")))
    assert recipe.params()
    assert recipe.label


def _search():
    import cnnlab
    from cnnlab.models.model_table import Range
    from cnnlab.tuning.search_settings import Search

    space = {"learning_rate": Range(1e-4, 1e-2, log=True), "dropout": (0.0, 0.2)}
    return Search(cnnlab.Recipe(model="cnn", dataset="digits", limit=100), space, trials=4)


def searches():
    def write(folder):
        oracle = _oracle(folder)
        for _ in range(2):
            oracle.tell(oracle.ask(), 0.5)

    yield _made(write)


def _oracle(folder):
    from cnnlab.tuning.oracles import make_oracle, write_json

    search, at = _search(), Path(folder, "search")
    at.mkdir(parents=True, exist_ok=True)
    if not (at / "search.json").exists():
        write_json(at / "search.json", {"settings": {"model": "cnn"}})
    return make_oracle(search, at)


def open_search(folder):
    from cnnlab.tuning.search import _prepare

    _prepare(Path(folder, "search"), "x", {"model": "cnn"}, restart=False)
    oracle = _oracle(folder)
    oracle.ask()
    oracle.save()


def databases():
    def write(folder):
        with contextlib.chdir(folder):
            import mlflow

            from cnnlab.tracking import mlflow_store

            with mlflow_store.opened():
                client = mlflow.MlflowClient()
                for i in range(3):
                    experiment = client.create_experiment(f"cnnlab-{i}", "mlflow-artifacts:/x")
                    run = client.create_run(experiment, tags={"cnnlab.kind": "train", "cnnlab.source": "x"})
                    client.log_metric(run.info.run_id, "final_val_accuracy", 0.5)
                    client.log_metric(run.info.run_id, "test_accuracy", 0.5)
                    client.set_terminated(run.info.run_id)
                    client.create_registered_model(f"m{i}")
                    client.create_model_version(
                        f"m{i}", "mlflow-artifacts:/m", run.info.run_id, {"cnnlab.classes": "[]"}
                    )
            _forget_engines()

    yield _made(write)


def _forget_engines():
    """MLflow keeps connections by address, and the next file has another."""
    import gc

    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engines = getattr(SqlAlchemyStore, "_engine_map", {})
    for engine in engines.values():
        engine.dispose()
    engines.clear()
    gc.collect()


def open_database(folder):
    from cnnlab.errors import LabError
    from cnnlab.tracking import mlflow_store, model_registry, run_queries

    with contextlib.chdir(folder), mlflow_store.opened():
        model_registry.list_versions()
        with contextlib.suppress(LabError):
            run_queries.best_run()
    _forget_engines()


MADE = dict(
    zip(KINDS, (pictures, models, weights, predictions, features, shards, recipes, searches, databases), strict=True)
)
OPENED = (open_picture, open_model, open_weights, open_predictions, _features, _shards)
OPENED = dict(zip(KINDS, (*OPENED, open_recipe, open_search, open_database), strict=True))


def outcome(kind, folder):
    """What a command would end with: "read", "sentence", or the error that nobody turned into one."""
    from cnnlab.cli.library_errors import sentence
    from cnnlab.errors import LabError

    try:
        OPENED[kind](folder)
    except Exception as error:
        said = str(error) if isinstance(error, LabError) else sentence(error)
        if said is None or len(said) > 2000:
            return f"fault: {type(error).__name__}: {str(error)[:200]}"
        return "sentence"
    return "read"


def work(kind, connection):
    """A process of its own: it makes the good files, and opens what it is sent until nothing more comes."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    good = list(MADE[kind]())
    with tempfile.TemporaryDirectory() as folder:
        _lay(folder, good[0])
        assert outcome(kind, folder) == "read", kind
    connection.send(good)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while (files := connection.recv()) is not None:
        with tempfile.TemporaryDirectory() as folder:
            _lay(folder, files)
            result = outcome(kind, folder)
        connection.send((result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024))


def _lay(folder, files):
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def start(kind):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(kind, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours, ours.recv()


def attempts(good, count, seed=0):
    """Mutated files, `{name: bytes}` each, of good ones in turn."""
    chance = random.Random(seed)
    for i in range(count):
        files = dict(good[i % len(good)])
        name = chance.choice(sorted(files))
        files[name] = changed(name, files[name], chance)
        yield files


def attack(kind, count, seed=0):
    """Outcomes of so many mutated files of a kind: `(Counter, slowest seconds, most MB more, faults)`."""
    outcomes, slowest, most, faults = Counter(), 0.0, 0.0, []
    process, connection, good = start(kind)
    for files in attempts(good, count, seed):
        began, result = time.perf_counter(), None
        connection.send(files)
        try:
            if connection.poll(TIME):
                result, more = connection.recv()
                most = max(most, more)
        except EOFError:
            process.join()
            result = f"fault: the process died ({process.exitcode})"
        slowest = max(slowest, time.perf_counter() - began)
        if result is None:
            result = f"fault: not done in {TIME} seconds"
        outcomes[result.split(":")[0]] += 1
        if result.startswith("fault"):
            faults.append((result, files))
        if "the process died" in result or "not done" in result:
            process.kill()
            process, connection, good = start(kind)
    connection.send(None)
    process.join()
    return outcomes, slowest, most, faults


def main(count, kinds):
    found = 0
    for kind in kinds:
        began = time.perf_counter()
        outcomes, slowest, most, faults = attack(kind, count)
        said = ", ".join(f"{name} {number:,}" for name, number in sorted(outcomes.items()))
        seconds = time.perf_counter() - began
        print(
            f"{kind:12} {count:>7,} in {seconds:4.0f} s: {said}; slowest {slowest:.1f} s, {most:.0f} MB more",
            flush=True,
        )
        for i, (result, files) in enumerate(faults):
            folder = Path("faults", f"{kind}-{i}")
            shutil.rmtree(folder, ignore_errors=True)
            _lay(folder, files)
            print(f"  {folder}: {result}")
        found += len(faults)
    return found


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 250, sys.argv[2:] or KINDS) else 0)
