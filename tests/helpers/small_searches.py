"""Make searches that train for seconds, and list what they recorded."""

import mlflow

import cnnlab
from cnnlab.models.model_table import Range
from cnnlab.tuning.search_settings import Search

SPACE = {"learning_rate": Range(1e-3, 1e-2, log=True), "dense_units": (8, 16)}


def small_search(**changes):
    recipe = cnnlab.Recipe(dataset="digits", limit=150, filters=(4,), epochs=1)
    options = {"space": SPACE, "tuner": "random", "trials": 3, "finalists": 1, "final_seeds": 1, **changes}
    return Search(options.pop("recipe", recipe), **options)


def runs_by_kind(store, view=mlflow.entities.ViewType.ACTIVE_ONLY):
    experiments = [e.experiment_id for e in store.search_experiments()]
    kinds = {}
    for run in store.search_runs(experiments, run_view_type=view):
        kinds.setdefault(run.data.tags["cnnlab.kind"], []).append(run)
    return kinds
