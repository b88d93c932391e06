"""Render the findings of an audit as a page of HTML, each with its pictures (templates/audit.html)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cnnlab.data.class_folders import SPLITS
from cnnlab.evaluation import audit_report, html_pages
from cnnlab.evaluation.audit_report import Findings

MOST_SHOWN = 120  # label issues, and pairs of duplicates
MOST_CLASSES = 60  # whose strangest pictures are shown
MOST_LISTED = 200  # paths that were left out for one reason
MOST_SIZES = 8  # of pictures, most frequent first
HEADINGS = ("Summary", "Classes and sizes", "Left out", "Likely label errors", "Duplicates", "Strangest pictures")
# Pictures `(H, W, 3) uint8`, each with its alternative text, and lines of text below them.
Card: TypeAlias = tuple[Sequence[tuple[npt.NDArray[np.uint8], str]], Sequence[str]]


def audit_page(findings: Findings) -> str:
    """Render the page of an audit as HTML."""
    counts = audit_report.counts_by_split(findings)
    strange = findings.strangest()
    return html_pages.render(
        "audit.html",
        title=f"Audit of {findings.name}",
        generator=audit_report.GENERATOR,
        headings=HEADINGS,
        findings=findings,
        most_shown=MOST_SHOWN,
        class_columns=("class", *SPLITS, "do not decode"),
        class_rows=[(name, *map("{:,}".format, numbers)) for name, *numbers in counts],
        size_rows=_size_rows(findings),
        left_out=_left_out(findings),
        label_lines=audit_report.label_lines(findings),
        label_cards=_label_cards(findings),
        duplicates_line=audit_report.duplicates_line(findings),
        pair_cards=_pair_cards(findings),
        strange_classes=len(strange),
        strange_cards=[(findings.class_of(some[0]), _strange_cards(findings, some)) for some in strange[:MOST_CLASSES]],
    )


def _size_rows(findings: Findings) -> list[tuple[str, str]]:
    used = findings.sizes[findings.splits != ""]
    sizes = Counter(map(tuple, used.tolist())).most_common()
    rows = [(f"{width} x {height}", f"{count:,}") for (width, height), count in sizes[:MOST_SIZES]]
    if more := sum(count for _, count in sizes[MOST_SIZES:]):
        rows.append((f"{len(sizes) - MOST_SIZES:,} other sizes", f"{more:,}"))
    return rows


def _left_out(findings: Findings) -> list[tuple[str, list[str]]]:
    why, lists = audit_report.reasons(findings), []
    for reason, paths in findings.left_out.items():
        cut = f", {MOST_LISTED} shown, all in left_out.csv" if len(paths) > MOST_LISTED else ""
        listed = [f"{path}: {why[path]}" if path in why else path for path in paths[:MOST_LISTED]]
        lists.append((f"{reason}: {len(paths):,}{cut}", listed))
    return lists


def _label_cards(findings: Findings) -> list[Card]:
    first, cards = findings.label_issues[:MOST_SHOWN], []
    if findings.check is None or not len(first):
        return []
    for i, pixels in zip(first, findings.pixels(first), strict=True):
        order = np.argsort(-np.nan_to_num(findings.check.probabilities[i]), kind="stable")[:3].tolist()
        own, names = findings.class_of(i), [findings.class_names[label] for label in order]
        shares = [audit_report.percent(findings, i, label) for label in (int(findings.labels[i]), *order)]
        lines = (
            f"Labelled {own} ({shares[0]})",
            f"Predicted: {', '.join(f'{name} {share}' for name, share in zip(names, shares[1:], strict=True))}",
            f"{findings.files[i]} ({findings.splits[i]})",
        )
        cards.append(([(pixels, f"labelled {own}, looks like {names[0]}")], lines))
    return cards


def _pair_cards(findings: Findings) -> list[Card]:
    cards: list[Card] = []
    pairs = findings.pairs[:MOST_SHOWN]
    pixels = iter(findings.pixels(np.array([i for pair in pairs for i in (pair.first, pair.second)])) if pairs else ())
    for pair in pairs:
        both = pair.first, pair.second
        two_labels = findings.labels[pair.first] != findings.labels[pair.second]
        kind = ("Nearly the same" if pair.near else "The same pixels") + (", two labels" if two_labels else "")
        lines = (kind, *(f"{findings.class_of(i)}: {findings.files[i]} ({findings.splits[i]})" for i in both))
        cards.append(([(next(pixels), findings.class_of(i)) for i in both], lines))
    return cards


def _strange_cards(findings: Findings, positions: Sequence[int]) -> list[Card]:
    cards: list[Card] = []
    for i, pixels in zip(positions, findings.pixels(np.array(positions)), strict=True):
        lines = (f"{findings.files[i]} ({findings.splits[i]})", f"{findings.strangeness[i]:.2f}")
        cards.append(([(pixels, findings.class_of(i))], lines))
    return cards
