"""The commands that look after the store and the cache: ui, cache, doctor, gc, sync, import."""

from __future__ import annotations

import sys

import click

from cnnlab.errors import LabError
from cnnlab.utils.startup import job
from cnnlab.utils.text import escape_control_characters


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 5000, or a free one]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def ui(port: int | None, host: str) -> None:
    """Open the MLflow UI on the store.

    Prints a link that shows the newest comparison, with columns of its metrics. Ctrl-C ends it.
    """
    with job(trains=False):
        from cnnlab.tracking.ui_server import serve_ui

        serve_ui(host, port)


@click.command()
@click.option("--clear", is_flag=True, help="Remove everything that is stored.")
def cache(clear: bool) -> None:
    """Show or clear what is stored: decoded pictures, and features of frozen layers."""
    from datetime import datetime

    from cnnlab.utils import user_cache

    folder = user_cache.cache_folder()
    if clear:
        print(f"Freed {user_cache.clear() / 1e6:,.0f} MB in {folder}")
        return
    entries = user_cache.entries()
    print(f"{len(entries)} stored, {sum(e['bytes'] for e in entries) / 1e6:,.0f} MB, in {folder}")
    for e in entries:
        used = datetime.fromtimestamp(e["used"]).strftime("%Y-%m-%d %H:%M")
        print(f"{e['key'][:12]}  {e['bytes'] / 1e6:9,.1f} MB  used {used}  {e['kind']} {e['shape']} {e['what']}")


@click.command()
@click.option("--fix", is_flag=True, help="Repair what can be repaired.")
def doctor(fix: bool) -> None:
    """Find what is wrong with the store, the cache and temporary files.

    Nothing is changed without --fix, which keeps a copy of the database before it changes it, and deletes no artifacts,
    models or states. The exit status is 1 where something is wrong, or still is after --fix.
    """
    with job(trains=False):
        from cnnlab.cli.tables import print_examined
        from cnnlab.doctor import examine
        from cnnlab.tuning.search_states import state_findings

        left = repaired = 0
        for examined in examine(fix, further=[state_findings]):
            print_examined(examined)
            left += examined.is_left
            repaired += bool(examined.repaired)
    if not left:
        print("All is repaired." if repaired else "Nothing is wrong.")
        return
    print(f"{left} left." if fix else "Nothing was changed: 'cnnlab doctor --fix' does what is said after 'repair:'.")
    sys.exit(1)


@click.command()
@click.option("--yes", is_flag=True, help="Free it; it cannot be restored afterwards.")
def gc(yes: bool) -> None:
    """Free what deleted runs hold: their rows, artifacts and models, which MLflow only marks as deleted.

    Nothing is freed without --yes. What a registered version needs is never freed.
    """
    with job(trains=False):
        from cnnlab.tracking.maintenance.deleted_runs import collect
        from cnnlab.tracking.maintenance.findings import counted, in_mb

        garbage = collect(yes)
        runs, models = counted(len(garbage.runs), "deleted run"), counted(len(garbage.models), "model")
        what = f"{runs}, {models}, {counted(len(garbage.experiments), 'experiment')}"
        for key, why in garbage.kept.items():
            print(escape_control_characters(f"kept: {key}, deleted, but {why}"))
        if not (garbage.runs or garbage.models or garbage.experiments):
            print("Nothing to free.")
        elif yes:
            print(f"Freed {in_mb(garbage.size)}: {what}.")
        else:
            print(f"{what}: {in_mb(garbage.size)}. Nothing was freed: 'cnnlab gc --yes' frees it for good.")


@click.command()
@click.option("--to", metavar="ADDRESS", help="Another server than the one that it was recorded for.")
def sync(to: str | None) -> None:
    """Deliver what a tracking server missed.

    With a server as the store (MLFLOW_TRACKING_URI), everything is recorded in mlruns/outbox first and sent during the
    training. What the server did not take stays there, and is delivered now: runs, metrics, artifacts and models. What
    the server has already is not sent again. The exit status is 1 while something remains.
    """
    with job(trains=False):
        from cnnlab.tracking.offline.delivery import sync as deliver

        remains = 0
        for done in deliver(to):
            for run in done.runs:
                if done.error is None:
                    name, run_id = escape_control_characters(run["name"]), done.ids[run["run_id"]]
                    print(f"delivered: {name}, run {run_id} of {done.server}")
            if done.error:
                remains += len(done.runs)
                names = ", ".join(escape_control_characters(run["name"]) for run in done.runs)
                print(f"not delivered: {names}, to {done.server}. Received: {done.error}.", file=sys.stderr)
        if remains:
            raise LabError(
                f"Expected to deliver everything. Received: {remains} runs remain undelivered. Correct the above, "
                "and repeat 'cnnlab sync'."
            )
        print("Nothing remains to be delivered.")


@click.command(name="import")
@click.argument("store", metavar="FOLDER_OR_ADDRESS")
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID...]")
@click.option("--aliases", is_flag=True, help="Move aliases that another version holds here, the champion's too.")
def import_(store: str, run_ids: tuple[str, ...], aliases: bool) -> None:
    """Copy runs and registered models of another store into the present one, which may be a server.

    The other one is a folder with mlflow.db in it (mlruns, or what 'cnnlab export --format runs' wrote), or the address
    of a server, and is only read. Runs that are named come with those above and below them. What the present store has
    already is not copied again, so repeat the command when it was interrupted. All commands take the old ids, too.
    """
    with job(trains=False):
        from cnnlab.tracking.offline.store_copy import import_runs

        for line in import_runs(store, run_ids, moves_aliases=aliases):
            print(escape_control_characters(line), flush=True)


COMMANDS = (ui, cache, doctor, gc, sync, import_)
