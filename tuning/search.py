"""The KerasTuner search: every trial an MLflow child run, the winner chosen afresh, resumable at any moment.

A search sees training and validation images only. Its best recipes are trained again with new seeds, the one with the
best mean validation score wins, and only that one is trained once more and scored on the test set.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cnnlab.errors import ArgumentError, LabError
from cnnlab.models import own
from cnnlab.names import markdown
from cnnlab.prepare import prepare
from cnnlab.results.names import TOP5_CLASSES
from cnnlab.tracking import checkpoints, read, store
from cnnlab.tracking import run as tracking
from cnnlab.tracking.provenance import data_tags
from tuning import report
from tuning.finals import train_finalists, train_winner
from tuning.kerastuner import make_tuner, reading_state, write_json
from tuning.spaces import check_space
from tuning.states import SETTINGS, searches_folder
from tuning.trials import Place
from tuning.workers import CHIEF_TIMEOUT, answer_workers, end_with_chief, role, search_with_workers


@dataclass(frozen=True)
class SearchResult:
    """`parent_run_id`; `rows`, a dict for each trial (see `report.trial_rows`); `winner_run_id`, an ordinary run."""

    parent_run_id: str
    rows: list
    winner_run_id: str


def run_search(search, *, name=None, workers=1, restart=False) -> SearchResult:
    """Run a search to its end, or go on with one that was interrupted.

    Args:
        search: a `Search`.
        name: of the search's folder, `mlruns/searches/<name>`; the model's name by default.
        workers: processes that run trials at the same time, on this machine.
        restart: forget the trials of an unfinished search of that name.

    Raises:
        ArgumentError: the space is out of bounds, or an unfinished search of that name has other settings or data.
        LabError: several trials failed in a row, none succeeded, the state is damaged, or the search runs already.
    """
    with own.pinned([search.recipe.model]):  # all trials are of one source
        return _run_search(search, name or search.recipe.label, workers, restart)


def _run_search(search, name, workers, restart):
    check_space(search.space, search.recipe)
    search, dataset, tags = _load(search)
    with store.opened():
        return _search(search, dataset, tags, name, workers, restart)


def _search(search, dataset, tags, name, workers, restart):
    folder = search_folder(name)
    with _alone(folder, name):
        settings = search.settings(dataset)
        checkpoints.sweep()
        goes_on = _prepare(folder, name, settings, restart)
        experiment_id = tracking.experiment_for(dataset)
        key = search_key(settings, name)
        space = ", ".join(f"{field[6:]} {values}" for field, values in settings.items() if field.startswith("space."))
        with tracking.tracked_run(
            experiment_id,
            f"search {name}",
            params=settings,
            tags={"kind": "search", "search": key, "figure": report.BEST, **data_tags(dataset), **tags},
            description=f"{search.tuner} search of {markdown(search.recipe.label)} on **{markdown(dataset.name)}** for "
            f"{search.objective}: {markdown(space)}",
            resumed_run_id=read.newest_run(experiment_id, search=key) if goes_on else None,
        ) as parent_run_id:
            write_json(folder / SETTINGS, {"settings": settings})
            place = Place(experiment_id, parent_run_id, dataset, tags)
            tuner = make_tuner(search, folder, place)
            if workers > 1:
                search_with_workers(tuner, search, name, workers)
            elif role() == "chief":
                answer_workers(tuner)
            else:
                tuner.search()
            rows = report.trial_rows(tuner.oracle, place.children(kind="trial"))
            tracking.log_results(*report.trials_report(rows, search))
            _expect_trials(tuner.oracle)
            winner_run_id = train_winner(search, train_finalists(search, tuner.oracle, place), place)
        write_json(folder / SETTINGS, {"settings": settings, "finished": winner_run_id})
    return SearchResult(parent_run_id, rows, winner_run_id)


def search_folder(name) -> Path:
    """Where a search keeps KerasTuner's state."""
    return searches_folder() / name


def search_key(settings, name) -> str:
    """What a second start, and workers on other machines, find the parent run by."""
    return hashlib.sha256(json.dumps([name, settings], sort_keys=True).encode()).hexdigest()[:16]


def _load(search, quiet=False):
    """`(search, dataset, tags)`: the search with the data and weights that are really used."""
    checkpoints.seconds_between()  # a wrong number is said before any work
    store.expect_usable_store()
    dataset, [prepared] = prepare([search.recipe], quiet=quiet)
    if search.objective == "val_top5_accuracy" and len(dataset.class_names) < TOP5_CLASSES:
        raise ArgumentError(
            f"Expected at least {TOP5_CLASSES} classes for the objective val_top5_accuracy. Received: "
            f"{len(dataset.class_names)}. Use another objective."
        )
    recipe = dataclasses.replace(prepared.recipe, dataset=prepared.recipe.dataset or dataset.name)
    return dataclasses.replace(search, recipe=recipe), dataset, prepared.tags


def _alone(folder, name):
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(f"{folder}.lock", timeout=0).acquire()
    except Timeout:
        raise LabError(
            f"Expected search '{name}' to be idle. Received: another process runs it. Wait, or use --name."
        ) from None


def _prepare(folder, name, settings, restart):
    """Make the search's folder; returns whether an equal search goes on in it.

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
            "Use the same to go on, --name for a search beside it, or --restart to forget it."
        )
    if differences:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return not differences


def _read(file):
    if not file.exists():
        return {}
    with reading_state(file):
        state = json.loads(file.read_text())
        return {**state, "settings": dict(state["settings"])}


def _expect_trials(oracle):
    ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
    if oracle.gave_up():
        failures = oracle.failures
    elif any(trial.status == "COMPLETED" for trial in ended):
        return
    else:
        failures = ended
    raise LabError(
        f"Expected trials that train. Received {len(failures)} failures in a row, the last one: "
        f"{report.reason_of(failures[-1]).rstrip('.')}. Correct what failed, and the same command goes on; or narrow "
        "the space with --space and --restart."
    )


def work_for_chief(search, name=None) -> None:
    """Run trials for the chief that KerasTuner's variables name, until it says to stop or is gone.

    Raises:
        LabError: no search with the same settings and data is in the store.
    """
    with own.pinned([search.recipe.model]), store.opened():
        _work_for_chief(search, name or search.recipe.label)


def _work_for_chief(search, name):
    search, dataset, tags = _load(search, quiet=True)
    experiment_id = tracking.experiment_for(dataset)
    key = search_key(search.settings(dataset), name)
    deadline = time.monotonic() + CHIEF_TIMEOUT
    while (parent_run_id := read.newest_run(experiment_id, running=True, search=key)) is None:
        if time.monotonic() > deadline:
            raise LabError(
                "Expected the chief's search to run in this store. Received: none with these settings and data in "
                f"{CHIEF_TIMEOUT} seconds. Start the chief, with the same command and the same MLFLOW_TRACKING_URI."
            )
        time.sleep(1)
    end_with_chief()
    folder = search_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    make_tuner(search, folder, Place(experiment_id, parent_run_id, dataset, tags)).search()
