"""Trials as runs: where they go, and what one of them is, whichever engine asks for it."""

from dataclasses import dataclass

from cnnlab.data import ImageDataset
from cnnlab.errors import LabError, StoreGone
from cnnlab.interrupted import interrupted_run
from cnnlab.prepare import build_model
from cnnlab.runner import fit_and_evaluate
from cnnlab.tracking import read
from cnnlab.tracking import run as tracking
from cnnlab.training.compute import freed_models

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
        runs = read.children_of(self.parent_run_id, self.experiment_id)
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
                return self._scored_run(search, recipe, kind, label, run_name)
            except StoreGone:
                tracking.wait_for_store(PATIENCE)
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


def label_of(trial) -> str:
    """The tag that says which trial a run is: its number, without KerasTuner's zeros."""
    return str(int(trial.trial_id))
