"""Copy runs and registered models from one store to another, for `cnnlab import` and `cnnlab export --format runs`.

What the other store has already is left as it is, and an interrupted copy goes on when the command is repeated.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import Run, ViewType

from cnnlab.errors import ArgumentError, LabError, did_you_mean, masked
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.maintenance.findings import counted
from cnnlab.tracking.mlflow_internals import short_reason
from cnnlab.tracking.offline.model_copy import copy_registered
from cnnlab.tracking.offline.run_copy import OLDEST_FIRST, PARENT, Transfer, origin
from cnnlab.tracking.pagination import all_experiments, paginate
from cnnlab.tracking.server_checks import expect_reachable
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.store_location import (
    STORE_FOLDER,
    artifacts_folder,
    is_server,
    local_database,
    local_folder,
    sqlite_uri,
)
from cnnlab.tracking.tag_names import RECORDED_AS, UNDELIVERED

IDS_IN_QUERY = 100  # run ids in one condition of a search
MAX_FAILURES = 3  # runs that cannot be copied, before the copy ends
ENDED = ("FINISHED", "FAILED", "KILLED")


def export_runs(run_ids: Sequence[str] = (), output: str | Path | None = None) -> Iterator[str]:
    """Write runs and registered models into a folder that is a store of its own, as a generator of sentences.

    Args:
        run_ids: whole ids or their first characters; with the runs above and below them. All runs without.
        output: the folder, by default `runs`. What an earlier export wrote there stays, and what is new is added.

    Raises:
        ArgumentError: the folder has other things in it; an id is that of no run, or of several.
        LabError: something could not be copied, as the sentences say.
    """
    folder = Path(output or "runs").resolve()
    database = folder / "mlflow.db"
    if folder.exists() and not database.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(
            f"Expected a folder that is new, empty or an earlier export. Received: '{folder}'. Name another --output."
        )
    with opened_store(writes=False):
        source = mlflow.get_tracking_uri()
        own = local_database(source)
        # Of a store that may not be written, `source` is a copy beside a link to the store's artifacts.
        if own and folder in (own.parent, artifacts_folder(own).resolve().parent):
            raise ArgumentError(f"Expected another folder than the store's own. Received: '{folder}'.")
        chosen = _chosen(source, run_ids)
        with mlflow_store.opened_at(sqlite_uri(database)):
            yield from _copy(source, sqlite_uri(database), chosen, source, bool(run_ids), moves_aliases=True)
    yield f"It is in '{folder}', for 'cnnlab import {folder.name}' in another place."


def import_runs(place: str, run_ids: Sequence[str] = (), *, moves_aliases: bool = False) -> Iterator[str]:
    """Copy runs and registered models of another store into the present one, as a generator of sentences.

    Args:
        place: a folder with `mlflow.db` or `mlruns/mlflow.db`, such a file, or a server's address. It is only read.
        run_ids: as in `export_runs`.
        moves_aliases: also move aliases that another version holds in the present store.

    Raises:
        ArgumentError: `place` is no such store, or the present one; or as in `export_runs`.
        LabError: a store does not answer, or something could not be copied, as the sentences say.
    """
    database = None if is_server(place) else _database(place)
    with opened_store():
        target = mlflow.get_tracking_uri()
        if place.rstrip("/") == target.rstrip("/") or (database and database == local_database(target)):
            raise ArgumentError(f"Expected another store than the present one. Received: '{masked(place)}'.")
        if database is None:
            expect_reachable(place)
        # A database is read from a temporary copy. Sentences name the original.
        source = sqlite_uri(mlflow_store.copied(database)) if database else place
        name = str(database or place)
        yield from _copy(source, target, _chosen(source, run_ids), name, bool(run_ids), moves_aliases)
    if database:
        for pattern, what in (("checkpoints/*.npz", "interrupted training"), ("searches/*/", "search")):
            if files := list(database.parent.glob(pattern)):
                number = counted(len(files), what, "searches" if what == "search" else None)
                yield f"not carried: {number}, which go on in '{masked(place)}' only"


def _copy(
    source: str, target: str, chosen: list[Run], source_name: str, is_part: bool, moves_aliases: bool
) -> Iterator[str]:
    """Copy the chosen runs, each after the run above it, and their versions; `is_part` where they are not all."""
    place = masked(source_name)
    folder = local_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "import.lock"):  # two at once would make everything twice
        copies = _copies(target, chosen)
        known = [{"run": key, "there": copy.info.run_id} for key, copy in copies.items() if not _is_deleted(copy)]
        location = f"{socket.gethostname()}: {place}"
        transfer = Transfer(source, target, known, lambda **fact: None, source_location=location)
        failures = yield from _copy_runs(transfer, chosen, copies)
        if failures < MAX_FAILURES:
            wanted = {run.info.run_id for run in chosen} if is_part else None
            try:
                yield from copy_registered(transfer, wanted, moves_aliases)
            except (mlflow.MlflowException, OSError) as error:
                failures += 1
                yield f"not copied: the registered models. Received: {masked(short_reason(error))}."
        yield from (f"not carried: {sentence}" for sentence in transfer.lost)
        if not is_part and (kinds := _other_kinds(source)):
            yield f"not carried: {', '.join(kinds)}, which are in '{place}' only"
        yield from _summary(transfer, failures)


def _copy_runs(transfer: Transfer, chosen: list[Run], copies: dict[str, Run]) -> Generator[str, None, int]:
    """Copy runs, and return how many could not be copied."""
    failures, left_out = 0, set()
    for run in chosen:
        run_id, copy = run.info.run_id, copies.get(run.info.run_id)
        named = f"{run.info.run_name} ({run_id[:8]})"
        if why := _why_left_out(run, copy, left_out):
            left_out.add(run_id)
            yield f"left out: {named}, {why}"
            continue
        if copy and _is_whole(run, copy):
            transfer.present["run"] += 1
            continue
        try:
            transfer.copy_run(run)
            transfer.copied["run"] += 1
            yield f"copied: {named}, run {transfer.run_ids[run_id]}"
        except (mlflow.MlflowException, OSError, LabError) as error:
            left_out.add(run_id)
            failures += 1
            yield f"not copied: {named}. Received: {masked(short_reason(error))}."
            if failures == MAX_FAILURES:
                break
    return failures


def _summary(transfer: Transfer, failures: int) -> Iterator[str]:
    for what, counts in (("already there", transfer.present), ("copied", transfer.copied)):
        if counts:
            numbers = (counted(number, kind, "aliases" if kind == "alias" else None) for kind, number in counts.items())
            yield f"{what}: {', '.join(numbers)}"
    if not transfer.copied:
        yield "Nothing was copied."
    if failures:
        raise LabError(
            f"Expected to copy everything. Received: {counted(failures, 'failure')}, see above. Correct it, and "
            "repeat the command: it goes on."
        )


def _other_kinds(source: str) -> list[str]:
    """Name what a store holds that is neither a run nor a registered model, and so is not copied."""
    client = mlflow.MlflowClient(source)
    ids = all_experiments(client)
    models = paginate(client.search_logged_models, experiment_ids=ids) if ids else ()
    found = {
        "models without a run": (model for model in models if not model.source_run_id),
        "traces": paginate(client.search_traces, locations=ids, include_spans=False) if ids else (),
        "prompts": paginate(client.search_prompts),
        "webhooks": paginate(client.list_webhooks),
    }
    kinds = []
    for kind, things in found.items():
        with contextlib.suppress(mlflow.MlflowException):  # a server without such a thing
            kinds += [kind for _ in itertools.islice(things, 1)]
    return kinds


def _why_left_out(run: Run, copy: Run | None, left_out: set[str]) -> str | None:
    if run.data.tags.get(PARENT) in left_out:
        return "as the run above it is"
    if location := run.data.tags.get(UNDELIVERED):
        return f"which is not whole: the rest of it is at {location}"
    if run.info.status not in ENDED:
        return f"which is {run.info.status}: repeat the command when it has ended"
    return "whose copy was deleted" if copy and _is_deleted(copy) else None


def _is_whole(run: Run, copy: Run) -> bool:
    """Return whether the target has all of a run: it was made there, or the copy is as the run was when it ended."""
    made_there = copy.info.run_id in _ids(run)
    return made_there or (UNDELIVERED not in copy.data.tags and (copy.info.end_time or 0) >= (run.info.end_time or 0))


def _is_deleted(run: Run) -> bool:
    return run.info.lifecycle_stage == "deleted"


def _ids(run: Run) -> set[str]:
    """Return a run's id, and the one that it had where it was made."""
    return {run.info.run_id, origin(run.data.tags, run.info.run_id)}


def _copies(target: str, runs: list[Run]) -> dict[str, Run]:
    """Find the target's runs that are copies of `runs`, or that these are copies of, by the ids of `runs`."""
    client = mlflow.MlflowClient(target)
    experiments = [e.experiment_id for e in paginate(client.search_experiments, view_type=ViewType.ALL)]
    ids = sorted(set().union(*map(_ids, runs)))
    conditions = [f"tags.`{RECORDED_AS}` != ''"]
    for i in range(0, len(ids), IDS_IN_QUERY):
        conditions.append(f"attributes.run_id IN ({', '.join(map(repr, ids[i : i + IDS_IN_QUERY]))})")
    found = []
    for condition in conditions if experiments else ():
        options = {"run_view_type": ViewType.ALL, "order_by": OLDEST_FIRST}
        found += paginate(client.search_runs, experiments, condition, **options)
    by_id = {}
    for copy in sorted(found, key=_is_deleted, reverse=True):  # of several, one that is not deleted
        by_id |= dict.fromkeys(_ids(copy), copy)
    return {run.info.run_id: by_id[first] for run in runs if (first := origin(run.data.tags, run.info.run_id)) in by_id}


def _database(place: str) -> Path:
    """Return the database of a store that a folder, a file or an address names."""
    path = local_database(place) or Path(place).expanduser().resolve()
    for file in (path, path / "mlflow.db", path / STORE_FOLDER / "mlflow.db"):
        if file.is_file():
            return file
    raise ArgumentError(
        f"Expected a store: a folder with mlflow.db or {STORE_FOLDER}/mlflow.db in it, or the address of a server, "
        f"http://... Received: '{masked(place)}'."
        + did_you_mean(place, files=lambda near: any(near.glob("mlflow.db")) or (near / STORE_FOLDER).is_dir())
    )


def _chosen(source: str, run_ids: Sequence[str]) -> list[Run]:
    """Return the named runs with those above and below them, or all runs of a store, each after the run above it."""
    client = mlflow.MlflowClient(source)
    runs = list(paginate(client.search_runs, all_experiments(client), order_by=OLDEST_FIRST))
    by_id, children = {run.info.run_id: run for run in runs}, defaultdict(list)
    for run in runs:
        children[run.data.tags.get(PARENT)].append(run)
    chosen: dict[str, Run] = {}

    def choose(run: Run, with_children: bool) -> None:
        if run.info.run_id not in chosen:
            if parent := by_id.get(run.data.tags.get(PARENT, "")):
                choose(parent, False)
            chosen[run.info.run_id] = run
        for child in children[run.info.run_id] if with_children else ():
            choose(child, True)

    for run in [_named(runs, run_id) for run_id in run_ids] if run_ids else runs:
        choose(run, bool(run_ids))
    return list(chosen.values())


def _named(runs: list[Run], run_id: str) -> Run:
    """Return the one run whose id, here or where it was made, starts with some characters."""
    found = [run for run in runs if any(known.startswith(run_id) for known in _ids(run))]
    if len(found) != 1 or len(run_id) < 4:
        received = "of several runs" if found else "of no run there that is not deleted"
        raise ArgumentError(
            f"Expected the id of a run, or its first characters, at least 4. Received: '{run_id}', {received}."
        )
    return found[0]
