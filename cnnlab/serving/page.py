"""The page at `/`: one file, without anything from elsewhere, and headers that let nothing else run in it."""

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag):
    """What Content-Security-Policy calls the page's own parts by."""
    parts = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
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
