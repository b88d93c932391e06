"""Resume interrupted trainings: find the run with equal recipe and data, read its checkpoint, warn of changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, first_line
from cnnlab.evaluation.run_result import RunResult
from cnnlab.recipe import ResolvedRecipe, renamed_fields
from cnnlab.tracking import checkpoint_files, run_queries
from cnnlab.tracking import logged_models as stored_models
from cnnlab.tracking.provenance import environment_tags, file_tags
from cnnlab.tracking.run_queries import Run
from cnnlab.tracking.tag_names import STATE, TRAINING, our_tags
from cnnlab.training import checkpointing, multi_device
from cnnlab.training.checkpointing import Checkpoint, StoredCheckpoint
from cnnlab.training.model_contract import remember_recipe
from cnnlab.training.optimizers import compile_for
from cnnlab.utils.log import log

if TYPE_CHECKING:
    import keras


def training_key(recipe: ResolvedRecipe, dataset: ImageDataset) -> str:
    """Return a key of a training: one with an equal recipe, images and files can resume it."""
    whole = [recipe.key_text(), dataset.digest, file_tags(recipe)]
    whole += [dataset.val.digest] if dataset.apportioned else []
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]


def training_facts(recipe: ResolvedRecipe, dataset: ImageDataset) -> dict[str, Any]:
    """Return what a checkpoint says of its training; recipe and data set as `fit_and_evaluate` is given them."""
    return {
        "training": training_key(recipe, dataset),
        "recipe": recipe.to_json(),
        "dataset_digest": dataset.digest,
    }


def checkpoint_for(
    run_id: str, about: dict[str, Any], stored: StoredCheckpoint | None, seconds: float | None
) -> Checkpoint | None:
    """Return the `Checkpoint` that a run's training is kept in, saved every so many seconds; `None` for no seconds."""
    if seconds is None and stored is None:
        return None
    return Checkpoint(checkpoint_files.checkpoint_file(run_id), about, math.inf if seconds is None else seconds, stored)


def interrupted_run(
    recipe: ResolvedRecipe,
    dataset: ImageDataset,
    experiment_id: str,
    parent_run_id: str | None = None,
    **tags: str | None,
) -> str | None:
    """Find the run that an interrupted training with an equal recipe on equal data left with a checkpoint.

    A damaged checkpoint is removed, with a warning.

    Args:
        recipe, dataset: as `fit_and_evaluate` is given them.
        experiment_id: that it is in.
        parent_run_id: of the run that it is below.
        tags: of ours that it carries.

    Returns:
        The run's id, of several that of the latest; `None` without one.
    """
    if not checkpoint_files.stored_checkpoints():  # no file of the recipe need be read
        return None
    tags = {TRAINING: training_key(recipe, dataset), **tags}
    for run_id in checkpoint_files.interrupted_runs(experiment_id, parent_run_id, **tags):
        file = checkpoint_files.checkpoint_file(run_id)
        try:
            checkpointing.read(file)
            return run_id
        except LabError as error:
            log.warning(f"{error} It is removed now.")
            file.unlink(missing_ok=True)
        except OSError as error:  # somebody else's, or on a disk that fails
            log.warning(f"'{file}' cannot be read ({first_line(error)}); not gone on with.")
    return None


def longer_recipe(result: RunResult, epochs: int) -> ResolvedRecipe:
    """Return the recipe of a finished run with more epochs.

    Raises:
        ArgumentError: it has as many already, or was trained in two stages.
    """
    if result.stage_borders:
        raise ArgumentError(
            f"Expected a run of one stage to train for more epochs. Received: {result.run_id[:8]}, which had two. "
            "Train it anew with more epochs or fine_tune, or use its registered model as a backbone."
        )
    if epochs <= (trained := len(result.history["loss"])):
        raise ArgumentError(
            f"Expected more epochs than the {trained} that run {result.run_id[:8]} has. Received: {epochs}. Name how "
            "many it is to have in the end."
        )
    return dataclasses.replace(result.recipe, epochs=epochs)


def expect_same_data(run: Run, recipe: ResolvedRecipe, dataset: ImageDataset) -> None:
    """Raise `ArgumentError` unless a run was trained on this data set and these files of weights and backbone."""
    then, now = our_tags(run.data.tags), {"dataset_digest": dataset.digest, **file_tags(recipe)}
    if changed := [name.rpartition("_")[0] for name, value in now.items() if then.get(name) != value]:
        raise ArgumentError(
            f"Expected what run {run.info.run_id[:8]} was trained on, to train it for more epochs. Received: another "
            f"{' and '.join(changed)}. Put it back, or train from the beginning."
        )


def earlier_training(
    run: Run, result: RunResult, model: keras.Model, recipe: ResolvedRecipe, num_images: int
) -> tuple[StoredCheckpoint, dict[str, str]]:
    """Read what a finished run is continued from, and say on the screen what that is.

    Of a run that did not keep its optimizer's state, `model` gets the weights, and is compiled for the further epochs.

    Args:
        run, result: of one stage.
        model: as it was built for `recipe`, which has more epochs.
        num_images: number of training images.

    Returns:
        The state, and tags of the new run.
    """
    name, trained = f"run {run.info.run_id[:8]}", len(result.history["loss"])
    log.info(f"{run.info.run_name}: training {name} for epochs {trained + 1} to {recipe.epochs}, as a new run.")
    tags = {"continues": run.info.run_id, "optimizer_state": f"as {name} left it"}
    if run_queries.has_file(run, STATE):
        return run_queries.read_artifact(run, STATE, checkpointing.read), tags
    log.warning(
        f"{name} did not keep its optimizer's state, which begins anew, as does the schedule of learning rates."
    )
    assert result.model_uri, "a run that was tested has a model"
    model.set_weights(stored_models.load(result.model_uri)[0].get_weights())
    if recipe.schedule:  # else it was compiled by a function of the user's
        with multi_device.scope(model):
            compile_for(model, recipe, num_images, recipe.epochs - trained)
        remember_recipe(model, recipe)
    progress = {"history": result.history, "stages": [], "stopped": False, "callbacks": []}
    progress |= {"seconds": result.train_seconds, "stage_seconds": result.train_seconds}
    return StoredCheckpoint({}, progress, {}), {**tags, "optimizer_state": "begins anew"}


def read_checkpoint(run_id: str) -> StoredCheckpoint:
    """Read the checkpoint of a run.

    Raises:
        LabError: it has none, or a damaged one.
    """
    file = checkpoint_files.checkpoint_file(run_id)
    if not file.exists():
        raise LabError(
            f"Expected run {run_id[:8]} to have a checkpoint. Received: no '{file}'; it ended before its first one, on "
            f"another machine, or more than {checkpoint_files.DAYS} days ago. Train it from the beginning."
        )
    return checkpointing.read(file)


def checkpoint_to_resume(run_id: str, recipe: ResolvedRecipe, dataset: ImageDataset) -> StoredCheckpoint:
    """Read the checkpoint of a run, for a training with this recipe on these images.

    Raises:
        ArgumentError: it is of another recipe, other images, or other files.
    """
    stored = read_checkpoint(run_id)
    if stored.about["training"] == training_key(recipe, dataset):
        return stored
    then, now = renamed_fields(json.loads(stored.about["recipe"])), json.loads(recipe.to_json())
    differences = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    differences += ["other images"] * (stored.about["dataset_digest"] != dataset.digest)
    raise ArgumentError(
        f"Expected what run {run_id[:8]} trained, to go on with it. Received: "
        f"{'; '.join(differences) or 'another file of its weights or its model'}. Put it back, or train from the "
        "beginning."
    )


def resumption_told(
    run_id: str,
    stored: StoredCheckpoint,
    recipe: ResolvedRecipe,
    callbacks: Sequence[keras.callbacks.Callback],
    tags: Mapping[str, Any],
) -> str:
    """Log that a run is resumed, and what may make a difference; return the text of the run's tag about that."""
    epochs = f"after epoch {stored.epochs} of {recipe.epochs + (recipe.fine_tune or 0)}"
    log.info(f"{stored.about['run_name']}: going on with run {run_id[:8]} {epochs}.")
    before, now = run_queries.tags_of(run_id), {**environment_tags(), "devices": tags["devices"]}
    changes = [
        f"{name.removeprefix('version.')} was {before[name]}, is {now[name]}"
        for name in now
        if name in before and before[name] != str(now[name])
    ]
    if changes:
        log.warning(f"since it began, {'; '.join(changes)}. It may not end as it would have.")
    if callbacks:
        log.warning("callbacks of your own begin anew; what they knew is not kept.")
    earlier = [before["resumed"]] if "resumed" in before else []
    return "; ".join([*earlier, ", ".join([epochs, *changes])])


def difference_told(difference: float) -> str:
    """Warn how far epochs that were trained twice differ; return the text for the run's tag."""
    text = f"epochs after that were trained twice, and differ by up to {difference:.3g} from their curves"
    log.warning(f"{text}, which are of the first time. deterministic trainings repeat bit for bit.")
    return f", {text}"
