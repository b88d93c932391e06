"""Train the trials of a search as child runs: load the data, find the experiment and parent, score each trial."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cnnlab.data.class_weights import read_class_weights
from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, ServerUnavailable
from cnnlab.evaluation.score_names import TOP5_CLASSES
from cnnlab.models.model_table import RATES, find_model
from cnnlab.recipe import ResolvedRecipe, RunOptions, custom_arguments
from cnnlab.resolve import build_model, prepare
from cnnlab.resume import interrupted_run
from cnnlab.tracking import run_logging, run_queries, server_unavailable
from cnnlab.tracking.session import Session
from cnnlab.train import fit_and_evaluate
from cnnlab.training.build import compiles_itself
from cnnlab.training.runtime import free_models
from cnnlab.tuning.search_settings import Search
from cnnlab.tuning.spaces import check_space
from cnnlab.utils.log import log

ATTEMPTS, PATIENCE = 3, 30  # of a trial, and minutes to wait for a server that stopped answering
SCORE = "score"  # the metric of a trial's run that says it is complete


@dataclass(frozen=True)
class Place:
    """The experiment and the parent run of a search's runs, the data they are trained on, tags for each of them, and
    how they are carried out.
    """

    experiment_id: str
    parent_run_id: str
    dataset: ImageDataset
    tags: dict[str, Any]
    options: RunOptions = field(default_factory=RunOptions)

    def children(self, **tags: str) -> list[dict[str, Any]]:
        """Return the runs below the parent that carry these tags of ours, as `run_queries.children_of` gives them."""
        runs = run_queries.children_of(self.parent_run_id, self.experiment_id)
        return [run for run in runs if tags.items() <= run["tags"].items()]

    def interrupted_run(self, recipe: ResolvedRecipe, kind: str, label: str) -> str | None:
        """Find the run with a label that an earlier process left with a checkpoint; delete others that it left, so
        that none counts twice.
        """
        resumed = interrupted_run(recipe, self.dataset, self.experiment_id, self.parent_run_id, kind=kind, label=label)
        for run in self.children(kind=kind, label=label):
            if run["run_id"] != resumed:
                run_logging.delete_run(run["run_id"])
        return resumed

    def scored_run(self, search: Search, recipe: ResolvedRecipe, kind: str, label: str, run_name: str) -> float:
        """Train a recipe without the test set as a child run; return its score.

        A finished run is not repeated, and one that was interrupted is resumed.
        """
        tags = {"kind": kind, "label": label, **self.tags}
        for run in self.children(kind=kind, label=label):
            if run["status"] == "FINISHED" and SCORE in run["metrics"]:
                return run["metrics"][SCORE]
        free_models()  # that of the trial before
        resumed = self.interrupted_run(recipe, kind, label)
        with Session([recipe.model], options=self.options) as session:
            try:
                model = build_model(recipe, self.dataset, self.options)
            except LabError:  # a trial that cannot even be built is a failed run too
                run = {"params": recipe.params(), "tags": tags, "parent_run_id": self.parent_run_id}
                with session.recorder().start(self.experiment_id, run_name, **run):
                    raise
            given = {"run_name": run_name, "tags": tags, "splits": ("val",), "resume_run_id": resumed}
            given |= {"parent_run_id": self.parent_run_id, "options": self.options}
            result = fit_and_evaluate(model, self.dataset, recipe, **given)
        score = getattr(result.validation, search.objective.removeprefix("val_"))
        run_logging.log_metric_of(result.recorded_id, SCORE, score)
        return score

    def address(self, search: Search) -> Address:
        """Return what a worker finds its own place by."""
        return Address(search, self.experiment_id, self.parent_run_id, self.dataset.digest, self.options)


@dataclass(frozen=True)
class Address:
    """What is sent to a worker, which loads the data: a search, its experiment and parent run, the data's digest, and
    how trainings are carried out.
    """

    search: Search
    experiment_id: str
    parent_run_id: str
    digest: str
    options: RunOptions = field(default_factory=RunOptions)


_places: dict[str, Place] = {}  # whose data this process has loaded, by the run that is their parent


@contextlib.contextmanager
def data_loaded(place: Place) -> Iterator[None]:
    """Let trainings in this process use the data that is loaded already, inside the block."""
    _places[place.parent_run_id] = place
    try:
        yield
    finally:
        del _places[place.parent_run_id]


def train_scored(address: Address, recipe: ResolvedRecipe, kind: str, label: str, run_name: str) -> float:
    """Train a recipe as `Place.scored_run` does, on whatever worker this is.

    Where the server stops answering meanwhile, the training is repeated when it answers again: the recipe is not to
    blame.
    """
    with Session([recipe.model], options=address.options) as session:
        session.recorder(direct=True)
        place = place_of(address)
        for _ in range(ATTEMPTS - 1):
            try:
                with server_unavailable.unanswered_calls_told():
                    return place.scored_run(address.search, recipe, kind, label, run_name)
            except ServerUnavailable:
                server_unavailable.wait_for_server(PATIENCE)
        return place.scored_run(address.search, recipe, kind, label, run_name)


def place_of(address: Address) -> Place:
    """Return the place of an address, with its data, which each process loads once.

    Raises:
        LabError: the data here is not the search's.
    """
    if address.parent_run_id not in _places:
        _, dataset, tags = load(address.search, address.options, quiet=True)
        if dataset.digest != address.digest:
            raise LabError(
                f"Expected the images of the search in '{address.search.recipe.dataset}' on each worker. Received: "
                f"others on {socket.gethostname()}. Put the same there."
            )
        place = Place(address.experiment_id, address.parent_run_id, dataset, tags, address.options)
        _places[address.parent_run_id] = place
    return _places[address.parent_run_id]


def load(search: Search, options: RunOptions, quiet: bool = False) -> tuple[Search, ImageDataset, dict[str, Any]]:
    """Load the data of a search; return the search with the recipe that is really used, the data, and tags.

    Raises:
        ArgumentError: the data have too few classes for the objective, or the model cannot be built for them.
        LabError: data or weights cannot be had.
    """
    [(dataset, prepared)] = prepare([search.recipe], quiet=quiet, options=options)
    if search.objective == "val_top5_accuracy" and len(dataset.class_names) < TOP5_CLASSES:
        raise ArgumentError(
            f"Expected at least {TOP5_CLASSES} classes for the objective val_top5_accuracy. Received: "
            f"{len(dataset.class_names)}. Use another objective."
        )
    recipe = dataclasses.replace(prepared.asked, dataset=prepared.asked.dataset or dataset.name)
    space = dict(search.space)
    if "class_weights" in space and "class_weights" not in custom_arguments(recipe.model):
        space["class_weights"] = tuple(read_class_weights(each, dataset.class_names) for each in space["class_weights"])
    # Which the search of a custom model varies by itself.
    if (
        space.get("learning_rate") == RATES["learning_rate"]
        and "learning_rate" not in find_model(recipe.model).arguments
        and compiles_itself(recipe.with_defaults(), dataset)
    ):
        log.info(f"learning_rate is not varied, as {recipe.label} compiles its model.")
        del space["learning_rate"]
        check_space(space, recipe)
    return dataclasses.replace(search, recipe=recipe, space=space), dataset, prepared.tags


def label_of(trial: Any) -> str:
    """Return the tag that says which trial a run is: its number, without KerasTuner's zeros."""
    return str(int(trial.trial_id))
