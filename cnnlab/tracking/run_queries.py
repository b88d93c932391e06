"""Find runs of the store, and read back their recipes, curves, predictions and other artifacts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.entities import Run as Run  # noqa: PLC0414  for annotations of modules that do not import mlflow

from cnnlab.data.dataset import load_dataset
from cnnlab.errors import ArgumentError, LabError, did_you_mean, expecting, first_line, reading
from cnnlab.evaluation.predictions import PREDICTIONS_FILE, Predictions, load_predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.recipe import ResolvedRecipe
from cnnlab.tracking.pagination import OURS, all_experiments, paginate
from cnnlab.tracking.session import folder_of_waiting_run
from cnnlab.tracking.store_location import local_database
from cnnlab.tracking.tag_names import FAILED, KNOWN_AS, RECORDED_AS, TAG, UNDELIVERED, matches, our_tags
from cnnlab.utils.log import log
from cnnlab.utils.temporary_folders import private_folder

RESTORE = "Restore the store's artifacts, or train again."
HISTORY = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def find_run(run_id: str) -> Run:
    """Return the MLflow run with this id, or with this beginning of an id, in the open store.

    Raises:
        ArgumentError: no run has it, or several have.
    """
    if not re.fullmatch(r"[0-9a-f]{4,32}", run_id):
        raise ArgumentError(
            f"Expected a run's id, or at least its first 4 characters (0-9, a-f). Received: '{run_id}'. "
            "'cnnlab ui' shows the runs."
        )
    client = mlflow.MlflowClient()
    # Its id here, where it was recorded or copied from, and in the stores between.
    for name, before in (("attributes.run_id", ""), (f"tags.`{RECORDED_AS}`", ""), (f"tags.`{KNOWN_AS}`", "% ")):
        condition = f"{name} LIKE '{before}{run_id}%' and {OURS}"
        runs = client.search_runs(all_experiments(client), condition, max_results=2)
        if runs:
            break
    if not runs and (folder := folder_of_waiting_run(run_id)):
        raise ArgumentError(
            f"Expected a run that the store has. Received: {run_id[:8]}, which waits in '{folder}'. "
            "Deliver it with 'cnnlab sync'."
        )
    if len(runs) != 1:
        own = Path("mlflow.db").resolve()  # of MLflow itself, and so of `mlflow run`
        another = own.exists() and own != local_database(mlflow.get_tracking_uri())
        received = f"'{run_id}', which is that of {'several runs' if runs else 'no run'} in this store"
        raise ArgumentError(
            f"Expected the id of a run, or enough of its first characters. Received: {received}. "
            "'cnnlab ui' shows the runs; the store is the one of the working folder, or MLFLOW_TRACKING_URI's."
            + (" MLflow's own is here too: MLFLOW_TRACKING_URI=sqlite:///mlflow.db." if another else "")
        )
    return runs[0]


def find_finished_run(run_id: str) -> Run:
    """Return the run with this id as `find_run` does, if it is a finished run of one model.

    Raises:
        ArgumentError: also when the run failed, or is not the run of a model.
    """
    run = find_run(run_id)
    _expect_one_model(run)
    if run.info.status != "FINISHED":
        raise ArgumentError(f"Expected a finished run. Received: {_state_of(run)}.")
    return run


def find_interrupted_run(run_id: str) -> Run:
    """Return the run with this id as `find_run` does, if it is a run of one model that ended without finishing.

    Raises:
        ArgumentError: also when it is finished or still runs, is not the run of a model, or belongs to a search.
    """
    run = find_run(run_id)
    _expect_one_model(run)
    if "label" in our_tags(run.data.tags):
        raise ArgumentError(
            f"Expected the run of one training. Received: {run.info.run_id[:8]}, which a search made. Start the search "
            "again with the same command, and it goes on."
        )
    if run.info.status in ("FINISHED", "RUNNING"):
        more = " To train it for more, name the epochs that it is to have." if run.info.status == "FINISHED" else ""
        raise ArgumentError(f"Expected an interrupted run. Received: {_state_of(run)}.{more}")
    return run


def _expect_one_model(run: Run) -> None:
    kind = run.data.tags.get(TAG + "kind")
    if kind in ("compare", "search", "audit"):
        received = "an audit" if kind == "audit" else f"a {kind} run. Take one of the runs below it"
        raise ArgumentError(f"Expected the run of one model. Received: {run.info.run_id[:8]}, {received}.")


def _state_of(run: Run) -> str:
    reason = run.data.tags.get(TAG + "reason")
    if rest := run.data.tags.get(UNDELIVERED):
        reason = f"the rest of it waits at {rest}: deliver it there with 'cnnlab sync'"
    return f"{run.info.run_id[:8]}, which is {run.info.status}{f' ({reason})' if reason else ''}"


def best_run(experiment: str | None = None, by: str = "accuracy") -> Run:
    """Return the finished run with the best validation score of an experiment, by default the one that was used last.

    Raises:
        ArgumentError: no such experiment.
        LabError: it has no finished run with a model.
    """
    client = mlflow.MlflowClient()
    # A trial of a search has that score too, but no model.
    finished = (
        f"attributes.status = 'FINISHED' and metrics.final_val_{by} >= 0 and metrics.test_accuracy >= 0 and {OURS}"
    )
    names = {e.name: e.experiment_id for e in paginate(client.search_experiments)}
    experiments = list(names.values())
    if experiment:
        if experiment not in names:
            some = ", ".join([*list(names)[:20], *(["..."] if len(names) > 20 else [])])
            near = did_you_mean(experiment, names)
            raise ArgumentError(f"Expected an experiment of this store ({some}). Received: '{experiment}'.{near}")
        experiments = [names[experiment]]
    newest = _first(client, experiments, finished, "attributes.start_time DESC")
    if newest is None:
        raise LabError(
            "Expected a finished run with a model. Received: none in this store. Train one with 'cnnlab compare', "
            "in this folder."
        )
    return _first(client, [newest.info.experiment_id], finished, f"metrics.final_val_{by} DESC") or newest


def read_result(run: Run, id_to_show: Callable[[str], str] = str) -> RunResult:
    """Read what `fit_and_evaluate` returned for a run of the open store that is finished.

    Raises:
        LabError: the run has no test predictions (a trial of a search), or they are missing.
    """
    metrics = run.data.metrics
    if not was_tested(run):
        raise LabError(
            f"Expected a run with a model and test predictions. Received: {run.info.run_id[:8]}, a "
            f"{run.data.tags.get(TAG + 'kind')} run without them. Of a search, take the winner."
        )
    class_names, predictions = read_predictions(run)
    return RunResult(
        recorded_id=run.info.run_id,
        name=run.info.run_name or "",
        recipe=read_recipe(run),
        dataset_name=run.data.tags[TAG + "dataset"],
        class_names=class_names,
        history=read_history(run),
        test=predictions["test"],
        validation=predictions["val"],
        params=int(metrics["params"]),
        trainable_params=int(metrics["trainable_params"]),
        train_seconds=metrics["train_seconds"],
        total_seconds=metrics["total_seconds"],
        kept_epoch=int(metrics["kept_epoch"]) if "kept_epoch" in metrics else None,
        stage_borders=(int(metrics["stage1_epochs"]),) if "stage1_epochs" in metrics else (),
        recorded_model_uri=f"models:/{_model_of(run)}",
        id_to_show=id_to_show,
    )


def _model_of(run: Run) -> str:
    """Return the id of a run's model; a kill may have left a half-written one beside it, before the run was resumed."""
    ids = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    if len(ids) == 1:
        return ids[0]
    client = mlflow.MlflowClient()
    return next((one for one in ids if client.get_logged_model(one).status == LoggedModelStatus.READY), ids[0])


def was_tested(run: Run) -> bool:
    """Return whether a run has a test score and a model; a trial of a search has neither."""
    return "test_accuracy" in run.data.metrics


def read_predictions(run: Run) -> tuple[tuple[str, ...], dict[str, Predictions]]:
    """Read `(class_names, predictions by split)` of a run that was tested, as `load_predictions` gives them."""
    return read_artifact(run, PREDICTIONS_FILE, load_predictions)


def identified(run: Run, predictions: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Add the identity of their images to the predictions of a run of an earlier version: read its data once more.

    Raises:
        LabError: the data cannot be read, or are others now.
    """
    if all(one.identity for one in predictions.values()):
        return dict(predictions)
    log.info(f"Run {run.info.run_id[:8]} does not say which images it was tested on; reading them to find out.")
    try:
        dataset = load_dataset(**read_recipe(run).data_arguments())
        splits = {name: getattr(dataset, name) for name in predictions}
        if any(splits[name].digest != one.digest for name, one in predictions.items()):
            raise LabError("other pixels than it was tested on")
    except LabError as error:
        raise LabError(
            f"Expected to find out which images run {run.info.run_id[:8]} of an earlier version was tested on. "
            f"Received: {first_line(error)}. Put its data back where they were, or train again."
        ) from error
    return {name: replace(one, identity=splits[name].identity) for name, one in predictions.items()}


def read_recipe(run: Run) -> ResolvedRecipe:
    """Read the recipe that a run logged."""
    return ResolvedRecipe.from_json(read_text(run, "recipe.json"))


def read_text(run: Run, name: str) -> str:
    """Read a text artifact of a run."""
    return read_artifact(run, name, text_of)


def text_of(path: str | Path) -> str:
    """Read a file of a run as text."""
    with reading(f"'{Path(path).name}' to be a text", RESTORE):
        return Path(path).read_text(encoding="utf-8")


def read_history(run: Run) -> dict[str, list[float]]:
    """Read the per-epoch metrics of a run, `{"loss": [...], "val_accuracy": [...], ...}`."""
    client = mlflow.MlflowClient()
    history = {name: client.get_metric_history(run.info.run_id, name) for name in HISTORY}
    history = {name: [m.value for m in sorted(values, key=lambda m: m.step)] for name, values in history.items()}
    return {name: values for name, values in history.items() if values or name != "learning_rate"}  # of earlier runs


def has_file(run: Run, name: str) -> bool:
    """Return whether a run has an artifact of this name at the top."""
    return name in {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def read_artifact(run: Run, name: str, read: Callable[[Path], Any]) -> Any:
    """Read an artifact of a run by a function that takes its file.

    Raises:
        LabError: it is missing or damaged.
    """
    what, kinds = f"run {run.info.run_id[:8]} to have its {name}", (OSError, mlflow.MlflowException)
    with private_folder("files") as folder, expecting(what, RESTORE, "", kinds):
        return read(Path(download_artifacts(run_id=run.info.run_id, artifact_path=name, dst_path=str(folder))))


def tags_of(run_id: str) -> dict[str, str]:
    """Return our own tags of a run, without their prefix."""
    return our_tags(mlflow.MlflowClient().get_run(run_id).data.tags)


def _first(client: mlflow.MlflowClient, experiments: list[str], condition: str, order: str) -> Run | None:
    runs = client.search_runs(experiments, condition, order_by=[order], max_results=1) if experiments else []
    return runs[0] if runs else None


def children_of(parent_run_id: str, experiment_id: str) -> list[dict[str, Any]]:
    """Read the runs below a run, oldest first: `run_id`, `status`, `seconds`, `metrics`, `params`, our `tags`."""
    runs = paginate(
        mlflow.MlflowClient().search_runs,
        [experiment_id],
        matches("tags.mlflow.parentRunId", parent_run_id),
        order_by=["attributes.start_time ASC"],
    )
    return [
        {
            "run_id": run.info.run_id,
            "status": run.info.status,
            "seconds": ((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000,
            "metrics": run.data.metrics,
            "params": run.data.params,
            "tags": our_tags(run.data.tags),
        }
        for run in runs
    ]


def newest_run(experiment_id: str, running: bool = False, interrupted: bool = False, **tags: str) -> str | None:
    """Return the id of the newest run of an experiment that carries these tags of ours, or `None`.

    Args:
        running: leaves ended runs out.
        interrupted: `None` too where the newest still runs, or is finished and nothing of it failed.
    """
    conditions = [matches(f"tags.`{TAG}{key}`", value) for key, value in tags.items()]
    conditions += ["attributes.status = 'RUNNING'"] * running
    run = _first(mlflow.MlflowClient(), [experiment_id], " and ".join(conditions), "attributes.start_time DESC")
    if run is None:
        return None
    status, is_complete = run.info.status, FAILED not in run.data.tags
    if interrupted and (status == "RUNNING" or (status == "FINISHED" and is_complete)):
        return None
    return run.info.run_id
