"""Prove that two versions of the code train to the same numbers: python tests/same_numbers.py [OLD_COMMIT]

Train the seeded, deterministic recipes below twice on this machine: with the code of OLD_COMMIT, in a temporary git
worktree, and with the tree that this file is in. Histories, scores, predictions and final weights must be equal to the
last digit; the script exits with 1 if one is not. It takes about three minutes. pytest does not run it, since these
numbers are those of one machine. --only NAME trains that recipe alone, and may be repeated.
"""

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import traceback
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
OLD_COMMIT = "2dac9c2"
QUICK = {"dataset": "digits", "limit": 120, "epochs": 1, "deterministic": True}
VGG16 = {**QUICK, "model": "vgg16", "weights": "random"}
RESNET9 = {**QUICK, "model": "resnet9", "filters": [4, 8], "batch_size": 32}

# Arguments of Recipe, by names that every version has: they take what is left out from the defaults.
GIVEN = {
    "cnn": {**QUICK, "model": "cnn", "epochs": 2},
    "vgg16": VGG16,
    "resnet9": {**QUICK, "model": "resnet9", "filters": [4, 8], "epochs": 2},
    "function in a file": {**QUICK, "model": "my_models.py:build_net", "arguments": ["width=6"], "epochs": 2},
    "saved backbone": {**QUICK, "model": "transfer", "backbone": "backbone.keras"},
}
# Recipes as runs of the first versions store them, by the names that the fields had then, which load for ever.
STORED = {
    "cnn, every option": {
        **{**QUICK, "model": "cnn", "epochs": 2, "image_size": 20, "picture_size": 20, "val_fraction": 0.2},
        **{"split_seed": 1, "seed": 3, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.02, "momentum": 0.8},
        **{"weight_decay": 1e-3, "schedule": "cosine", "warmup": 0.2, "label_smoothing": 0.1},
        **{"class_weights": "balanced", "lookahead": 0.5, "clip_norm": 1.0, "filters": [4, 8], "kernel_size": 5},
        **{"padding": "same", "dense_units": 16, "dropout": 0.2},
        "augment": "flip+shift+crop+rotate+zoom+color+randaugment+cutout+mixup+cutmix",
    },
    "cnn, bfloat16": {**QUICK, "model": "cnn", "filters": [4, 8], "precision": "mixed_bfloat16"},
    "cnn, ema": {**QUICK, "model": "cnn", "filters": [4, 8], "epochs": 2, "ema": 0.9, "optimizer": "adamw"},
    "cnn, plateau and patience": {
        **{**QUICK, "model": "cnn", "filters": [4, 8], "epochs": 5, "schedule": "plateau", "patience": 1},
        **{"learning_rate": 0.3, "optimizer": "sgd"},
    },
    "cnn, muon": {
        **{**QUICK, "model": "cnn", "filters": [4, 8], "epochs": 2, "optimizer": "muon", "schedule": "one-cycle"},
    },
    "pictures of a folder": {
        **{**QUICK, "model": "cnn", "dataset": "pictures", "limit": None, "filters": [4, 8], "fit": "pad"},
        **{"skip_bad": True, "drop_duplicates": True, "picture_size": 24, "image_size": 24},
    },
    "vgg16, staged": {
        **{**VGG16, "fine_tune": 1, "fine_tune_from": "2", "fine_tune_learning_rate": 1e-3, "layer_decay": 0.5},
        **{"preprocessing": "scale", "augment": "flip", "pooling": "average", "dense_units": 16, "dropout": 0.3},
    },
    "resnet9, members": {**RESNET9, "members": 2, "test_views": 6, "offset_rate": 8.0},
    "resnet9, small first": {**RESNET9, "epochs": 2, "small_first": 0.5, "test_views": 1, "augment": "altflip+crop"},
}
# A stored recipe names these at least; with `null` they hold the defaults.
EVERY_STORED = ("image_size", "picture_size", "fit", "precision", "frozen_precision", "feature_dtype")
EVERY_STORED += ("lookahead", "offset_rate")
NAMES = [*GIVEN, *STORED]

MY_MODELS = """
import keras
from keras import layers

def build_net(input_shape, num_classes, width=4, dropout=0.1):
    images = keras.Input(input_shape)
    x = layers.Conv2D(width, 3, strides=2, activation="relu")(layers.Rescaling(1 / 255)(images))
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(num_classes, activation="softmax")(x))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old_commit", nargs="?", default=OLD_COMMIT, help=f"{OLD_COMMIT} by default")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help="one of: " + "; ".join(NAMES))
    parser.add_argument("--side", nargs=2, metavar=("TREE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.only or NAMES
    if options.side:
        tree, out = map(Path, options.side)
        out.write_text(json.dumps(train_all(names, tree)))
        return 0
    with tempfile.TemporaryDirectory(prefix="same-numbers-") as folder:
        old_tree = Path(folder, "old-tree")
        git("worktree", "add", "--quiet", "--detach", str(old_tree), options.old_commit)
        try:
            old, new = (run_side(names, tree, Path(folder, side)) for side, tree in (("old", old_tree), ("new", TREE)))
        finally:
            git("worktree", "remove", "--force", str(old_tree))
    return report(names, old, new)


def git(*arguments):
    """Run git in this tree; raises `CalledProcessError` where it fails, after its own message."""
    subprocess.run(["git", "-C", TREE, *arguments], check=True, stdout=subprocess.DEVNULL)


def run_side(names, tree, folder):
    """Train the recipes of these names with the code of one tree, in a process and an empty folder of its own.

    Returns:
        Name to numbers, as `numbers_of` gives them, or to the text of what failed.
    """
    folder.mkdir()
    write_entry_points(tree, folder / "metadata")
    (folder / "my_models.py").write_text(MY_MODELS)
    out = folder / "numbers.json"
    alone = {
        # It stands before what is installed; -P keeps the folder of this file out.
        **{"PYTHONPATH": f"{folder / 'metadata'}{os.pathsep}{tree}", "CNNLAB_CACHE": str(folder / "cache")},
        "KERAS_HOME": str(folder / "keras"),
        **{"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "no_proxy": "127.0.0.1,localhost"},
        **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"),  # nothing is ever downloaded
    }
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | alone
    command = [sys.executable, "-P", __file__, "--side", tree, out]
    command += [argument for name in names for argument in ("--only", name)]
    subprocess.run(list(map(str, command)), check=True, cwd=folder, env=environment)
    return json.loads(out.read_text())


def write_entry_points(tree, folder):
    """Describe the package as an installation of that tree would: MLflow finds modules of ours by its entry points."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    about = folder / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")


def train_all(names, tree):
    """Train the recipes of these names in this process; `run_side` has prepared the folder."""
    # An editable installation gives modules that this tree does not have.
    sys.meta_path[:] = [one for one in sys.meta_path if not getattr(one, "__module__", "").startswith("__editable__")]
    import cnnlab

    print(f"Training with {cnnlab.__file__}", flush=True)
    make_backbone("backbone.keras")
    make_pictures(Path("pictures"))
    train_model, trained = find_train_model(), {}
    for name in names:
        try:
            trained[name] = numbers_of(train_model(read_recipe(name)))
        except Exception:
            traceback.print_exc()
            trained[name] = traceback.format_exc(limit=-1).strip().splitlines()[-1]
    used = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in ("cnnlab", "tuning")]
    if elsewhere := [file for file in used if file and not Path(file).is_relative_to(tree)]:
        raise SystemExit(f"Expected the code of {tree}. Received: {', '.join(elsewhere)}.")
    return trained


def find_train_model():
    """Find the function of the package that trains one recipe, wherever this version has it."""
    import cnnlab

    if found := getattr(cnnlab, "train_model", None):
        return found
    for module in ("cnnlab.train", "cnnlab.compare"):
        try:
            return importlib.import_module(module).train_model
        except (ModuleNotFoundError, AttributeError):
            continue
    raise SystemExit(f"Expected {cnnlab.__file__} to have a train_model. Received: none.")


def read_recipe(name):
    """Make the recipe of a name."""
    import cnnlab

    if name in GIVEN:
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in GIVEN[name].items()}
        return cnnlab.Recipe(**fields)
    return cnnlab.Recipe.from_json(json.dumps({**dict.fromkeys(EVERY_STORED), **STORED[name]}))


def make_backbone(file):
    """Save a small network for the head of `transfer` to stand on."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(7)
    images = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=2, name="first")(layers.Rescaling(1 / 255)(images))
    x = layers.BatchNormalization(name="norm")(x)
    keras.Model(images, layers.Conv2D(8, 3, strides=2, activation="relu", name="last")(x)).save(file)


def make_pictures(folder):
    """Write pictures of three classes, of several shapes, one of them twice and one that does not decode."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(5)
    for part, count in (("train", 20), ("test", 6)):
        for label, shade in enumerate(("dark", "grey", "light")):
            place = folder / part / shade
            place.mkdir(parents=True)
            for i in range(count):
                shape = (20 + i % 5, 28 - i % 7, 3)
                pixels = 80 * label + random.integers(0, 90, shape)
                Image.fromarray(pixels.astype("uint8")).save(place / f"{i:02}.png")
    again = folder / "train" / "dark" / "again.png"
    again.write_bytes((folder / "test" / "dark" / "00.png").read_bytes())
    (folder / "train" / "dark" / "broken.png").write_bytes(b"no picture")


def numbers_of(result):
    """Collect all that must be equal of a training: name to a number, to numbers by epoch, or to a digest."""
    tested, validated = result.test, result.validation
    return {
        **result.history,
        **{f"test {name}": value for name, value in {**tested.scores, "loss": tested.loss}.items()},
        **{f"validation {name}": value for name, value in {**validated.scores, "loss": validated.loss}.items()},
        "test predictions": digest([tested.probabilities, tested.labels]),
        "validation predictions": digest([validated.probabilities, validated.labels]),
        "weights": digest(final_weights(result)),
        "parameters": [result.params, result.trainable_params],
    }


def final_weights(result):
    """Read the weights of the model that was logged, wherever in the store it lies; returns a list of arrays."""
    import keras

    [file] = Path("mlruns").rglob(f"{result.model_uri.removeprefix('models:/')}/**/model.keras")
    return keras.saving.load_model(file, compile=False).get_weights()


def digest(arrays):
    """Return the sha256 of arrays with their types and shapes, in 16 digits."""
    import numpy as np

    whole = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        whole.update(f"{array.dtype}{array.shape}".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()[:16]


def report(names, old, new):
    """Print a row for each training; returns 0 where all numbers are equal, else 1."""
    differences = {name: different(old[name], new[name]) for name in names}
    print(f"\n{'training':26} {'loss':>20} {'test loss':>20}  {'weights':16}  numbers")
    for name in names:
        numbers = new[name]
        if isinstance(numbers, str):
            print(f"{name:26} {numbers}")
            continue
        count = sum(len(value) if isinstance(value, list) else 1 for value in numbers.values())
        said = f"{count} equal" if not differences[name] else f"{len(differences[name])} DIFFERENT"
        loss, test_loss = numbers["loss"][-1], numbers["test loss"]
        print(f"{name:26} {loss:20.17g} {test_loss:20.17g}  {numbers['weights']}  {said}")
    for name, lines in differences.items():
        for line in lines:
            print(f"{name}: {line}")
    bad = sum(map(bool, differences.values()))
    print(f"{len(names) - bad} of {len(names)} trainings are equal to the last digit.")
    return 1 if bad else 0


def different(old, new):
    """Return a line for each number of a training that is not the same in both, or for a training that failed."""
    if isinstance(old, str) or isinstance(new, str):
        failed = {side: value for side, value in (("old", old), ("new", new)) if isinstance(value, str)}
        return [f"failed with the {side} code: {text}" for side, text in failed.items()]
    keys = {**old, **new}
    return [
        f"{key}: {old.get(key)} with the old code, {new.get(key)} now" for key in keys if old.get(key) != new.get(key)
    ]


if __name__ == "__main__":
    sys.exit(main())
