"""The page of an audit: every finding with its pictures."""

from collections import Counter

import numpy as np

from cnnlab.evaluation import audit_report, html_pages

SHOWN = 120  # suspects, and pairs of duplicates
STRANGE_CLASSES = 60
LISTED = 200  # paths that were left out for one reason
SIZES = 8  # of pictures, most frequent first


def audit_page(found) -> str:
    """The page of an `auditing.Findings`."""
    sections = {
        "Summary": "".join(map(html_pages.paragraph, found.lines)),
        "Classes and sizes": _classes(found),
        "Left out": _left_out(found),
        "Likely label errors": _suspects(found),
        "Duplicates": _pairs(found),
        "Strangest pictures": _strangest(found),
    }
    return html_pages.page(f"Audit of {found.name}", sections, audit_report.GENERATOR)


def _classes(found):
    used = found.sizes[found.part != ""]
    sizes = Counter(map(tuple, used.tolist())).most_common()
    rows = [(f"{width} x {height}", f"{count:,}") for (width, height), count in sizes[:SIZES]]
    if more := sum(count for _, count in sizes[SIZES:]):
        rows.append((f"{len(sizes) - SIZES:,} other sizes", f"{more:,}"))
    counts = [(name, *map("{:,}".format, numbers)) for name, *numbers in audit_report.counts_by_part(found)]
    return (
        html_pages.table(("class", *audit_report.SPLIT_NAMES, "do not decode"), counts, "Pictures by class and part")
        + "<h3>Sizes in pixels</h3>\n"
        + html_pages.table(("width x height", "pictures"), rows, "Sizes of the pictures")
    )


def _left_out(found):
    why = audit_report.reasons(found)
    lists = {
        reason: [f"{path}: {why[path]}" if path in why else path for path in paths]
        for reason, paths in found.left_out.items()
    }
    if not lists:
        return html_pages.paragraph("Nothing.")
    return "".join(
        html_pages.folded(
            f"{reason}: {len(paths):,}" + (f", {LISTED} shown, all in left_out.csv" if len(paths) > LISTED else ""),
            paths[:LISTED],
        )
        for reason, paths in lists.items()
    )


def _suspects(found):
    said = "".join(map(html_pages.paragraph, audit_report.check_in_words(found)))
    if found.check is None or not len(found.check.suspects):
        return said
    first = found.check.suspects[:SHOWN]
    groups = []
    for i, pixels in zip(first, found.pixels(first), strict=True):
        order = np.argsort(-np.nan_to_num(found.check.probabilities[i]), kind="stable")[:3]
        predicted = ", ".join(f"{found.class_names[label]} {audit_report.percent(found, i, label)}" for label in order)
        own = f"Labelled {found.class_of(i)} ({audit_report.percent(found, i, found.labels[i])})"
        alt = f"labelled {found.class_of(i)}, looks like {found.class_names[order[0]]}"
        groups.append(([(pixels, alt)], [own, f"Predicted: {predicted}", f"{found.files[i]} ({found.part[i]})"]))
    return said + _first_of(found.check.suspects, "label_issues.csv") + html_pages.cards(groups)


def _pairs(found):
    pairs = found.pairs[:SHOWN]
    positions = np.array([i for p in pairs for i in (p.first, p.second)], int)
    pixels = found.pixels(positions) if len(positions) else ()
    groups = []
    for number, pair in enumerate(pairs):
        both = positions[2 * number : 2 * number + 2]
        two = found.labels[both[0]] != found.labels[both[1]]
        kind = ("Nearly the same" if pair.near else "The same pixels") + (", two labels" if two else "")
        lines = [kind, *(f"{found.class_of(i)}: {found.files[i]} ({found.part[i]})" for i in both)]
        groups.append(([(pixels[2 * number + k], found.class_of(i)) for k, i in enumerate(both)], lines))
    said = html_pages.paragraph(audit_report.duplicates_in_words(found))
    return said + (_first_of(found.pairs, "duplicates.csv") + html_pages.cards(groups) if pairs else "")


def _strangest(found):
    strange = found.strange()
    if not strange:
        return html_pages.paragraph("Not known: no class has three pictures.")
    content = html_pages.paragraph(
        f"The least like the ten nearest pictures of their class, by {found.basis}; without the likely label errors. "
        "The classes with the strangest come first."
    )
    if len(strange) > STRANGE_CLASSES:
        content += html_pages.paragraph(
            f"{STRANGE_CLASSES} classes are shown, all {len(strange):,} are in strangest.csv."
        )
    for positions in strange[:STRANGE_CLASSES]:
        groups = [
            ([(pixels, found.class_of(i))], [f"{found.files[i]} ({found.part[i]})", f"{found.strangeness[i]:.2f}"])
            for i, pixels in zip(positions, found.pixels(np.array(positions)), strict=True)
        ]
        content += f"<h3>{html_pages.escaped(found.class_of(positions[0]))}</h3>\n{html_pages.cards(groups)}"
    return content


def _first_of(all_of_them, file):
    if len(all_of_them) <= SHOWN:
        return ""
    return html_pages.paragraph(f"The first {SHOWN} are shown, all {len(all_of_them):,} are in {file}.")
