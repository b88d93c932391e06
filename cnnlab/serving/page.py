"""Load the page at `/`, which is one file, and make headers that let nothing but its own script run in it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files("cnnlab.serving").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """Hash the page's own scripts or styles, as Content-Security-Policy names what it allows."""
    elements = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(element.encode()).digest()).decode() for element in elements)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
