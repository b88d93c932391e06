"""Trainings that were interrupted: which run an equal one goes on with, from what, and what is said of it."""

import hashlib
import json
import math

from cnnlab.errors import ArgumentError, LabError, first_line
from cnnlab.recipe import renamed_fields
from cnnlab.tracking import checkpoint_files
from cnnlab.tracking import tracked_run as tracking
from cnnlab.tracking.provenance import environment_tags, file_tags
from cnnlab.tracking.tag_names import TRAINING
from cnnlab.training import checkpointing
from cnnlab.training.checkpointing import Checkpoint, Found
from cnnlab.utils.log import log


def training_key(recipe, dataset) -> str:
    """What two trainings have in common of which one can go on with the other: recipe, images, and files by content."""
    whole = [recipe.key_text(), dataset.digest, file_tags(recipe)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]


def about(recipe, dataset) -> dict:
    """What a checkpoint says of its training; the recipe and the data as `fit_and_evaluate` is given them."""
    return {
        "training": training_key(recipe, dataset),
        "recipe": recipe.to_json(),
        "dataset_digest": dataset.digest,
    }


def checkpoint_of(run_id, about, found) -> Checkpoint | None:
    """The `Checkpoint` that a run's training is kept in; `None` where there is to be none."""
    seconds = checkpoint_files.seconds_between()
    if seconds is None and found is None:
        return None
    return Checkpoint(checkpoint_files.checkpoint_file(run_id), about, math.inf if seconds is None else seconds, found)


def interrupted_run(recipe, dataset, experiment_id, parent_run_id=None, **tags) -> str | None:
    """The id of the run that an interrupted training with an equal recipe on equal data left with a checkpoint.

    A damaged checkpoint is removed, and that is said.

    Args:
        recipe, dataset: as `fit_and_evaluate` is given them.
        experiment_id: that it is in.
        parent_run_id: of the run that it is below.
        tags: of ours that it carries.

    Returns:
        Of several the latest; `None` without one.
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


def found_of(run_id) -> Found:
    """What the checkpoint of a run holds.

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


def found_to_go_on_with(run_id, recipe, dataset) -> Found:
    """`found_of`, for a training with this recipe on these images.

    Raises:
        ArgumentError: it is of another recipe, other images, or other files.
    """
    found = found_of(run_id)
    if found.about["training"] == training_key(recipe, dataset):
        return found
    then, now = renamed_fields(json.loads(found.about["recipe"])), json.loads(recipe.to_json())
    differences = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    differences += ["other images"] * (found.about["dataset_digest"] != dataset.digest)
    raise ArgumentError(
        f"Expected what run {run_id[:8]} trained, to go on with it. Received: "
        f"{'; '.join(differences) or 'another file of its weights or its model'}. Put it back, or train from the "
        "beginning."
    )


def said_of(run_id, run_name, found, recipe, callbacks, devices) -> str:
    """Say that a run goes on, and what may make a difference; returns the text of the run's tag about that."""
    epochs = f"after epoch {found.epochs} of {recipe.epochs + (recipe.fine_tune or 0)}"
    log.info(f"{run_name}: going on with run {run_id[:8]} {epochs}.")
    before, now = tracking.tags_of(run_id), {**environment_tags(), "devices": devices}
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


def said_of_difference(difference) -> str:
    """Say how far epochs that were trained twice differ; returns the text for the run's tag."""
    text = f"epochs after that were trained twice, and differ by up to {difference:.3g} from their curves"
    log.warning(f"{text}, which are of the first time. --deterministic repeats bit for bit.")
    return f", {text}"
