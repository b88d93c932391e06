"""What an audit of a data set found, in sentences, tables and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cnnlab.evaluation import plots
from cnnlab.evaluation.label_issues import FOLDS, LabelCheck
from cnnlab.utils.text import csv_line

SPLIT_NAMES = ("train", "val", "test")
REPORT = "report.html"
GENERATOR = "cnnlab audit"
MARK = f'name="generator" content="{GENERATOR}"'  # by which an earlier report is known
FILES = (REPORT, "classes.csv", "left_out.csv", "duplicates.csv", "label_issues.csv", "strangest.csv")
SUSPECTS = "label_issues.png"
TRUSTED = 0.9  # agreement with the labels; of CIFAR-10, at 0.75, a fifth of the suspects were wrong, at first all
STRANGE = 4  # pictures a class
EXAMPLES = 5  # of the findings on the screen


@dataclass(frozen=True)
class Findings:
    """What is known of `N` pictures.

    Attributes:
        name, class_names: the data set's.
        lines: what was said of it when it was loaded.
        files, labels, part: `(N,)`; the part of a picture that is not used is "".
        sizes: `(N, 2)`, width and height.
        bad: position to why the file does not decode.
        left_out: reason to paths.
        pairs: `duplicates.DuplicatePair`s.
        duplicates: the table of them, as CSV.
        check: `LabelCheck` of all pictures that are used, or `None`.
        strangeness: `(N,)`, NaN where it is not known.
        basis: what the last two were judged by, in words.
        weak: why they say little; empty where they don't.
        pixels: from positions to `(n, H, W, 3) uint8`.
    """

    name: str
    class_names: tuple[str, ...]
    lines: tuple[str, ...]
    files: np.ndarray
    labels: np.ndarray
    part: np.ndarray
    sizes: np.ndarray
    bad: Mapping
    left_out: Mapping
    pairs: tuple
    duplicates: str
    check: LabelCheck | None
    strangeness: np.ndarray
    basis: str
    weak: str
    pixels: object

    def class_of(self, position):
        return self.class_names[self.labels[position]]

    def strange(self):
        """Positions of the strangest of each class, suspects left out as they are shown already; the strangest class
        first.
        """
        suspects = set() if self.check is None else set(self.check.suspects.tolist())
        by_class = []
        for label in range(len(self.class_names)):
            known = np.flatnonzero((self.labels == label) & ~np.isnan(self.strangeness))
            order = known[np.argsort(-self.strangeness[known], kind="stable")]
            by_class.append([i for i in order.tolist() if i not in suspects][:STRANGE])
        return sorted(filter(None, by_class), key=lambda found: -self.strangeness[found[0]])


def sentences(found: Findings) -> list[str]:
    """The findings for the screen, with a few examples of each."""
    bad, suspects = list(found.bad), () if found.check is None else found.check.suspects
    return [
        *([f"Files that do not decode: {len(bad):,}."] if bad else []),
        *(f"  {found.files[i]} ({found.bad[i]})" for i in bad[:EXAMPLES]),
        *_more(bad, "left_out.csv"),
        duplicates_in_words(found),
        *check_in_words(found),
        *(
            f"  {found.files[i]}: labelled {found.class_of(i)} ({percent(found, i, found.labels[i])}), looks like "
            f"{_suggested(found, i)}"
            for i in suspects[:EXAMPLES]
        ),
        *_more(suspects, "label_issues.csv"),
    ]


def _more(all_of_them, file):
    more = len(all_of_them) - EXAMPLES
    return [f"  and {more:,} more in {file}"] if more > 0 else []


def duplicates_in_words(found):
    same = sum(not p.near for p in found.pairs)
    labels = sum(found.labels[p.first] != found.labels[p.second] for p in found.pairs)
    parts = sum(found.part[p.first] != found.part[p.second] for p in found.pairs)
    if not found.pairs:
        return "Duplicates: none."
    return (
        f"Duplicates: {same:,} pairs of the same pixels and {len(found.pairs) - same:,} of nearly the same look; "
        f"{labels:,} of them under two labels, {parts:,} across parts."
    )


def check_in_words(found):
    if found.check is None:
        return [f"Labels: not checked, as fewer than two classes have {FOLDS} pictures."]
    said = [
        f"Labels: {len(found.check.suspects):,} of {int((~np.isnan(found.check.probabilities[:, 0])).sum()):,} are "
        f"suspected to be wrong, the surest first; predictions from {found.basis} agree with "
        f"{found.check.agreement:.1%} of all."
    ]
    if found.check.agreement < TRUSTED:
        said.append("With so little agreement, most suspects further down are pictures that are hard for this network.")
    if found.check.rare:
        names = ", ".join(found.class_names[label] for label in found.check.rare)
        said.append(f"Not checked, with fewer than {FOLDS} pictures: {names}.")
    return said + ([f"The label check is weak: {found.weak}"] if found.weak else [])


def percent(found, position, label):
    return f"{found.check.probabilities[position, label]:.0%}"


def _suggested(found, position):
    label = found.check.suggested[position]
    return f"{found.class_names[label]} ({percent(found, position, label)})"


def tables(found: Findings) -> dict[str, str]:
    """The tables as CSV, by file name."""
    return {
        "classes.csv": _csv(("class", *SPLIT_NAMES, "do_not_decode"), counts_by_part(found)),
        "left_out.csv": _csv(("file", "reason"), _left_out(found)),
        "duplicates.csv": found.duplicates,
        "label_issues.csv": _issues(found),
        "strangest.csv": _csv(
            ("file", "part", "class", "distance"),
            (
                (found.files[i], found.part[i], found.class_of(i), f"{found.strangeness[i]:.4f}")
                for positions in found.strange()
                for i in positions
            ),
        ),
    }


def metrics(found: Findings) -> dict:
    """The findings in numbers."""
    counts = {
        "pictures": int((found.part != "").sum()),
        "undecodable": len(found.bad),
        "duplicates": sum(not p.near for p in found.pairs),
        "near_duplicates": sum(p.near for p in found.pairs),
    }
    if found.check is None:
        return counts
    return {**counts, "label_issues": len(found.check.suspects), "label_agreement": found.check.agreement}


def figures(found: Findings) -> dict:
    """The most suspicious pictures, by artifact path; none where there are none."""
    if found.check is None or not len(found.check.suspects):
        return {}
    first = found.check.suspects[:24]
    captions = [f"{found.class_of(i)}?\n{_suggested(found, i)}" for i in first]
    return {SUSPECTS: plots.image_grid(found.pixels(first), captions, "Likely label errors, the most suspicious first")}


def _csv(columns, rows):
    return "".join(map(csv_line, [columns, *rows]))


def counts_by_part(found):
    bad = np.zeros(len(found.labels), bool)
    bad[list(found.bad)] = True
    for label, name in enumerate(found.class_names):
        of_class = found.labels == label
        yield name, *(int((of_class & (found.part == part)).sum()) for part in SPLIT_NAMES), int((of_class & bad).sum())


def reasons(found) -> dict:
    """Path to why a file does not decode."""
    return {found.files[i]: reason for i, reason in found.bad.items()}


def _left_out(found):
    why = reasons(found)
    for reason, paths in found.left_out.items():
        yield from ((path, f"does not decode: {why[path]}" if path in why else reason) for path in paths)


def _issues(found):
    rows, check = [], found.check
    for i in [] if check is None else check.suspects:
        own, suggested = check.probabilities[i, found.labels[i]], check.suggested[i]
        margin = own - check.probabilities[i, suggested]
        row = (found.files[i], found.part[i], found.class_of(i), found.class_names[suggested])
        rows.append((*row, f"{own:.6f}", f"{check.probabilities[i, suggested]:.6f}", f"{margin:.6f}"))
    columns = ("file", "part", "class", "suggested_class", "probability", "suggested_probability", "score")
    return _csv(columns, rows)
