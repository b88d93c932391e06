"""The shared runner: one model, one data set, one MLflow run."""

import dataclasses
import hashlib
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab import store, tracking
from cnnlab.errors import LabError
from cnnlab.features import batches, features_of, split_at_frozen_front
from cnnlab.recipe import Recipe

PREDICT_BATCH = 256  # images; large batches use the cores better, and memory is bounded by them


@dataclass(frozen=True)
class RunResult:
    """What a run gave, as plain data.

    Attributes:
        run_id: MLflow's.
        name: the run's name.
        recipe: what was trained.
        dataset_name: of the data set.
        history: per-epoch metrics as Keras gives them, `{"loss": [...], "val_accuracy": [...], ...}`.
        test_loss, test_accuracy: of the finished model on the test set; `None` where it was kept out.
        test_probabilities: `(N, num_classes) float32`, or `None`.
        params, trainable_params: numbers of weights.
        train_seconds: spent in `fit` (and in the pass through the frozen layers before it).
        total_seconds: from opening the run to closing it.
        model_uri: `models:/m-...`, for `mlflow.keras.load_model` and `mlflow.pyfunc.load_model`, or `None`.
    """

    run_id: str
    name: str
    recipe: Recipe
    dataset_name: str
    history: dict
    test_loss: float | None
    test_accuracy: float | None
    test_probabilities: np.ndarray | None
    params: int
    trainable_params: int
    train_seconds: float
    total_seconds: float
    model_uri: str | None


def fit_and_evaluate(
    model, dataset, recipe, *, run_name=None, parent_run_id=None, callbacks=(), tags=None, test=True
) -> RunResult:
    """Train a compiled model, test it, and record everything in one MLflow run.

    Args:
        model: compiled `keras.Model` from raw images `(N, H, W, 3) uint8` to probabilities `(N, num_classes)`.
        dataset: an `ImageDataset`.
        recipe: gives epochs, batch size, seed and patience, and is recorded.
        run_name: defaults to the model's name and data set.
        parent_run_id: makes the run a child of that run.
        callbacks: further Keras callbacks.
        tags: further tags of the run.
        test: `False` keeps the test set out of it, as in a search: the run gets its curves and its validation scores,
            but no test scores and no model, and nothing is printed.

    Returns:
        A `RunResult`. Its figures, curves, predictions, recipe and the whole model are on the run too.

    Raises:
        LabError: the store cannot be opened, or the loss is not a finite number.
    """
    from cnnlab import plots

    started = time.perf_counter()
    if parent_run_id is None:
        store.open_store()
    recipe = dataclasses.replace(recipe, dataset=recipe.dataset or dataset.name)
    run_name = run_name or f"{recipe.model} on {dataset.name}"
    trainable = int(sum(np.prod(w.shape) for w in model.trainable_weights))
    with tracking.tracked_run(
        tracking.experiment_for(dataset),
        run_name,
        params=recipe.params(),
        tags={"kind": "train", **data_tags(dataset), **_version_tags(), **_weights_tags(recipe), **(tags or {})},
        description=_description(recipe, dataset),
        parent_run_id=parent_run_id,
    ) as run_id:
        tracking.log_dataset(dataset)
        history, train_seconds, probabilities = _fit_and_predict(model, dataset, recipe, callbacks, test)
        metrics = {
            "params": model.count_params(),
            "trainable_params": trainable,
            "train_seconds": round(train_seconds, 1),  # the UI shows every digit
        }
        figures = {"curves.png": plots.curves({recipe.model: history})}
        # The summary in place of autologging's, which is of the head alone where features were cached.
        texts = {"recipe.json": recipe.to_json(), "model_summary.txt": _summary(model)}
        files, model_uri, scores = {}, None, {"test_loss": None, "test_accuracy": None}
        if test:
            scores = _test_scores(dataset.test_labels, probabilities)
            print(f"{run_name}: test_accuracy {scores['test_accuracy']:.4f}, test_loss {scores['test_loss']:.4f}")
            metrics |= scores
            model_uri = tracking.log_model(model, dataset.class_names, dataset.test_images.shape[1:])
            more_figures, more_texts, files = _test_report(dataset, recipe, probabilities)
            figures |= more_figures
            texts |= more_texts
        tracking.log_results(metrics, figures, texts, files)
        total_seconds = time.perf_counter() - started
        tracking.log_results({"total_seconds": round(total_seconds, 1)}, {}, {})
    return RunResult(
        run_id=run_id,
        name=run_name,
        recipe=recipe,
        dataset_name=dataset.name,
        history=history,
        **scores,
        test_probabilities=probabilities,
        params=model.count_params(),
        trainable_params=trainable,
        train_seconds=train_seconds,
        total_seconds=total_seconds,
        model_uri=model_uri,
    )


def _fit_and_predict(model, dataset, recipe, callbacks, test=True):
    """Train under autologging, on cached features where the model has a frozen front, and predict the test set.

    Returns:
        `(history, train_seconds, test_probabilities)`: the seconds hold the pass through the frozen layers too, and the
        probabilities are `None` where the test set is kept out.
    """
    import keras

    callbacks = [_without_validation_copies(), keras.callbacks.TerminateOnNaN(), *callbacks]
    if recipe.patience:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True))
    started = time.perf_counter()
    trained, inputs = model, (dataset.train_images, dataset.val_images, dataset.test_images)
    split = split_at_frozen_front(model)
    if split:
        trained, inputs = split.head, features_of(split, *inputs)
    train_inputs, val_inputs, test_inputs = inputs
    # The moving bar on a terminal, a line an epoch in a file, nothing from the many runs of a search.
    verbose = 0 if not test else 1 if sys.stdout.isatty() else 2
    keras.utils.set_random_seed(recipe.seed)
    with tracking.autologging():
        history = trained.fit(
            **_batched(train_inputs, dataset.train_labels, recipe.batch_size, shuffle=True),
            epochs=recipe.epochs,
            **_validation(val_inputs, dataset.val_labels),
            callbacks=callbacks,
            verbose=verbose,
        ).history
    seconds = time.perf_counter() - started
    if not np.isfinite(history["loss"]).all():
        raise LabError(
            f"Expected a finite loss. Received: {history['loss'][-1]} in epoch {len(history['loss'])}. "
            "Lower the learning rate."
        )
    if not test:
        return history, seconds, None
    batched = _batched(test_inputs, dataset.test_labels, PREDICT_BATCH, shuffle=False)
    batched.pop("y", None)
    probabilities = trained.predict(**batched, verbose=0)  # (N, C) float32
    if split:
        _expect_same(model, dataset.test_images[:16], probabilities[:16])
    return history, seconds, probabilities


def _batched(x, labels, batch_size, shuffle):
    """Arrays as they are; features too large for memory as a data set that reads batches from the disk."""
    if isinstance(x, np.ndarray):
        return {"x": x, "y": labels, "batch_size": batch_size}
    return {"x": batches(x, labels, batch_size, shuffle)}


def _validation(x, labels):
    data = _batched(x, labels, PREDICT_BATCH, shuffle=False)
    if "y" not in data:
        return {"validation_data": data["x"]}
    return {"validation_data": (data["x"], data["y"]), "validation_batch_size": PREDICT_BATCH}


def _expect_same(model, images, probabilities):
    """The head on stored features and the full model on the images must agree; a stale or wrong file would show here.

    bfloat16 keeps 8 bits, so the pass in other batches may differ by that much.
    """
    # Called, not predicted: compiling the full model for a few images would take longer than running it.
    difference = float(np.abs(np.asarray(model(images, training=False)) - probabilities).max())
    if difference > 0.05:
        raise RuntimeError(f"The full model and its head on cached features differ by {difference} in a probability.")


def _without_validation_copies():
    """A callback that keeps autologging from logging `val_*` a second time as `validation_*`, all at step 0.

    Keras hands one dict to all callbacks of the event; emptied here, it has nothing left for MLflow's callback after
    this one. The history and the `val_*` metrics come from elsewhere.
    """
    import keras

    return keras.callbacks.LambdaCallback(on_test_end=lambda logs: logs.clear() if logs else None)


def _test_scores(labels, probabilities) -> dict:
    import keras

    losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
    return {
        "test_loss": float(np.mean(keras.ops.convert_to_numpy(losses))),
        "test_accuracy": float(np.mean(probabilities.argmax(axis=1) == labels)),
    }


def _test_report(dataset, recipe, probabilities):
    """What the test set shows: figures and texts by artifact path, and writers of files."""
    from sklearn.metrics import confusion_matrix

    from cnnlab import plots

    labels, names = dataset.test_labels, dataset.class_names
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    with np.errstate(invalid="ignore"):
        by_class = matrix.diagonal() / matrix.sum(axis=1)  # (C,) float64, NaN where the test set lacks the class
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong])][:24]
    captions = [f"{names[predicted[i]]} {confidence[i]:.0%}\nis {names[labels[i]]}" for i in wrong]
    accuracy_rows = [
        f"{name},{count},{value:.4f}" for name, count, value in zip(names, matrix.sum(1), by_class, strict=True)
    ]
    figures = {
        "confusion_matrix.png": plots.confusion_matrices({recipe.model: matrix}, names),
        "class_accuracy.png": plots.class_accuracy(by_class, names),
        "mistakes.png": plots.image_grid(dataset.test_images[wrong], captions, "Most confident mistakes"),
    }
    texts = {"class_accuracy.csv": "\n".join(["class,test_images,accuracy", *accuracy_rows, ""])}
    # What later comparisons and paired tests work from.
    arrays = {"test_probabilities": probabilities, "test_labels": labels, "class_names": np.array(names)}
    return figures, texts, {"predictions.npz": lambda path: np.savez_compressed(path, **arrays)}


def _summary(model):
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line), line_length=100)
    return "\n".join(lines)


def data_tags(dataset) -> dict:
    """What a run's tags say about its data."""
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "dataset_source": dataset.source,
        "dataset_stands_in_for": dataset.stands_in_for,
        "validation": "test set" if dataset.val_is_test else "held out from the training set",
    }


def _version_tags():
    from importlib.metadata import version

    packages = ("cnnlab", "keras", "tensorflow", "mlflow", "numpy")
    return {"python": platform.python_version(), **{f"version.{name}": version(name) for name in packages}}


def _weights_tags(recipe):
    """The sha256 of a weights file, which its path alone does not pin down."""
    if recipe.weights and Path(recipe.weights).is_file():
        with open(recipe.weights, "rb") as file:
            return {"weights_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return {}


def _description(recipe, dataset):
    validation = "the test set itself" if dataset.val_is_test else f"{len(dataset.val_labels):,} held-out images"
    text = (
        f"**{recipe.model}** on **{dataset.name}**: {len(dataset.train_labels):,} training images, validated on "
        f"{validation}, tested on {len(dataset.test_labels):,}."
    )
    if recipe.weights:
        text += f" Weights: {recipe.weights}."
    if dataset.stands_in_for:
        text += f" {dataset.name} stands in for {dataset.stands_in_for}, which could not be downloaded."
    return text
