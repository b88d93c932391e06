"""Print tables on the command line: runs, registered models, backbones, repeated runs, `doctor` findings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cnnlab.errors import masked
from cnnlab.tracking.session import folder_of_waiting_run
from cnnlab.utils.environment import read_variable
from cnnlab.utils.text import escape_control_characters

if TYPE_CHECKING:
    from cnnlab.doctor import Examined
    from cnnlab.evaluation.run_result import RunResult
    from cnnlab.reproduction import Reproduction
    from cnnlab.tracking.model_registry import Version

ITEMS = 10  # of a finding that are listed
FURTHER = {"balanced_accuracy": "balanced\naccuracy", "macro_f1": "macro\nF1", "top5_accuracy": "top 5"}


def print_results(results: Sequence[RunResult], labels: Iterable[str], title: str) -> None:
    """The table of a training or a comparison."""
    rows, tests = [], [r.test for r in results if r.test]  # every one of these runs was tested
    for label, r, test in zip(labels, results, tests, strict=True):
        low, high = test.interval
        sizes = (f"{r.params:,}", f"{r.trainable_params:,}", f"{r.train_seconds:.1f}")
        scores = [f"{value:.2%}" for value in test.scores.values()]
        rows.append((label, scores[0], f"{100 * low:.1f}-{100 * high:.1f}", *scores[1:], f"{r.test_loss:.4f}", *sizes))
    further = [FURTHER[name] for name in list(tests[0].scores)[1:]]
    sizes = ("parameters", "trainable", "train\nseconds")
    columns = ("test\naccuracy", "95 %\ninterval", *further, "test\nloss", *sizes)
    _print_table(title, ("model", *columns), rows, last=("run id", [r.run_id for r in results]))


def print_versions(versions: Sequence[Version]) -> None:
    """The table of registered models."""
    rows = [
        (
            v.name,
            str(v.number),
            ", ".join(v.aliases),
            v.tags.get("final_val_accuracy", ""),
            v.tags.get("test_accuracy", ""),
            v.tags.get("dataset_digest", "")[:8],
        )
        for v in versions
    ]
    columns = ("model", "version", "aliases", "val\naccuracy", "test\naccuracy", "data")
    _print_table(None, columns, rows, last=("run id", [v.run_id for v in versions]))


def print_backbones() -> None:
    """The table of models that can be trained."""
    from cnnlab.models.backbones import BACKBONES

    print(
        "cnn             a CNN from scratch\n"
        "resnet9         a network from scratch that learns fast\n"
        "transfer        with --backbone: a name below, a saved model (.keras), models:/NAME@ALIAS, hub:PRESET\n"
        "FILE.py:FUNC    a function of your own: (input_shape, num_classes, **arguments) -> keras.Model"
    )
    rows = [
        (
            name,
            f"{row.parameters:,}",
            str(row.smallest),
            str(row.usual),
            f"{row.download / 1e6:,.0f} MB",
            str(len(row.stages)),
        )
        for name, row in BACKBONES.items()
    ]
    columns = ("backbone", "parameters\nwithout top", "smallest\nsize", "usual\nsize", "ImageNet\nweights", "stages")
    _print_table(None, columns, rows)


def print_reproduction(reproduction: Reproduction) -> None:
    """The figures then and now, what else changed, and the verdict."""
    rows = [
        (
            f.name,
            "" if f.then is None else f"{f.then:.8g}",
            "" if f.now is None else f"{f.now:.8g}",
            "equal" if f.difference == 0 else f"{f.difference:.3g}",
        )
        for f in reproduction.figures
    ]
    _print_table(None, ("figure", "then", "now", "difference"), rows)
    for change in reproduction.changes:
        print(f"different: {change}")
    print(reproduction.verdict)


def print_examined(examined: Examined) -> None:
    """A finding of `cnnlab doctor`, and what was done about it or would be."""
    finding = examined.finding
    print(escape_control_characters(f"{'found' if finding.is_fault else 'note'}: {finding.what}"))
    for item in finding.items[:ITEMS]:
        print(escape_control_characters(f"    {item}"))
    if len(finding.items) > ITEMS:
        print(f"    ... and {len(finding.items) - ITEMS:,} more")
    if examined.repaired is None:
        print(escape_control_characters(f"  {'repair' if finding.fix else 'to do'}: {finding.remedy}"))
    else:
        print(
            escape_control_characters(f"  {'done' if examined.repaired else 'not done'}: {examined.outcome}"),
            flush=True,
        )


def print_next_step(run_id: str | None) -> None:
    if run_id is None:
        print("Not recorded: the store may not be written.")
        return
    if folder_of_waiting_run(run_id):
        print(f"Recorded as run {run_id}, on this disk. Deliver it with: cnnlab sync")
        return
    # `mlflow run` sets both for what it starts; the shell afterwards has neither, and would look into ./mlruns.
    named = read_variable("MLFLOW_TRACKING_URI") if read_variable("MLFLOW_RUN_ID") else None
    store = f"MLFLOW_TRACKING_URI='{masked(named)}' " if named else ""
    print(f"Recorded as run {run_id}. Look at it with: {store}cnnlab ui")


def _print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    last: tuple[str, Sequence[str | None]] | None = None,
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title and escape_control_characters(title), title_justify="left", box=box.SIMPLE)
    for i, column in enumerate(columns):
        # On a narrow terminal names and ids are in several lines, but whole.
        table.add_column(column, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    if last:
        table.add_column(last[0], overflow="fold")
        rows = [(*row, value) for row, value in zip(rows, last[1], strict=True)]
    for row in rows:
        table.add_row(*map(escape_control_characters, row))
    # In a file the table is as wide as it needs to be; only a terminal has a width to respect.
    # What stands in brackets or between colons is part of a name.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)
