"""Search hyperparameters with KerasTuner: every trial is an MLflow child run, and a search can always be resumed.

A search sees training and validation images only. Its best recipes are trained again with new seeds, the one with the
best mean validation score wins, and only that one is trained once more and scored on the test set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.errors import ArgumentError, LabError, masked
from cnnlab.recipe import RunOptions, first_names, renamed_fields
from cnnlab.tracking import checkpoint_files, run_logging, run_queries
from cnnlab.tracking.provenance import data_tags
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.session import Session
from cnnlab.tracking.store_location import TRACKING_VARIABLE, local_database, store_uri
from cnnlab.tuning import search_report
from cnnlab.tuning.finalists import train_finalists, train_winner
from cnnlab.tuning.oracles import make_oracle, reading_state, write_json
from cnnlab.tuning.search_settings import Search, expect_runnable
from cnnlab.tuning.search_states import SETTINGS, searches_folder
from cnnlab.tuning.spaces import check_space
from cnnlab.tuning.trial_recipes import recipe_of, values_of
from cnnlab.tuning.trials import Place, data_loaded, label_of, load, train_scored
from cnnlab.utils.argument_types import convert_arguments
from cnnlab.utils.local_workers import ProcessWorkers
from cnnlab.utils.log import log
from cnnlab.utils.ray_workers import expect_address, ray_workers
from cnnlab.utils.text import markdown
from cnnlab.utils.worker_pool import Job, ThisProcess, run_jobs


@dataclass(frozen=True)
class SearchResult:
    """What a search gave: `parent_run_id`; `rows`, a dict for each trial (see `search_report.trial_rows`);
    `winner_run_id`, an ordinary run; and `winner_values`, its value of each hyperparameter.
    """

    parent_run_id: str
    rows: list[dict[str, Any]]
    winner_run_id: str
    winner_values: dict[str, Any]


@convert_arguments
def run_search(
    search: Search,
    *,
    name: str | None = None,
    workers: int | None = None,
    restart: bool = False,
    options: RunOptions | None = None,
) -> SearchResult:
    """Run a search to its end, or resume one that was interrupted.

    Args:
        search: a `Search`.
        name: of the search's folder, `mlruns/searches/<name>`; the model's name by default.
        workers: trainings at the same time: 1 by default in this process, more in processes on this machine; on a
            cluster at most, by default as many as there is room for.
        restart: forget the trials of an unfinished search of that name.
        options: how the trainings are carried out; a cluster runs them.

    Raises:
        ArgumentError: the space is out of bounds, an unfinished search of that name has other settings or data, or
            the cluster has no room.
        LabError: several trials failed in a row, none succeeded, the state is damaged, the search runs already, or the
            cluster does not answer.

    Example:
        recipe = cnnlab.Recipe(dataset="digits", limit=150, filters=(8,), epochs=1)
        space = {"learning_rate": cnnlab.Range(1e-3, 1e-2, log=True)}
        found = cnnlab.run_search(cnnlab.Search(recipe, space, trials=2, finalists=1, final_seeds=1))
        print(found.winner_run_id)
    """
    options = options or RunOptions()
    expect_runnable(name, workers, options)
    if options.cluster:
        expect_address(options.cluster)
    if (options.cluster or (workers or 1) > 1) and options.devices != 1:
        raise ArgumentError(
            f"Expected one device for each of several trainings at a time. Received: devices {options.devices}. Leave "
            "it out, or leave out workers and on."
        )
    with Session([search.recipe.model], options=options) as session:  # all trials are of one source
        search = dataclasses.replace(search, space=check_space(search.space, search.recipe))
        search, dataset, tags = load(search, options)
        name = name or search.recipe.label
        # What the nodes of a cluster write and read is on the server.
        recorder = session.recorder(direct=options.cluster is not None, resume_key=f"search-{name}")
        with _workers(workers, options) as at, _lock_of(search_folder(name), name):
            parent_run_id, winner_run_id, rows, winner = _search(
                recorder, search, dataset, tags, name, at, restart, options
            )
    rows = [{**row, "run_id": row["run_id"] and recorder.id_to_show(row["run_id"])} for row in rows]
    return SearchResult(recorder.id_to_show(parent_run_id), rows, recorder.id_to_show(winner_run_id), winner)


@contextlib.contextmanager
def _workers(count: int | None, options: RunOptions) -> Iterator[tuple[Any, Any]]:
    """Start the workers for the trials; yield them, and those for the winner, beside which nothing else is trained."""
    if options.cluster:
        asked = {"cpus": options.cpus, "gpus": options.gpus, "limit": count}
        with ray_workers(options.cluster, **asked, variables={TRACKING_VARIABLE: store_uri()}) as workers:
            if workers.elsewhere and local_database(store_uri()):
                raise ArgumentError(
                    f"Expected a store that {workers.elsewhere[0]}, a node of the cluster, can reach. Received: "
                    f"{masked(store_uri())}. Set MLFLOW_TRACKING_URI to the address of an MLflow server."
                )
            yield workers, workers
    elif count and count > 1:
        with contextlib.closing(ProcessWorkers(count)) as workers:
            yield workers, ThisProcess()
    else:
        yield ThisProcess(), ThisProcess()


def _search(
    recorder: Recorder,
    search: Search,
    dataset: ImageDataset,
    tags: dict[str, Any],
    name: str,
    at: tuple[Any, Any],
    restart: bool,
    options: RunOptions,
) -> tuple[str, str, list[dict[str, Any]], dict[str, Any]]:
    """Run a search below its parent run; return the ids of the parent and the winner, the trials' rows, and the
    winner's values.
    """
    folder, settings = search_folder(name), search.settings(dataset)
    checkpoint_files.sweep()
    is_resumed = _prepare(folder, name, settings, restart)
    experiment_id = recorder.experiment_for(dataset)
    key = search_key(settings, name)
    space = ", ".join(f"{field[6:]} {values}" for field, values in settings.items() if field.startswith("space."))
    with recorder.start(
        experiment_id,
        f"search {name}",
        params=settings,
        tags={"kind": "search", "search": key, "figure": search_report.BEST, **data_tags(dataset), **tags},
        description=f"{search.tuner} search of {markdown(search.recipe.label)} on **{markdown(dataset.name)}** for "
        f"{search.objective}: {markdown(space)}",
        resumed_run_id=run_queries.newest_run(experiment_id, search=key) if is_resumed else None,
    ) as parent_run_id:
        write_json(folder / SETTINGS, {"settings": settings})
        place = Place(experiment_id, parent_run_id, dataset, tags, options)
        with data_loaded(place):
            winner_run_id, rows, winner = _trials_to_winner(search, make_oracle(search, folder), place, *at)
    write_json(folder / SETTINGS, {"settings": settings, "finished": winner_run_id})
    return parent_run_id, winner_run_id, rows, winner


def _trials_to_winner(
    search: Search, oracle: Any, place: Place, workers: Any, last: Any
) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Run the trials, the finalists and the winner; return the winner's recorded id, the trials' rows, and the winner's
    values.
    """
    _run_trials(search, oracle, place, workers)
    if oracle.used_up:
        said = f"All {oracle.recipes_tried()} recipes of this space were tried."
        log.info(said)
        run_logging.describe_run(said)
    rows = search_report.trial_rows(oracle, place.children(kind="trial"))
    run_logging.log_results(*search_report.trials_report(rows, search))
    _expect_trials(oracle)
    recipe = train_finalists(search, oracle, place, workers)
    if workers is not last:
        workers.close()
    waiting = [Job("the winner", train_winner, (place.address(search), recipe))]
    [ended] = run_jobs(lambda: waiting.pop() if waiting else None, last)
    winner_run_id, accuracy = ended.result()
    run_logging.log_results({"test_accuracy": accuracy}, {}, {"winner.json": recipe.to_json()})
    run_logging.describe_run(f"Trained once more, its test accuracy is **{accuracy:.2%}**: winner.json is its recipe.")
    return winner_run_id, rows, values_of(recipe, search.space)


def _run_trials(search: Search, oracle: Any, place: Place, workers: Any) -> None:
    trials, address = {}, place.address(search)  # by name

    def ask() -> Job | None:
        trial = oracle.ask()
        if trial is None:
            return None
        label = label_of(trial)
        name = f"trial {label}"
        trials[name] = trial
        recipe = recipe_of(trial.hyperparameters.values, search.recipe)
        recipe = dataclasses.replace(recipe, seed=search.seed(int(trial.trial_id)))
        return Job(name, train_scored, (address, recipe, "trial", label, name))

    for ended in run_jobs(ask, workers):
        trial = trials.pop(ended.job.name)
        oracle.tell(trial, ended.value, ended.error)
        log.info(search_report.trial_line(oracle, trial, search))
        if oracle.gave_up():
            workers.close()  # the others of the kind
            return


def search_folder(name: str) -> Path:
    """Return the folder in which a search keeps KerasTuner's state."""
    return searches_folder() / name


def search_key(settings: dict[str, str], name: str) -> str:
    """Return the key by which a second start finds the parent run."""
    # By the first names of fields, so that a search that an earlier version began is found.
    return hashlib.sha256(json.dumps([name, first_names(settings)], sort_keys=True).encode()).hexdigest()[:16]


def _lock_of(folder: Path, name: str) -> AcquireReturnProxy:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(f"{folder}.lock", timeout=0).acquire()
    except Timeout:
        raise LabError(
            f"Expected search '{name}' to be idle. Received: another process runs it. Wait, or use another name."
        ) from None


def _prepare(folder: Path, name: str, settings: dict[str, str], restart: bool) -> bool:
    """Make the search's folder; return whether an equal search is resumed in it.

    Raises:
        ArgumentError: it holds an unfinished search with other settings.
    """
    before = {} if restart else _read(folder / SETTINGS)
    old = before.get("settings", {})
    differences = [
        f"{key} was {old.get(key, 'not set')}, is {settings.get(key, 'not set')}"
        for key in sorted({*old, *settings})
        if old.get(key) != settings.get(key)
    ]
    if before and differences and "finished" not in before:
        raise ArgumentError(
            f"Expected the settings of the unfinished search '{name}'. Received others: {'; '.join(differences)}. "
            "Use the same to go on, another name for a search beside it, or restart to forget it."
        )
    if differences:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return not differences


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    with reading_state(file):
        state = json.loads(file.read_text())
        return {**state, "settings": renamed_fields(state["settings"])}


def _expect_trials(oracle: Any) -> None:
    ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
    if oracle.gave_up():
        failures = oracle.failures
    elif any(trial.status == "COMPLETED" for trial in ended):
        return
    else:
        failures = ended
    raise LabError(
        f"Expected trials that train. Received {len(failures)} failures in a row, the last one: "
        f"{search_report.reason_of(failures[-1]).rstrip('.')}. Correct what failed, and the same command goes on; "
        "or restart it with a narrower space."
    )
