"""A search's settings, and its trials: KerasTuner's loop around the shared runner."""

import contextlib
import dataclasses
import gc
import io
from dataclasses import dataclass
from pathlib import Path

import keras_tuner
import numpy as np
from keras_tuner.src import config as keras_tuner_config
from keras_tuner.src.engine import conditions

from cnnlab import tracking
from cnnlab.data import ImageDataset
from cnnlab.errors import ArgumentError, LabError
from cnnlab.interrupts import signals_held
from cnnlab.models import build_model
from cnnlab.recipe import Recipe
from cnnlab.runner import fit_and_evaluate
from tuning import report
from tuning.hypermodels import Range, hyperparameters, recipe_of
from tuning.oracles import make_oracle, write_json

# It prints the traceback of every failed trial; our line says why, and the run and the trial's file keep all of it.
keras_tuner_config.DEBUG = False
# It prints a line, for debugging as it seems, for each condition that it sends to another process.
conditions.print = lambda *_: None

SCORE = "score"  # the metric of a trial's run that says it is complete


@dataclass(frozen=True)
class Search:
    """What a search is: two with equal settings and equal data are the same one, and a second start goes on.

    Attributes:
        recipe: the `Recipe` that everything outside the space comes from.
        space: hyperparameter to a tuple of choices or a `Range`.
        tuner: "bayesian", "random" or "hyperband".
        objective: "val_accuracy" or "val_loss", of the weights that the trial ends with.
        finalists: how many of the best recipes are trained afresh.
        final_seeds: how often each, with a new seed every time.
        trials: at most as many; may be raised later.
    """

    recipe: Recipe
    space: dict
    tuner: str = "bayesian"
    objective: str = "val_accuracy"
    finalists: int = 3
    final_seeds: int = 2
    trials: int = 20

    def __post_init__(self):
        if not self.recipe.val_fraction:
            raise ArgumentError(
                "Expected val_fraction above 0 in a search, which must not choose by the test set. "
                "Received: val_fraction=0. Leave it out."
            )

    def settings(self, dataset) -> dict:
        """As flat texts, with the data: what must be equal for a search to go on."""
        space = {f"space.{name}": space_text(values) for name, values in self.space.items()}
        # The digest says which data it is, wherever the folder is.
        left_out = {*self.space, "dataset"}
        recipe = {name: value for name, value in self.recipe.params().items() if name not in left_out}
        rest = {name: getattr(self, name) for name in ("tuner", "objective", "finalists", "final_seeds")}
        return {name: str(value) for name, value in {**recipe, **rest, **space, "data": dataset.digest}.items()}

    def seed(self, *path) -> int:
        """A seed derived from the search's and from what it is for."""
        return int(np.random.SeedSequence([self.recipe.seed, *path]).generate_state(1)[0] % 2**31)


def space_text(values) -> str:
    """A hyperparameter's values as `--space` takes them."""
    return str(values) if isinstance(values, Range) else ",".join(map(str, values))


@contextlib.contextmanager
def freed_models():
    """Free what Keras and TensorFlow keep of the models made inside; without it each trial leaves 10 MB behind."""
    import keras
    from tensorflow.python.framework import ops

    # Every traced training step registers gradients of its own here, and they hold on to its graphs.
    registry = ops.gradient_registry._registry
    before = set(registry)
    try:
        yield
    finally:
        with signals_held():
            keras.backend.clear_session()
            for name in registry.keys() - before:
                del registry[name]
            gc.collect()


@dataclass(frozen=True)
class Place:
    """Where a search's runs go: their experiment and parent, the data they are on, and tags for each of them."""

    experiment_id: str
    parent_run_id: str
    dataset: ImageDataset
    tags: dict

    def children(self, **tags) -> list[dict]:
        """The runs below the parent that carry these tags of ours, as `tracking.children_of` gives them."""
        runs = tracking.children_of(self.parent_run_id, self.experiment_id)
        return [run for run in runs if tags.items() <= run["tags"].items()]

    @freed_models()
    def scored_run(self, search, recipe, kind, label, run_name) -> float:
        """Train a recipe without the test set as a child run and return its score; a finished run is not repeated.

        Runs that an earlier process left under the same label without finishing are deleted, so that none counts twice.
        """
        tags = {"kind": kind, "label": label, **self.tags}
        for run in self.children(kind=kind, label=label):
            if run["status"] == "FINISHED" and SCORE in run["metrics"]:
                return run["metrics"][SCORE]
            tracking.delete_run(run["run_id"])
        parent = {"parent_run_id": self.parent_run_id}
        try:
            model = build_model(recipe, self.dataset)
        except LabError:  # a trial that cannot even be built is a failed run too
            with tracking.tracked_run(self.experiment_id, run_name, params=recipe.params(), tags=tags, **parent):
                raise
        result = fit_and_evaluate(model, self.dataset, recipe, run_name=run_name, tags=tags, test=False, **parent)
        score = result.history[search.objective][kept_epoch(result.history, recipe)]
        tracking.log_metric_of(result.run_id, SCORE, score)
        return score


def label_of(trial) -> str:
    """The tag that says which trial a run is: its number, without KerasTuner's zeros."""
    return str(int(trial.trial_id))


def kept_epoch(history, recipe) -> int:
    """The epoch whose weights the model ends with: the last, or with patience the one with the lowest val_loss."""
    return int(np.argmin(history["val_loss"])) if recipe.patience else len(history["val_loss"]) - 1


class TrackedTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """KerasTuner's loop around the shared runner."""

    def __init__(self, search, place, **kwargs):
        self.search_settings, self.place = search, place
        with contextlib.redirect_stdout(io.StringIO()):  # it announces that it reloads
            super().__init__(**kwargs)
        self.save()

    def run_trial(self, trial):
        search = self.search_settings
        recipe = recipe_of(trial.hyperparameters.values, search.recipe)
        recipe = dataclasses.replace(recipe, seed=search.seed(int(trial.trial_id)))
        label = label_of(trial)
        score = self.place.scored_run(search, recipe, "trial", label, f"trial {label}")
        return {search.objective: score}

    def save(self):
        if not self._is_worker():
            self.oracle.save()
        write_json(Path(self._get_tuner_fname()), {})


def make_tuner(search, folder, place) -> TrackedTuner:
    """The tuner of a search, with the state that is in `folder`."""
    oracle = make_oracle(
        search.tuner,
        space=hyperparameters(search.space, search.recipe),
        objective=search.objective,
        trials=search.trials,
        epochs=search.recipe.epochs,
        seed=search.recipe.seed,
    )

    def on_end(oracle, trial):
        if trial.status == "FAILED" and not trial.message:  # it does not come over from another process
            for run in place.children(kind="trial", label=label_of(trial)):
                trial.message = run["tags"].get("reason")
        print(report.trial_line(oracle, trial, search), flush=True)

    oracle.on_end = on_end
    return TrackedTuner(search, place, oracle=oracle, directory=str(folder.parent), project_name=folder.name)
