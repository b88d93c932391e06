"""`cnnlab export --format runs` and `cnnlab import`: runs and registered models from one store to another.

Twice is as good as once: what is there already is left as it is, and what was cut short goes on.
"""

import contextlib
import itertools
import socket
from collections import Counter, defaultdict
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import ViewType

from cnnlab.errors import ArgumentError, LabError, masked
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.maintenance.findings import counted
from cnnlab.tracking.mlflow_internals import in_short
from cnnlab.tracking.offline.model_copy import copy_registered
from cnnlab.tracking.offline.run_copy import PARENT, Transfer, origin
from cnnlab.tracking.pagination import all_experiments, every
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

ASKED = 100  # run ids in one condition of a search
GIVES_UP = 3  # runs that cannot be copied
ENDED = ("FINISHED", "FAILED", "KILLED")
STAYS = {"checkpoints/*.npz": ("interrupted training", None), "searches/*/": ("search", "searches")}


def export_runs(run_ids=(), output=None):
    """Write runs and registered models into a folder that is a store of its own, as a generator of sentences.

    Args:
        run_ids: whole or their first characters; with the runs above and below them. All, without.
        output: the folder, by default `runs`. What an earlier export wrote there stays, and what is new is added.

    Raises:
        ArgumentError: the folder has other things in it; an id is that of no run, or of several.
        LabError: something could not be copied, and the sentences say what.
    """
    folder = Path(output or "runs").resolve()
    database = folder / "mlflow.db"
    if folder.exists() and not database.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(
            f"Expected a folder that is new, empty or an earlier export. Received: '{folder}'. Name another --output."
        )
    with opened_store(writes=False):
        source = mlflow.get_tracking_uri()
        here = local_database(source)
        if here and folder == artifacts_folder(here).parent:
            raise ArgumentError(f"Expected another folder than the store's own. Received: '{folder}'.")
        chosen = _chosen(source, run_ids)
        with mlflow_store.opened_at(sqlite_uri(database)):
            yield from _copied(source, sqlite_uri(database), chosen, source, bool(run_ids), moves_aliases=True)
    yield f"It is in '{folder}', for 'cnnlab import {folder.name}' in another place."


def import_runs(place, run_ids=(), *, moves_aliases=False):
    """Copy runs and registered models of another store into the present one, as a generator of sentences.

    Args:
        place: a folder with `mlflow.db` or `mlruns/mlflow.db`, such a file, or a server's address. It is only read.
        run_ids: as in `export_runs`.
        moves_aliases: also those that another version holds here.

    Raises:
        ArgumentError: `place` is no such store, or the present one; or as in `export_runs`.
        LabError: a store does not answer, or something could not be copied, and the sentences say what.
    """
    database = None if is_server(place) else _database(place)
    with opened_store():
        target = mlflow.get_tracking_uri()
        if place.rstrip("/") == target.rstrip("/") or (database and database == local_database(target)):
            raise ArgumentError(f"Expected another store than the present one. Received: '{masked(place)}'.")
        if database:
            source = sqlite_uri(mlflow_store.copied(database))
        else:
            expect_reachable(place)
            source = place
        # A database is read from a copy of it, whose place is nobody's business.
        known_as = str(database or place)
        yield from _copied(source, target, _chosen(source, run_ids), known_as, bool(run_ids), moves_aliases)
    for pattern, what in STAYS.items():
        if database and (files := list(database.parent.glob(pattern))):
            yield f"not carried: {counted(len(files), *what)}, which go on in '{masked(place)}' only"


def _copied(source, target, chosen, known_as, some, moves_aliases):
    """Copy the chosen runs and their versions from `source`, which people know as `known_as`."""
    place = masked(known_as)
    folder = local_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "import.lock"):  # two at once would make everything twice
        there = _there(target, chosen)
        known = [{"run": here, "there": copy.info.run_id} for here, copy in there.items() if not _is_deleted(copy)]
        rest = f"{socket.gethostname()}: {place}"
        transfer = Transfer(source, target, known, lambda **fact: None, rest=rest)
        copied, present, left, failures = Counter(), Counter(), set(), 0
        for run in chosen:
            here, copy = run.info.run_id, there.get(run.info.run_id)
            named = f"{run.info.run_name} ({here[:8]})"
            if why := _left_out(run, copy, left):
                left.add(here)
                yield f"left out: {named}, {why}"
                continue
            if copy and _is_whole(run, copy):
                present["run"] += 1
                continue
            try:
                transfer.copy_run(run)
                copied["run"] += 1
                yield f"copied: {named}, run {transfer.runs[here]}"
            except (mlflow.MlflowException, OSError, LabError) as error:
                left.add(here)
                failures += 1
                yield f"not copied: {named}. Received: {masked(in_short(error))}."
                if failures == GIVES_UP:
                    break
        if failures < GIVES_UP:
            among = {run.info.run_id for run in chosen} if some else None
            try:
                yield from copy_registered(transfer, among, moves_aliases, copied, present)
            except (mlflow.MlflowException, OSError) as error:
                failures += 1
                yield f"not copied: the registered models. Received: {masked(in_short(error))}."
        yield from (f"not carried: {sentence}" for sentence in transfer.lost)
        if not some and (kinds := _of_other_kinds(source)):
            yield f"not carried: {', '.join(kinds)}, which are in '{place}' only"
        for what, counts in (("already there", present), ("copied", copied)):
            if counts:
                yield f"{what}: {_in_words(counts)}"
        if not copied:
            yield "Nothing was copied."
        if failures:
            raise LabError(
                f"Expected to copy everything. Received: {counted(failures, 'failure')}, see above. Correct it, and "
                "repeat the command: it goes on."
            )


def _of_other_kinds(source):
    """What a store holds that is neither a run nor a registered model, and so is not copied, in words."""
    client = mlflow.MlflowClient(source)
    ids = all_experiments(client)
    models = every(client.search_logged_models, experiment_ids=ids) if ids else ()
    found = {
        "models without a run": (model for model in models if not model.source_run_id),
        "traces": every(client.search_traces, locations=ids, include_spans=False) if ids else (),
        "prompts": every(client.search_prompts),
        "webhooks": every(client.list_webhooks),
    }
    kinds = []
    for kind, things in found.items():
        with contextlib.suppress(mlflow.MlflowException):  # a server that has no such thing
            kinds += [kind for _ in itertools.islice(things, 1)]
    return kinds


def _in_words(counts):
    return ", ".join(counted(number, what, "aliases" if what == "alias" else None) for what, number in counts.items())


def _left_out(run, copy, left):
    """Why a run is not copied, or `None`."""
    if run.data.tags.get(PARENT) in left:
        return "as the run above it is"
    if rest := run.data.tags.get(UNDELIVERED):
        return f"which is not whole: the rest of it is at {rest}"
    if run.info.status not in ENDED:
        return f"which is {run.info.status}: repeat the command when it has ended"
    return "whose copy was deleted" if copy and _is_deleted(copy) else None


def _is_whole(run, copy):
    """Whether all of a run is there: it was made there, or the copy is what the run was when it ended last."""
    made_there = copy.info.run_id in _ids(run)
    return made_there or (UNDELIVERED not in copy.data.tags and (copy.info.end_time or 0) >= (run.info.end_time or 0))


def _is_deleted(run):
    return run.info.lifecycle_stage == "deleted"


def _ids(run):
    """A run's id, and the one that it had where it was made."""
    return {run.info.run_id, origin(run.data.tags, run.info.run_id)}


def _there(target, runs):
    """The runs of the target that are copies of `runs`, or that these are copies of, by the ids of `runs`."""
    client = mlflow.MlflowClient(target)
    experiments = [e.experiment_id for e in every(client.search_experiments, view_type=ViewType.ALL)]

    def found(condition):
        how = {"run_view_type": ViewType.ALL, "order_by": ["attributes.start_time ASC"]}
        return list(every(client.search_runs, experiments, condition, **how)) if experiments else []

    copies = found(f"tags.`{RECORDED_AS}` != ''")
    ids = sorted(set().union(*map(_ids, runs)))
    for some in (ids[i : i + ASKED] for i in range(0, len(ids), ASKED)):
        copies += found(f"attributes.run_id IN ({', '.join(map(repr, some))})")
    by_id = {}
    for copy in sorted(copies, key=_is_deleted, reverse=True):  # one that is not deleted counts
        by_id |= dict.fromkeys(_ids(copy), copy)
    return {run.info.run_id: by_id[first] for run in runs if (first := origin(run.data.tags, run.info.run_id)) in by_id}


def _database(place):
    """The database of a store that a folder, a file or an address names."""
    path = local_database(place) or Path(place).expanduser().resolve()
    for file in (path, path / "mlflow.db", path / STORE_FOLDER / "mlflow.db"):
        if file.is_file():
            return file
    raise ArgumentError(
        f"Expected a store: a folder with mlflow.db or {STORE_FOLDER}/mlflow.db in it, or the address of a server, "
        f"http://... Received: '{masked(place)}'."
    )


def _chosen(source, run_ids):
    """The named runs with those above and below them, or all of a store's; those above before those below."""
    client = mlflow.MlflowClient(source)
    runs = list(every(client.search_runs, all_experiments(client), order_by=["attributes.start_time ASC"]))
    by_id, below = {run.info.run_id: run for run in runs}, defaultdict(list)
    for run in runs:
        below[run.data.tags.get(PARENT)].append(run)
    chosen = {}

    def choose(run, with_below):
        if run.info.run_id not in chosen:
            if above := by_id.get(run.data.tags.get(PARENT)):
                choose(above, False)
            chosen[run.info.run_id] = run
        for child in below[run.info.run_id] if with_below else ():
            choose(child, True)

    for run in [_named(runs, run_id) for run_id in run_ids] if run_ids else runs:
        choose(run, bool(run_ids))
    return list(chosen.values())


def _named(runs, run_id):
    """The one run whose id, here or where it was made, starts so."""
    found = [run for run in runs if any(known.startswith(run_id) for known in _ids(run))]
    if len(found) != 1 or len(run_id) < 4:
        received = "of several runs" if found else "of no run there that is not deleted"
        raise ArgumentError(
            f"Expected the id of a run, or its first characters, at least 4. Received: '{run_id}', {received}."
        )
    return found[0]
