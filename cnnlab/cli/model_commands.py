"""Define the commands audit, register, models, rollback, predict, serve, export and reproduce."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from cnnlab.cli.recipe_options import (
    devices_option,
    experiment_option,
    recheck_option,
    recipe_options,
    recipes_of,
    take_run_options,
)
from cnnlab.data.dataset import LAYOUT_OPTIONS
from cnnlab.errors import ArgumentError, LabError, expect_one_of
from cnnlab.evaluation.score_names import SCORES
from cnnlab.utils.screen import progress_bar
from cnnlab.utils.startup import job
from cnnlab.utils.text import escape_control_characters

if TYPE_CHECKING:
    from cnnlab.evaluation.predictions import Score

FORMATS = ("table", "csv", "json")  # of predictions
RUNS = "runs"  # the format of an export that is a store
EXPORTS = ("onnx", "litert", "saved_model", "keras", RUNS)
AUDITED_BY = "efficientnetv2b0"
# Of the recipe, what says which pictures there are and what judges them.
AUDIT_OPTIONS = (
    *("image_size", "resize_mode", *(name for name in LAYOUT_OPTIONS if name != "skip_bad")),
    *("limit", "split_seed", "backbone", "weights"),
)
MARGIN = "Points that the interval of the difference must lie above."
MODEL = "A registered model's name, a run's id, a URI, or an exported .keras file.  [default: the only champion]"
model_option = click.option("--model", help=MODEL)


@click.command()
@click.argument("run_id", required=False)
@click.option("--best", is_flag=True, help="The best run by its validation score; so it is without RUN_ID too.")
@click.option("--by", default="accuracy", show_default=True, help=f"Score that decides: one of {', '.join(SCORES)}.")
@click.option("--experiment", help="Where to look for the best run.  [default: the one used last]")
@click.option("--name", help="Of the registered model.  [default: the experiment's, so one for each data set]")
@click.option("--promote", is_flag=True, help="Make it the champion if it beats the present one.")
@click.option("--margin", type=click.FloatRange(0, 100), default=0.0, show_default=True, help=MARGIN)
@click.option("--force", is_flag=True, help="Promote whatever the evidence.")
def register(
    run_id: str | None,
    best: bool,
    by: Score,
    experiment: str | None,
    name: str | None,
    promote: bool,
    margin: float,
    force: bool,
) -> None:
    """Register a run's model: that of RUN_ID, or the best one.

    With --promote it becomes @champion if it is better on the same held-out images: the lower end of the paired
    bootstrap interval of the difference must be above 0. The evidence is kept with the version.
    """
    if run_id and (best or experiment):
        raise ArgumentError("Expected a run or --best. Received both. Leave one out.")
    if force and not promote:
        raise ArgumentError("Expected --force with --promote. Received it alone. Add --promote.")
    expect_one_of("by", by, SCORES)
    with job():
        from cnnlab.tracking import model_registry, promotion

        version, said = model_registry.register_run(run_id, experiment=experiment, name=name, by=by)
        where = f"{version}, run {version.run_id}: models:/{version.name}/{version.number}"
        print("\n".join(map(escape_control_characters, [*said, where])))
        if promote:
            decision = promotion.promote(version, by=by, margin=margin / 100, force=force)
            if not decision.promoted and not decision.unchanged:
                raise LabError(f"Not promoted. {decision.reason}")
            print(decision.reason + (f" Now models:/{version.name}@champion." if decision.promoted else ""))


@click.command()
@click.option("--available", is_flag=True, help="List what can be trained instead.")
def models(available: bool) -> None:
    """List the registered models: versions, aliases and scores."""
    if available:
        from cnnlab.cli.tables import print_backbones

        print_backbones()
        return
    with job(trains=False):
        from cnnlab.cli.tables import print_versions
        from cnnlab.tracking import model_registry
        from cnnlab.tracking.session import opened_store

        with opened_store(writes=False):
            versions = model_registry.list_versions()
        if versions:
            print_versions(versions)
        else:
            print("No model is registered. 'cnnlab register' registers the best run.")


@click.command()
@click.argument("name", required=False)
def rollback(name: str | None) -> None:
    """Undo the last promotion of the registered model NAME, which may be left out where there is only one."""
    with job(trains=False):
        from cnnlab.tracking import model_registry, promotion
        from cnnlab.tracking.session import opened_store

        with opened_store():
            before, now = promotion.rollback(model_registry.the_name(name))
        print(f"{now} is the champion again, no longer version {before.number}.")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="IMAGE_FOLDER_OR_URL...")
@model_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes for each picture.")
@click.option("--format", "file_format", default="table", show_default=True, help="One of: table, csv, json.")
def predict(paths: tuple[str, ...], model: str | None, top: int, file_format: Any) -> None:
    """Name what is in pictures.

    Pictures may be of any size and format; folders are searched with their subfolders. What cannot be read is reported
    and skipped, and the exit status is then 1.
    """
    expect_one_of("format", file_format, FORMATS)
    unreadable = []
    with job():
        from rich.cells import cell_len, set_cell_size

        from cnnlab.classify import classify_files, list_pictures, load_classifier, write_predictions

        files = list_pictures(paths)
        classifier = load_classifier(model)
        top = min(top, len(classifier.class_names))
        written = str if file_format == "json" else escape_control_characters  # JSON has an escape of its own
        # Some characters take two columns of the screen.
        width = max(cell_len(written(file)) for file in files) if file_format == "table" else 0

        def readable(advance: Callable[[int], None]) -> Iterator[tuple[str, list[tuple[str, float]]]]:
            for file, result in classify_files(classifier, files):
                advance(1)
                if isinstance(result, LabError):
                    unreadable.append(file)
                    print(f"error: {result}", file=sys.stderr)
                else:
                    name = set_cell_size(written(file), width) if width else written(file)
                    yield name, [(written(label), share) for label, share in classifier.top(result, top)]

        # Where the answers go to the screen, they are the progress.
        total = 0 if sys.stdout.isatty() else len(files)
        with progress_bar(f"Classifying {len(files):,} pictures", total) as advance:
            for text in write_predictions(readable(advance), file_format, top, width=0):
                sys.stdout.write(text)
    if unreadable:
        sys.exit(1)


@click.command()
@model_option
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 5001, or a free one]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--token", envvar="CNNLAB_TOKEN", help="Bearer token to ask for, or @FILE that holds it.")
def serve(model: str | None, port: int | None, host: str, token: str | None) -> None:
    """Serve a model over HTTP: a page to drop a picture on, and MLflow's scoring server. Ctrl-C ends it.

    It prints the page's address, and a curl line that works.
    """
    with job():
        from cnnlab.serve import read_token
        from cnnlab.serve import serve as serve_model

        serve_model(model, host, port, read_token(token))


@click.command()
@click.argument("model", nargs=-1, metavar="[MODEL | RUN_ID...]")
@click.option("--format", "file_format", required=True, help="One of: onnx, litert, saved_model, keras; or runs.")
@click.option("--output", metavar="PATH", help="What to write.  [default: the model's name, or runs, in this folder]")
@click.option("--int8", is_flag=True, help="8-bit integers, with litert.")
@click.option("--dataset", metavar="FOLDER", help="Where the run's images are now.")
def export(model: tuple[str, ...], file_format: Any, output: str | None, int8: bool, dataset: str | None) -> None:
    """Write a model for other programs: from raw pictures to probabilities, class names inside.

    MODEL is a registered model's name, a run's id, a URI, or a .keras file of this command; the champion, where there
    is one model. The file takes pictures as (N, H, W, 3) uint8, red, green, blue, 0 to 255, and has no augmentation in
    it. It gets its name once it has answered for the run's test pictures in its own runtime as Keras does; onnx and
    litert need packages of theirs: pip install 'cnnlab[onnx]' or 'cnnlab[litert]'.

    With --format runs, write runs themselves, for 'cnnlab import' in another store: those named with the runs above and
    below them, or all, with their registered versions, as a folder that is a store of its own. What an earlier export
    wrote there stays, and what is new is added.
    """
    expect_one_of("format", file_format, EXPORTS)
    if file_format == RUNS:
        if int8 or dataset:
            raise ArgumentError("Expected --int8 and --dataset with a model. Received: --format runs. Leave them out.")
        with job(trains=False):
            from cnnlab.tracking.offline.store_copy import export_runs

            for line in export_runs(model, output):
                print(escape_control_characters(line), flush=True)
        return
    if len(model) > 1:
        raise ArgumentError(f"Expected one model. Received: {len(model)}. Leave all but one out, or use --format runs.")
    with job():
        from cnnlab.export import export_model

        [name] = model or [None]
        print("\n".join(export_model(name, file_format, output, int8=int8, dataset=dataset).lines))


@click.command()
@click.argument("run_id")
@click.option("--deterministic", is_flag=True, help="Only operations that repeat bit for bit on the same machine.")
@click.option("--dataset", metavar="FOLDER", help="Where the run's images are now.")
@click.option("--weights", metavar="FILE", help="Where the run's weights file is now.")
@click.option("--backbone", metavar="FILE", help="Where the run's backbone is now.")
@devices_option
def reproduce(run_id: str, deterministic: bool, devices: str | None, **moved: Any) -> None:
    """Repeat the run RUN_ID from its stored recipe, and say which figures are equal.

    A run trained with --deterministic comes out equal bit for bit, with the same versions, data and machine.
    """
    run = take_run_options({"devices": devices})
    with job():
        from cnnlab.cli.tables import print_next_step, print_reproduction
        from cnnlab.reproduction import reproduce as repeat

        reproduction = repeat(run_id, deterministic=deterministic, **moved, options=run)
        print_reproduction(reproduction)
        print_next_step(reproduction.run_id)


@click.command()
@click.argument("dataset", metavar="FOLDER_OR_NAME")
@click.option("--out", metavar="FOLDER", help="Where the report goes.  [default: audit- and the data set's name]")
@experiment_option
@recheck_option
@functools.partial(recipe_options, names=AUDIT_OPTIONS, defaults={"backbone": AUDITED_BY})
def audit(out: str | None, **options: Any) -> None:
    """Look at a data set: what is there twice, likely mislabelled, strange, or cannot be read.

    Writes report.html, with pictures, and tables as CSV. Labels are judged by cross-validated predictions from the
    features of a frozen backbone. Nothing in the data set is changed.
    """
    run = take_run_options(options)
    options = {**options, "backbone": options["backbone"] or AUDITED_BY}
    [recipe] = recipes_of(["transfer"], options)
    with job():
        from cnnlab.cli.tables import print_next_step
        from cnnlab.data_audit import audit as audit_data

        done = audit_data(recipe, out, options=run)
        print("\n".join(map(escape_control_characters, done.lines)))
        print(f"Report: {escape_control_characters(done.folder)}/report.html, with its tables beside it.")
        print_next_step(done.run_id)


COMMANDS = (audit, register, models, rollback, predict, serve, export, reproduce)
