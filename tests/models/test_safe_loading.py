"""Test that model files which would run code or read other files are refused."""

import io
import json
import os
import stat
import tempfile
import zipfile

import h5py
import keras
import numpy as np
import pytest

import cnnlab
from cnnlab.models import pretrained, safe_loading
from cnnlab.models.layers import operations_of
from cnnlab.training.optimizers import compile_model
from cnnlab.utils import temporary_folders


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A model of 8 x 8 pixels, and its file."""
    x = images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.RandomFlip()(keras.ops.cast(x, "float32") / 255)
    x = keras.Sequential([keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.BatchNormalization()])(x)
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(x)))
    model.compile("adam", "sparse_categorical_crossentropy")
    path = tmp_path_factory.mktemp("good") / "good.keras"
    model.save(path)
    return model, path


def changed(path, made, config=None, weights=None, extra=(), **options):
    """The archive with another configuration or weights, or with further members `(name or ZipInfo, content)`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w", **options) as new:
        parts = {name: old.read(name) for name in old.namelist()}
        if config:
            tree = json.loads(parts[safe_loading.CONFIG])
            parts[safe_loading.CONFIG] = json.dumps(config(tree) or tree).encode()
        if weights:
            parts[safe_loading.WEIGHTS] = weights
        for name, content in (*parts.items(), *extra):
            new.writestr(name, content)
    return made


def test_a_harmless_model_loads_unchanged(good, workplace):
    model, path = good
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    expected = model.predict_on_batch(images)
    packed = changed(path, workplace / "packed.keras", compression=zipfile.ZIP_DEFLATED)
    for file in (path, packed):
        loaded = safe_loading.load_model(file)
        assert (loaded.predict_on_batch(images) == expected).all()
        assert not loaded.compiled


def test_the_temporary_folder_of_a_model_is_in_use_while_it_is_read(good, workplace, monkeypatch):
    monkeypatch.setattr(temporary_folders, "UNTOUCHED", -1)
    monkeypatch.setattr(tempfile, "tempdir", str(workplace))
    seen, check = [], safe_loading.check_config

    def looked(config):
        seen.append((len(list(workplace.glob("cnnlab-model-*"))), temporary_folders.leftover_folders()))
        check(config)

    monkeypatch.setattr(safe_loading, "check_config", looked)
    safe_loading.load_model(good[1])
    assert seen == [(1, [])]
    assert list(workplace.iterdir()) == []
    killed = workplace / "cnnlab-model-of-a-kill"
    killed.mkdir()
    assert temporary_folders.leftover_folders() == [killed]


def dense(tree, **change):
    tree["config"]["layers"][-1]["config"].update(change)


def layer(tree, **change):
    tree["config"]["layers"][-1].update(change)


OS = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
LAMBDA = {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "x", "function": OS}}
ENABLE = {"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization"}
BARE = {"registered_name": None, "build_config": None}
LAYERS = [
    {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}}
    for name, kind, config in (
        ("i", "InputLayer", {"batch_shape": [None, 8, 8, 3]}),
        *((name, "UpSampling2D", {"size": [999, 999]}) for name in "ab"),
    )
]
ENLARGED = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": LAYERS}, **BARE}
CONFIGS = {
    "layer 'Lambda'": lambda tree: layer(tree, **LAMBDA),
    "layer 'TFSMLayer'": lambda tree: layer(tree, class_name="TFSMLayer", config={"filepath": "/tmp", "name": "x"}),
    "layer 'TorchModuleWrapper'": lambda tree: layer(tree, class_name="TorchModuleWrapper", config={}),
    "layer 'StringLookup'": lambda tree: layer(tree, class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
    "layer 'IndexLookup'": lambda tree: layer(
        tree, module="keras.src.layers.preprocessing.index_lookup", class_name="IndexLookup", config={}
    ),
    "names 'os.system'": lambda tree: layer(tree, module="os", class_name="system"),
    "names the function 'os.system'": lambda tree: dense(tree, activation=OS),
    "names the function 'keras.config.enable_unsafe": lambda tree: dense(tree, activation=ENABLE),
    "names the function 'keras.utils.get_file'": lambda tree: dense(
        tree, activation={**ENABLE, "module": "keras.utils", "config": "get_file"}
    ),
    "names the function 'keras.activations.deserialize'": lambda tree: dense(
        tree, activation={**ENABLE, "module": "keras.activations", "config": "deserialize"}
    ),
    "names 'keras.utils.Sequence'": lambda tree: layer(tree, module="keras.utils", class_name="Sequence"),
    "names 'keras.src.utils.file_utils.os'": lambda tree: layer(
        tree, module="keras.src.utils.file_utils", class_name="os"
    ),
    "names '__lambda__'": lambda tree: dense(tree, activation={"class_name": "__lambda__", "config": {"value": "x"}}),
    "names '__typespec__'": lambda tree: dense(tree, name={"class_name": "__typespec__", "config": []}),
    "no layer of Keras": lambda tree: layer(tree, module=None, registered_name="mine>Evil", class_name="Evil"),
    "a class that is no text": lambda tree: layer(tree, class_name=["Dense"]),
    "too deep": lambda tree: dense(tree, name=json.loads("[" * 200 + "]" * 200)),
    "weights, and ": lambda tree: dense(tree, units=10**12),  # gigabytes, were they made
    "makes ": lambda tree: {**tree, **ENLARGED},
    "is no model": lambda tree: {**tree, "module": "keras.layers", "class_name": "ReLU", "config": {}, **BARE},
    "is none of a model": lambda tree: [tree],
}


@pytest.mark.parametrize("reason", CONFIGS)
def test_configurations_of_anything_but_a_network_are_refused(reason, good, workplace):
    file = changed(good[1], workplace / "bad.keras", CONFIGS[reason])
    with pytest.raises(safe_loading.RefusedFileError) as refused:
        safe_loading.load_model(file)
    assert reason in str(refused.value)
    # What was refused leaves no variables behind for others to make.
    keras.layers.Dense(1).build((1, 1))
    with keras.StatelessScope():
        pass


def test_how_a_model_was_compiled_is_neither_looked_at_nor_opened(good, workplace):
    """Neither of the model, nor of one within it; here with the optimizer that resnet9 trains with, and with code."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    outer = keras.Model(images, keras.layers.Average()([good[0](images), good[0](images)]))
    for model in (good[0], outer):
        compile_model(model, 0.1, optimizer="sgd", bias_lr_scale=64.0)
    outer.save("compiled.keras")
    evil = {"optimizer": {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}}
    file = changed("compiled.keras", "evil.keras", lambda tree: tree.update(compile_config=evil))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    for name in ("compiled.keras", file):
        loaded = safe_loading.load_model(name)
        assert loaded.predict_on_batch(pixels) == pytest.approx(outer.predict_on_batch(pixels), abs=1e-6)
        models = [part for part in (loaded, *operations_of(loaded)) if isinstance(part, keras.Model)]
        assert len(models) > 1
        assert not any(part.compiled for part in models)
    with zipfile.ZipFile("compiled.keras") as archive:
        assert archive.read(safe_loading.CONFIG).decode().count("OptimizerMap") == 2


def test_a_model_is_saved_without_how_it_was_compiled_and_stays_compiled(good, workplace):
    images = keras.Input((8, 8, 3), dtype="uint8")
    outer = keras.Model(images, good[0](images))
    optimizers = []
    for model in (good[0], outer):
        compile_model(model, 0.1, optimizer="adam", bias_lr_scale=64.0)
        model.optimizer.build(model.trainable_variables)
        optimizers.append(model.optimizer)
    outer.save("whole.keras")
    safe_loading.save_model(outer, "bare.keras")

    def interrupted():
        with safe_loading.uncompiled(outer):
            assert not outer.compiled
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [outer.compiled, good[0].compiled] == [True, True]
    assert [good[0].optimizer, outer.optimizer] == optimizers
    with zipfile.ZipFile("bare.keras") as archive:
        assert b"Optimizer" not in archive.read(safe_loading.CONFIG)
        with archive.open(safe_loading.WEIGHTS) as weights_of, h5py.File(weights_of, "r") as opened:
            assert not [name for name in opened if "optimizer" in name]
    assert os.path.getsize("bare.keras") < os.path.getsize("whole.keras")
    loaded = keras.models.load_model("bare.keras")
    assert not loaded.compiled
    assert all((a == b).all() for a, b in zip(loaded.get_weights(), outer.get_weights(), strict=True))


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "assets/../../evil", "assets/x", "C:\\evil", safe_loading.CONFIG]
)
def test_archives_with_more_than_keras_writes_are_refused(name, good, workplace):
    for extra in ((name, "x"), link(name, "/etc/passwd")):
        file = changed(good[1], workplace / "bad.keras", extra=[extra])
        with pytest.raises(safe_loading.RefusedFileError, match=r"its archive (holds|lacks)"):
            safe_loading.load_model(file)
    assert os.listdir(workplace) == ["bad.keras"]


def test_texts_that_an_export_adds_are_taken_and_bounded(good, workplace):
    texts = [(safe_loading.DESCRIPTION, "{}"), (safe_loading.LABELS, "a\n")]
    safe_loading.load_model(changed(good[1], workplace / "good.keras", extra=texts))
    for extra in ([(safe_loading.LABELS, " " * 2**25)], [texts[1], texts[1]]):
        file = changed(good[1], workplace / "bad.keras", extra=extra)
        with pytest.raises(safe_loading.RefusedFileError, match=r"unpacks to|has one twice"):
            safe_loading.load_model(file)
    for file in ("good.keras", "bad.keras", "gone.keras"):
        with pytest.raises(cnnlab.ArgumentError, match=rf"'{file}' to be a file that 'cnnlab export"):
            safe_loading.read_description(file)


def test_archives_that_expand_beyond_a_bound_are_refused(good, workplace):
    zeros = io.BytesIO(b"\x89HDF\r\n\x1a\n" + bytes(2**28))
    packed = {"compression": zipfile.ZIP_DEFLATED}
    file = changed(good[1], workplace / "bomb.keras", weights=zeros.getvalue(), **packed)
    assert file.stat().st_size < 2**20
    with pytest.raises(safe_loading.RefusedFileError, match=r"unpacks to 268,435,464 bytes"):
        safe_loading.load_model(file)
    file = changed(good[1], workplace / "bomb.keras", lambda tree: dense(tree, name=" " * 2**25), **packed)
    with pytest.raises(safe_loading.RefusedFileError, match=r"'config.json' in its archive unpacks to"):
        safe_loading.load_model(file)
    file = changed(good[1], workplace / "bomb.keras", compression=zipfile.ZIP_LZMA)
    with pytest.raises(safe_loading.RefusedFileError, match="packed in a way"):
        safe_loading.load_model(file)
    # It declares less than it unpacks to: no more is read than it declares.
    content = bytearray(changed(good[1], workplace / "bomb.keras", weights=bytes(2**24), **packed).read_bytes())
    place = content.rindex(safe_loading.WEIGHTS.encode()) - 22
    content[place : place + 4] = (1000).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(safe_loading.RefusedFileError, match="its archive cannot be read"):
        safe_loading.load_model(file)


def external(file):
    file["x"] = h5py.ExternalLink("/etc/passwd", "/")


def elsewhere(file):
    file.create_dataset("x", (10,), "u1", external=[("/etc/passwd", 0, 10)])


def virtual(file):
    layout = h5py.VirtualLayout((10,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (10,))
    file.create_virtual_dataset("x", layout)


HDF5 = {
    "is a link to elsewhere": [external, lambda file: file.__setitem__("x", h5py.SoftLink("/layers"))],
    "lies in another file": [elsewhere, virtual],
    "bytes, and": [
        lambda file: file.create_dataset("x", (2**40,), "f4", chunks=(2**20,), compression="gzip"),
        lambda file: file.create_dataset("x", (2**22, 2**22), "f4", chunks=(2**10, 2**10)),
    ],
    "not of numbers": [
        lambda file: file.create_dataset("x", (2,), h5py.string_dtype()),
        lambda file: file.create_dataset("x", (2,), h5py.ref_dtype),
        lambda file: file.create_dataset("x", (2,), np.dtype([("a", "f4")])),
    ],
    "packed in a way": [lambda file: file.create_dataset("x", (2,), "i4", chunks=(2,), scaleoffset=1)],
}


@pytest.mark.parametrize("reason", HDF5)
def test_weights_that_lie_elsewhere_or_nowhere_are_refused(reason, good, workplace):
    model, path = good
    for damage in HDF5[reason]:
        model.save_weights("bad.weights.h5")
        with h5py.File("bad.weights.h5", "a") as file:
            damage(file)
        with pytest.raises(safe_loading.RefusedFileError, match=reason):
            safe_loading.load_weights(model, "bad.weights.h5")
        content = (workplace / "bad.weights.h5").read_bytes()
        with pytest.raises(safe_loading.RefusedFileError, match=reason):
            safe_loading.load_model(changed(path, workplace / "bad.keras", weights=content))


def test_a_group_that_contains_itself_is_read_once(good):
    model, _ = good
    model.save_weights("round.weights.h5")
    with h5py.File("round.weights.h5", "a") as file:
        file["layers/again"] = file["/"]
    safe_loading.load_weights(model, "round.weights.h5")


def test_a_refused_file_is_one_sentence(good, workplace, digits):
    file = changed(good[1], workplace / "bad.keras", CONFIGS["layer 'Lambda'"])
    recipe = cnnlab.Recipe(model="transfer", backbone=str(file), dataset="digits")
    with pytest.raises(cnnlab.LabError, match=r"Expected '.*bad.keras' to be a Keras model .*a layer 'Lambda', which"):
        cnnlab.build_model(recipe, digits)
    os.mkfifo("pipe.weights.h5")  # which nobody writes to
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(cnnlab.LabError, match="does not load: it is no file"):
        pretrained._load_weights(network, "pipe.weights.h5", pretrained.BACKBONES["vgg16"])
