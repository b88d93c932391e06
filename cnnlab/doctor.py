"""What is wrong with the store, with the cache and with temporary files; and the repairs."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from cnnlab.errors import LabError
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.maintenance import orphans, store_checks
from cnnlab.tracking.maintenance.findings import Finding, counted, in_mb, lines
from cnnlab.tracking.maintenance.sqlite_files import backup, state_of
from cnnlab.tracking.maintenance.stored_rows import read_rows
from cnnlab.tracking.store_location import local_database, local_folder
from cnnlab.utils import user_cache
from cnnlab.utils.temporary_folders import leftover_folders, remove, size_of


@dataclass(frozen=True)
class Examined:
    """A finding and what came of it: `repaired` is `None` where no repair was tried, `said` is what was done, or why
    not.
    """

    finding: Finding
    repaired: bool | None = None
    said: str = ""

    @property
    def is_left(self) -> bool:
        """Whether it is a fault that is still there."""
        return self.finding.is_fault and not self.repaired


def examine(fix=False, further=()) -> Iterator[Examined]:
    """Look for what is wrong with the store that the environment names, and beside it.

    Args:
        fix: put it right; without, nothing is changed.
        further: checks of rooms above this one: functions without arguments that give `Finding`s.

    Yields:
        Each thing that is found, once it is repaired where it can be.

    Raises:
        LabError: the store is one in memory.
    """
    uri = mlflow_store.address()
    database = local_database(uri)
    backed_up = functools.cache(lambda: f"; the database as it was is '{backup(database)}'" if database else "")
    for finding in _findings(uri, database, further):
        if not fix or finding.fix is None:
            yield Examined(finding)
            continue
        yield Examined(finding, *finding.repaired(backed_up))


def _findings(uri, database, further):
    """All findings, each looked for when those before it are repaired."""
    home = local_folder(uri)
    if database:
        yield from _of_local_store(database)
    else:
        try:
            yield from store_checks.server_findings(uri)
            yield from orphans.stray_checkpoints(home, store_checks.statuses(uri))
        except LabError as error:
            yield Finding(f"{error}", "look again when it answers; what is on this machine is looked at")
    for check in (orphans.undelivered, cache_leftovers, temporary_leftovers, *further):
        yield from check()


def _of_local_store(database):
    faults = store_checks.database_findings(database)
    yield from faults
    if not database.exists():
        return
    if faults and state_of(database)[0] != "good":
        what = "runs, artifacts and models were not looked at"
        yield Finding(what, "look again when the database is well", is_fault=False)
        return
    yield from orphans.unfinished_databases(database)
    yield from store_checks.place_findings(database, read_rows(database))
    folders = orphans.artifact_folders(database)
    rows = store_checks.with_present_places(database, read_rows(database))
    yield from store_checks.run_findings(database, rows)
    yield from orphans.unknown_files(database, rows, folders)
    yield from orphans.found_again(database, rows)
    yield from orphans.missing_files(database, rows)
    yield from orphans.useless_models(rows)
    statuses = {run.run_id: run.status for run in rows.runs.values() if run.stage == "active"}
    yield from orphans.stray_checkpoints(database.parent, statuses.get)
    yield from orphans.held_by_deleted(database, rows)


def cache_leftovers() -> list[Finding]:
    """What a process that was killed has left in the cache."""
    paths = user_cache.leftovers()
    if not paths:
        return []
    what = f"{counted(len(paths), 'unfinished or incomplete file')} in the cache '{user_cache.cache_folder()}'"
    size = in_mb(sum(map(size_of, paths)))
    return [Finding(f"{what} ({size})", "remove", lines(paths), functools.partial(remove, paths))]


def temporary_leftovers() -> list[Finding]:
    """What processes that were killed have left in the folder of temporary files."""
    paths = leftover_folders()
    if not paths:
        return []
    what = f"{counted(len(paths), 'temporary folder')} of processes that are gone ({in_mb(sum(map(size_of, paths)))})"
    return [Finding(what, "remove", lines(paths), functools.partial(remove, paths))]
