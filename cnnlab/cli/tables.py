"""Print tables on the command line: runs, registered models, backbones, repeated runs, `doctor` findings."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cnnlab.errors import masked
from cnnlab.tracking.session import folder_of_waiting_run
from cnnlab.utils.environment import read_variable
from cnnlab.utils.screen import is_plain
from cnnlab.utils.text import escape_control_characters

if TYPE_CHECKING:
    from cnnlab.doctor import Examined
    from cnnlab.evaluation.run_result import RunResult
    from cnnlab.reproduction import Reproduction
    from cnnlab.tracking.model_registry import Version

ITEMS = 10  # of a finding that are listed
NAMES = ("model", "aliases", "run id", "backbone", "figure")  # columns whose cells go on in the next line
FOLDED, NARROWEST = 16, 4  # how narrow these become before a column is left out, and after all are
# Columns that a narrow screen leaves out, the first ones first; the others are always there.
LEFT_OUT = (
    *("trainable", "train\nseconds", "data", "stages", "top 5", "macro\nF1", "balanced\naccuracy", "val\naccuracy"),
    *("usual\nsize", "smallest\nsize", "parameters", "test\nloss", "95 %\ninterval", "difference"),
)
UNLIMITED = 100_000  # columns of a file
FURTHER = {"balanced_accuracy": "balanced\naccuracy", "macro_f1": "macro\nF1", "top5_accuracy": "top 5"}


def print_results(
    results: Sequence[RunResult], labels: Iterable[str], title: str, failed: Sequence[tuple[str, str]] = ()
) -> None:
    """Print the table of a training or a comparison, and below it why models failed, given as `(label, reason)`."""
    rows, tests = [], [r.test for r in results if r.test]  # every one of these runs was tested
    for label, r, test in zip(labels, results, tests, strict=True):
        low, high = test.interval
        sizes = (f"{r.params:,}", f"{r.trainable_params:,}", f"{r.train_seconds:.1f}")
        scores = [f"{value:.2%}" for value in test.scores.values()]
        rows.append(
            (
                label,
                scores[0],
                f"{100 * low:.1f}-{100 * high:.1f}",
                *scores[1:],
                f"{r.test_loss:.4f}",
                *sizes,
                r.run_id or "",
            )
        )
    further = [FURTHER[name] for name in list(tests[0].scores)[1:]]
    sizes = ("parameters", "trainable", "train\nseconds")
    columns = ("test\naccuracy", "95 %\ninterval", *further, "test\nloss", *sizes)
    rows += [(label, "failed", *[""] * len(columns)) for label, _ in failed]
    _print_table(title, ("model", *columns, "run id"), rows)
    for label, reason in failed:
        print(escape_control_characters(f"{label} failed: {reason}"))


def print_versions(versions: Sequence[Version]) -> None:
    """Print the table of registered models."""
    rows = [
        (
            v.name,
            str(v.number),
            ", ".join(v.aliases),
            v.tags.get("final_val_accuracy", ""),
            v.tags.get("test_accuracy", ""),
            v.tags.get("dataset_identity", v.tags.get("dataset_digest", ""))[:8],
            v.run_id,
        )
        for v in versions
    ]
    _print_table(None, ("model", "version", "aliases", "val\naccuracy", "test\naccuracy", "data", "run id"), rows)


def print_backbones() -> None:
    """Print the models that can be trained."""
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
    """Print the figures then and now, what else changed, and the verdict."""
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
    """Print a finding of `cnnlab doctor`, and what was done about it or would be."""
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
    """Print the run's id, and the command that shows or delivers it."""
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


def _print_table(title: str | None, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in which every figure and every name is whole, however narrow the screen."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    # In a file the table is as wide as it needs to be; only a terminal, or who sets COLUMNS, has a width to respect.
    width, colours = shutil.get_terminal_size((UNLIMITED, 0)).columns, None if is_plain() else "auto"
    console = Console(width=width, color_system=colours, markup=False, emoji=False)
    columns = {header: [_printable(row[i], console.encoding) for row in rows] for i, header in enumerate(headers)}
    widths = {header: max(map(cell_len, [*header.split("\n"), *columns[header]])) for header in headers}

    def least(header: str, name_width: int) -> int:
        return min(widths[header], name_width) if header in NAMES else widths[header]

    def least_width(name_width: int) -> int:
        return sum(least(header, name_width) + 2 for header in columns) + 1

    left_out = []
    for header in LEFT_OUT:
        if header in columns and least_width(FOLDED) > console.width:
            left_out.append(header.replace("\n", " "))
            del columns[header]
    console.width = max(console.width, least_width(NARROWEST))  # too wide for such a screen, but whole
    table = Table(
        title=title and _printable(title, console.encoding),
        title_justify="left",
        caption=f"Left out, as the screen is narrow: {', '.join(left_out)}. A file has all." if left_out else None,
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for header in columns:
        name = header in NAMES
        justify = "left" if name else "right"
        table.add_column(header, justify=justify, no_wrap=not name, overflow="fold", min_width=least(header, NARROWEST))
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)


def _printable(text: object, encoding: str) -> str:
    return escape_control_characters(text).encode(encoding, "backslashreplace").decode(encoding)
