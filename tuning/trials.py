"""Trials as runs: where they go, and what one of them is, whichever engine asks for it and whoever trains it."""

import contextlib
import dataclasses
import socket
from dataclasses import dataclass

from cnnlab.data.dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, StoreGone
from cnnlab.evaluation.score_names import TOP5_CLASSES
from cnnlab.models import custom_model
from cnnlab.resolve import build_model, prepare
from cnnlab.resume import interrupted_run
from cnnlab.tracking import checkpoint_files, mlflow_store, run_queries
from cnnlab.tracking import tracked_run as tracking
from cnnlab.tracking.offline import server_unavailable
from cnnlab.tracking.offline.delivery import recorded
from cnnlab.train import fit_and_evaluate
from cnnlab.training.runtime import freed_models
from cnnlab.tuning.search_settings import Search

ATTEMPTS, PATIENCE = 3, 30  # of a trial, and minutes to wait for a store that went away
SCORE = "score"  # the metric of a trial's run that says it is complete


@dataclass(frozen=True)
class Place:
    """Where a search's runs go: their experiment and parent, the data they are on, and tags for each of them."""

    experiment_id: str
    parent_run_id: str
    dataset: ImageDataset
    tags: dict

    def children(self, **tags) -> list[dict]:
        """The runs below the parent that carry these tags of ours, as `read.children_of` gives them."""
        runs = run_queries.children_of(self.parent_run_id, self.experiment_id)
        return [run for run in runs if tags.items() <= run["tags"].items()]

    def interrupted_run(self, recipe, kind, label) -> str | None:
        """The run under a label that an earlier process left with a checkpoint; others that it left are deleted, so
        that none counts twice.
        """
        resumed = interrupted_run(recipe, self.dataset, self.experiment_id, self.parent_run_id, kind=kind, label=label)
        for run in self.children(kind=kind, label=label):
            if run["run_id"] != resumed:
                tracking.delete_run(run["run_id"])
        return resumed

    def scored_run(self, search, recipe, kind, label, run_name) -> float:
        """Train a recipe without the test set as a child run and return its score; a finished run is not repeated, and
        one that was interrupted goes on.

        Where the store goes away meanwhile, the training is repeated when it is back: the recipe is not to blame.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                with server_unavailable.loss_of_store_said():
                    return self._scored_run(search, recipe, kind, label, run_name)
            except StoreGone:
                server_unavailable.wait_for_store(PATIENCE)
        return self._scored_run(search, recipe, kind, label, run_name)

    @freed_models()
    def _scored_run(self, search, recipe, kind, label, run_name):
        tags = {"kind": kind, "label": label, **self.tags}
        for run in self.children(kind=kind, label=label):
            if run["status"] == "FINISHED" and SCORE in run["metrics"]:
                return run["metrics"][SCORE]
        resumed = self.interrupted_run(recipe, kind, label)
        parent = {"parent_run_id": self.parent_run_id}
        try:
            model = build_model(recipe, self.dataset)
        except LabError:  # a trial that cannot even be built is a failed run too
            with tracking.tracked_run(self.experiment_id, run_name, params=recipe.params(), tags=tags, **parent):
                raise
        given = {"run_name": run_name, "tags": tags, "parts": ("val",), "resume_run_id": resumed}
        result = fit_and_evaluate(model, self.dataset, recipe, **given, **parent)
        score = getattr(result.validation, search.objective.removeprefix("val_"))
        tracking.log_metric_of(result.run_id, SCORE, score)
        return score

    def address(self, search) -> "Address":
        """What a worker finds its own place by."""
        return Address(search, self.experiment_id, self.parent_run_id, self.dataset.digest)


@dataclass(frozen=True)
class Address:
    """A search, where its runs go, and the digest of its data: what travels to a worker, which loads the data."""

    search: Search
    experiment_id: str
    parent_run_id: str
    digest: str


_places = {}  # of this process, by the run that is their parent


@contextlib.contextmanager
def at_hand(place):
    """Inside, trainings in this process use the data that is loaded already."""
    _places[place.parent_run_id] = place
    try:
        yield
    finally:
        del _places[place.parent_run_id]


def train_scored(address, recipe, kind, label, run_name) -> float:
    """`Place.scored_run`, on whatever worker this is."""
    with custom_model.pinned_sources([recipe.model]), recorded(directly=True):
        return place_of(address).scored_run(address.search, recipe, kind, label, run_name)


def place_of(address) -> Place:
    """The place of an address, with its data, which each process loads once.

    Raises:
        LabError: the data here is not the search's.
    """
    if address.parent_run_id not in _places:
        _, dataset, tags = load(address.search, quiet=True)
        if dataset.digest != address.digest:
            raise LabError(
                f"Expected the images of the search in '{address.search.recipe.dataset}' on each worker. Received: "
                f"others on {socket.gethostname()}. Put the same there."
            )
        _places[address.parent_run_id] = Place(address.experiment_id, address.parent_run_id, dataset, tags)
    return _places[address.parent_run_id]


def load(search, quiet=False):
    """`(search, dataset, tags)`: the search with the data and weights that are really used."""
    checkpoint_files.seconds_between()  # a wrong number is said before any work
    mlflow_store.expect_usable_store()
    dataset, [prepared] = prepare([search.recipe], quiet=quiet)
    if search.objective == "val_top5_accuracy" and len(dataset.class_names) < TOP5_CLASSES:
        raise ArgumentError(
            f"Expected at least {TOP5_CLASSES} classes for the objective val_top5_accuracy. Received: "
            f"{len(dataset.class_names)}. Use another objective."
        )
    recipe = dataclasses.replace(prepared.recipe, dataset=prepared.recipe.dataset or dataset.name)
    return dataclasses.replace(search, recipe=recipe), dataset, prepared.tags


def label_of(trial) -> str:
    """The tag that says which trial a run is: its number, without KerasTuner's zeros."""
    return str(int(trial.trial_id))
