"""Find what is wrong with the store, with the cache and with temporary files, and repair it: `cnnlab doctor`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnlab.errors import LabError
from cnnlab.tracking import mlflow_store
from cnnlab.tracking.maintenance import orphans, store_checks
from cnnlab.tracking.maintenance.deleted_runs import deleted_findings
from cnnlab.tracking.maintenance.findings import Finding, counted, leftovers
from cnnlab.tracking.maintenance.sqlite_files import backup, state_of
from cnnlab.tracking.maintenance.stored_rows import read_rows
from cnnlab.tracking.store_location import local_database
from cnnlab.utils import user_cache
from cnnlab.utils.temporary_folders import leftover_folders


@dataclass(frozen=True)
class Examined:
    """A finding and what came of it."""

    finding: Finding  # what was found
    repaired: bool | None = None  # whether its repair succeeded; `None` where none was tried
    outcome: str = ""  # what the repair did, or why it did not succeed

    @property
    def is_left(self) -> bool:
        """Whether it is a fault that is still there."""
        return self.finding.is_fault and not self.repaired


def examine(fix: bool = False, further: Sequence[Callable[[], list[Finding]]] = ()) -> Iterator[Examined]:
    """Check the store that the environment names, the cache and temporary files.

    Args:
        fix: repair what can be repaired; without, nothing is changed.
        further: checks of packages above this one.

    Yields:
        Each finding, once it is repaired where it can be.

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
        yield Examined(finding, *finding.repair(backed_up))


def _findings(uri: str, database: Path | None, further: Sequence[Callable[[], list[Finding]]]) -> Iterator[Finding]:
    """Yield all findings. Each check starts when the findings of those before it are repaired."""
    if database:
        yield from _of_local_store(database)
    else:
        try:
            yield from store_checks.server_findings(uri)
        except LabError as error:
            yield Finding(f"{error}", "look again when it answers; what is on this machine is looked at")
    yield from orphans.undelivered()
    paths = user_cache.leftovers()
    what = counted(len(paths), "unfinished or incomplete file")
    yield from leftovers(paths, f"{what} in the cache '{user_cache.cache_folder()}'")
    paths = leftover_folders()
    yield from leftovers(paths, f"{counted(len(paths), 'temporary folder')} of processes that are gone")
    for check in further:
        yield from check()


def _of_local_store(database: Path) -> Iterator[Finding]:
    faults = store_checks.database_findings(database)
    yield from faults
    if not database.exists():
        return
    if faults and state_of(database)[0] != "good":
        what = "runs, artifacts and models were not looked at"
        yield Finding(what, "look again when the database is well", is_fault=False)
        return
    yield from orphans.unfinished_databases(database)
    folders = orphans.artifact_folders(database)
    rows = read_rows(database)
    yield from store_checks.run_findings(database, rows)
    yield from orphans.unknown_files(database, rows, folders)
    yield from orphans.missing_files(database, rows)
    yield from orphans.useless_models(rows)
    yield from deleted_findings(database, rows)
