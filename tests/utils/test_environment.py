"""Test that docs/environment.md lists the variables that are read: pytest tests/utils/test_environment.py"""

import re
from pathlib import Path

from cnnlab.utils.environment import VARIABLES

PAGE = Path(__file__).parents[2] / "docs" / "environment.md"


def test_the_page_lists_every_variable_and_no_other_of_our_own():
    text = PAGE.read_text(encoding="utf-8")
    public = {name for name in VARIABLES if not name.startswith("_")}
    assert public - set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text)) == set()
    rows = re.findall(r"^\| `(CNNLAB_\w+)`", text, re.MULTILINE)
    assert sorted(rows) == sorted(name for name in public if name.startswith("CNNLAB_"))
