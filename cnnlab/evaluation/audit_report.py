"""Put the findings of an audit into sentences, tables, numbers and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import SPLITS
from cnnlab.data.duplicates import DuplicatePair
from cnnlab.evaluation import plots
from cnnlab.evaluation.label_issues import FOLDS, LabelCheck
from cnnlab.utils.text import csv_line

REPORT = "report.html"
GENERATOR = "cnnlab audit"
MARK = f'name="generator" content="{GENERATOR}"'  # by which an earlier report is recognized
FILES = (REPORT, "classes.csv", "left_out.csv", "duplicates.csv", "label_issues.csv", "strangest.csv")
LABEL_ISSUES_FIGURE = "label_issues.png"
TRUSTED = 0.9  # agreement with the labels; of CIFAR-10, at 0.75, a fifth of the label issues were wrong, at first all
STRANGEST = 4  # pictures a class
EXAMPLES = 5  # of the findings on the screen


@dataclass(frozen=True)
class Findings:
    """What an audit found out about the `N` pictures of a data set."""

    name: str  # of the data set
    class_names: tuple[str, ...]  # of the data set
    lines: tuple[str, ...]  # sentences on the data set from when it was loaded
    files: npt.NDArray[Any]  # `(N,)` relative paths
    labels: npt.NDArray[np.int64]  # `(N,)`
    splits: npt.NDArray[Any]  # `(N,)`; the split of a picture that is not used is ""
    sizes: npt.NDArray[np.int32]  # `(N, 2)`, width and height in pixels
    bad: Mapping[int, str]  # position to the reason why the file does not decode
    left_out: Mapping[str, Sequence[str]]  # reason to the paths that were left out for it
    pairs: Sequence[DuplicatePair]  # duplicates
    duplicates: str  # the table of the duplicates, as CSV
    # The check of the labels of all pictures that are used; `None` where there are too few pictures.
    check: LabelCheck | None
    strangeness: npt.NDArray[np.float64]  # `(N,)`, as `label_issues.strangeness` gives it, NaN where it is not known
    basis: str  # what the labels and the strangeness were judged by, in words
    weak: str  # the reason why this basis says little; empty where it says enough
    # Function from positions `(n,)` to `(n, H, W, 3) uint8`.
    pixels: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]

    @property
    def label_issues(self) -> npt.NDArray[np.int64]:
        """Positions of the likely label errors, the most suspicious first."""
        return np.empty(0, np.int64) if self.check is None else self.check.issues

    def class_of(self, position: int) -> str:
        """Return the class name of the picture at a position."""
        return self.class_names[self.labels[position]]

    def strangest(self) -> list[list[int]]:
        """List positions of the strangest pictures of each class, without label issues, the strangest class first."""
        issues, by_class = set(self.label_issues.tolist()), []
        for label in range(len(self.class_names)):
            known = np.flatnonzero((self.labels == label) & ~np.isnan(self.strangeness))
            order = known[np.argsort(-self.strangeness[known], kind="stable")]
            by_class.append([i for i in order.tolist() if i not in issues][:STRANGEST])
        return sorted(filter(None, by_class), key=lambda positions: -self.strangeness[positions[0]])


def sentences(findings: Findings) -> list[str]:
    """Write the findings as lines for the screen, with a few examples of each."""
    bad, issues = list(findings.bad), findings.label_issues
    return [
        *([f"Files that do not decode: {len(bad):,}."] if bad else []),
        *(f"  {findings.files[i]} ({findings.bad[i]})" for i in bad[:EXAMPLES]),
        *_more(len(bad), "left_out.csv"),
        duplicates_line(findings),
        *label_lines(findings),
        *(
            f"  {findings.files[i]}: labelled {findings.class_of(i)} "
            f"({percent(findings, i, int(findings.labels[i]))}), looks like {_suggested(findings, i)}"
            for i in issues[:EXAMPLES]
        ),
        *_more(len(issues), "label_issues.csv"),
    ]


def _more(count: int, file: str) -> list[str]:
    return [f"  and {count - EXAMPLES:,} more in {file}"] if count > EXAMPLES else []


def duplicates_line(findings: Findings) -> str:
    """Count the pairs of duplicates in a sentence."""
    if not findings.pairs:
        return "Duplicates: none."
    same = sum(not p.near for p in findings.pairs)
    labels = sum(findings.labels[p.first] != findings.labels[p.second] for p in findings.pairs)
    splits = sum(findings.splits[p.first] != findings.splits[p.second] for p in findings.pairs)
    return (
        f"Duplicates: {same:,} pairs of the same pixels and {len(findings.pairs) - same:,} of nearly the same look; "
        f"{labels:,} of them under two labels, {splits:,} across parts."
    )


def label_lines(findings: Findings) -> list[str]:
    """Say in sentences how many labels are likely wrong, and how far that can be trusted."""
    check = findings.check
    if check is None:
        return [f"Labels: not checked, as fewer than two classes have {FOLDS} pictures."]
    lines = [
        f"Labels: {len(check.issues):,} of {int((~np.isnan(check.probabilities[:, 0])).sum()):,} are suspected to be "
        f"wrong, the surest first; predictions from {findings.basis} agree with {check.agreement:.1%} of all."
    ]
    if check.agreement < TRUSTED:
        lines.append(
            "With so little agreement, most suspects further down are pictures that are hard for this network."
        )
    if check.rare:
        names = ", ".join(findings.class_names[label] for label in check.rare)
        lines.append(f"Not checked, with fewer than {FOLDS} pictures: {names}.")
    return lines + ([f"The label check is weak: {findings.weak}"] if findings.weak else [])


def percent(findings: Findings, position: int, label: int) -> str:
    """Write the probability of a class for the picture at a position in percent."""
    assert findings.check is not None
    return f"{findings.check.probabilities[position, label]:.0%}"


def _suggested(findings: Findings, position: int) -> str:
    assert findings.check is not None
    label = findings.check.suggested[position]
    return f"{findings.class_names[label]} ({percent(findings, position, label)})"


def tables(findings: Findings) -> dict[str, str]:
    """Write the tables of the findings as CSV, by file name."""
    strangest = (
        (findings.files[i], findings.splits[i], findings.class_of(i), f"{findings.strangeness[i]:.4f}")
        for positions in findings.strangest()
        for i in positions
    )
    return {
        "classes.csv": _csv(("class", *SPLITS, "do_not_decode"), counts_by_split(findings)),
        "left_out.csv": _csv(("file", "reason"), _left_out(findings)),
        "duplicates.csv": findings.duplicates,
        "label_issues.csv": _label_issues(findings),
        "strangest.csv": _csv(("file", "part", "class", "distance"), strangest),
    }


def metrics(findings: Findings) -> dict[str, float]:
    """Give the findings as numbers by the name of their metric."""
    counts: dict[str, float] = {
        "pictures": int((findings.splits != "").sum()),
        "undecodable": len(findings.bad),
        "duplicates": sum(not p.near for p in findings.pairs),
        "near_duplicates": sum(p.near for p in findings.pairs),
    }
    if findings.check is None:
        return counts
    return {**counts, "label_issues": len(findings.label_issues), "label_agreement": findings.check.agreement}


def figures(findings: Findings) -> dict[str, plots.Figure]:
    """Draw the most suspicious pictures, by artifact path; nothing where no label is suspected."""
    first = findings.label_issues[:24]
    if not len(first):
        return {}
    captions = [f"{findings.class_of(i)}?\n{_suggested(findings, i)}" for i in first]
    title = "Likely label errors, the most suspicious first"
    return {LABEL_ISSUES_FIGURE: plots.image_grid(findings.pixels(first), captions, title)}


def _csv(columns, rows) -> str:
    return "".join(map(csv_line, [columns, *rows]))


def counts_by_split(findings: Findings) -> Iterator[tuple[Any, ...]]:
    """Yield for each class its name, its number of pictures in each of `SPLITS`, and of files that do not decode."""
    bad = np.zeros(len(findings.labels), bool)
    bad[list(findings.bad)] = True
    for label, name in enumerate(findings.class_names):
        of_class = findings.labels == label
        counts = [int((of_class & (findings.splits == split)).sum()) for split in SPLITS]
        yield name, *counts, int((of_class & bad).sum())


def reasons(findings: Findings) -> dict[str, str]:
    """Return the reason why a file does not decode by its path."""
    return {findings.files[i]: reason for i, reason in findings.bad.items()}


def _left_out(findings: Findings) -> Iterator[tuple[str, str]]:
    why = reasons(findings)
    for reason, paths in findings.left_out.items():
        yield from ((path, f"does not decode: {why[path]}" if path in why else reason) for path in paths)


def _label_issues(findings: Findings) -> str:
    columns = ("file", "part", "class", "suggested_class", "probability", "suggested_probability", "score")
    rows = []
    for i in findings.label_issues:
        assert findings.check is not None
        suggested, probabilities = findings.check.suggested[i], findings.check.probabilities[i]
        own, other = probabilities[findings.labels[i]], probabilities[suggested]
        names = (findings.files[i], findings.splits[i], findings.class_of(i), findings.class_names[suggested])
        rows.append((*names, *(f"{value:.6f}" for value in (own, other, own - other))))
    return _csv(columns, rows)
