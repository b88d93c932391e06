"""A training from a compiled model to its history and its predictions, without a word about where they are recorded."""

import contextlib
import dataclasses
import math
import sys
import time
from dataclasses import dataclass

import keras
import numpy as np

from cnnlab.data.batching import Batches
from cnnlab.data.class_weights import class_weights
from cnnlab.errors import LabError
from cnnlab.evaluation.predictions import Predictions
from cnnlab.models.augmentation import crop_side, has_alternating_flip, mixing_layers, mixing_strengths
from cnnlab.models.layers import member_networks, stack_outputs
from cnnlab.training import multi_device, runtime
from cnnlab.training.callbacks import LearningRate, Lookahead
from cnnlab.training.checkpointing import Checkpoint, Keeper
from cnnlab.training.frozen_layers import features_of, split_at_frozen_front
from cnnlab.training.optimizers import STEPS_PER_EXECUTION, compile_like, wants_one_hot
from cnnlab.training.stages import begin_fine_tuning, for_crops, stages_of
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_between_batches, signals_held

PREDICT_BATCH = 256  # images; large batches use the cores better
PREDICT_BYTES = 2**26  # of as many batches of floats as Keras predicts in one call, at most
PLATEAU = {"factor": 0.5, "patience": 2}  # epochs


@dataclass(frozen=True)
class StageResult:
    """What one stage of several gave: `name`, `epochs` and `seconds` that it took, scores of the weights it ended with,
    and whether they were `kept`.
    """

    name: str
    epochs: int
    seconds: float
    val_accuracy: float
    val_loss: float
    kept: bool = True


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        history: per-epoch metrics as Keras gives them, and the learning rate at each epoch's end.
        seconds: spent in `fit` and in the pass through the frozen layers before it.
        predictions: `Predictions` of the finished model by part, "val" and "test", those that were asked for.
        stages: a `StageResult` for each of several stages, none for an ordinary training.
    """

    history: dict
    seconds: float
    predictions: dict[str, Predictions]
    stages: tuple[StageResult, ...] = ()


def train(
    model,
    dataset,
    recipe,
    *,
    callbacks=(),
    parts=("val", "test"),
    quiet=False,
    around_fit=lambda: contextlib.nullcontext([]),
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train a compiled model stage by stage, on cached features where it has a frozen front, and predict with it.

    Args:
        model: compiled `keras.Model` from raw images to probabilities.
        dataset: an `ImageDataset`.
        recipe: gives epochs, batch size, seed, patience, stages and determinism.
        callbacks: further Keras callbacks; they see the logs that Keras gives.
        parts: to predict with the finished model; images of other parts are not looked at.
        quiet: nothing on the screen, for the many runs of a search.
        around_fit: makes a context for each `fit`, which gives further callbacks for it.
        checkpoint: a `Checkpoint` that the training is kept in, and goes on from where it has `found` one; further
            callbacks begin anew then.

    Raises:
        LabError: the loss is not a finite number.
    """
    if recipe.deterministic:
        runtime.expect_determinism()
    found = checkpoint.found if checkpoint else None
    progress = found.progress if found else {}
    started = time.perf_counter() - progress.get("seconds", 0)
    used = {"train": dataset.train, "val": dataset.val, **{part: getattr(dataset, part) for part in parts}}
    stages, results = stages_of(recipe), [StageResult(**ended) for ended in progress.get("stages", ())]
    history = progress.get("history", {})
    for stage in stages[len(results) :]:
        began = time.perf_counter() - progress.get("stage_seconds", 0)
        if stage.start:
            cut = None  # makes room for the next features
            with multi_device.scope(model):
                begin_fine_tuning(model, stage, recipe, len(dataset.train))
        cut = _cut(model, used, recipe, stage)
        before = []
        if results:
            before = found.arrays["before"] if found else cut.trained.get_weights()
        done = sum(result.epochs for result in results)
        epochs = len(history.get("loss", ())), done + stage.epochs
        if progress.get("stopped"):  # by patience; what follows the last epoch is still to be done
            epochs = epochs[0], epochs[0]
        ended = [dataclasses.asdict(result) for result in results]
        keeper = Keeper(checkpoint, history, ended, before, (started, began)) if checkpoint else None
        with around_fit() as more:
            fitted = _fit(cut, dataset, recipe, stage, epochs, callbacks, more, quiet, keeper)
        history = {name: history.get(name, []) + fitted.get(name, []) for name in {**history, **fitted}}
        found, progress = None, {}
        diverged = not np.isfinite(history["loss"][done:]).all()
        if diverged and not results:
            if checkpoint:
                checkpoint.remove()
            raise LabError(
                f"Expected a finite loss. Received: {history['loss'][-1]} in epoch {len(history['loss'])}. "
                "Lower the learning rate."
            )
        if len(stages) > 1:
            seconds = time.perf_counter() - began
            val = _predict(cut, "val", used["val"])
            results.append(StageResult(stage.name, len(history["loss"]) - done, seconds, val.accuracy, val.loss))
    seconds = time.perf_counter() - started
    worse = len(results) > 1 and not dataset.val_is_test and results[1].val_accuracy < results[0].val_accuracy
    if worse or diverged:
        cut.trained.set_weights(before)
        results[1] = dataclasses.replace(results[1], kept=False)
    if results and not quiet:
        log.info(stages_in_words(results, dataset))
    predictions = {}
    for name in sorted(parts):
        same = name == "val" and dataset.val_is_test and "test" in predictions
        predictions[name] = predictions["test"] if same else _predict(cut, name, used[name])
    if cut.stored and parts:
        rounded = "mixed_bfloat16" in (recipe.precision, recipe.frozen_precision)
        _expect_same(model, used[parts[0]].images[:16], predictions[parts[0]].probabilities[:16], rounded)
    return Trained(history, seconds, predictions, tuple(results))


@dataclass(frozen=True)
class _Cut:
    """What is fitted of a model, what predicts, and the inputs of both by part; `stored` where they are features;
    `networks` that are side by side in the first.
    """

    trained: keras.Model
    predicting: keras.Model
    inputs: dict
    stored: bool
    networks: int = 1


def _cut(model, used, recipe, stage):
    images = {name: part.images for name, part in used.items()}
    networks = member_networks(model)  # several views are for answers; training on one costs as much less
    if stage.small:
        networks = [for_crops(network) for network in networks]
    trained = networks[0] if len(networks) == 1 else stack_outputs(networks)
    if trained is not model:
        compile_like(trained, model)
        return _shared(_Cut(trained, model, images, False, len(networks)), model)
    cut = features_by_part(model, images, recipe)
    if cut is None:
        return _shared(_Cut(model, model, images, False), model)
    head, features = cut
    return _shared(_Cut(head, head, features, True), model)


def _shared(cut, model):
    """What is fitted and what predicts where the model was built for several devices; else as it is."""
    if multi_device.count(model) == 1:
        return cut
    trained, predicting = multi_device.share(cut.trained, model), multi_device.on_one(cut.predicting)
    return dataclasses.replace(cut, trained=trained, predicting=predicting)


def features_by_part(model, images, recipe):
    """`(head, features)` of a model that starts with frozen layers: what is trained instead of it, and on what.

    Args:
        model: compiled `keras.Model`.
        images: arrays by part, the training images first.
        recipe: gives the augmentation and the features' type.

    Returns:
        `None` where the images are trained on: nothing is frozen, or the features cannot be kept.
    """
    # What is done to the batches needs pictures.
    in_batches = mixing_strengths(recipe.augment) or has_alternating_flip(recipe.augment) or recipe.progressive_resizing
    split = None if in_batches else split_at_frozen_front(model)
    if split is None:
        return None
    dtype = "float16" if recipe.feature_dtype == "float16" else "float32"
    features = features_of(split, *images.values(), dtype=dtype)
    return None if features is None else (split.head, dict(zip(images, features, strict=True)))


def _fit(cut, dataset, recipe, stage, epochs, callbacks, more, quiet, keeper):
    """The history of one `fit`, of a stage: from the first of two epochs to the second."""
    model, (first, end) = cut.trained, epochs
    ours = []
    if recipe.lookahead:
        # The first, so that all others see the weights that a step of it leaves.
        ours.append(Lookahead(recipe.lookahead, stage.scheduled * math.ceil(len(dataset.train) / recipe.batch_size)))
    callbacks = [*ours, keras.callbacks.TerminateOnNaN(), *callbacks]
    choosing = []
    if recipe.ema:
        # Before the others, so that they see the averaged weights at an epoch's end.
        choosing.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    if recipe.patience:
        choosing.append(keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True))
    if recipe.schedule == "plateau":
        choosing.append(keras.callbacks.ReduceLROnPlateau("val_loss", **PLATEAU))
    callbacks += [*choosing, LearningRate()]
    if keeper:
        keeper.kept = [*ours, *choosing]
        callbacks.append(keeper)
    one_hot = wants_one_hot(model)
    labels = {
        name: keras.utils.to_categorical(part.labels, len(dataset.class_names)) if one_hot else part.labels
        for name, part in (("train", dataset.train), ("val", dataset.val))
    }
    mixing, alternating = mixing_layers(recipe.augment, recipe.seed), has_alternating_flip(recipe.augment)
    weights = class_weights(recipe.class_weights, dataset.train.labels, dataset.class_names)
    keras.utils.set_random_seed(recipe.seed)
    batches = Batches(
        cut.inputs["train"],
        labels["train"],
        recipe.batch_size,
        recipe.seed,
        first,
        weights,
        mixing,
        alternating,
        crop_side(dataset.image_shape[0]) if stage.small else None,
        cut.networks,
    )
    validation = _validation(cut.inputs["val"], labels["val"], cut.networks)
    if (several := multi_device.count(model)) > 1:
        batches = multi_device.EvenBatches(batches, several)
        size = max(1, _predict_batch(cut.inputs["val"]) // several) * several
        val = Batches(cut.inputs["val"], labels["val"], size)
        validation = {"validation_data": multi_device.EvenBatches(val, several)}
        callbacks.append(multi_device.DrawApart())
    with signals_between_batches() as between_batches, multi_device.as_on_one(model), runtime.untuned_datasets():
        return model.fit(
            batches,
            shuffle=False,  # Keras would shuffle the batches too, by the state that Python's `random` happens to have
            epochs=end,
            initial_epoch=first,
            **validation,
            callbacks=[*callbacks, *more, between_batches],
            # The moving bar on a terminal, a line an epoch in a file.
            verbose=0 if quiet else 1 if sys.stdout.isatty() else 2,
        ).history


def stages_in_words(results, dataset):
    """What each stage scored, and what that means for the weights."""
    where = "test" if dataset.val_is_test else "validation"
    said = [f"{r.name}: {where} accuracy {r.val_accuracy:.4f} after {r.epochs} epochs" for r in results]
    if not results[-1].kept:
        how = "made it worse" if np.isfinite(results[-1].val_loss) else "diverged"
        said.append(f"{results[-1].name} {how}, so the weights before it are kept")
    elif dataset.val_is_test:
        said.append("nothing is held out to choose by, so the last weights are kept")
    return "; ".join(said) + "."


def _predict(cut, name, part):
    data = _in_order(cut.inputs[name], part.labels, _predict_batch(cut.inputs[name]))
    data.pop("y", None)
    with signals_between_batches() as between_batches, runtime.untuned_datasets():
        probabilities = cut.predicting.predict(**data, callbacks=[between_batches], verbose=0)  # (N, C) float32
    return Predictions(probabilities, part.labels, part.digest)


def _in_order(x, labels, batch_size):
    """Arrays as they are; a data set that makes batches of features or pictures too large for memory."""
    if isinstance(x, np.ndarray):
        return {"x": x, "y": labels, "batch_size": batch_size}
    return {"x": Batches(x, labels, batch_size)}


def _validation(x, labels, copies):
    batch = _predict_batch(x)
    data = {"x": Batches(x, labels, batch, copies=copies)} if copies > 1 else _in_order(x, labels, batch)
    if "y" not in data:
        return {"validation_data": data["x"]}
    return {"validation_data": (data["x"], data["y"]), "validation_batch_size": batch}


def _predict_batch(x):
    """As many rows as memory is bounded by, whatever their size."""
    row = 4 * STEPS_PER_EXECUTION * math.prod(x.shape[1:])  # bytes
    return max(1, min(PREDICT_BATCH, PREDICT_BYTES // row))


def _expect_same(model, images, probabilities, rounded):
    """The head on stored features and the full model on the images must agree; a stale or wrong file would show here.

    bfloat16 keeps 8 bits, so that single images may differ by more in another pass, but not most of them.
    """
    # Called, not predicted: compiling the full model for a few images would take longer than running it.
    with signals_held():
        full = np.asarray(model(images, training=False))
    by_image = np.abs(full - probabilities).max(axis=1)
    difference = float(by_image.mean() if rounded else by_image.max())
    if difference > 0.05:
        raise RuntimeError(f"The full model and its head on cached features differ by {difference} in a probability.")
