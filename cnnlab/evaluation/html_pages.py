"""Pages of HTML in one file: every text escaped, pictures inside, nothing fetched from anywhere."""

import base64
import html
import io

from PIL import Image

from cnnlab.utils.text import escape_control_characters

SIDE = 160  # pixels of a picture in a page at most
SMALL = 64  # pixels, up to which every one of them is kept
# In the colours of the reader's own theme; no script, and nothing may be loaded.
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="{generator}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: color-mix(in srgb, CanvasText 25%, Canvas); }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }}
h2 {{ border-bottom: 1px solid var(--line); margin-top: 2.5rem; }}
a:focus-visible, summary:focus-visible, [tabindex]:focus-visible {{ outline: 3px solid Highlight; }}
nav a {{ margin-right: 1.2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; }}
ul.cards {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .8rem; }}
ul.cards > li {{ border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; }}
ul.cards p {{ margin: .2rem 0; font-size: .85rem; overflow-wrap: anywhere; width: 0; min-width: 100%; }}
img {{ width: 160px; height: 160px; object-fit: contain; }}
img.small {{ image-rendering: pixelated; }}
</style>
</head>
<body>
"""


def escaped(text) -> str:
    """A text for HTML, on one line, what cannot be shown written as `\\x1b`."""
    return html.escape(escape_control_characters(text))


def page(title, sections, generator) -> str:
    """A whole page.

    Args:
        title: its text.
        sections: heading to HTML.
        generator: what made it, in a tag of its head.
    """
    links = "".join(f'<a href="#part{i}">{escaped(heading)}</a>' for i, heading in enumerate(sections))
    body = "".join(
        f'<section id="part{i}">\n<h2>{escaped(heading)}</h2>\n{content}</section>\n'
        for i, (heading, content) in enumerate(sections.items())
    )
    head = HEAD.format(title=escaped(title), generator=escaped(generator))
    main = f'<main>\n<h1>{escaped(title)}</h1>\n<nav aria-label="Sections">{links}</nav>\n{body}</main>'
    return f"{head}{main}\n</body>\n</html>\n"


def paragraph(text) -> str:
    return f"<p>{escaped(text)}</p>\n"


def table(columns, rows, caption) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in columns)
    lines = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n"
    )


def folded(summary, texts) -> str:
    """A list that opens on a click or a key."""
    items = "".join(f"<li>{escaped(text)}</li>\n" for text in texts)
    return f"<details><summary>{escaped(summary)}</summary><ul>\n{items}</ul></details>\n"


def cards(groups) -> str:
    """Pictures with lines of text below, side by side.

    Args:
        groups: of each card `(pictures, lines)`, pictures being `(pixels, alt)` pairs: `(H, W, 3) uint8`, and a text.
    """
    items = "".join(
        f"<li>{''.join(picture(*one) for one in pictures)}{''.join(map(paragraph, lines))}</li>\n"
        for pictures, lines in groups
    )
    return f'<ul class="cards">\n{items}</ul>\n'


def picture(pixels, alt) -> str:
    """An image with its data inside."""
    small = " class=small" if max(pixels.shape[:2]) <= SMALL else ""
    return f'<img{small} alt="{escaped(alt)}" src="{data_uri(pixels)}">'


def data_uri(pixels, side=SIDE) -> str:
    """`(H, W, 3) uint8` as an address that holds them, at most so many pixels a side."""
    image, data = Image.fromarray(pixels), io.BytesIO()
    kind = "PNG" if max(image.size) <= SMALL else "JPEG"
    image.thumbnail((side, side))
    image.save(data, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
